"""Adoption: how the slab comes to be.

An allocator begins without any book: first every holder of the membership states what it holds,
then the ledger is read, then the slab is made of both, and only then is a page given away.

A ledger that cannot be read is no empty one: its pages would be given away while their blocks are
found.  The allocator stops, and the next one reads it again.

While the ledger is being read, what was stated stands: a page that somebody held when it began is
his until it is over, whatever has become of it meanwhile.
"""

from collections import Counter

import numpy as np

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.runtime.contract import Do, Effect, Note, Part, Stop
from pegaflow.core.grants import Grants
from pegaflow.core.pool.columns import column
from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.plan import Plan
from pegaflow.wire.allocator import Freed, PagesHeld, Reserved
from pegaflow.wire.control import Fenced, Welcome
from pegaflow.wire.identities import GrantId, PageId
from pegaflow.wire.jobs import Done, RecordsScanned, ScanRecords
from pegaflow.wire.message import Message
from pegaflow.wire.units import Count
from pegaflow.wire.values import NUMBER_MAX, Address

from .growth import Growth
from .pages import Pages
from .peer import IndexPeer

STATEMENTS: frozenset[type[Message]] = frozenset({PagesHeld, Fenced, Freed})
"""What is heard before the ledger is read, and waits while it is being read."""

SCAN_RECORDS: Count = 16384
"""Records of one look at the ledger: what they say is in the slab a millisecond or two later, and
until the next look whoever has a word for the allocator is heard."""


class Adoption(Part):
    """Gathers statements, reads the ledger, makes the slab."""

    def __init__(
        self,
        pages: Pages,
        recovery: Recovery,
        *,
        index: IndexPeer,
        growth: Growth,
        grants: Grants[GrantId, Reserved],
        counts: Counter[str],
    ) -> None:
        self._pages = pages
        self._recovery = recovery
        self._index = index
        self._growth = growth
        self._grants = grants
        self._counts = counts
        self._geometry: Geometry | None = None  # of the pool; None: not told yet
        self._stated: dict[Address, PagesHeld] = {}  # the newest word of each holder
        self._scanning = False  # the ledger is being read

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """Read the ledger, if all have stated already."""
        self._geometry = Geometry(welcome.pool_bytes, welcome.extent_bytes)
        return self.scan(now)

    def membership(self, now: int) -> list[Effect]:
        """It is known who has to state; some may have done so, or be fenced."""
        self._recovery.await_no_longer(*self._index.fenced, *self._stated)
        return self.scan(now)

    def state(self, holder: Address, held: PagesHeld, now: int) -> list[Effect]:
        """A holder states what it has; read the ledger, if it was the last.

        Args:
            held: its newest word stands, whatever it has said before.
        """
        self._stated[holder] = held
        return self.membership(now)

    def fence(self, dead: Address, now: int) -> list[Effect]:
        """It states nothing any more; read the ledger, if it was the last."""
        self._stated.pop(dead, None)
        self._recovery.await_no_longer(dead)
        return self.membership(now)

    def must_wait(self, msg: Message) -> bool:
        """Whether a message has to wait until the ledger is read."""
        return self._scanning and type(msg) in STATEMENTS

    def scan(self, now: int) -> list[Effect]:
        """Once all have stated, and an index has spoken that knows of all deaths: read the ledger.
        Before that the dead might still seal what nobody states."""
        known = self._index.is_there and self._recovery.gathered()
        if self._recovery.ready or self._scanning or self._geometry is None or not known:
            return []
        self._scanning = True
        return self._scan_from(PageId(0), self._begin(self._geometry))

    def check(self) -> None:
        """We are ready once there is a slab."""
        assert self._recovery.ready == (self._pages.slab is not None)

    def _begin(self, geometry: Geometry) -> Plan:
        """What somebody states is his."""
        plan = Plan(geometry)
        for holder, held in self._stated.items():
            self._grants.go_on_from(holder, GrantId(min(held.upto, NUMBER_MAX)))
            self._counts["pages_not_held"] += plan.grant(holder, held.upto, *_sized(held))
        self._stated.clear()
        return plan

    def _scan_from(self, first: PageId, plan: Plan) -> list[Effect]:
        geometry = self._geometry
        assert geometry is not None
        count = min(SCAN_RECORDS, geometry.records - first)
        if not count:
            return []

        def read(result: RecordsScanned | Done, now: int) -> list[Effect]:
            if isinstance(result, Done):
                return [Stop(f"the ledger cannot be read: {result.note}")]
            upto = PageId(first + count)
            pages, lengths = column(result.pages), column(result.payload_bytes)
            plan.read(upto, pages.astype(np.int64), lengths.astype(np.int64))
            return self._adopt(plan) if upto == geometry.records else self._scan_from(upto, plan)

        return [Do(ScanRecords(first, count), read)]

    def _adopt(self, plan: Plan) -> list[Effect]:
        """What is sealed and nobody's is the index's."""
        slab = self._pages.slab = plan.slab()
        self._scanning = False
        t = slab.totals()
        note: list[Effect] = []
        if t.granted_bytes or t.left_bytes:
            facts = (("sealed_bytes", t.left_bytes), ("held_bytes", t.granted_bytes))
            note = [Note("pool_adopted", facts)]
        return note + self._growth.grow() + self._recovery.begin()


def _sized(held: PagesHeld) -> tuple[U64, U64]:
    """Every page that is stated, and its size; a list that does not fit says nothing."""
    pages = column(held.pages)
    if held.sizes:
        sizes = column(held.sizes)
    else:
        sizes = np.full(len(pages), max(held.page_size, 0), np.uint64)
    count = min(len(pages), len(sizes))
    return pages[:count], sizes[:count]
