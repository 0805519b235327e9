"""Which blocks are in memory, which of them go first, and what the ledger says of them.

The index is the only writer of the ledger: a record is sealed when a block is published, and void
before its page is named to anybody as free.  A leased block is never evicted.  Whether a hazard
names a block is known only once it is no hit any more: its records say first that they are leaving,
then the hazards are read, and then the records are void or what they were.

Of a chain the tail goes before the head, so whoever adds to one makes all of it young again.  A
save adds to its chain piece by piece, and a request that is being computed block by block: to walk
the whole chain for each would cost more than all the rest.  So a chain that grows is walked once,
when it begins to, and what is added after that is the youngest alone.  The chain is put in order
after the next beat, a few chains in one go, or before somebody looks for victims among what is as
young as it.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from pegaflow.actors.runtime.contract import MS, Effect, Part
from pegaflow.core.blocks.adoption import Adoption
from pegaflow.core.blocks.columns import Mask, Pages
from pegaflow.core.blocks.listing import Listing
from pegaflow.core.blocks.table import Block, Fresh, PrefixIndex
from pegaflow.core.policy.lru import Lru
from pegaflow.core.pool.columns import among, distinct
from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.geometry import MIN_PAGE, Geometry, slot_size
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.pool.records import ROW, bodies_of, page_sizes, shards_of
from pegaflow.core.series import RESIDENCE
from pegaflow.wire.control import Welcome
from pegaflow.wire.identities import Namespace, PageId, Stamp
from pegaflow.wire.units import Bytes, Count
from pegaflow.wire.values import LIST_MAX

from .hazards import Hazards
from .memory import Memory

SETTLED_BLOCKS: Count = 4096
"""Of the chains that are put in order in one go, when the last of them has its turn: a millisecond
in which nothing else is answered."""


class New(NamedTuple):
    """What is said of new blocks: columns, an entry per block."""

    payload_bytes: Bytes  # of each page
    stamps: U64  # of all pages, block by block
    checksums: U64  # the same; 0: never computed
    seals: U64
    depths: Pages
    parents: Pages  # first page of the block before each, -1: it is not here


class _Growth(NamedTuple):
    """What is known of a chain that may grow on."""

    tick: int  # the policy's tick before it was walked
    grown: bool  # something was added since then
    page_size: Bytes


_End = tuple[PageId, Stamp]
"""The last block of a chain: its first page, and under which stamp it was filled."""


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
        self.blocks = PrefixIndex(
            lambda page: self.ledger.read(page),
            lambda pages: self.records(pages),
            lambda pages: self.ledger.rows()[pages, 1],
        )
        self.policy = Lru(self.blocks.handles)  # exactly the resident blocks
        self.resident_bytes = 0  # of the pool, in pages of resident blocks
        self.quarantined = 0  # pages that nobody uses as long as the pool lives
        self._growing: dict[_End, _Growth] = {}  # by the last block of each such chain
        self._grown: deque[tuple[_End, _Growth]] = deque()  # to be put in order, in this order
        self.watch: Watch | None = None  # hears of each block that comes and goes
        self._adopted = False  # what an earlier life has left is here, and in order

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

    def records(self, pages: Pages) -> U64:
        """Their records as they are now: rows of words, the state word first."""
        return self.ledger.rows().take(pages, axis=0)

    def depth(self, first: PageId) -> int:
        """Of the block that begins here, in its chain."""
        return int(self.records(np.array([first])).view(ROW)[0, 0]["depth"])

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """Map the ledger."""
        self._ledger, table = self._memory.open(welcome)
        self.blocks.columns.reach(self._ledger.records)
        self.policy.reach(self._ledger.records)
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
        self.ledger.void(adoption.nonsense)
        self.resident_bytes += adoption.bytes_
        self.quarantined = len(adoption.quarantined)
        self._adopted = True

    def seal(self, blocks: Fresh, new: New, now: int, taken: Mask | None) -> None:
        """Blocks are in place: write their records, and let them be found.

        Args:
            blocks: at least one.
            new: what is said of them.
            taken: as for `PrefixIndex.put`.
        """
        bodies = bodies_of(
            blocks.namespace,
            new.payload_bytes,
            blocks.pages.shape[1],
            stamps=new.stamps,
            checksums=new.checksums,
            seals=new.seals,
            keys=blocks.keys,
            depths=new.depths,
        )
        pages = blocks.pages.reshape(-1)
        self.ledger.seal_bodies(pages, bodies)
        self.blocks.put(blocks, now, taken)
        self.blocks.columns.link(
            blocks.pages[:, 0], new.parents, self.ledger.rows()[new.parents, 1]
        )
        self.resident_bytes += len(pages) * slot_size(blocks.page_size)
        self.listing.add(blocks.names, blocks.pages)
        if self.watch is not None:
            shards = blocks.pages.shape[1]
            self.watch.came(blocks.namespace, new.payload_bytes, shards, blocks.names)

    def evict(self, first: Pages, now: int) -> tuple[Mask, Pages]:
        """End blocks that have no lease, but for those that a hazard names; how young these are
        then is the caller's to say.

        Args:
            first: page of each; all of one page size.

        Returns:
            Which ended, and all of their pages: their records are void now, and the pages to be
            named to the allocator.
        """
        assert not self.blocks.handles.leased(first).any()
        if not len(first):
            return np.zeros(0, np.bool_), first
        records = self.records(first)
        rows = records.view(ROW)[:, 0]
        page_size = int(page_sizes(rows[:1])[0])
        pages, owners = self.blocks.columns.all_pages(first, rows["shards"])
        self.ledger.leave(pages)
        stays = self._hazards.standing(first, records[:, 1])
        gone = ~stays
        if stays.any():
            self.ledger.stay(pages[stays[owners]])
            self._counts["evictions_turned_back"] += int(np.count_nonzero(stays))
        all_gone = pages[gone[owners]]
        self.ledger.void(all_gone)
        self._remove(first[gone], records[gone], all_gone, now, why="pressure")
        self._counts["bytes_evicted"] += len(all_gone) * slot_size(page_size)
        self._counts["blocks_evicted"] += int(np.count_nonzero(gone))
        return gone, all_gone

    def quarantine(self, block: Block, now: int) -> None:
        """It is not what was sealed: no hit any more, its pages nobody's."""
        for page in block.pages:
            self.ledger.quarantine(page)
        first, pages = np.array(block.pages[:1], np.int64), np.array(block.pages, np.int64)
        self._remove(first, self.records(first), pages, now, why="cleanup")
        self.quarantined += len(block.pages)

    def beat(self, now: int) -> list[Effect]:
        """Chains that grew are put in order; what is added from here on is another growth."""
        self._growth_ends()
        return []

    def wake_at(self) -> int | None:
        """At once while there are such chains."""
        return 0 if self._grown else None

    def wake(self, now: int) -> list[Effect]:
        """Put some of them in order."""
        self._settle(SETTLED_BLOCKS)
        return []

    def make_young(self, page_size: Bytes, first: Pages, before: PageId | None) -> None:
        """These, and the resident chain that ends in the last of them, are the youngest now; of a
        chain that grows, soon.

        Args:
            page_size: of all of them.
            first: page of each; at least one.
            before: first page of the block that they go on from; None: there is none, or they are
                not one chain.
        """
        rows = self.ledger.rows()
        end, before_it = _end(rows, first[-1]), None if before is None else _end(rows, before)
        if self._grows(page_size, end, before_it):
            self.policy.make_young(page_size, first)
        else:
            self._make_chain_young(page_size, first)

    def make_pieces_young(
        self, page_size: Bytes, first: Pages, starts: Sequence[int], before: Pages
    ) -> None:
        """`make_young` of pieces of chains: what one replica has saved is a piece for each block.

        Args:
            starts: where in `first` each piece begins.
            before: beside `starts`, first page of the block that the piece goes on from, -1: it is
                not here.
        """
        stops, rows = [*starts[1:], len(first)], self.ledger.rows()
        ends, befores = _ends(rows, first[np.array(stops) - 1]), _ends(rows, before)
        alone = np.zeros(len(first), np.bool_)
        for start, stop, end, from_ in zip(starts, stops, ends, befores, strict=True):
            is_head = from_[0] < 0
            grows = self._grows(page_size, end, None if is_head else from_)
            if grows or is_head:
                alone[start:stop] = True
            else:
                self._make_chain_young(page_size, first[start:stop])
        self.policy.make_young(page_size, first[alone])

    def _grows(self, page_size: Bytes, end: _End, before: _End | None) -> bool:
        """Whether a chain that ends with `end` now has ended with `before`, and was growing; if
        not, it may grow from here on."""
        growth = None if before is None else self._growing.pop(before, None)
        if growth is not None:
            self._growing[end] = growth._replace(grown=True)
            return True
        begun = _Growth(self.policy.tick, grown=False, page_size=page_size)
        self._growing[end] = begun
        if self._grown:  # chains begun before it, which would be younger
            self._grown.append((end, begun))
        return False

    def use(self, first: Pages) -> None:
        """These are the youngest now: first pages, of whatever page sizes, in chain order."""
        sizes = page_sizes(self.records(first).view(ROW)[:, 0])
        for size in distinct(sizes).tolist():
            self.policy.make_young(size, first[sizes == size])

    def pages_to(self, first: Pages) -> Pages:
        """How many pages these blocks have, each together with those before it."""
        return np.cumsum(shards_of(self.ledger.rows(), first), dtype=np.int64)

    def victims(self, page_size: Bytes, count: int) -> Pages:
        """As of the policy: first pages of blocks without a lease, the oldest first, of a chain its
        tail."""
        found = self.policy.coldest(page_size, count)
        ticks = [growth.tick for growth in self._growing.values() if growth.grown]
        ticks += [growth.tick for _, growth in self._grown]
        if len(found) and ticks and self.policy.last_uses(found[-1:])[0] > min(ticks):
            self._growth_ends()
            self._settle_all()
            found = self.policy.coldest(page_size, count)
        return found

    def make_oldest(self, block: Block) -> None:
        """It goes first."""
        self.policy.insert_oldest(block)

    def learn_parents(self, blocks: list[Block]) -> None:
        """Adopted blocks do not know the one before them, until somebody names the chain."""
        if not self._counts["blocks_adopted"]:
            return
        for before, block in zip(blocks, blocks[1:], strict=False):
            if not block.parent:
                self.blocks.link(block, before)

    def check(self) -> None:
        """Blocks, policy and ledger agree."""
        self.blocks.check()
        self.policy.check()
        blocks = list(self.blocks)
        evictable = len(self.policy)
        assert evictable == len(blocks) or not self._adopted, (
            "nothing can evict a block, or a ghost"
        )
        assert len(blocks) == len(self.blocks)
        for block in blocks:
            for page, stamp in zip(block.pages, block.stamps, strict=True):
                record = self.ledger.read(page)
                assert record is not None and record.stamp == stamp and record.key == block.key

    def _growth_ends(self) -> None:
        """What has grown is to be put in order, and so is what was begun after it: the first piece
        of a chain that is being saved must not be older than a whole one before it."""
        chains = list(self._growing.items())
        first = next((at for at, (_, growth) in enumerate(chains) if growth.grown), len(chains))
        self._grown += chains[first:]
        self._growing = {}

    def _settle(self, most: Count) -> None:
        """Put chains in order, until so many of their blocks have been."""
        settled = 0
        while self._grown and settled < most:
            (page, stamp), growth = self._grown.popleft()
            if self._stands(page, stamp):
                chain = np.array([page], np.int64)
                settled += self._make_chain_young(growth.page_size, chain)

    def _settle_all(self) -> None:
        """Put all of them in order; a block of several is as young as the last of these."""
        placed: set[int] = set()
        parts: list[tuple[Bytes, Pages]] = []
        while self._grown:
            (page, stamp), growth = self._grown.pop()
            if page in placed or not self._stands(page, stamp):
                continue
            chain = self._chain(page)
            pages, at = chain.tolist(), len(chain)
            while at and pages[at - 1] not in placed:
                at -= 1
            placed.update(pages[at:])
            parts.append((growth.page_size, chain[at:]))
        for page_size, part in reversed(parts):
            self.policy.make_young(page_size, part)

    def _stands(self, page: PageId, stamp: Stamp) -> bool:
        """Whether the end of a chain is still here."""
        return self.blocks.columns.head(page) == page and bool(self.ledger.rows()[page, 1] == stamp)

    def _make_chain_young(self, page_size: Bytes, first: Pages) -> Count:
        """These, and the resident chain that ends in the last of them; how long that is."""
        young = self._chain(PageId(int(first[-1])))
        others = first[~among(first, young)] if len(first) > 1 else first[:0]
        self.policy.make_young(page_size, others)
        self.policy.make_young(page_size, young)
        return len(young)

    def _chain(self, last: PageId) -> Pages:
        """The resident chain that ends in this block, head first: its tail must go before its head,
        so adding to a chain makes all of it young again."""
        return self.blocks.chains.chain(last, LIST_MAX)

    def _remove(self, first: Pages, records: U64, pages: Pages, now: int, *, why: str) -> None:
        """Blocks are not resident any more; their records say so already.

        Args:
            first: page of each.
            records: of these pages.
            pages: all of them.
            why: for the histogram of how long they were in memory, as far as it is known; those of
                one Seal are as old.
        """
        if not len(first):
            return
        for born_ns, times in self.blocks.columns.ages(first).items():
            if born_ns:
                RESIDENCE.count(self._counts, max(0, now - born_ns) // MS, why, times=times)
        page_size = int(page_sizes(records[:1].view(ROW)[:, 0])[0])
        self.policy.drop(page_size, first)
        names = self.blocks.drop(first, records, pages)
        self.listing.remove(names, first)
        if self.watch is not None:
            self.watch.went(names)
        self.resident_bytes -= len(pages) * slot_size(page_size)


class Watch(Protocol):
    """Who hears of the blocks in memory."""

    def came(self, namespace: Namespace, payload_bytes: int, shards: int, names: U64) -> None:
        """Blocks of these fingerprints are resident now."""

    def went(self, names: U64) -> None:
        """Blocks of these fingerprints are not any more."""


def sayable(blocks: list[Block]) -> list[Block]:
    """So many of these, which have equally many pages each, that one message can name their
    pages."""
    return blocks[: LIST_MAX // len(blocks[0].pages)] if blocks else blocks


def _end(rows: U64, first: PageId | np.int64) -> _End:
    """The name of a chain that ends here, by the ledger's records."""
    return PageId(int(first)), Stamp(int(rows[first, 1]))


def _ends(rows: U64, first: Pages) -> list[_End]:
    """The same of many; a page of -1 stands for none."""
    return list(zip(map(PageId, first.tolist()), map(Stamp, rows[first, 1].tolist()), strict=True))
