"""What our host has, for those who follow it: the word of the index to the peer process.

A peer process that says Around for the first time, or has missed a part, hears of all blocks, some
records of the ledger in each turn, and of what comes and goes meanwhile.  What comes and goes is
gathered for HOLD_NS and said at once: of a block only what has happened last.  What is said twice
does no harm, for it is what is, not what has changed.
"""

import numpy as np

from pegaflow.actors.index.residency import Residency
from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.runtime.contract import MS, Effect, Part, Send
from pegaflow.core.pool.columns import distinct
from pegaflow.core.pool.fingerprints import U64, fold
from pegaflow.core.pool.scan import by_namespace, scan
from pegaflow.wire.identities import Namespace, PageId
from pegaflow.wire.peer import PART_BLOCKS, Cut, Holding
from pegaflow.wire.units import Count, Nanoseconds
from pegaflow.wire.values import NOBODY, Address

STEP_RECORDS: Count = 4096
"""Records looked at in one turn: a few milliseconds, in which nothing else is answered."""

HOLD_NS: Nanoseconds = 20 * MS
"""News waits so long for more: the blocks of one save are said together."""


class HoldingNews(Part):
    """Tells the peer process which blocks are in memory."""

    def __init__(self, recovery: Recovery, residency: Residency) -> None:
        self._recovery, self._residency = recovery, residency
        self._peer = NOBODY  # who listens
        self._number = 0  # of the newest part
        self._next: PageId | None = None  # records before this one are said; None: all are
        self._cuts: dict[Namespace, Cut] = {}  # those that are said,
        self._new: list[Cut] = []  # and those that are to be
        self._news: list[tuple[U64, bool]] = []  # what came (True) and went, in this order
        self._due_ns: int | None = None  # when to say it

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """Nobody listens."""
        if dead == self._peer:
            self._peer, self._next, self._due_ns, self._news = NOBODY, None, None, []
            self._residency.watch = None
        return []

    def wake_at(self) -> int | None:
        """At once while there are records to say, or news whose time is not set yet."""
        if self._next is not None and self._recovery.ready:
            return 0
        return 0 if self._news and self._due_ns is None else self._due_ns

    def wake(self, now: int) -> list[Effect]:
        """Say some more."""
        if self._next is not None and self._recovery.ready:
            self._step()
            return self._say()
        if self._news and self._due_ns is None:
            self._due_ns = now + HOLD_NS
        return self._say() if self._due_ns is not None and now >= self._due_ns else []

    def listen(self, peer: Address, anew: bool) -> None:
        """The peer process is there.

        Args:
            anew: it wants to hear all again.
        """
        if peer != self._peer or anew:
            self._peer, self._number, self._next = peer, 0, PageId(0)
            self._cuts, self._new, self._news, self._due_ns = {}, [], [], None
            self._residency.watch = self

    def came(self, namespace: Namespace, payload_bytes: int, shards: int, names: U64) -> None:
        """Blocks are resident now.

        Args:
            names: their fingerprints.
        """
        if namespace not in self._cuts:
            self._cuts[namespace] = Cut(namespace, payload_bytes, shards)
            self._new.append(self._cuts[namespace])
        self._add(names, True)

    def went(self, names: U64) -> None:
        """Blocks are not."""
        self._add(names, False)

    def check(self) -> None:
        """What nobody hears is not kept."""
        assert self._peer != NOBODY or not self._news

    def _add(self, names: U64, came: bool) -> None:
        if len(names):
            self._news.append((names, came))

    def _step(self) -> None:
        """Look at some records more."""
        ledger = self._residency.ledger
        assert self._next is not None
        first, count = self._next, min(STEP_RECORDS, ledger.records - self._next)
        chunk = scan(ledger, first, count)
        self._next = PageId(first + count) if first + count < ledger.records else None
        rows = chunk.rows[chunk.rows["shard"] == 0]
        for namespace, here, hashes in by_namespace(rows):
            some = rows[here]
            for size in distinct(some["payload_bytes"]).tolist():
                for shards in distinct(some["shards"][some["payload_bytes"] == size]).tolist():
                    alike = (some["payload_bytes"] == size) & (some["shards"] == shards)
                    self.came(namespace, size, shards, fold(namespace, hashes[alike]))

    def _say(self) -> list[Effect]:
        """All news, in parts."""
        news, cuts = self._news, tuple(self._new)
        self._news, self._new, self._due_ns = [], [], None
        added, removed = net(news)
        parts = max(1, -(-max(len(added), len(removed)) // PART_BLOCKS))
        effects: list[Effect] = []
        for at in range(0, parts * PART_BLOCKS, PART_BLOCKS):
            self._number += 1
            part = Holding(
                self._number,
                first=self._number == 1,
                whole=self._next is None,
                cuts=cuts if at == 0 else (),
                added=tuple(added[at : at + PART_BLOCKS].tolist()),
                removed=tuple(removed[at : at + PART_BLOCKS].tolist()),
            )
            effects.append(Send(self._peer, part))
        return effects


def net(news: list[tuple[U64, bool]]) -> tuple[U64, U64]:
    """What came and what went, by what has happened to each last.

    Args:
        news: fingerprints, and whether they came, the oldest first.

    Returns:
        Fingerprints of what is there now, and of what is not.
    """
    if not news:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint64)
    names = np.concatenate([names for names, _ in news])[::-1]
    came = np.repeat([came for _, came in news], [len(names) for names, _ in news])[::-1]
    names, last = np.unique(names, return_index=True)
    there = came[last]
    return names[there], names[~there]
