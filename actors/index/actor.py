"""The index: which block is where, who may use it, who may publish it.  See wire/index.py.

It is the only writer of the ledger: a record is sealed when a Seal is accepted and void before its
page is named in a Freed.  A leased block is never a victim, neither of pressure nor of a recut.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import chain

from pegaflow.actors.runtime.contract import MS, Effect, Note, Reply, Send, Sender
from pegaflow.core.blocks.leases import Lease
from pegaflow.core.blocks.table import Block
from pegaflow.core.pool.geometry import slot_size
from pegaflow.core.pool.ledger import MAX_LENGTH, MAX_SHARDS, NAMESPACE_BYTES, Ledger, Record
from pegaflow.core.series import RESIDENCE
from pegaflow.wire.allocator import Fence, Freed, Pressure
from pegaflow.wire.control import Fenced, Hello, Welcome
from pegaflow.wire.index import (
    Claim,
    Claimed,
    Corrupt,
    EndClaim,
    Held,
    Holding,
    Pinned,
    Release,
    Seal,
    Sealed,
    Unheld,
)
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, FLUSHER, LIST_MAX, NUMBER_MAX, SESSION, Address

from .lookup import Fetching
from .recovery import CLAIMS_MAX
from .write_back import sayable

CLEARING_NS = 10_000 * MS
"""An extent is cleared for so long after somebody has asked for pages in vain: who still wants to
save tries again sooner."""


class Index(Fetching):
    """Key map, claims, leases, ledger."""

    DIALS = (ALLOCATOR,)

    def __init__(
        self,
        address: Address,
        supervisor: Address,
        hello: Hello,
        open_ledger: Callable[[Welcome], Ledger],
    ) -> None:
        super().__init__(address, supervisor, hello, open_ledger)
        self._seals = 0  # newest seal id
        self._clear_until = 0  # so long an extent stays closed to new leases
        self.on(Release, self._on_release, SESSION)
        self.on(Claim, self._on_claim, SESSION)
        self.on(EndClaim, self._on_end_claim, SESSION)
        self.on(Seal, self._on_seal, SESSION, FLUSHER)
        self.on(Holding, self._on_holding, SESSION, FLUSHER)
        self.on(Corrupt, self._on_corrupt, SESSION, FLUSHER)
        self.on(Pressure, self._on_pressure, ALLOCATOR)
        self.on(Fence, self._on_fence, ALLOCATOR)

    def gauges(self) -> dict[str, int]:
        """Sizes of the tables."""
        return {
            "blocks_resident": len(self.blocks),
            "resident_bytes": self.resident_bytes,
            "quarantined_pages": self.quarantined,
            "sessions_awaited": len(self.awaited or ()),
            "leases": len(self.leases),
            "pinned_bytes": self.leases.pinned_bytes,
            "ssd_stored_blocks": sum(map(len, self.stored.values())),
            "ssd_backlog_blocks": len(self.backlog),
            "ssd_in_flight_blocks": len(self.in_flight),
            "ssd_waits": sum(map(len, self.waits.values())),
        }

    def check(self) -> None:
        """Blocks, order, leases and ledger agree."""
        self.blocks.check()
        self.order.check()
        self.leases.check()
        self.claims.check()
        self.check_flushing()
        self.check_fetching()
        blocks = list(self.blocks)
        assert len(self.order) == len(blocks), "a block that nothing can evict, or a ghost"
        assert len(blocks) + self.blocks.cold == len(self.blocks)
        for block in blocks:
            for page, stamp in zip(block.pages, block.stamps, strict=True):
                record = self.ledger.read(page)
                assert record is not None and record.stamp == stamp and record.key == block.key

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """Fence a dead holder, then say so: no ledger write of it comes after this."""
        if dead.name not in (SESSION, FLUSHER):
            return []
        if dead.name == FLUSHER:
            self.flusher_gone(dead, now)
        self.drop_waits(dead)
        for lease in self.leases.fence(dead):
            self.order.touch(lease.blocks)
        self.pins.fence(dead)
        self.claims.fence(dead)
        self.heard.discard(dead)
        if self.awaited is not None:
            self.awaited.discard(dead)
        return self.tell(ALLOCATOR, Fenced(dead))

    def met(self, neighbour: Address, now: int) -> list[Effect]:
        """An allocator, perhaps a new one: say that we are here, and of all deaths we know."""
        fenced = [Send(neighbour, Fenced(dead)) for dead in self.dead]
        return [*fenced, Send(neighbour, Freed(()))]

    def _on_release(self, sender: Sender, msg: Release, now: int) -> list[Effect]:
        lease = self.leases.release(sender.address, msg.number)
        if lease is not None:
            self.released(lease, now)
        return []

    def _on_claim(self, sender: Sender, msg: Claim, now: int) -> list[Effect]:
        if self.claims.held(sender.address) >= CLAIMS_MAX:
            return [Reply(sender, Claimed(0, ()))]
        if not self.gathered():  # somebody may still restate the key: two save it then, one wins
            self.counts["claims_early"] += 1
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
        if not self._makes_sense(msg):
            self.counts["seals_malformed"] += 1
            return [Reply(sender, Sealed(Status.BAD_REQUEST, ()))]
        found = self._publish(sender.address, msg, now)
        status = Status.OK if len(found) == len(msg.keys) else Status.STALE_CLAIM
        effects: list[Effect] = [Reply(sender, Sealed(status, tuple(found)))]
        if not found:
            return effects
        blocks = list(found.values())
        if sender.address.name == SESSION:
            self.counts["blocks_sealed"] += len(blocks)
            self._make_young(blocks)
            return effects + self.arrived(blocks, now) + self.pump(now)
        self.order.insert_chain(blocks)
        effects += self.arrived(blocks, now)
        unawaited = [block for block in blocks if not block.leases]
        if unawaited:  # of the others the end of the lease makes the whole chain young
            self._make_young(unawaited)
        return effects + self.pump(now)

    def _make_young(self, blocks: list[Block]) -> None:
        """These, and the resident chain that ends in the last of them, are the youngest now."""
        young = self._chain(blocks[-1])
        known = set(young)
        self.order.insert_chain([block for block in blocks if block not in known])
        self.order.insert_chain(young)

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
            and size == -(-msg.payload // PAGE_ALIGN) * PAGE_ALIGN
            and len(msg.checksums) in (0, len(msg.pages))
            and len(msg.depths) in (0, count)
            and self.geometry.hold(msg.pages, size)
        )

    def _publish(self, holder: Address, msg: Seal, now: int) -> dict[int, Block]:
        """Publish what the claim still covers.  What of this Seal is published now, by position."""
        fetched = holder.name == FLUSHER
        owns = self.is_fetched if fetched else partial(self.claims.owns, holder)
        namespace, shards = msg.namespace, msg.shards
        void = self.ledger.are_void(msg.pages)
        found: dict[int, Block] = {}
        made: list[Block] = []
        for at, key in enumerate(msg.keys):
            first, end = at * shards, (at + 1) * shards
            resident = self.blocks.get(namespace, key)
            if resident is not None:
                if resident.stamps == msg.stamps[first:end]:
                    found[at] = resident
            elif not owns(msg.claim, namespace, key):
                self.counts["fetches_stale" if fetched else "seals_stale"] += 1
            elif not all(void[first:end]):
                self.counts["seals_malformed"] += 1
            else:
                found[at] = block = self._new_block(msg, at, now)
                self.blocks.add(block)
                made.append(block)
        self._write_records(made, msg.payload)
        if fetched:
            self.counts["blocks_fetched"] += len(made)
        else:
            self.counts["bytes_sealed"] += len(made) * shards * msg.payload
            for block in made:
                self.saved(block)
        self.resident_bytes += len(made) * shards * slot_size(msg.page_size)
        return found

    def _new_block(self, msg: Seal, at: int, now: int) -> Block:
        parent = None if msg.depths else self.blocks.get(msg.namespace, msg.parents[at])
        first, end = at * msg.shards, (at + 1) * msg.shards
        self._seals += 1
        return Block(
            msg.namespace,
            msg.keys[at],
            msg.page_size,
            msg.pages[first:end],
            msg.stamps[first:end],
            (self.address.incarnation << 40) + self._seals,
            msg.depths[at] if msg.depths else parent.depth + 1 if parent else 0,
            msg.parents[at],
            checksums=msg.checksums[first:end] or (0,) * msg.shards,
            born=now,
        )

    def _write_records(self, blocks: list[Block], payload: int) -> None:
        pages: list[int] = []
        records: list[Record] = []
        for b in blocks:
            pages += b.pages
            for shard, (stamp, sum_) in enumerate(zip(b.stamps, b.checksums, strict=True)):
                facts = (stamp, b.seal, shard, len(b.pages), payload)
                records.append(Record(*facts, b.namespace, b.key, sum_ or None, b.depth))
        self.ledger.seal(pages, records)

    def _chain(self, last: Block) -> list[Block]:
        """The resident chain that ends in this block, head first: its tail must go before its head,
        so adding to a chain makes all of it young again."""
        chain: dict[Block, None] = {}
        block: Block | None = last
        while block is not None and block not in chain and len(chain) < LIST_MAX:
            chain[block] = None
            block = self.blocks.get(block.namespace, block.parent)
        return list(reversed(chain))

    def _on_holding(self, sender: Sender, msg: Holding, now: int) -> list[Effect]:
        """Mend lost releases and lost grants of a holder."""
        holder = sender.address
        if holder not in self.heard:
            self.leases.go_on_from(holder, min(msg.lease_upto, NUMBER_MAX))
            self.claims.go_on_from(holder, min(msg.claim_upto, NUMBER_MAX))
        unheld = tuple(n for n in msg.leases if self.leases.get(holder, n) is None)
        self.heard.add(holder)
        if unheld:
            self.counts["leases_unheld"] += len(unheld)
        elif self.awaited is not None:
            self.awaited.discard(holder)
        dropped, resend = self.leases.statement(holder, msg.lease_upto, msg.leases)
        again: list[Effect] = []
        if holder == self.flusher:
            for lease in dropped:
                self.landed(lease, True)
            again = [effect for lease in resend for effect in self.flush_of(lease, now)]
        elif holder.name == SESSION:
            for lease in dropped:
                self.released(lease, now)
            again = [Send(holder, self.held(lease)) for lease in resend]
            again += self._tell_pins(holder)
        self.claims.statement(holder, msg.claim_upto, msg.claims)
        return [*again, Send(holder, Unheld(unheld))] if unheld else again

    def _tell_pins(self, session: Address) -> list[Effect]:
        news = self.pins.news(session)
        return [Send(session, Pinned(news[0], self.pins.most, news[1]))] if news else []

    def _on_corrupt(self, sender: Sender, msg: Corrupt, now: int) -> list[Effect]:
        """Blocks of which a page is not what was sealed: no hit any more, their pages nobody's."""
        effects: list[Effect] = []
        for page in msg.pages:
            block = self.blocks.by_page(page) if page < self.ledger.records else None
            if block is None:
                continue
            for own in block.pages:
                self.ledger.quarantine(own)
            self._remove(block)
            self._count_stay([block], "cleanup", now)
            self.quarantined += len(block.pages)
            self.counts["blocks_corrupt"] += 1
            facts = (("page", page), ("depth", block.depth), ("found_by", str(sender.address)))
            effects.append(Note("block_corrupt", facts, "error", "block_corrupt"))
        return effects

    def held(self, lease: Lease) -> Held:
        """The answer that names this lease."""
        blocks = lease.blocks
        pages = tuple(chain.from_iterable([b.pages for b in blocks]))
        assert self.welcome is not None
        sums: tuple[int, ...] = ()
        if self.welcome.verify:
            sums = tuple(chain.from_iterable([b.checksums for b in blocks]))
        return Held(lease.number, len(blocks[0].pages), pages, sums)

    def _on_pressure(self, sender: Sender, msg: Pressure, now: int) -> list[Effect]:
        """Evict and name the pages that are void now."""
        if not self.gathered():
            return [Reply(sender, Freed(()))]
        self.thaw(msg)
        victims: list[Block] = []
        effects: list[Effect] = []
        if not msg.recut:
            victims, effects = self.rescue(msg.page_size, msg.count, now)
        if not victims:
            victims = self._coldest_extent(msg.page_size, now)
        victims = sayable(victims)
        self.count_dropped(victims, now)
        return [Reply(sender, Freed(self._evict(victims, now))), *effects]

    def _coldest_extent(self, page_size: int, now: int) -> list[Block]:
        """Every evictable block of the extent that another page size has used longest ago and that
        nobody has a lease in.  Without such a one an extent is cleared: nothing of it is leased any
        more, so that it is empty once the leases that there are have ended."""
        extent_of = self.geometry.extent_of
        leased = frozenset(map(extent_of, self.leases.pages()))
        extent = self.order.coldest_extent(page_size, extent_of, leased)
        if extent is not None:
            self.clearing = None
        elif self.clearing is None:
            extent = self.order.coldest_extent(page_size, extent_of)
        else:
            extent = self.clearing[0]
        if extent is None:
            return []
        first = extent * self.geometry.records_per_extent
        found = map(self.blocks.by_page, range(first, first + self.geometry.records_per_extent))
        unique = {id(b): b for b in found if b is not None}
        stays = any(block.leases for block in unique.values())
        self.clearing, self._clear_until = (extent, page_size) if stays else None, now + CLEARING_NS
        return [block for block in unique.values() if not block.leases]

    def beat(self, now: int) -> list[Effect]:
        """Clear nothing for somebody who does not ask any more."""
        if now > self._clear_until:
            self.clearing = None
        return super().beat(now)

    def _on_fence(self, sender: Sender, msg: Fence, now: int) -> list[Effect]:
        """Only if we have heard of the death ourselves: what is queued of it is dropped then."""
        return [Send(sender.address, Fenced(msg.address))] if msg.address in self.dead else []

    def _evict(self, blocks: list[Block], now: int) -> tuple[int, ...]:
        """These go; their pages."""
        assert not any(block.leases for block in blocks)
        pages = tuple(chain.from_iterable([block.pages for block in blocks]))
        self.ledger.void(pages)
        for block in blocks:
            self._remove(block)
            self.counts["bytes_evicted"] += len(block.pages) * slot_size(block.page_size)
        self.counts["blocks_evicted"] += len(blocks)
        self._count_stay(blocks, "pressure", now)
        return pages

    def _count_stay(self, blocks: list[Block], why: str, now: int) -> None:
        """How long these were in memory, as far as it is known; those of one Seal are as old."""
        for born, times in Counter(block.born for block in blocks).items():
            if born:
                stay_ms = max(0, now - born) // MS
                RESIDENCE.count(self.counts, stay_ms, why, times=times)

    def _remove(self, block: Block) -> None:
        """The block is not resident any more; its records say so already."""
        self.order.remove(block)
        self.blocks.remove(block)
        self.backlog.discard(block)
        self.resident_bytes -= len(block.pages) * slot_size(block.page_size)
