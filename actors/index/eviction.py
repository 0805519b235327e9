"""What goes when the allocator needs pages.

Usually the coldest blocks of the page size that is asked for, after the tiers have had a chance to
write what they would lose.  If that size has nothing to give, or has no extent, a whole extent of
another size is emptied.

Leases are known here; hazards come to light when the victims are no hits any more (residency.py).
What a hazard keeps is the youngest then, and so is all else that hazards name, however much that
is: another search finds others.
"""

from collections.abc import Iterable
from itertools import chain, takewhile

import numpy as np

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.runtime.contract import MS, Effect, On, Part, Reply, Sender, on
from pegaflow.core.blocks.columns import Pages
from pegaflow.core.blocks.table import Block
from pegaflow.wire.allocator import Freed, Pressure
from pegaflow.wire.identities import PageId
from pegaflow.wire.units import Count, Nanoseconds
from pegaflow.wire.values import ALLOCATOR

from .adoption import PoolAdoption
from .hazards import Hazards
from .leasing import Leasing
from .residency import Residency
from .tiers import Tiers

CLEARING_NS: Nanoseconds = 10_000 * MS
"""An extent is cleared for so long after somebody has asked for pages in vain: who still wants to
save tries again sooner."""

SEARCHES_MAX: Count = 4
"""For one Pressure: another one meets hazards that have come since the last."""


class Eviction(Part):
    """Answers the allocator's Pressure."""

    def __init__(
        self,
        *,
        recovery: Recovery,
        residency: Residency,
        adoption: PoolAdoption,
        leasing: Leasing,
        hazards: Hazards,
        tiers: Tiers,
    ) -> None:
        self._recovery, self._residency, self._adoption = recovery, residency, adoption
        self._leasing, self._hazards, self._tiers = leasing, hazards, tiers
        self.clearing: tuple[int, int] | None = None  # an extent, and the page size it is to get
        self._clear_until = 0  # so long an extent stays closed to new leases

    def handlers(self) -> Iterable[On]:
        """Pressure."""
        return (on(Pressure, self._on_pressure, ALLOCATOR),)

    def beat(self, now: int) -> list[Effect]:
        """Clear nothing for somebody who does not ask any more."""
        if self.clearing is not None and now > self._clear_until:
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
        self._adoption.warm_coldest(msg.page_size, msg.count)
        pages: list[PageId] = []
        effects: list[Effect] = []
        if not msg.reassign:
            pages, effects = self._evict_coldest(msg.page_size, msg.count, now)
        if not pages:
            pages = self._empty_extent(msg.page_size, now)
        return [Reply(sender, Freed(tuple(pages))), *effects]

    def _evict_coldest(
        self, page_size: int, count: int, now: int
    ) -> tuple[list[PageId], list[Effect]]:
        """Evict up to so many blocks of this size; their pages, and what is written before others
        go."""
        pages: list[PageId] = []
        effects: list[Effect] = []
        for _ in range(SEARCHES_MAX):
            victims, written = self._victims(page_size, count, now)
            effects += written
            victims = self._residency.sayable(victims, len(pages))
            gone, freed = self._evict(victims, now)
            pages += freed
            count -= gone
            if gone == len(victims):
                break
            self._touch_named()
            self._adoption.warm_coldest(page_size, count)
        return pages, effects

    def _victims(self, page_size: int, count: int, now: int) -> tuple[Pages, list[Effect]]:
        """First pages of up to so many blocks that go now, and what is written before others."""
        here = self._residency
        if not self._tiers.mind:
            return here.victims(page_size, count), []
        of = here.blocks.handles.of

        def coldest(count: int) -> list[Block]:
            return list(map(of, here.victims(page_size, count).tolist()))

        blocks, effects = self._tiers.before_eviction(coldest, count, now)
        return np.array([block.pages[0] for block in blocks], np.int64), effects

    def _touch_named(self) -> None:
        """The blocks that hazards name, as far as one can see, are the youngest."""
        named = self._hazards.pages()
        first = self._residency.blocks.heads(named[named < self._residency.ledger.records])
        self._residency.use(np.unique(first[first >= 0]))

    def _empty_extent(self, page_size: int, now: int) -> list[PageId]:
        """Evict what can be evicted of the extent that another page size has used longest ago and
        that nobody uses; the pages.  If there is none, a used one is closed to new leases and
        hazards until it is empty."""
        here = self._residency
        extent_of = here.geometry.extent_of
        used = chain(self._leasing.leases.pages(), self._hazards.pages().tolist())
        extent = here.policy.coldest_extent(page_size, extent_of, frozenset(map(extent_of, used)))
        if extent is None and self.clearing is not None:
            extent = self.clearing[0]
        elif extent is None:
            extent = here.policy.coldest_extent(page_size, extent_of)
        if extent is None:
            return []
        pages = here.geometry.page_id(extent, 0) + np.arange(here.geometry.records_per_extent)
        first = here.blocks.heads(pages)
        first = np.unique(first[first >= 0])
        free = first[~here.blocks.handles.leased(first)]
        gone, freed = self._evict(self._residency.sayable(free, 0), now)
        self._clear((extent, page_size) if gone < len(first) else None)
        self._clear_until = now + CLEARING_NS
        return freed

    def _clear(self, clearing: tuple[int, int] | None) -> None:
        """Nobody gets a lease or a hazard in this extent, if he asks us or not."""
        self.clearing = clearing
        self._residency.listing.table.set_clearing(clearing[0] if clearing else None)

    def _evict(self, victims: Pages, now: int) -> tuple[int, list[PageId]]:
        """Those of these that nobody uses go: how many, and their pages."""
        here, mind = self._residency, self._tiers.mind
        blocks = list(map(here.blocks.handles.of, victims.tolist())) if mind else []
        gone, pages = here.evict(victims, now)
        if mind:
            self._tiers.evicted([blocks[at] for at in np.flatnonzero(gone).tolist()], now)
        return int(np.count_nonzero(gone)), pages.tolist()
