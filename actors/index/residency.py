"""Which blocks are in memory, which of them go first, and what the ledger says of them.

The index is the only writer of the ledger: a record is sealed when a block is published, and void
before its page is named to anybody as free.  A leased block is never evicted.  Whether a hazard
names a block is known only once it is no hit any more: its records say first that they are leaving,
then the hazards are read, and then the records are void or what they were.

Of a chain the tail goes before the head, so whoever adds to one makes all of it young again.  A
save adds to its chain piece by piece, and a request that is being computed block by block: to walk
the whole chain for each would cost more than all the rest.  So a chain that grows is walked once,
when it begins to, and what is added after that is the youngest alone.  The chain is put in order
with the next beat, or before somebody looks for victims among what is as young as it.
"""

from collections import Counter
from itertools import chain, pairwise
from typing import NamedTuple

from pegaflow.actors.runtime.contract import MS, Effect, Part
from pegaflow.core.blocks.adoption import Adoption
from pegaflow.core.blocks.listing import Listing
from pegaflow.core.blocks.table import Block, PrefixIndex
from pegaflow.core.policy.lru import Lru
from pegaflow.core.pool.geometry import MIN_PAGE, Geometry, slot_size
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.pool.records import bodies_of
from pegaflow.core.series import RESIDENCE
from pegaflow.wire.control import Welcome
from pegaflow.wire.identities import PageId
from pegaflow.wire.values import LIST_MAX

from .hazards import Hazards
from .memory import Memory


class _Growth(NamedTuple):
    """What is known of a chain that may grow on."""

    since: int  # the policy's tick before it was walked
    grown: bool  # something was added since then


class Residency(Part):
    """The blocks that are in memory, and the ledger that says so.

    Args:
        memory: maps the file that Welcome names.
        counts: of the actor.
    """

    def __init__(self, memory: Memory, hazards: Hazards, counts: Counter[str]) -> None:
        self._memory, self._hazards, self._counts = memory, hazards, counts
        self._ledger: Ledger | None = None  # in shared memory; nobody else writes it
        self._listing: Listing | None = None  # of the blocks, in the table behind the ledger
        self.geometry = Geometry(0, MIN_PAGE)  # the pool's from Welcome on
        self.blocks = PrefixIndex(lambda page: self.ledger.read(page), self._warmed)
        self.policy = Lru()  # exactly the resident blocks that are not cold
        self.resident_bytes = 0  # of the pool, in pages of resident blocks
        self.quarantined = 0  # pages that nobody uses as long as the pool lives
        self._growing: dict[Block, _Growth] = {}  # by the last block of each such chain

    @property
    def ledger(self) -> Ledger:
        """The ledger; there from Welcome on."""
        assert self._ledger is not None
        return self._ledger

    @property
    def listing(self) -> Listing:
        """Where lookups without a message find the blocks; there from Welcome on."""
        assert self._listing is not None
        return self._listing

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """Map the ledger."""
        self._ledger, table = self._memory.open(welcome)
        self._listing = Listing(self._ledger, table, self.blocks)
        self.geometry = Geometry(welcome.pool_bytes, welcome.extent_bytes)
        return []

    def gauges(self) -> dict[str, int]:
        """How much is here."""
        return {
            "blocks_resident": len(self.blocks),
            "resident_bytes": self.resident_bytes,
            "quarantined_pages": self.quarantined,
        }

    def adopt(self, adoption: Adoption) -> None:
        """The ledger is read: the blocks of an earlier life are here, and what made no sense is
        void."""
        for block in reversed(adoption.finish()):
            self.policy.insert_oldest(block)
        self.ledger.void(adoption.nonsense)
        self.resident_bytes += adoption.bytes_
        self.quarantined = len(adoption.quarantined)

    def seal(self, blocks: list[Block], payload_bytes: int) -> None:
        """Write the records of new blocks.

        Args:
            blocks: at least one, of one namespace and with equally many pages each.
            payload_bytes: of each page, what means something; the same in all.
        """
        pages = _pages(blocks)
        namespace, shards = blocks[0].namespace, len(blocks[0].pages)
        bodies = bodies_of(
            namespace,
            payload_bytes,
            shards,
            stamps=list(chain.from_iterable([block.stamps for block in blocks])),
            checksums=list(chain.from_iterable([block.checksums for block in blocks])),
            seals=[block.seal for block in blocks],
            keys=[block.key for block in blocks],
            depths=[block.depth for block in blocks],
        )
        self.ledger.seal_bodies(pages, bodies)
        self.resident_bytes += len(pages) * slot_size(blocks[0].page_size)
        self.listing.add(blocks)

    def evict(self, blocks: list[Block], now: int) -> list[Block]:
        """End blocks that have no lease, but for those that a hazard names, which are the youngest
        then.

        Returns:
            Those that ended: their records are void now, and their pages to be named to the
            allocator.
        """
        assert not any(block.leases for block in blocks)
        self.ledger.leave(_pages(blocks))
        stays = self._hazards.standing(blocks).tolist()
        kept = [block for block, stay in zip(blocks, stays, strict=True) if stay]
        gone = [block for block, stay in zip(blocks, stays, strict=True) if not stay]
        if kept:
            self.ledger.stay(_pages(kept))
            self.policy.touch(kept)
            self._counts["evictions_turned_back"] += len(kept)
        self.ledger.void(_pages(gone))
        self.listing.remove(gone)
        for block in gone:
            self._remove(block)
            self._counts["bytes_evicted"] += len(block.pages) * slot_size(block.page_size)
        self._counts["blocks_evicted"] += len(gone)
        self._count_stay(gone, "pressure", now)
        return gone

    def quarantine(self, block: Block, now: int) -> None:
        """It is not what was sealed: no hit any more, its pages nobody's."""
        for page in block.pages:
            self.ledger.quarantine(page)
        self.listing.remove([block])
        self._remove(block)
        self._count_stay([block], "cleanup", now)
        self.quarantined += len(block.pages)

    def beat(self, now: int) -> list[Effect]:
        """Chains that grew are in order again; what is added from here on is another growth."""
        self._settle()
        return []

    def make_young(self, blocks: list[Block]) -> None:
        """These, and the resident chain that ends in the last of them, are the youngest now; of a
        chain that grows, soon."""
        before = self._before(blocks)
        growth = self._growing.pop(before, None) if before is not None else None
        if growth is None:
            self._growing[blocks[-1]] = _Growth(self.policy.tick, grown=False)
            self._make_chain_young(blocks)
        else:
            self._growing[blocks[-1]] = _Growth(growth.since, grown=True)
            self.policy.insert_chain(blocks)

    def victims(self, page_size: int, count: int) -> list[Block]:
        """As of the policy: blocks without a lease, the oldest first, of a chain its tail."""
        found = self.policy.victims(page_size, count)
        since = [growth.since for growth in self._growing.values() if growth.grown]
        if found and since and self.policy.last_use(found[-1]) > min(since):
            self._settle()
            found = self.policy.victims(page_size, count)
        return found

    def make_oldest(self, block: Block) -> None:
        """It goes first."""
        self.policy.remove(block)
        self.policy.insert_oldest(block)

    def learn_parents(self, blocks: list[Block]) -> None:
        """Adopted blocks do not know the one before them, until somebody names the chain."""
        if not self._counts["blocks_adopted"]:
            return
        for before, block in zip(blocks, blocks[1:], strict=False):
            if not block.parent:
                block.parent = before.key

    def check(self) -> None:
        """Blocks, policy and ledger agree."""
        self.blocks.check()
        self.policy.check()
        blocks = list(self.blocks)
        assert len(self.policy) == len(blocks), "a block that nothing can evict, or a ghost"
        assert len(blocks) + self.blocks.cold == len(self.blocks)
        for block in blocks:
            for page, stamp in zip(block.pages, block.stamps, strict=True):
                record = self.ledger.read(page)
                assert record is not None and record.stamp == stamp and record.key == block.key

    def _warmed(self, block: Block) -> None:
        """A cold block is asked for: nobody has used it in this life so far."""
        self.policy.insert_oldest(block)

    def _settle(self) -> None:
        growing, self._growing = self._growing, {}
        for last, growth in growing.items():
            if growth.grown and self.blocks.get(last.namespace, last.key) is last:
                self._make_chain_young([last])

    def _make_chain_young(self, blocks: list[Block]) -> None:
        young = self._chain(blocks[-1])
        known = set(young)
        self.policy.insert_chain([block for block in blocks if block not in known])
        self.policy.insert_chain(young)

    def _before(self, blocks: list[Block]) -> Block | None:
        """The resident block that these go on from, if they are one chain."""
        if any(block.parent != before.key for before, block in pairwise(blocks)):
            return None
        return self.blocks.get(blocks[0].namespace, blocks[0].parent)

    def _chain(self, last: Block) -> list[Block]:
        """The resident chain that ends in this block, head first: its tail must go before its head,
        so adding to a chain makes all of it young again."""
        chain: dict[Block, None] = {}
        block: Block | None = last
        while block is not None and block not in chain and len(chain) < LIST_MAX:
            chain[block] = None
            block = self.blocks.get(block.namespace, block.parent)
        return list(reversed(chain))

    def _count_stay(self, blocks: list[Block], why: str, now: int) -> None:
        """How long these were in memory, as far as it is known; those of one Seal are as old."""
        for born, times in Counter(block.born for block in blocks).items():
            if born:
                stay_ms = max(0, now - born) // MS
                RESIDENCE.count(self._counts, stay_ms, why, times=times)

    def _remove(self, block: Block) -> None:
        """The block is not resident any more; its records say so already."""
        self.policy.remove(block)
        self.blocks.remove(block)
        self.resident_bytes -= len(block.pages) * slot_size(block.page_size)


def sayable(blocks: list[Block], named: int = 0) -> list[Block]:
    """So many of these that one message can name their pages.

    Args:
        blocks: with equally many pages each.
        named: pages that it names already.
    """
    return blocks[: (LIST_MAX - named) // len(blocks[0].pages)] if blocks else blocks


def _pages(blocks: list[Block]) -> list[PageId]:
    """All of their pages."""
    return list(chain.from_iterable([block.pages for block in blocks]))
