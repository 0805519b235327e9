"""The half of the index that inherits: the blocks, leases and claims of an earlier life.

It begins by reading the ledger, chunk by chunk (core/blocks/adoption.py); what comes meanwhile
waits. Then it answers, but evicts nothing before every holder of the Roll has stated its leases.
What was adopted is older than whatever has been used since.
"""

from collections.abc import Callable, Iterator
from itertools import islice

from pegaflow.actors.roles.recovery import Adopting
from pegaflow.actors.runtime.contract import Effect, Note, Sender
from pegaflow.core.blocks.adoption import Adoption
from pegaflow.core.blocks.claims import ClaimTable
from pegaflow.core.blocks.leases import Lease, LeaseTable
from pegaflow.core.blocks.pins import Pins
from pegaflow.core.blocks.table import Block, PrefixIndex
from pegaflow.core.policy.lru import Lru
from pegaflow.core.pool.geometry import MIN_PAGE, Geometry
from pegaflow.core.pool.ledger import Ledger
from pegaflow.wire.allocator import Freed, Pressure
from pegaflow.wire.control import Hello, Welcome
from pegaflow.wire.index import CLAIM_NS, Claiming, Held
from pegaflow.wire.values import ALLOCATOR, FLUSHER, LIST_MAX, NUMBER_MAX, SESSION, Address

LEASES_MAX = 16384
"""Leases of one session: an engine has a few hundred requests at a time."""

LEASED_MAX = 1 << 22
"""Blocks in all leases of one session, each counted as often as it is leased: some 100 MB here."""

CLAIMS_MAX = 8192
"""Claims of one session: twice the saves that it may have open."""


class Inheriting(Adopting):
    """The tables of the index, and how they come to be."""

    DIALS = (ALLOCATOR,)

    def __init__(
        self,
        address: Address,
        supervisor: Address,
        hello: Hello,
        open_ledger: Callable[[Welcome], Ledger],
    ) -> None:
        super().__init__(address, supervisor, hello)
        self._open_ledger = open_ledger  # maps the file that Welcome names
        self._ledger: Ledger | None = None  # in shared memory; nobody else writes it
        self._adoption: Adoption | None = None  # while the ledger is being read
        self._adopted: Adoption | None = None  # read, but not asked yet for the coldest
        self._coldest: dict[int, Iterator[int]] = {}  # page size -> cold pages, the coldest first
        self.heard: set[Address] = set()  # living holders that have stated in this life
        self.geometry = Geometry(0, MIN_PAGE)  # the pool's from Welcome on
        self.blocks = PrefixIndex(lambda page: self.ledger.read(page), self._warmed)
        self.order = Lru()  # exactly the resident blocks that are not cold
        self.leases = LeaseTable()
        self.pins = Pins(self.leases)
        self.claims = ClaimTable(CLAIM_NS)
        self.resident_bytes = 0  # of the pool, in pages of resident blocks
        self.quarantined = 0  # pages that nobody uses as long as the pool lives
        self.on(Held, self.on_held, SESSION, FLUSHER)
        self.on(Claiming, self._on_claiming, SESSION)

    @property
    def ledger(self) -> Ledger:
        """The ledger; there from Welcome on."""
        assert self._ledger is not None
        return self._ledger

    def up(self, now: int) -> list[Effect]:
        """Map the ledger, and begin to read it."""
        assert self.welcome is not None
        self._ledger = self._open_ledger(self.welcome)
        self.geometry = Geometry(self.welcome.pool_bytes, self.welcome.extent_bytes)
        self.pins.bound(self.welcome.max_pinned, self.welcome.pool_bytes)
        self._adoption = Adoption(self._ledger, self.geometry, self.blocks)
        return []

    def wake_at(self) -> int | None:
        """At once while the ledger is being read; else the next beat or claim to expire."""
        if self._adoption is not None:
            return 0
        due = self.claims.wake_at()
        return self.next_beat if due is None else min(self.next_beat, due)

    def wake(self, now: int) -> list[Effect]:
        """Read on; expire claims, which own no memory."""
        self.claims.expire(now)
        effects: list[Effect] = []
        if self._adoption is not None and not self._adoption.step():
            effects = self._know(self._adoption, now)
        return effects + super().wake(now)

    def _know(self, adoption: Adoption, now: int) -> list[Effect]:
        """The ledger is read: from here on we answer."""
        self._adoption, self._adopted = None, adoption
        for block in reversed(adoption.finish()):
            self.order.insert_oldest(block)
        self.ledger.void(adoption.nonsense)
        self.resident_bytes += adoption.bytes_
        self.quarantined = len(adoption.quarantined)
        self.counts["blocks_adopted"] += len(self.blocks)
        self.counts["records_voided"] += len(adoption.nonsense)
        effects = self.begin(now)
        for first in range(0, len(adoption.nonsense), LIST_MAX):
            voided = tuple(adoption.nonsense[first : first + LIST_MAX])
            effects += self.tell(ALLOCATOR, Freed(voided))
        if len(self.blocks):
            facts = (("blocks", len(self.blocks)), ("records_voided", len(adoption.nonsense)))
            effects.append(Note("blocks_adopted", facts))
        return effects

    def _warmed(self, block: Block) -> None:
        """A cold block is asked for: nobody has used it in this life so far."""
        self.order.insert_oldest(block)

    def thaw(self, msg: Pressure) -> None:
        """Warm the coldest blocks that a search for victims has to see: nobody has used them."""
        if self._adopted is not None:  # sorting a million takes longer than anybody should wait
            self._coldest, self._adopted = self._adopted.coldest(), None
        for size, pages in list(self._coldest.items()):
            count = msg.count if size == msg.page_size else 1
            warmed = islice(filter(None, map(self.blocks.warm, pages)), count)
            for block in reversed(list(warmed)):
                self.order.remove(block)
                self.order.insert_oldest(block)
        if not self.blocks.cold:
            self._coldest.clear()

    def restated(self, lease: Lease) -> None:
        """Hook: its holder has restated this lease."""

    def on_held(self, sender: Sender, msg: Held, now: int) -> list[Effect]:
        """A holder restates a lease that an earlier index has granted."""
        holder = sender.address
        if holder in self.heard or self.leases.get(holder, msg.number) is not None:
            return []
        blocks = self._named(msg)
        leases, leased = self.leases.load(holder)
        stray = not self.leases.last(holder) < msg.number <= NUMBER_MAX
        if stray or not blocks or leases >= LEASES_MAX or leased + len(blocks) > LEASED_MAX:
            self.counts["leases_unknown"] += 1
            return []
        self.restated(self.leases.adopt(holder, msg.number, blocks, now))
        return []

    def _named(self, msg: Held) -> list[Block]:
        """The blocks of these pages; none if it is not exactly so that they are resident."""
        pages, shards = msg.pages, msg.shards
        if not (shards and msg.number) or any(p >= self.ledger.records for p in pages):
            return []
        parts = [pages[at : at + shards] for at in range(0, len(pages), shards)]
        found = [self.blocks.by_page(part[0]) for part in parts]
        blocks = [b for b, part in zip(found, parts, strict=True) if b and b.pages == part]
        return blocks if len(blocks) == len(parts) else []

    def _on_claiming(self, sender: Sender, msg: Claiming, now: int) -> list[Effect]:
        """A session restates a claim that an earlier index has given, be it sealed by now or not:
        it does not know, and seals again."""
        holder = sender.address
        full = self.claims.held(holder) >= CLAIMS_MAX
        if holder in self.heard or full or msg.number > NUMBER_MAX:
            return []
        self.claims.adopt(holder, msg.number, msg.namespace, msg.keys, now)
        return []

    def learn_parents(self, blocks: list[Block]) -> None:
        """Adopted blocks do not know the one before them, until somebody names the chain."""
        if not self.counts["blocks_adopted"]:
            return
        for before, block in zip(blocks, blocks[1:], strict=False):
            if not block.parent:
                block.parent = before.key
