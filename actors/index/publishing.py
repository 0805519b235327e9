"""Blocks become visible: the one place where that happens.  See wire/index.py, Seal.

A session publishes what it has claimed, the process of a tier what it was asked to fetch.
"""

from collections import Counter
from collections.abc import Iterable

from pegaflow.actors.runtime.contract import Effect, On, Part, Reply, Sender, on
from pegaflow.core.blocks.table import Block
from pegaflow.core.pool.ledger import MAX_SHARDS, NAMESPACE_BYTES, PAYLOAD_BYTES_MAX
from pegaflow.wire.index import Seal, Sealed
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.status import Status
from pegaflow.wire.values import SESSION, Address

from .claims import Claims
from .lookup import Lookup
from .residency import Residency
from .tiers import Tier, Tiers


class Publishing(Part):
    """Judges each block of a Seal."""

    def __init__(
        self,
        address: Address,
        *,
        residency: Residency,
        claims: Claims,
        tiers: Tiers,
        lookup: Lookup,
        counts: Counter[str],
    ) -> None:
        self._first_seal = address.incarnation << 40  # of this life; the next one's are later
        self._residency, self._claims = residency, claims
        self._tiers, self._lookup, self._counts = tiers, lookup, counts
        self._seals = 0  # given in this life

    def handlers(self) -> Iterable[On]:
        """Whoever fills pages."""
        return (on(Seal, self._on_seal, SESSION, *self._tiers.actors),)

    def _on_seal(self, sender: Sender, msg: Seal, now: int) -> list[Effect]:
        if not self._makes_sense(msg):
            self._counts["seals_malformed"] += 1
            return [Reply(sender, Sealed(Status.BAD_REQUEST, ()))]
        tier = self._tiers.served_by(sender.address.name)
        found = self._publish(sender.address, tier, msg, now)
        status = Status.OK if len(found) == len(msg.keys) else Status.STALE_CLAIM
        effects: list[Effect] = [Reply(sender, Sealed(status, tuple(found)))]
        if not found:
            return effects
        blocks = list(found.values())
        if tier is None:
            self._counts["blocks_sealed"] += len(blocks)
            self._residency.make_young(blocks)
            return effects + self._lookup.arrived(blocks, now) + self._tiers.write(now)
        self._residency.policy.insert_chain(blocks)
        effects += self._lookup.arrived(blocks, now)
        unawaited = [block for block in blocks if not block.leases]
        if unawaited:  # of the others the end of the lease makes the whole chain young
            self._residency.make_young(unawaited)
        return effects + self._tiers.write(now)

    def _makes_sense(self, msg: Seal) -> bool:
        """Whether the lists fit each other, and the numbers the ledger's records and the pool.
        Blocks of one namespace are cut alike: whoever loads them knows one page size."""
        count, size = len(msg.keys), msg.page_size
        other = self._residency.blocks.any_of(msg.namespace)
        if other is not None and (other.page_size, len(other.pages)) != (size, msg.shards):
            return False
        return (
            len(msg.parents) == count
            and 0 < msg.shards <= MAX_SHARDS
            and len(msg.pages) == len(msg.stamps) == count * msg.shards
            and len(set(msg.pages)) == len(msg.pages)
            and len(msg.namespace) == NAMESPACE_BYTES
            and 0 < msg.payload_bytes <= min(size, PAYLOAD_BYTES_MAX)
            and size == -(-msg.payload_bytes // PAGE_ALIGN) * PAGE_ALIGN
            and len(msg.checksums) in (0, len(msg.pages))
            and len(msg.depths) in (0, count)
            and self._residency.geometry.hold(msg.pages, size)
        )

    def _publish(self, holder: Address, tier: Tier | None, msg: Seal, now: int) -> dict[int, Block]:
        """Publish what the claim still covers.  What of this Seal is published now, by position."""
        here, namespace, shards = self._residency, msg.namespace, msg.shards
        keys, stamps = tuple(msg.keys), tuple(msg.stamps)
        if tier is None:
            owned = self._claims.table.owns(holder, msg.claim, namespace, keys)
        else:
            owned = [tier.owns(msg.claim, namespace, key) for key in keys]
        void = here.ledger.are_void(msg.pages)
        found: dict[int, Block] = {}
        made: list[Block] = []
        for at, key in enumerate(keys):
            first, end = at * shards, (at + 1) * shards
            resident = here.blocks.get(namespace, key)
            if resident is not None:
                if resident.stamps == stamps[first:end]:
                    found[at] = resident
            elif not owned[at]:
                self._counts["seals_stale" if tier is None else "fetches_stale"] += 1
            elif not all(void[first:end]):
                self._counts["seals_malformed"] += 1
            else:
                found[at] = block = self._new_block(msg, at, now)
                here.blocks.add(block)
                made.append(block)
        if made:
            here.seal(made, msg.payload_bytes)
        if tier is not None:
            self._counts["blocks_fetched"] += len(made)
        else:
            self._counts["bytes_sealed"] += len(made) * shards * msg.payload_bytes
            self._tiers.offer(made)
        return found

    def _new_block(self, msg: Seal, at: int, now: int) -> Block:
        parent = None
        if not msg.depths:
            parent = self._residency.blocks.get(msg.namespace, msg.parents[at])
        first, end = at * msg.shards, (at + 1) * msg.shards
        self._seals += 1
        return Block(
            namespace=msg.namespace,
            key=msg.keys[at],
            page_size=msg.page_size,
            pages=msg.pages[first:end],
            stamps=msg.stamps[first:end],
            seal=self._first_seal + self._seals,
            depth=msg.depths[at] if msg.depths else parent.depth + 1 if parent else 0,
            parent=msg.parents[at],
            checksums=msg.checksums[first:end] or (0,) * msg.shards,
            born=now,
        )
