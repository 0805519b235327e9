"""A service and an engine on a GPU that is not there: tests/fakes/cuda.py.

The engine is the process of the test; the session is a process of the service, as ever.
"""

import os
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import pytest

from pegaflow.client import Client, GpuBuffers, export
from pegaflow.client.buffers import Bytes
from pegaflow.wire.layout import LayerLayout, Layout, pieces
from tests.fakes import cuda
from tests.fakes.driver import Driver
from tests.fakes.engines import SITE
from tests.fakes.vmm import Segment

from .service import PATIENCE_S, Filled, Service

BLOCKS, LAYERS, RUN = 16, 4, 8192
BEFORE = 4096  # of the allocation, that is somebody else's
PIECE = 5 * 4096  # of memory in pieces: runs of bytes cross their borders


def host(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let this process and its children have GPUs."""
    shared = folder / "gpus"
    shared.mkdir()
    patch.setenv("FAKE_CUDA", str(shared))
    paths = [str(SITE), os.getcwd(), os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))


class Copier:
    """Copies blocks in the engine's process."""

    def __init__(self, engine: "GpuEngine") -> None:
        self.engine = engine

    def wait(self, deadline: int) -> bool:
        cuda.setDevice(self.engine.device)
        cuda.eventSynchronize(self.engine.event)
        return True

    def load(self, page: Bytes, block: int) -> None:
        for _, start, size, at in pieces(self.engine.layout, block):
            self.engine.memory[start : start + size] = page[at : at + size]

    def save(self, page: Bytes, block: int) -> None:
        for _, start, size, at in pieces(self.engine.layout, block):
            page[at : at + size] = self.engine.memory[start : start + size]


class GpuEngine(Filled):
    """Keys and values of all layers in planes of one allocation, after something else in it.

    Args:
        pieces: whether it lies in pieces, as of expandable segments.
        copier: whether its client can copy where no session may.
    """

    def __init__(
        self,
        service: Service,
        name: str,
        *,
        device: int = 0,
        pieces: bool = False,
        copier: bool = False,
    ) -> None:
        cuda.setDevice(device)
        self.name, self.device = name, device
        planes, plane = 2 * LAYERS, BLOCKS * RUN
        self.bytes = planes * plane
        total = BEFORE + self.bytes + BEFORE
        self.segment = Segment(-(-total // PIECE), PIECE, device) if pieces else None
        self.base = self.segment.address if self.segment else cuda.malloc(total)
        self.stream = cuda.streamCreateWithFlags(1)
        self.event = cuda.eventCreateWithFlags(2)
        self.layout = Layout(
            BLOCKS,
            tuple(
                LayerLayout(0, layer * 2 * plane, RUN, RUN, segments=2, segment_stride=plane)
                for layer in range(LAYERS)
            ),
            "uint8",
            "gpu",
        )
        self.memory = cuda.memory(self.base + BEFORE, self.bytes)
        self.view = self.memory.reshape(planes, BLOCKS, RUN)
        self.client = Client(name, b"tests" * 4, endpoint=service.endpoint)
        self.client.register(
            self.layout, replace(self.named(), copier=Copier(self) if copier else None)
        )
        self.record()

    def named(self) -> GpuBuffers:
        """What its client registers."""
        event = cuda.ipcGetEventHandle(self.event)
        return export([(self.base + BEFORE, self.bytes)], event, Driver())

    def record(self) -> None:
        """Everything that was launched before has to be done before a copy."""
        cuda.setDevice(self.device)
        cuda.eventRecord(self.event, self.stream)

    def free(self) -> None:
        """As an engine does after its goodbye: an error if somebody has it open."""
        cuda.setDevice(self.device)
        if self.segment is not None:
            self.segment.sleep()
        else:
            cuda.free(self.base)

    def __enter__(self) -> "GpuEngine":
        assert self.client.connect(PATIENCE_S), self.client.refusal
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.client.close()
