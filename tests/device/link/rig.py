"""Two pools in this process, an owner of one, a reader of the other, and who waits for both."""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from pegaflow.core.segments.codec import page_sum
from pegaflow.device.link import Link, Outcome, Piece
from pegaflow.device.link.tcp import TcpOwner, TcpReader
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.status import Status

HOST = "127.0.0.1"
READER = Incarnation(7)
TOKEN = bytes(range(32))
LEASE = 5
PATIENCE_S = 20.0
POOL = 16 << 20


class Word:
    """What is called once, with or without a value, and can be waited for."""

    def __init__(self) -> None:
        self.calls: list[object] = []
        self._said = threading.Event()

    def __call__(self, *values: object) -> None:
        self.calls.append(values)
        self._said.set()

    @property
    def said(self) -> bool:
        return self._said.is_set()

    def wait(self) -> None:
        assert self._said.wait(PATIENCE_S), "nobody has said anything"


class Ends(Word):
    """A read's `done`."""

    def outcomes(self) -> Sequence[Outcome]:
        self.wait()
        assert len(self.calls) == 1
        found: Sequence[Outcome] = self.calls[0][0]  # type: ignore[index]
        return found

    def statuses(self) -> set[Status]:
        return {outcome.status for outcome in self.outcomes()}


def soon(seconds: float = PATIENCE_S) -> int:
    """A deadline."""
    return time.monotonic_ns() + int(seconds * 1e9)


class Pair(NamedTuple):
    """Both sides."""

    theirs: bytearray
    ours: bytearray
    owner: TcpOwner
    reader: TcpReader

    def link(self, token: bytes = TOKEN, reader: Incarnation = READER) -> Link:
        return self.reader.connect(self.owner.admit(reader, token, self.reader.ask()), token)

    def lend(self, lease: int = LEASE, reader: Incarnation = READER) -> None:
        """All of the pool."""
        self.owner.lend(lease, reader, [(0, len(self.theirs))])

    def sums(self, pieces: Sequence[Piece]) -> list[int]:
        """What the owner's ledger would have."""
        return [page_sum(memoryview(self.theirs)[p.remote : p.remote + p.bytes]) for p in pieces]

    def expected(self, pieces: Sequence[Piece]) -> bytearray:
        """Our pool, if these arrive in it and nothing else does."""
        whole = bytearray(len(self.ours))
        for piece in pieces:
            there = self.theirs[piece.remote : piece.remote + piece.bytes]
            whole[piece.local : piece.local + piece.bytes] = there
        return whole


@contextmanager
def pair(
    size: int = POOL, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None
) -> Iterator[Pair]:
    """A full pool and an empty one; nothing of either side is left behind."""
    before, threads = descriptors(), set(threading.enumerate())
    theirs, ours = bytearray(random.Random(1).randbytes(size)), bytearray(size)
    owner = TcpOwner(memoryview(theirs), (HOST, 0), tls=tls and tls[0])
    reader = TcpReader(memoryview(ours), tls=tls and tls[1])
    try:
        yield Pair(theirs, ours, owner, reader)
    finally:
        reader.close()
        owner.close()
    for thread in set(threading.enumerate()) - threads:
        thread.join(PATIENCE_S)  # one that has just said its last word
        assert not thread.is_alive()
    assert descriptors() == before


def descriptors() -> int:
    """Open in this process."""
    return len(list(Path("/proc/self/fd").iterdir()))


def pieces(seed: int, *, sizes: Sequence[int], room: int = POOL) -> list[Piece]:
    """Pieces of these sizes at places of chance, no two of which overlap, with room around them."""
    chance = random.Random(seed)
    order = list(range(len(sizes)))
    chance.shuffle(order)
    gaps = sorted(chance.randrange(room - sum(sizes) + 1) for _ in sizes)
    local, at = [0] * len(sizes), 0
    for gap, place in zip(gaps, order, strict=True):
        local[place] = gap + at
        at += sizes[place]
    return [
        Piece(chance.randrange(room - size + 1), here, size)
        for here, size in zip(local, sizes, strict=True)
    ]
