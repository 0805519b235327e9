"""How much of the pool leases may keep from eviction, and who keeps how much.

Without a bound an engine that leases blocks, never loads them and asks again keeps every other one
from saving: nothing can be evicted any more. So a lease that would take its holder, or all holders
together, beyond the bound is cut to what fits, as if the rest of the run were not there. What a
holder has already is never taken from it.
"""

from collections import Counter
from collections.abc import Callable, Hashable

from pegaflow.wire.units import Share

from .leases import LeaseTable
from .table import Block

PINNED_SHARE: Share = 0.75
"""Part of the pool that all leases together may keep from eviction: of the rest an eighth may be on
its way to the SSD, and saves find room in an eighth."""

_NO_BOUND = 1 << 63


class Pins:
    """Bounds on a table of leases; none until `bound`.

    Args:
        measure: what is kept by other means than leases, in bytes; it costs something, so it is
            asked only by `look` and before its last word stands in somebody's way.
    """

    def __init__(self, leases: LeaseTable, measure: Callable[[], int] = int) -> None:
        self._leases, self._measure = leases, measure
        self.most_bytes = _NO_BOUND  # of one holder
        self.of_all_bytes = _NO_BOUND  # of all together
        self.beside_bytes = 0  # what is kept by other means than leases, as of the last look
        self._cut: Counter[Hashable] = Counter()  # blocks that a holder was not given
        self._told: dict[Hashable, tuple[int, int]] = {}  # what `news` has said last

    def bound(self, most_bytes: int, pool_bytes: int) -> None:
        """Set the bounds.

        Args:
            most_bytes: what one holder may pin; 0: there are no bounds.
            pool_bytes: of these all together may pin PINNED_SHARE.
        """
        if most_bytes:
            self.most_bytes, self.of_all_bytes = most_bytes, int(pool_bytes * PINNED_SHARE)

    def afford(self, holder: Hashable, run: list[Block]) -> tuple[list[Block], int]:
        """Cut a run to what may be leased.

        Returns:
            The part that may be, and how many blocks that leaves out.
        """
        count = self._fitting(holder, run, self.most_bytes, 0)
        left = len(run) - count
        if left and self._leases.affordable(holder, run, self.most_bytes, _NO_BOUND) == count:
            self._cut[holder] += left  # by its own bound; the others' pins are not its doing
        return run[:count], left

    def has_room(self, holder: Hashable, run: list[Block], more_bytes: int) -> bool:
        """Whether the whole run could be leased.

        Args:
            more_bytes: what is still to come beside it.
        """
        most_bytes = self.most_bytes - more_bytes
        if self._leases.bytes_of(holder) > most_bytes:
            return False
        return self._fitting(holder, run, most_bytes, more_bytes) == len(run)

    def look(self) -> None:
        """See what is kept by other means."""
        self.beside_bytes = self._measure()

    @property
    def full(self) -> bool:
        """Whether nobody may keep anything more."""
        return self._leases.pinned_bytes + self.beside_bytes > self.of_all_bytes

    def news(self, holder: Hashable) -> tuple[int, int] | None:
        """Bytes that it pins, and blocks that its own bound has cut so far, if that has changed
        since it was asked last."""
        now = self._leases.bytes_of(holder), self._cut[holder]
        if self.most_bytes == _NO_BOUND or self._told.get(holder, (0, 0)) == now:
            return None
        self._told[holder] = now
        return now

    def fence(self, holder: Hashable) -> None:
        """It is dead."""
        self._told.pop(holder, None)
        del self._cut[holder]

    def _fitting(self, holder: Hashable, run: list[Block], most_bytes: int, more_bytes: int) -> int:
        """Blocks of a run that may be leased, with so many bytes still to come."""
        before_bytes = self.beside_bytes
        count = self._leases.affordable(
            holder, run, most_bytes, self.of_all_bytes - before_bytes - more_bytes
        )
        if count < len(run) and before_bytes:
            self.look()
        if self.beside_bytes < before_bytes:
            count = self._leases.affordable(
                holder, run, most_bytes, self.of_all_bytes - self.beside_bytes - more_bytes
            )
        return count
