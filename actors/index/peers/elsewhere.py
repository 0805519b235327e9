"""Who else has which block, and what readers of the table are told of it.

The picture is a table from fingerprints to masks of hosts (core/directory/held.py), made when a
peer process has said how many hosts there may be.  The filter beside the ledger's table
(core/pool/tierfilter.py) counts each block that some host has, once.

A host that is gone is not shown from then on; its blocks are taken out some at a time, since there
may be a million of them, and at once if another host comes to its slot before that is done.
"""

from collections import deque
from collections.abc import Iterator

import numpy as np

from pegaflow.actors.index.tiers import Pool
from pegaflow.core.directory.held import LAST_NAME, Held
from pegaflow.core.pool.columns import among, column, distinct
from pegaflow.core.pool.fingerprints import U64
from pegaflow.wire.peer import ALL, Elsewhere
from pegaflow.wire.units import Count

EACH_MAX: Count = 1 << 21
"""Blocks of one host: 32 GiB in pages of 16 KiB, and a terabyte in pages of half a megabyte."""

STEP_NAMES: Count = 1 << 14
"""Blocks taken out in one turn: a few milliseconds, in which nothing else is answered."""


class Elsewheres:
    """The picture of all other hosts."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._held: Held | None = None  # from the first Around on
        self._gone: dict[int, int] = {}  # slots that are being emptied: next fingerprint
        self._waiting: deque[Elsewhere] = deque()  # until the table has room for the first

    def __len__(self) -> int:
        """Different blocks, those of hosts that are being forgotten among them."""
        return len(self._held) if self._held is not None else 0

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return bool(self._gone or self._waiting)

    def begin(self, hosts: int) -> None:
        """There may be so many hosts."""
        if hosts and (self._held is None or self._held.hosts < hosts):
            self.clear()
            self._held = Held(hosts, EACH_MAX)

    def owners_of(self, names: U64) -> U64:
        """Which hosts may have each of these, a bit for each slot."""
        if self._held is None:
            return np.zeros(len(names), np.uint64)
        shown = LAST_NAME ^ sum(1 << slot for slot in self._gone)
        owners: U64 = self._held.owners_of(names) & np.uint64(shown)
        return owners

    def told(self, msg: Elsewhere) -> None:
        """A host's word, at once or in its turn; of a slot that there is not it is nobody's."""
        if self._held is None or msg.slot >= self._held.hosts:
            return
        if self._waiting or not self._take(msg):
            self._waiting.append(msg)

    def _take(self, msg: Elsewhere) -> bool:
        """Put it into the picture; False: the table has to grow first."""
        assert self._held is not None
        added, removed = distinct(column(msg.added)), distinct(column(msg.removed))
        if (msg.first, msg.last) == ALL and not len(added):
            self._gone.setdefault(msg.slot, 0)
            return True
        while msg.slot in self._gone:
            self._empty(msg.slot)
        if msg.first <= msg.last:
            if not self._held.expect(msg.slot, msg.blocks):
                return False
            before = self._between(msg.slot, msg.first, msg.last)
            self._remove(msg.slot, before[~among(before, added)])
            if msg.last == LAST_NAME:
                self._held.expect(msg.slot, 0)
        self._add(msg.slot, added)
        self._remove(msg.slot, removed)
        return True

    def step(self) -> None:
        """Make room for what waits and take it, or take out some blocks of hosts that are gone."""
        if self._waiting and self._held is not None:
            if self._held.busy:
                self._held.step()
            elif self._take(self._waiting[0]):
                self._waiting.popleft()
        elif self._gone:
            self._empty(next(iter(self._gone)))

    def every(self) -> Iterator[U64]:
        """All fingerprints, each once."""
        if self._held is None:
            return
        for slot in range(self._held.hosts):
            for names in self._chunks(slot):
                owners = self._held.owners_of(names)
                lower = np.uint64((1 << slot) - 1)
                yield names[owners & lower == 0]

    def clear(self) -> None:
        """Nothing is known of anybody."""
        listing = self._pool.residency.listing if self._held is not None else None
        for names in list(self.every()):
            assert listing is not None
            listing.elsewhere_lost(names)
        self._held = None
        self._gone.clear()
        self._waiting.clear()

    def _chunks(self, slot: int) -> Iterator[U64]:
        assert self._held is not None
        at = 0
        while at <= LAST_NAME:
            names, last = self._held.chunk(slot, at, STEP_NAMES)
            yield names
            at = last + 1

    def _between(self, slot: int, first: int, last: int) -> U64:
        assert self._held is not None
        found: list[U64] = []
        while first <= last:
            names, upto = self._held.chunk(slot, first, STEP_NAMES)
            found.append(names[names <= np.uint64(last)])
            first = upto + 1
        return np.concatenate(found)

    def _empty(self, slot: int) -> None:
        """Take out the next blocks of a host that is gone."""
        assert self._held is not None
        names, last = self._held.chunk(slot, self._gone[slot], STEP_NAMES)
        self._remove(slot, names)
        if last == LAST_NAME:
            del self._gone[slot]
            self._held.expect(slot, 0)
        else:
            self._gone[slot] = last + 1

    def _add(self, slot: int, names: U64) -> None:
        assert self._held is not None
        if len(names):
            before = self._held.owners_of(names)
            self._held.add(slot, names)
            after = self._held.owners_of(names)
            self._pool.residency.listing.elsewhere_has(names[(before == 0) & (after != 0)])

    def _remove(self, slot: int, names: U64) -> None:
        assert self._held is not None
        if len(names):
            before = self._held.owners_of(names)
            self._held.remove(slot, names)
            after = self._held.owners_of(names)
            self._pool.residency.listing.elsewhere_lost(names[(before != 0) & (after == 0)])
