"""GPU memory as a session sees it, made by another process that only has to live: our parent."""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from pegaflow.wire.gpu import GpuMemory, GpuRegion

from . import cuda, gpus

SITE = Path(__file__).with_name("site")


def fresh(folder: Path, patch: pytest.MonkeyPatch, **environment: str) -> None:
    """This process has GPUs of its own, and nothing of them yet."""
    patch.setenv("FAKE_CUDA", str(folder))
    for name, value in environment.items():
        patch.setenv(name, value)
    patch.syspath_prepend(str(SITE))
    patch.setattr(cuda, "_machine", None)


class Foreign:
    """An allocation and an event of another process.

    Args:
        size: bytes of the allocation.
        device: that it is on.
    """

    def __init__(self, size: int, device: int = 0, *, before: int = 0) -> None:
        name = f"{device}.{os.getppid()}.{secrets.token_hex(6)}"
        self.device, self.before = device, before
        self.allocation = gpus.Shared(f"mem.{name}", before + size)
        self.event = gpus.Shared(f"event.{name}", 0)
        self.allocation.words[gpus.LIVE] = self.event.words[gpus.LIVE] = 1
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(self.allocation.map, np.uint8)
        self.bytes = self.bytes[gpus.HEAD + before :]

    def named(self, *offsets: int) -> GpuMemory:
        """What its engine says of it: a region at each offset."""
        handle = self.allocation.name.encode().ljust(64, b"\0")
        event = self.event.name.encode().ljust(64, b"\0")
        regions = tuple(GpuRegion(handle, self.before + offset) for offset in offsets)
        return GpuMemory(gpus.BUSES[self.device].lower(), gpus.UUIDS[self.device], regions, event)

    def launch(self) -> None:
        """A kernel that the event stands behind has begun."""
        self.event.words[gpus.RECORDED] += np.uint64(1)

    def finish(self) -> None:
        """All of them are done."""
        self.event.words[gpus.DONE] = self.event.words[gpus.RECORDED]

    def free(self) -> None:
        """It is gone, whoever has it open."""
        self.allocation.words[gpus.LIVE] = 0

    @property
    def users(self) -> Iterator[str]:
        """Who has it open."""
        return (str(pid) for pid in self.allocation.elsewhere())
