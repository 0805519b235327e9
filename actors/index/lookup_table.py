"""What sessions look up by themselves: the table behind the ledger's records.  See wire/index.py.

The table names the blocks that are resident (core/blocks/listing.py): it is made anew when the pool
is known, and again, a little at a time, when it has become too small.  Beside it stand three words
that a lookup keeps to: which extent is to become empty (eviction.py says that), whether so much is
kept from eviction by leases and hazards that nothing more may be, and whether a run that ends in
memory may go on in a tier, so that the index has to be asked: about any block, or about those only
that a filter names (core/pool/tierfilter.py).  About any block it is asked too while the table
lacks some that are in memory: until all are listed, and where it cannot grow.
"""

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.runtime.contract import MS, Effect, Note, Part
from pegaflow.core.pool.table import TierWord
from pegaflow.wire.control import LogLevel, Welcome
from pegaflow.wire.units import Count, Nanoseconds

from .leasing import Leasing
from .residency import Residency
from .tiers import Tiers

STEP_PAGES: Count = 4096
"""Pages whose blocks are listed in one go, and slots of a table that is made anew: a few
milliseconds, in which nothing else is answered."""

AGAIN_NS: Nanoseconds = 10_000 * MS
"""From one try to list all blocks to the next at least: there was no room for a table, or not for
all that came."""


class LookupTable(Part):
    """Keeps the table, and the words beside it, up to date."""

    def __init__(
        self,
        *,
        recovery: Recovery,
        residency: Residency,
        leasing: Leasing,
        tiers: Tiers,
    ) -> None:
        self._recovery, self._residency, self._leasing = recovery, residency, leasing
        self._tiers = tiers
        self._begin_ns = 0  # when to begin a table
        self._told = TierWord.NONE  # what the table says of the tiers
        self._fault = ""  # of the table, as it was said

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """Our predecessor's words are not ours."""
        table = self._residency.listing.table
        table.set_clearing(None)
        table.set_closed(False)
        table.set_tiers(TierWord.NONE)
        return []

    def wake_at(self) -> int | None:
        """At once while there is something to do."""
        if not self._recovery.ready:
            return None
        listing = self._residency.listing
        busy = listing.running or listing.table.wants_rebuild
        if busy or self._word() != self._told:
            return 0
        return self._begin_ns if listing.wanted else None

    def wake(self, now: int) -> list[Effect]:
        """Do a little of it."""
        if not self._recovery.ready:
            return []
        listing = self._residency.listing
        table = listing.table
        word = self._word()
        if word != self._told:
            self._told = word
            table.set_tiers(word)
        if listing.running:
            listing.step(STEP_PAGES)
        elif listing.wanted and now >= self._begin_ns:
            self._begin_ns = now + AGAIN_NS
            listing.begin()
        elif table.wants_rebuild:
            table.rebuild_step(STEP_PAGES)
        return []

    def _word(self) -> TierWord:
        """What the table is to say of what it does not name."""
        listing = self._residency.listing
        if listing.running or listing.wanted or listing.table.fault:
            return TierWord.ASK
        going_on = self._tiers.going_on()
        if not going_on:
            return TierWord.NONE
        counted = self._residency.listing.table.filter.counts
        all_counted = counted and all([tier.counted for tier in going_on])
        return TierWord.FILTER if all_counted else TierWord.ASK

    def beat(self, now: int) -> list[Effect]:
        """Look at what is pinned; say why the table is not what it should be."""
        if not self._recovery.ready:
            return []
        table, pins = self._residency.listing.table, self._leasing.pins
        pins.look()
        table.set_closed(pins.full)
        if table.fault == self._fault:
            return []
        self._fault = table.fault
        facts = (("why", self._fault),)
        return [Note("lookup_table_stuck", facts, LogLevel.WARNING)] if self._fault else []

    def gauges(self) -> dict[str, int]:
        """What hazards pin, and what lookups do not find by themselves."""
        lacks = self._residency.listing.lacks if self._recovery.ready else 0
        return {"hazard_pinned_bytes": self._leasing.pins.beside_bytes, "blocks_unlisted": lacks}

    def remarks(self) -> tuple[str, ...]:
        """Lookups are slower than they could be."""
        why = f"lookups ask the index for some blocks: their table cannot grow ({self._fault})"
        return (why,) if self._fault else ()

    def check(self) -> None:
        """The table and the blocks agree."""
        if self._recovery.ready:
            self._residency.listing.check()
