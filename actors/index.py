"""The index: which block is where, who may use it, who may publish it.  See wire/index.py.

It is the only writer of the ledger: a record is sealed when a Seal is accepted and void before its
page is named in a Freed.  A leased block is never a victim, neither of pressure nor of a recut.
"""

from collections.abc import Callable
from itertools import chain

from pegaflow.cache.claims import ClaimTable
from pegaflow.cache.eviction import Lru
from pegaflow.cache.geometry import MIN_PAGE, Geometry, slot_size
from pegaflow.cache.leases import Lease, LeaseTable
from pegaflow.cache.ledger import (
    MAX_LENGTH,
    MAX_SHARDS,
    NAMESPACE_BYTES,
    Ledger,
    Record,
)
from pegaflow.cache.prefix_index import Block, PrefixIndex
from pegaflow.wire.allocator import Freed, Pressure
from pegaflow.wire.control import Fenced, Hello, Neighbour
from pegaflow.wire.index import (
    CLAIM_NS,
    Claim,
    Claimed,
    EndClaim,
    Find,
    Held,
    Holding,
    Release,
    Seal,
    Sealed,
)
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, LIST_MAX, SESSION, SUPERVISOR, Address

from .actor import Effect, Reply, Send, Sender
from .child import Child

LEASES_MAX = 16384
"""Leases of one session: an engine has a few hundred requests at a time."""

LEASED_MAX = 1 << 22
"""Blocks in all leases of one session, each counted as often as it is leased: some 100 MB here."""

CLAIMS_MAX = 8192
"""Claims of one session: twice the saves that it may have open."""


class Index(Child):
    """Key map, claims, leases, ledger."""

    DIALS = (ALLOCATOR,)

    def __init__(
        self,
        address: Address,
        supervisor: Address,
        hello: Hello,
        open_ledger: Callable[[str], Ledger],
    ) -> None:
        super().__init__(address, supervisor, hello)
        self._open_ledger = open_ledger  # maps the file that Welcome names
        self._ledger: Ledger | None = None  # in shared memory; nobody else writes it
        self._geometry = Geometry(0, MIN_PAGE)  # the pool's from Welcome on
        self.blocks = PrefixIndex()
        self.order = Lru()  # exactly the resident blocks
        self.leases = LeaseTable()
        self.claims = ClaimTable(CLAIM_NS)
        self._seals = 0  # newest seal id
        self._resident_bytes = 0  # of the pool, in pages of resident blocks
        self.on(Find, self._on_find, SESSION)
        self.on(Release, self._on_release, SESSION)
        self.on(Claim, self._on_claim, SESSION)
        self.on(EndClaim, self._on_end_claim, SESSION)
        self.on(Seal, self._on_seal, SESSION)
        self.on(Holding, self._on_holding, SESSION)
        self.on(Pressure, self._on_pressure, ALLOCATOR)

    @property
    def ledger(self) -> Ledger:
        """The ledger; there from Welcome on."""
        assert self._ledger is not None
        return self._ledger

    def accepts(self, kind: type[Message], sender: str) -> bool:
        """Before Welcome there is no ledger: a session that is quicker asks again."""
        known = self.welcome is not None or sender == SUPERVISOR
        return known and super().accepts(kind, sender)

    def up(self, now: int) -> list[Effect]:
        """Map the ledger."""
        assert self.welcome is not None
        self._ledger = self._open_ledger(self.welcome.ledger_path)
        self._geometry = Geometry(self.welcome.pool_bytes, self.welcome.extent_bytes)
        return []

    def wake_at(self) -> int | None:
        """The next beat or the next claim to expire."""
        due = self.claims.wake_at()
        return self.next_beat if due is None else min(self.next_beat, due)

    def wake(self, now: int) -> list[Effect]:
        """Expire claims; they own no memory."""
        self.claims.expire(now)
        return super().wake(now)

    def gauges(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {
            "blocks_resident": len(self.blocks),
            "resident_bytes": self._resident_bytes,
            "leases": len(self.leases),
        }

    def check(self) -> None:
        """Blocks, order, leases and ledger agree."""
        self.blocks.check()
        self.order.check()
        self.leases.check()
        self.claims.check()
        blocks = list(self.blocks)
        assert len(self.order) == len(blocks), "a block that nothing can evict, or a ghost"
        for block in blocks:
            for page, stamp in zip(block.pages, block.stamps, strict=True):
                record = self.ledger.read(page)
                assert record is not None and record.stamp == stamp and record.key == block.key

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """Fence a dead session, then say so: no ledger write of it comes after this."""
        if dead.name != SESSION:
            return []
        for lease in self.leases.fence(dead):
            self.order.touch(lease.blocks)
        self.claims.fence(dead)
        return [Send(self.peer(ALLOCATOR), Fenced(dead))]

    def _on_neighbour(self, sender: Sender, msg: Neighbour, now: int) -> list[Effect]:
        effects = super()._on_neighbour(sender, msg, now)
        return [*effects, Send(msg.address, Freed(()))] if effects else []

    def _on_find(self, sender: Sender, msg: Find, now: int) -> list[Effect]:
        blocks = _sayable(self.blocks.find(msg.namespace, msg.keys))
        self.counts["blocks_asked"] += len(msg.keys)
        leases, leased = self.leases.load(sender.address)
        if not blocks or leases >= LEASES_MAX or leased + len(blocks) > LEASED_MAX:
            return [Reply(sender, Held(0, 0, ()))]
        self.counts["blocks_hit"] += len(blocks)
        lease = self.leases.grant(sender.address, blocks, now)
        return [Reply(sender, _held(lease))]

    def _on_release(self, sender: Sender, msg: Release, now: int) -> list[Effect]:
        lease = self.leases.release(sender.address, msg.number)
        if lease is not None:
            self.order.touch(lease.blocks)
        return []

    def _on_claim(self, sender: Sender, msg: Claim, now: int) -> list[Effect]:
        if self.claims.held(sender.address) >= CLAIMS_MAX:
            return [Reply(sender, Claimed(0, ()))]
        get = self.blocks.get
        absent = [i for i, key in enumerate(msg.keys) if get(msg.namespace, key) is None]
        keys = [msg.keys[i] for i in absent]
        claim = self.claims.claim(sender.address, msg.namespace, keys, now)
        positions = tuple(absent[i] for i in claim.new)
        return [Reply(sender, Claimed(claim.number if positions else 0, positions))]

    def _on_end_claim(self, sender: Sender, msg: EndClaim, now: int) -> list[Effect]:
        self.claims.end(sender.address, msg.number)
        return []

    def _on_seal(self, sender: Sender, msg: Seal, now: int) -> list[Effect]:
        count = len(msg.keys)
        if not self._makes_sense(msg):
            self.counts["seals_malformed"] += 1
            return [Reply(sender, Sealed(Status.BAD_REQUEST, ()))]
        accepted = [i for i in range(count) if self._seal_one(sender.address, msg, i)]
        if accepted:
            young = self._chain(msg.namespace, msg.keys[accepted[-1]])
            known = set(young)
            found = (self.blocks.get(msg.namespace, msg.keys[i]) for i in accepted)
            self.order.insert_chain([b for b in found if b is not None and b not in known])
            self.order.insert_chain(young)
        self.counts["blocks_sealed"] += len(accepted)
        status = Status.OK if len(accepted) == count else Status.STALE_CLAIM
        return [Reply(sender, Sealed(status, tuple(accepted)))]

    def _makes_sense(self, msg: Seal) -> bool:
        """Whether the lists fit each other, and the numbers the ledger's records and the pool.
        Blocks of one namespace are cut alike: whoever loads them knows one page size."""
        count, size = len(msg.keys), msg.page_size
        other = self.blocks.any_of(msg.namespace)
        if other is not None and (other.page_size, len(other.pages)) != (size, msg.shards):
            return False
        return (
            len(msg.parents) == count
            and 0 < msg.shards <= MAX_SHARDS
            and len(msg.pages) == len(msg.stamps) == count * msg.shards
            and len(set(msg.pages)) == len(msg.pages)
            and len(msg.namespace) == NAMESPACE_BYTES
            and 0 < msg.payload <= min(size, MAX_LENGTH)
            and size % PAGE_ALIGN == 0
            and all(self._geometry.holds(page, size) for page in msg.pages)
        )

    def _seal_one(self, holder: Address, msg: Seal, at: int) -> bool:
        """Publish block `at` of a Seal; False if the claim does not cover it any more."""
        key = msg.keys[at]
        pages = msg.pages[at * msg.shards : (at + 1) * msg.shards]
        stamps = msg.stamps[at * msg.shards : (at + 1) * msg.shards]
        resident = self.blocks.get(msg.namespace, key)
        if resident is not None:
            return resident.stamps == stamps
        if not self.claims.owns(holder, msg.claim, msg.namespace, key):
            self.counts["seals_stale"] += 1
            return False
        if any(self.blocks.by_page(p) is not None for p in pages):
            self.counts["seals_malformed"] += 1
            return False
        parent = self.blocks.get(msg.namespace, msg.parents[at])
        self._seals += 1
        block = Block(
            msg.namespace,
            key,
            msg.page_size,
            pages,
            stamps,
            (self.address.incarnation << 40) + self._seals,
            parent.depth + 1 if parent else 0,
            msg.parents[at],
        )
        for shard, (page, stamp) in enumerate(zip(pages, stamps, strict=True)):
            record = Record(
                stamp,
                block.seal,
                shard,
                msg.shards,
                msg.payload,
                msg.namespace,
                key,
                None,
                block.depth,
            )
            self.ledger.seal(page, record)
        self.blocks.add(block)
        self.counts["bytes_sealed"] += msg.shards * msg.payload
        self._resident_bytes += len(pages) * slot_size(block.page_size)
        return True

    def _chain(self, namespace: bytes, key: bytes) -> list[Block]:
        """The resident chain that ends in this block, head first: its tail must go before its head,
        so adding to a chain makes all of it young again."""
        chain: dict[Block, None] = {}
        block = self.blocks.get(namespace, key)
        while block is not None and block not in chain and len(chain) < LIST_MAX:
            chain[block] = None
            block = self.blocks.get(namespace, block.parent)
        return list(reversed(chain))

    def _on_holding(self, sender: Sender, msg: Holding, now: int) -> list[Effect]:
        """Mend lost releases and lost grants of a session."""
        dropped, resend = self.leases.statement(sender.address, msg.lease_upto, msg.leases)
        for lease in dropped:
            self.order.touch(lease.blocks)
        self.claims.statement(sender.address, msg.claim_upto, msg.claims)
        return [Send(sender.address, _held(lease)) for lease in resend]

    def _on_pressure(self, sender: Sender, msg: Pressure, now: int) -> list[Effect]:
        """Evict and name the pages that are void now."""
        victims: list[Block] = []
        if not msg.recut:
            victims = self.order.victims(msg.page_size, msg.count)
        if not victims:
            victims = self._coldest_extent(msg.page_size)
        return [Reply(sender, Freed(tuple(p for b in _sayable(victims) for p in self._evict(b))))]

    def _coldest_extent(self, page_size: int) -> list[Block]:
        """Every evictable block of the extent that another page size has used longest ago."""
        geometry = self._geometry
        extent = self.order.coldest_extent(page_size, geometry.extent_of)
        if extent is None:
            return []
        first = extent * geometry.records_per_extent
        found = map(self.blocks.by_page, range(first, first + geometry.records_per_extent))
        unique = {id(b): b for b in found if b is not None and not b.leases}
        return list(unique.values())

    def _evict(self, block: Block) -> tuple[int, ...]:
        assert block.leases == 0
        for page in block.pages:
            self.ledger.void(page)
        self.order.remove(block)
        self.blocks.remove(block)
        freed = len(block.pages) * slot_size(block.page_size)
        self._resident_bytes -= freed
        self.counts["blocks_evicted"] += 1
        self.counts["bytes_evicted"] += freed
        return block.pages


def _sayable(blocks: list[Block]) -> list[Block]:
    """So many that one message can name their pages."""
    return blocks[: LIST_MAX // len(blocks[0].pages)] if blocks else blocks


def _held(lease: Lease) -> Held:
    blocks = lease.blocks
    pages = tuple(chain.from_iterable([b.pages for b in blocks]))
    return Held(lease.number, len(blocks[0].pages), pages)
