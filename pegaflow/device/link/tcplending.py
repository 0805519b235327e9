"""What is lent to whom, and who is being sent bytes of it: the owner's book.

A stream that is about to read the pool for a reader says so (`begin`) and, when the bytes are in
the kernel's hands, says that too (`end`).  A lease that is recalled is refused from then on; it
comes back with the last stream that still reads under it.
"""

import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from pegaflow.wire.identities import Incarnation
from pegaflow.wire.units import Constant

from . import RECALL_S, Extent

_S = TypeVar("_S")

NS: Constant = 1_000_000_000
"""In a second."""


class NotLentError(Exception):
    """Bytes were asked for that are not of the lease: whoever asks knows better, or should."""


class _Lease(Generic[_S]):
    """What one reader may read until it is recalled."""

    def __init__(self, reader: Incarnation, extents: Sequence[Extent]) -> None:
        self.reader = reader
        self.starts: list[int] = []
        self.ends: list[int] = []
        for start, size in sorted(extents):
            if self.ends and start <= self.ends[-1]:
                self.ends[-1] = max(self.ends[-1], start + size)
            else:
                self.starts.append(start)
                self.ends.append(start + size)
        self.users: list[_S] = []  # a stream is in it once for each request that it serves
        self.backs: list[Callable[[], None]] = []  # called when the last user is gone
        self.due = 0  # when whoever still uses it is cut off; 0: it is lent

    def has(self, places: Sequence[Extent]) -> bool:
        """Whether all of these are within."""
        for start, size in places:
            at = bisect_right(self.starts, start) - 1
            if at < 0 or start + size > self.ends[at]:
                return False
        return True


class Lending(Generic[_S]):
    """All leases of an owner.

    Args:
        pool_bytes: of its pool.
    """

    def __init__(self, pool_bytes: int) -> None:
        self._pool_bytes = pool_bytes
        self._leases: dict[int, _Lease[_S]] = {}
        self._lock = threading.Lock()

    def lend(self, lease: int, reader: Incarnation, extents: Sequence[Extent]) -> None:
        """See `Owner.lend`."""
        for start, size in extents:
            if start < 0 or size <= 0 or start + size > self._pool_bytes:
                raise ValueError(f"{size} bytes at {start} are not of the pool")
        with self._lock:
            if lease in self._leases:
                raise ValueError(f"lease {lease} is lent")
            self._leases[lease] = _Lease(reader, extents)

    def recall(self, lease: int, back: Callable[[], None]) -> bool:
        """See `Owner.recall`.

        Returns:
            Whether somebody still reads, who is to be cut off in time.
        """
        with self._lock:
            found = self._leases.get(lease)
            if found is not None and found.users:
                found.backs.append(back)
                found.due = found.due or time.monotonic_ns() + int(RECALL_S * NS)
                return True
            self._leases.pop(lease, None)
        back()
        return False

    def begin(self, lease: int, reader: Incarnation, places: Sequence[Extent], user: _S) -> bool:
        """A stream is about to read the pool.

        Args:
            user: the stream; `end` follows.

        Returns:
            Whether it may: a lease that is not lent may have been recalled on the way.

        Raises:
            NotLentError: the lease is another reader's, or has not all of these bytes.
        """
        with self._lock:
            found = self._leases.get(lease)
            if found is None or found.due:
                return False
            if found.reader != reader or not found.has(places):
                raise NotLentError(f"lease {lease} has not all of what is asked for")
            found.users.append(user)
            return True

    def end(self, lease: int, user: _S) -> None:
        """It reads no more."""
        with self._lock:
            found = self._leases[lease]
            found.users.remove(user)
            if found.users or not found.due:
                return
            del self._leases[lease]
        for back in found.backs:
            back()

    def overdue(self) -> tuple[list[_S], int | None]:
        """Who reads on though the time is up, and when somebody else's time will be."""
        now = time.monotonic_ns()
        with self._lock:
            recalled = [lease for lease in self._leases.values() if lease.due]
            late = [user for lease in recalled if lease.due <= now for user in lease.users]
            return late, min((lease.due for lease in recalled if lease.due > now), default=None)
