"""The session's side of a staged save: its bounce file, and the copy from there into the pool."""

import mmap

import numpy as np
import numpy.typing as npt

from pegaflow.device import locks
from pegaflow.device.memory import SharedFile


class Bounce:
    """A file of equal slots that the client writes and the session reads.

    The session holds its lock, so nobody takes it for a leftover; once the session's process is
    dead its supervisor, or whoever starts next, unlinks it.

    Args:
        path: of the new file.
        slots: how many.
        page_size: bytes of each.

    Raises:
        FileExistsError: the name is taken.
        UserError: the file cannot be made.
    """

    def __init__(self, path: str, slots: int, page_size: int) -> None:
        self.file = SharedFile.create(path, slots * page_size)
        locks.take(self.file.fd)
        self.page_size = page_size
        self._bytes = _bytes(self.file.map)

    def reserve(self) -> str:
        """Make all slots really there; '' or the reason why not."""
        return self.file.reserve(0, self.file.length)

    def fill(
        self, pool: mmap.mmap, slots: tuple[int, ...], offsets: tuple[int, ...], length: int
    ) -> None:
        """Copy slots into the pool; numpy releases the GIL meanwhile.

        Args:
            pool: the pool's mapping, writable.
            slots: their numbers.
            offsets: byte of the pool to which each slot goes.
            length: bytes of each slot that mean something.
        """
        target = _bytes(pool)
        for slot, offset in zip(slots, offsets, strict=True):
            start = slot * self.page_size
            target[offset : offset + length] = self._bytes[start : start + length]


def _bytes(mapped: mmap.mmap) -> npt.NDArray[np.uint8]:
    return np.frombuffer(mapped, dtype=np.uint8)
