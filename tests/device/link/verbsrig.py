"""Hosts that read from each other by RDMA, in one process: on the fake, or on real devices."""

from __future__ import annotations

import mmap
import random
import threading
import time
from collections.abc import Sequence

import numpy as np

from pegaflow.core.segments.codec import page_sum
from pegaflow.device.link import Outcome, Piece
from pegaflow.device.link.verbs import RegisteredPool, VerbsOwner, VerbsReader, open_nics
from pegaflow.device.link.verbs_link import VerbsLink
from pegaflow.wire.identities import Incarnation

MIB = 1 << 20
TOKEN = bytes(32)
PATIENCE_S = 30.0  # how long a test waits for what must happen


class Host:
    """A pool with its owner and reader, on devices with these names."""

    def __init__(
        self,
        *names: str,
        length: int = 8 * MIB,
        there: int | None = None,
        chunk: int = 2 * MIB,
        spread: tuple[int, tuple[int, ...]] = (MIB, ()),
    ) -> None:
        self.memory = mmap.mmap(-1, length)
        self.view = memoryview(self.memory)
        self.pool = RegisteredPool(self.view, open_nics(names), chunk=chunk, spread=spread)
        self.owner, self.reader = VerbsOwner(self.pool), VerbsReader(self.pool)
        self.register(length if there is None else there)

    def register(self, end: int) -> list[int]:
        return list(self.pool.register(end))

    def fill(self, seed: int) -> None:
        self.view[:] = np.random.default_rng(seed).bytes(len(self.view))

    def link(self, owner: Host, name: int = 1) -> VerbsLink:
        offer = owner.owner.admit(Incarnation(name), TOKEN, self.reader.ask())
        return self.reader.connect(offer, TOKEN)

    def close(self) -> None:
        self.reader.close()
        self.owner.close()
        self.pool.close()
        self.view.release()
        self.memory.close()


class Read:
    """A read that was started; `outcomes` waits for it."""

    def __init__(self, link: VerbsLink, pieces: Sequence[Piece], seconds: float = 20.0) -> None:
        self._over = threading.Event()
        self._outcomes: list[Outcome] = []
        self.calls = 0
        link.read(1, pieces, self._done, time.monotonic_ns() + int(seconds * 1e9))

    def _done(self, outcomes: Sequence[Outcome]) -> None:
        self.calls += 1
        self._outcomes = list(outcomes)
        self._over.set()

    @property
    def over(self) -> bool:
        return self._over.is_set()

    def outcomes(self) -> list[Outcome]:
        assert self._over.wait(PATIENCE_S), "a read that never ends"
        return self._outcomes


def scattered(owner: Host, size: int, count: int, seed: int = 1) -> list[Piece]:
    """Pieces from all over the owner's pool, to places in another order, with their checksums."""
    dice = random.Random(seed)
    places = dice.sample(range(len(owner.view) // size), count)
    return [
        Piece(place * size, n * size, size, page_sum(owner.view[place * size : (place + 1) * size]))
        for n, place in enumerate(places)
    ]


def same(owner: Host, reader: Host, pieces: Sequence[Piece]) -> bool:
    """Whether the bytes are there."""
    return all(
        reader.view[p.local : p.local + p.bytes] == owner.view[p.remote : p.remote + p.bytes]
        for p in pieces
    )
