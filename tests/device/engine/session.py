"""A session's process as the tests of its lanes have it: a pool, and copies that are waited for."""

import ctypes
import mmap
import queue
from dataclasses import replace

import numpy as np

from pegaflow.device.engine.cuda_ipc import Gpus, Opened
from pegaflow.wire.gpu import Backend
from pegaflow.wire.jobs import Result
from pegaflow.wire.layout import LayerLayout, Layout
from tests.fakes import cuda
from tests.fakes.engines import Foreign

BLOCKS, RUN, PAGE = 8, 512, 4096
PLANE = BLOCKS * RUN
LAYOUT = Layout(
    BLOCKS,
    tuple(
        LayerLayout(0, n * 2 * PLANE, RUN, RUN, segments=2, segment_stride=PLANE) for n in (0, 1)
    ),
    "uint8",
)
NEVER = 1 << 62
IDS = np.array([5, 0, 3], np.uint64)
OFFSETS = np.array([2, 0, 1], np.uint64) * np.uint64(PAGE)


class Session:
    """A session's process: its pool, and copies that are waited for."""

    def __init__(self) -> None:
        self.map = mmap.mmap(-1, 16 * PAGE)
        self.pool = np.frombuffer(self.map, np.uint8)
        self.gpus = Gpus(ctypes.addressof(ctypes.c_char.from_buffer(self.map)))
        self.ends: queue.SimpleQueue[Result] = queue.SimpleQueue()

    def open(
        self, engine: Foreign, layout: Layout = LAYOUT, backend: Backend = Backend.DIRECT
    ) -> Opened:
        opened = self.gpus.open(replace(engine.named(0), backend=backend), layout)
        cuda.machine().calls.clear()  # of the proof
        cuda.machine().unpinned = 0
        return opened

    def pin(self) -> None:
        self.gpus.pin(0, len(self.map))

    def read(self, opened: Opened, deadline: int = NEVER) -> None:
        opened.read(IDS, OFFSETS, deadline, self.ends.put)

    def write(self, opened: Opened, deadline: int = NEVER, differ: Result | None = None) -> None:
        opened.write(IDS, OFFSETS, deadline, self.ends.put, check=lambda: differ)

    def ended(self) -> Result:
        return self.ends.get(timeout=20)

    def pages(self) -> list[bytes]:
        return [self.pool[int(at) : int(at) + 4 * RUN].tobytes() for at in OFFSETS]


def blocks(engine: Foreign) -> list[bytes]:
    """What is in IDS, layer by layer, keys before values."""
    view = engine.bytes.reshape(4, BLOCKS, RUN)
    return [view[:, int(block)].tobytes() for block in IDS]
