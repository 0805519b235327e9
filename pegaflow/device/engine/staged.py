"""The session's side of a staged save: its bounce file, and the copy from there into the pool."""

import mmap

import numpy as np
import numpy.typing as npt

from pegaflow.core.pool.fingerprints import U64
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

    def fill(self, pool: mmap.mmap, slots: U64, offsets: U64, length: int) -> None:
        """Copy slots into the pool, neighbours that go to neighbours at once; numpy releases the
        GIL meanwhile.

        Args:
            pool: the pool's mapping, writable.
            slots: their numbers.
            offsets: byte of the pool to which each slot goes.
            length: bytes of each slot that mean something.
        """
        target, starts = _bytes(pool), slots * np.uint64(self.page_size)
        joined = (np.diff(starts) == length) & (np.diff(offsets) == length)
        firsts = np.concatenate(([0], np.flatnonzero(~joined) + 1))
        sizes = np.diff(firsts, append=len(slots)) * length
        pieces = starts[firsts].tolist(), offsets[firsts].tolist(), sizes.tolist()
        for start, offset, size in zip(*pieces, strict=True):
            target[offset : offset + size] = self._bytes[start : start + size]


def _bytes(mapped: mmap.mmap) -> npt.NDArray[np.uint8]:
    return np.frombuffer(mapped, dtype=np.uint8)
