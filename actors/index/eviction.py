"""What goes when the allocator needs pages.

Usually the coldest blocks of the page size that is asked for, after the tiers have had a chance to
write what they would lose.  If that size has nothing to give, or has no extent, a whole extent of
another size is emptied.
"""

from collections.abc import Iterable
from itertools import takewhile

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.runtime.contract import MS, Effect, On, Part, Reply, Sender, on
from pegaflow.core.blocks.table import Block
from pegaflow.wire.allocator import Freed, Pressure
from pegaflow.wire.identities import numbered
from pegaflow.wire.units import Nanoseconds
from pegaflow.wire.values import ALLOCATOR

from .adoption import PoolAdoption
from .leasing import Leasing
from .residency import Residency, sayable
from .tiers import Tiers

CLEARING_NS: Nanoseconds = 10_000 * MS
"""An extent is cleared for so long after somebody has asked for pages in vain: who still wants to
save tries again sooner."""


class Eviction(Part):
    """Answers the allocator's Pressure."""

    def __init__(
        self,
        *,
        recovery: Recovery,
        residency: Residency,
        adoption: PoolAdoption,
        leasing: Leasing,
        tiers: Tiers,
    ) -> None:
        self._recovery, self._residency, self._adoption = recovery, residency, adoption
        self._leasing, self._tiers = leasing, tiers
        self.clearing: tuple[int, int] | None = None  # an extent, and the page size it is to get
        self._clear_until = 0  # so long an extent stays closed to new leases

    def handlers(self) -> Iterable[On]:
        """Pressure."""
        return (on(Pressure, self._on_pressure, ALLOCATOR),)

    def beat(self, now: int) -> list[Effect]:
        """Clear nothing for somebody who does not ask any more."""
        if now > self._clear_until:
            self.clearing = None
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
        victims: list[Block] = []
        effects: list[Effect] = []
        if not msg.reassign:

            def coldest(count: int) -> list[Block]:
                return self._residency.policy.victims(msg.page_size, count)

            victims, effects = self._tiers.before_eviction(coldest, msg.count, now)
        if not victims:
            victims = self._coldest_extent(msg.page_size, now)
        victims = sayable(victims)
        self._tiers.evicted(victims, now)
        return [Reply(sender, Freed(self._residency.evict(victims, now))), *effects]

    def _coldest_extent(self, page_size: int, now: int) -> list[Block]:
        """Every evictable block of the extent that another page size has used longest ago and that
        nobody has a lease in.  Without such a one an extent is cleared: nothing of it is leased any
        more, so that it is empty once the leases that there are have ended."""
        here = self._residency
        extent_of = here.geometry.extent_of
        leased = frozenset(map(extent_of, self._leasing.leases.pages()))
        extent = here.policy.coldest_extent(page_size, extent_of, leased)
        if extent is not None:
            self.clearing = None
        elif self.clearing is None:
            extent = here.policy.coldest_extent(page_size, extent_of)
        else:
            extent = self.clearing[0]
        if extent is None:
            return []
        pages = numbered(here.geometry.page_id(extent, 0), here.geometry.records_per_extent)
        found = map(here.blocks.by_page, pages)
        unique = {id(b): b for b in found if b is not None}
        stays = any(block.leases for block in unique.values())
        self.clearing, self._clear_until = (extent, page_size) if stays else None, now + CLEARING_NS
        return [block for block in unique.values() if not block.leases]
