"""Which blocks are in memory, which of them go first, and what the ledger says of them.

The index is the only writer of the ledger: a record is sealed when a block is published, and void
before its page is named to anybody as free.  A leased block is never evicted.  Whether a hazard
names a block is known only once it is no hit any more: its records say first that they are leaving,
then the hazards are read, and then the records are void or what they were.
"""

from collections import Counter
from itertools import chain

from pegaflow.actors.runtime.contract import MS, Effect, Part
from pegaflow.core.blocks.adoption import Adoption
from pegaflow.core.blocks.listing import Listing
from pegaflow.core.blocks.table import Block, PrefixIndex
from pegaflow.core.policy.lru import Lru
from pegaflow.core.pool.geometry import MIN_PAGE, Geometry, slot_size
from pegaflow.core.pool.ledger import Ledger, Record
from pegaflow.core.series import RESIDENCE
from pegaflow.wire.control import Welcome
from pegaflow.wire.identities import PageId
from pegaflow.wire.values import LIST_MAX

from .hazards import Hazards
from .memory import Memory


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
            payload_bytes: of each page, what means something; the same in all.
        """
        pages: list[PageId] = []
        records: list[Record] = []
        for b in blocks:
            self.resident_bytes += len(b.pages) * slot_size(b.page_size)
            pages += b.pages
            for shard, (stamp, sum_) in enumerate(zip(b.stamps, b.checksums, strict=True)):
                facts = (stamp, b.seal, shard, len(b.pages), payload_bytes)
                records.append(Record(*facts, b.namespace, b.key, sum_ or None, b.depth))
        self.ledger.seal(pages, records)
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

    def make_young(self, blocks: list[Block]) -> None:
        """These, and the resident chain that ends in the last of them, are the youngest now."""
        young = self._chain(blocks[-1])
        known = set(young)
        self.policy.insert_chain([block for block in blocks if block not in known])
        self.policy.insert_chain(young)

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
