"""A read, cut into what one request asks for, and what has become of it.  Pure.

Pieces that follow one another go into one batch, as many as make a request worth its way, and
few enough that all streams have something to do.  A batch is whole or failed; it may be given
to one stream after another, never to two at once.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

from pegaflow.core.limits import MIB
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Count

from . import STREAMS, Done, Outcome, Piece
from .tcpframes import BATCH_BYTES, BATCH_PIECES, PIECE_BYTES

SHARE_BYTES: Bytes = MIB
"""A stream is given no less than this of a read, if there is so much: to wake a thread for less
costs more than it gains."""

TRIES: Count = 2
"""Streams that one batch may cost: what two have broken at is no accident of theirs."""


class Read:
    """One read, until its last batch has ended."""

    def __init__(self, lease: int, pieces: Sequence[Piece], done: Done, deadline: int) -> None:
        self.lease = lease
        self.deadline = deadline
        self.expired = False  # it is past the deadline, and what is under way was cut off
        self.outcomes = [Outcome(Status.EXPIRED)] * len(pieces)
        self.left = 0  # batches that have not ended
        self._done = done
        self._pieces = pieces

    def cut(self) -> "deque[Batch]":
        """All its batches."""
        share = sum(piece.bytes for piece in self._pieces) // STREAMS
        goal = min(max(share, SHARE_BYTES), BATCH_BYTES)
        batches: deque[Batch] = deque()
        first = size = 0
        for at, piece in enumerate(self._pieces):
            if at > first and (size + piece.bytes > goal or at - first == BATCH_PIECES):
                batches.append(Batch(self, first, self._pieces[first:at]))
                first, size = at, 0
            size += piece.bytes
        batches.append(Batch(self, first, self._pieces[first:]))
        self.left = len(batches)
        return batches

    def end(self) -> None:
        """Tell whoever waits."""
        self._done(self.outcomes)


class Batch:
    """Pieces that one request asks for."""

    __slots__ = ("first", "pieces", "read", "tries")

    def __init__(self, read: Read, first: int, pieces: Sequence[Piece]) -> None:
        self.read = read
        self.first = first  # its place in the read
        self.pieces = pieces
        self.tries = 0  # streams that have broken with it

    @property
    def sums(self) -> bool:
        """Whether the owner has to make checksums."""
        return any(piece.sum is None for piece in self.pieces)

    def end(self, outcomes: Iterable[Outcome]) -> bool:
        """This has become of its pieces; whether it was the read's last."""
        read = self.read
        read.outcomes[self.first : self.first + len(self.pieces)] = outcomes
        read.left -= 1
        return not read.left

    def fail(self, status: Status) -> bool:
        """Nothing has; whether it was the read's last."""
        return self.end([Outcome(status)] * len(self.pieces))


class Waiting:
    """Batches that no stream has: reads take turns, so that a short one never waits for all of a
    long one."""

    def __init__(self) -> None:
        self._turns: deque[deque[Batch]] = deque()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, batches: "deque[Batch]", *, first: bool = False) -> None:
        """These wait.

        Args:
            batches: of one read; owned from now on.
            first: they have waited before.
        """
        self._count += len(batches)
        if first:
            self._turns.appendleft(batches)
        else:
            self._turns.append(batches)

    def take(self) -> Batch:
        """The next."""
        batches = self._turns.popleft()
        batch = batches.popleft()
        if batches:
            self._turns.append(batches)
        self._count -= 1
        return batch

    def drop(self, read: Read | None = None) -> Iterator[Batch]:
        """Those of one read, or all, which wait no more."""
        turns, self._turns = self._turns, deque()
        for batches in turns:
            if read is None or batches[0].read is read:
                self._count -= len(batches)
                yield from batches
            else:
                self._turns.append(batches)


def check(pieces: Sequence[Piece], pool_bytes: int) -> None:
    """Whether these can be asked for.

    Raises:
        ValueError: there is none, or one is not within our pool, or has no size that can be asked.
    """
    if not pieces:
        raise ValueError("a read of nothing")
    for remote, local, size, _ in pieces:
        if not 0 < size <= PIECE_BYTES:
            raise ValueError(f"a piece of {size} bytes")
        if remote < 0 or local < 0 or local + size > pool_bytes:
            raise ValueError(f"{size} bytes at {local} are not of our pool")
