"""The resident blocks in the table in which readers look them up (core/pool/table.py).

The table follows the ledger: what is sealed is added, what is void is removed.  A new index does
not know what its predecessor's table lacks, so it makes another one out of the ledger, in steps,
while blocks come and go; so it does later, when blocks have come that the table had no room for.  A
step lists the blocks whose first page is among the next few; a block that comes meanwhile is listed
at once if the steps are past its page, else when they get there.  When more come than the table was
begun for, a larger one is begun.  Until all is listed readers look into the table that they have.

Beside it stands what a tier has, for a reader who wonders whether a run goes on there
(core/pool/tierfilter.py).
"""

from collections.abc import Callable, Collection, Iterable

import numpy as np

from pegaflow.core.pool.columns import distinct
from pegaflow.core.pool.fingerprints import U64, fingerprints, fold
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.pool.scan import by_namespace, scan
from pegaflow.core.pool.table import Table
from pegaflow.wire.identities import Key, Namespace, PageId
from pegaflow.wire.units import Count

from .columns import Pages
from .table import Block, PrefixIndex

LEAST_BLOCKS: Count = 16384
"""A table has room for so many, and more: 786 KB.  Smaller ones would be made again and again while
a pool fills."""


class Listing:
    """Keeps one table up to date.

    Args:
        blocks: those that are resident, to be asked for the other pages of one.
    """

    def __init__(self, ledger: Ledger, table: Table, blocks: PrefixIndex) -> None:
        self._ledger, self._blocks = ledger, blocks
        self.table = table
        self._next = PageId(0)  # the blocks of the pages before this one are listed
        self._began = False  # a table is being made, or is there
        self._lacked = 0  # blocks that the last one had no places for, even when it was new
        self.besides: Callable[[], Iterable[U64]] = tuple  # what other hosts have, for each host

    def begin(self) -> str:
        """All resident blocks are known: make a table of them, in steps.

        Returns:
            '', or in one line why that cannot be.
        """
        why = self.table.begin(max(len(self._blocks), LEAST_BLOCKS))
        if not why:
            self._next, self._began = PageId(0), True
        return why

    @property
    def wanted(self) -> bool:
        """Whether another table should be made."""
        return not self.running and (not self._began or self.lacks > 0)

    @property
    def running(self) -> bool:
        """Whether one is being made."""
        return self._began and not self._complete

    @property
    def lacks(self) -> int:
        """Blocks that have found no place since the table was made."""
        return self.table.lacks - self._lacked

    @property
    def _complete(self) -> bool:
        return self._next == self._ledger.records

    def step(self, pages: int) -> None:
        """List the blocks of some pages more, while it is `running`.

        Args:
            pages: so many, whatever is in them.
        """
        assert self.running
        if self.table.clear_step(pages):
            return
        first, count = self._next, min(pages, self._ledger.records - self._next)
        chunk = scan(self._ledger, first, count)
        self._next = PageId(first + count)
        heads = chunk.rows["shard"] == 0
        found, rows = chunk.pages[heads], chunk.rows[heads]
        for namespace, here, hashes in by_namespace(rows):
            names, shards = fold(namespace, hashes), rows["shards"][here].astype(np.int64)
            for count in distinct(shards).tolist():
                some = shards == count
                every, _ = self._blocks.columns.all_pages(found[here][some], shards[some])
                if not self._add(names[some], every.reshape(-1, count)):
                    return
        if self._complete:
            self.table.publish()
            self._lacked = self.table.lacks

    def add(self, names: U64, pages: Pages) -> None:
        """Blocks are resident now; their records say so already.

        Args:
            names: their fingerprints.
            pages: a row per block, a column per shard.
        """
        if not self._complete:
            listed = pages[:, 0] < self._next
            names, pages = names[listed], pages[listed]
        self._add(names, pages)

    def _add(self, names: U64, pages: Pages) -> bool:
        """List them; False: a larger table is begun instead, and the steps will get to them."""
        if self.table.too_small_for(len(names)) and not self.begin():
            return False
        self.table.add(names, pages.reshape(-1), pages.shape[1])
        return True

    def remove(self, names: U64, first: Pages) -> None:
        """Blocks are not resident any more.

        Args:
            names: their fingerprints.
            first: page of each.
        """
        self.table.remove(names, first)

    def tier_has(self, namespace: Namespace, keys: Collection[Key]) -> None:
        """A tier has these blocks, and had none of them before."""
        self.table.filter.add(fingerprints(namespace, list(keys)))

    def tier_lost(self, namespace: Namespace, keys: Collection[Key]) -> None:
        """A tier has these blocks no more."""
        self.table.filter.remove(fingerprints(namespace, list(keys)))

    def tier_forgot(self) -> None:
        """The tier that tells us what it has, of which there is one beside other hosts, is not
        known to have anything any more."""
        self.table.filter.clear()
        for names in self.besides():
            self.elsewhere_has(names)

    def elsewhere_has(self, names: U64) -> None:
        """A host has blocks of these fingerprints, and had none of them before."""
        if len(names):
            self.table.filter.add(names)

    def elsewhere_lost(self, names: U64) -> None:
        """A host has these no more, and had all of them."""
        if len(names):
            self.table.filter.remove(names)

    def check_tier(self, namespace: Namespace, keys: Collection[Key]) -> None:
        """No reader is told that the tier has not these."""
        filter_ = self.table.filter
        names = fingerprints(namespace, list(keys)).tolist()
        assert not filter_.counts or all(map(filter_.may_have, names))

    def check(self) -> None:
        """Readers find every block, but for those that there was no room for."""
        if not self._complete:
            return
        unseen = 0
        for (namespace, _), some in _alike(self._blocks):
            names = fingerprints(namespace, [block.key for block in some])
            found = self.table.find(names)
            assert found is not None
            heads = {(name, b.pages[0]) for name, b in zip(names.tolist(), some, strict=True)}
            seen = set(zip(names.tolist(), found.tolist(), strict=True))
            unseen += len(seen - heads)
        assert unseen <= self.table.lacks, (unseen, self.table.lacks)


def _alike(blocks: Iterable[Block]) -> Iterable[tuple[tuple[Namespace, int], list[Block]]]:
    """The blocks by namespace and number of pages."""
    kinds: dict[tuple[Namespace, int], list[Block]] = {}
    for block in blocks:
        kinds.setdefault((block.namespace, len(block.pages)), []).append(block)
    return kinds.items()
