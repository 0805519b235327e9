"""What goes when the allocator needs pages.

Usually the coldest blocks of the page size that is asked for, after the tiers have had a chance to
write what they would lose.  If that size has nothing to give, or has no extent, a whole extent of
another size is emptied.  Blocks are chosen as columns; objects are made of those that a tier is to
see, each once.

Leases are known here; hazards come to light when the victims are no hits any more (residency.py).
What a hazard keeps is the youngest then, and so is all else that hazards name, however much that
is: another search finds others.
"""

from collections.abc import Iterable
from itertools import takewhile
from typing import NamedTuple

import numpy as np

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.runtime.contract import MS, Effect, On, Part, Reply, Sender, on
from pegaflow.core.blocks.columns import Pages
from pegaflow.core.blocks.table import Block
from pegaflow.core.pool.columns import distinct
from pegaflow.core.pool.records import ROW
from pegaflow.wire.allocator import PRESSURE_PAGES, Freed, Pressure
from pegaflow.wire.identities import PageId
from pegaflow.wire.units import Count, Nanoseconds
from pegaflow.wire.values import ALLOCATOR, LIST_MAX

from .hazards import Hazards
from .leasing import Leasing
from .residency import Residency
from .tiers import Tiers

CLEARING_NS: Nanoseconds = 10_000 * MS
"""An extent is cleared for so long after somebody has asked for pages in vain: who still wants to
save tries again sooner."""

SEARCHES_MAX: Count = 4
"""For one Pressure: another one meets hazards that have come since the last."""


class _Chosen(NamedTuple):
    """What is to go."""

    first: Pages  # page of each block
    blocks: list[Block]  # the same, if a tier minds
    written: list[Effect]  # before others go


class Eviction(Part):
    """Answers the allocator's Pressure."""

    def __init__(
        self,
        *,
        recovery: Recovery,
        residency: Residency,
        leasing: Leasing,
        hazards: Hazards,
        tiers: Tiers,
    ) -> None:
        self._recovery, self._residency, self._leasing = recovery, residency, leasing
        self._hazards, self._tiers = hazards, tiers
        self.clearing: tuple[int, int] | None = None  # an extent, and the page size it is to get
        self._clear_until_ns = 0  # so long an extent stays closed to new leases

    def handlers(self) -> Iterable[On]:
        """Pressure."""
        return (on(Pressure, self._on_pressure, ALLOCATOR),)

    def beat(self, now: int) -> list[Effect]:
        """Clear nothing for somebody who does not ask any more."""
        if self.clearing is not None and now > self._clear_until_ns:
            self._clear(None)
        return []

    def outside(self, blocks: list[Block]) -> list[Block]:
        """The run as far as it keeps out of an extent that is being cleared."""
        if self.clearing is None or not blocks or blocks[0].page_size == self.clearing[1]:
            return blocks
        extent_of, clearing = self._residency.geometry.extent_of, self.clearing[0]
        return list(takewhile(lambda b: clearing not in map(extent_of, b.pages), blocks))

    def _on_pressure(self, sender: Sender, msg: Pressure, now: int) -> list[Effect]:
        """Evict and name the pages that are void now."""
        if not self._recovery.gathered():
            return [Reply(sender, Freed(()))]
        pages: list[PageId] = []
        effects: list[Effect] = []
        if not msg.reassign:
            pages, effects = self._evict_coldest(msg, now)
        if not (pages or msg.ahead):
            pages = self._empty_extent(msg.page_size, now)
        return [Reply(sender, Freed(tuple(pages))), *effects]

    def _evict_coldest(self, msg: Pressure, now: int) -> tuple[list[PageId], list[Effect]]:
        """Evict blocks of this size that have as many pages; their pages, and what is written
        before others go."""
        pages: list[PageId] = []
        effects: list[Effect] = []
        most = min(msg.count, PRESSURE_PAGES)
        for _ in range(SEARCHES_MAX):
            chosen = self._victims(msg, most - len(pages), now)
            effects += chosen.written
            victims = self._sayable(chosen.first, len(pages))
            gone, freed = self._evict(victims, now)
            pages += freed
            if gone == len(victims) or len(pages) >= most:
                break
        return pages, effects

    def _victims(self, msg: Pressure, count: int, now: int) -> _Chosen:
        """Blocks that go now, up to so many pages in all."""
        here, tiers = self._residency, self._tiers
        found = here.victims(msg.page_size, count + tiers.most_spare())
        going = int(np.searchsorted(here.pages_to(found), count)) + 1
        if not tiers.mind:
            return _Chosen(found[:going], [], [])
        all_of = here.blocks.handles.all_of

        def candidates(some: slice) -> list[Block]:
            return all_of(found[some])

        blocks, effects = tiers.before_eviction(candidates, min(going, len(found)), now)
        if msg.ahead:
            blocks = [block for block in blocks if not tiers.loses(block)]
        first = np.array([block.pages[0] for block in blocks], np.int64)
        return _Chosen(first, blocks, effects)

    def _sayable(self, first: Pages, named: int) -> Pages:
        """So many of these blocks that one message can name their pages.

        Args:
            named: pages that it names already.
        """
        pages = self._residency.pages_to(first)
        return first[: int(np.searchsorted(pages, LIST_MAX - named, side="right"))]

    def _touch_named(self, kept: Pages) -> None:
        """What hazards have kept is the youngest now, and so is whatever hazards name, as far as
        one can see: a chain of which only the tail was to go must not have its head go first."""
        here, named = self._residency, self._hazards.pages()
        first = here.blocks.heads(named[named < here.ledger.records])
        every = distinct(np.concatenate([kept, first[first >= 0]]))
        here.use(here.blocks.chains.heads_first(every))

    def _empty_extent(self, page_size: int, now: int) -> list[PageId]:
        """Evict what can be evicted of the extent that another page size has used longest ago and
        that nobody uses; the pages.  If there is none, a used one is closed to new leases and
        hazards until it is empty."""
        here = self._residency
        used = np.concatenate([self._leasing.leases.pages(), self._hazards.pages()])
        avoided = distinct(used // here.geometry.records_per_extent)
        extent = here.policy.coldest_extent(page_size, self._extents_of, avoided)
        if extent is None and self.clearing is not None:
            extent = self.clearing[0]
        elif extent is None:
            extent = here.policy.coldest_extent(page_size, self._extents_of)
        if extent is None:
            return []
        pages = here.geometry.page_id(extent, 0) + np.arange(here.geometry.records_per_extent)
        first = here.blocks.heads(pages)
        first = distinct(first[first >= 0])
        free = first[~here.blocks.handles.leased(first)]
        gone, freed = self._evict(self._sayable(free, 0), now)
        self._clear((extent, page_size) if gone < len(first) else None)
        self._clear_until_ns = now + CLEARING_NS
        return freed

    def _extents_of(self, first: Pages) -> tuple[Pages, Pages]:
        """The extents of all pages of these blocks, and of which block each page is."""
        here = self._residency
        shards = here.records(first).view(ROW)[:, 0]["shards"]
        pages, owners = here.blocks.columns.all_pages(first, shards)
        return pages // here.geometry.records_per_extent, owners

    def _clear(self, clearing: tuple[int, int] | None) -> None:
        """Nobody gets a lease or a hazard in this extent, if he asks us or not."""
        self.clearing = clearing
        self._residency.listing.table.set_clearing(clearing[0] if clearing else None)

    def _evict(self, victims: Pages, now: int) -> tuple[int, list[PageId]]:
        """Those of these that nobody uses go: how many, and their pages."""
        here, mind = self._residency, self._tiers.mind
        blocks = here.blocks.handles.all_of(victims) if mind else []
        gone, pages = here.evict(victims, now)
        if not gone.all():
            self._touch_named(victims[~gone])
        if mind:
            self._tiers.evicted([blocks[at] for at in np.flatnonzero(gone).tolist()], now)
        return int(np.count_nonzero(gone)), pages.tolist()
