"""Pinned memory of our own, used as a ring; and which of the pool is pinned itself.

A device reads and writes the pool by itself where the pool is registered with the driver.  That is
done in the background, and a host may refuse it (`ulimit -l`).  Copies of pages that are not
registered go through a ring: of a load, the lane's thread copies pages into it, and the device
takes them from there; of a save, the device fills it, and the thread that has seen the end of that
copies into the pages.  Only then is the save's part over, so no page is sealed before its bytes are
in it; and whatever the device still writes when the process is killed, it writes into memory of
this process, which nobody reads.

What is taken of a ring comes back in the same order, when the device is done with it: one thread
takes, another gives.
"""

import ctypes
import threading
from bisect import bisect_right
from collections import deque

import numpy as np
import numpy.typing as npt

from pegaflow.core.pool.fingerprints import U64
from pegaflow.wire.units import Bytes

from . import cuda
from .cuda import Runtime

RING_BYTES: Bytes = 64 << 20
"""Of each lane, from the first copy on that needs it: eight parts (PART_BYTES of lanes.py), so that
the device and the threads that copy do not wait for each other; a host with eight devices pins a
GiB."""


class Ring:
    """Memory of which parts are taken and given back in one order.

    Args:
        address: of `capacity` bytes.
    """

    def __init__(self, address: int, capacity: int) -> None:
        self.address, self.capacity = address, capacity
        self._at = 0  # where the next part begins
        self._free = capacity
        self._taken: deque[int] = deque()  # bytes, with what is unused behind them
        self._changed = threading.Condition()

    def take(self, size: int) -> int:
        """Where `size` bytes in a row are free; waits until there are some."""
        assert 0 < size <= self.capacity
        with self._changed:
            while True:
                if not self._taken:
                    self._at = 0
                left = self.capacity - self._at
                skipped = left if left < size else 0
                if skipped + size <= self._free:
                    break
                self._changed.wait()
            at = (self._at + skipped) % self.capacity
            self._at = at + size
            self._free -= skipped + size
            if skipped:
                self._taken[-1] += skipped
            self._taken.append(size)
            return at

    def give(self) -> None:
        """What was taken first is free."""
        with self._changed:
            self._free += self._taken.popleft()
            self._changed.notify()

    def write(self, at: int, words: npt.NDArray[np.uint64]) -> None:
        """Put words into a part that is taken."""
        ctypes.memmove(self.address + at, words.ctypes.data, words.nbytes)


def pinned_ring(runtime: Runtime, capacity: int) -> Ring:
    """A ring that all devices reach under its address; raises what the runtime does."""
    return Ring(runtime.hostAlloc(capacity, cuda.PORTABLE | cuda.MAPPED), capacity)


class Registered:
    """Which parts of the pool are registered with the driver; for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._starts: tuple[int, ...] = ()  # of parts, ascending
        self._ends: tuple[int, ...] = ()

    def add(self, offset: int, length: int) -> None:
        """A part of the pool is registered."""
        with self._lock:
            at = bisect_right(self._starts, offset)
            starts, ends = list(self._starts), list(self._ends)
            starts.insert(at, offset)
            ends.insert(at, offset + length)
            self._starts, self._ends = tuple(starts), tuple(ends)

    def hold(self, offsets: U64, length: int) -> npt.NDArray[np.bool_]:
        """Of pages of this length, which lie within one part."""
        with self._lock:
            starts, ends = np.array(self._starts, np.uint64), np.array(self._ends, np.uint64)
        if not len(starts):
            return np.zeros(len(offsets), np.bool_)
        part = np.searchsorted(starts, offsets, "right") - 1
        held: npt.NDArray[np.bool_] = (part >= 0) & (offsets + np.uint64(length) <= ends[part])
        return held
