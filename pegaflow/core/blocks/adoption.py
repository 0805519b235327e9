"""The index's blocks out of the ledger that an earlier life has left, in steps.

No step handles more than a few thousand records, so that whoever takes them answers to the clock in
between, and whoever adopts five million blocks is as alive as one who adopts none.  First the
blocks are counted, so that there is room for them from the start.  Then the ledger is read: a block
of one page is put into the prefix index as it is found.  Blocks of several pages are put together
from the records of one seal, which may be anywhere: all their pages are parted by seals, and then
joined part by part.  Last the order in which blocks are to go is made: the tails of chains before
their heads, and of equals the one that was sealed first.  Nobody has used them in this life.

A page that is leaving is sealed again: whoever let it leave has died before it knew whether
somebody uses it.  What means nothing is to be voided: a block that lacks a shard, a record that
does not fit the cut of its extent, and all but one of several blocks with the same key.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pegaflow.core.pool.columns import distinct
from pegaflow.core.pool.fingerprints import fold
from pegaflow.core.pool.geometry import Geometry, slot_size
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.pool.records import ROW, page_sizes
from pegaflow.core.pool.scan import Sense, by_namespace, scan
from pegaflow.wire.identities import PageId
from pegaflow.wire.units import Count

from .columns import Pages
from .parting import PART, parted
from .table import Old, PrefixIndex

CHUNK_RECORDS: Count = 2048
"""Records read in one step: 1 to 4 ms, in which nothing else is answered."""

COUNTED_RECORDS: Count = 1 << 15
"""Records counted in one step, of which a line of the processor's cache is read each: some ms."""

SAMPLE: Count = 16
"""Of each part that is put in order so many blocks are looked at first: so no part becomes much
larger than the others."""

_ALIKE = ((26, 113), (122, 126))
"""Bytes of a record that all pages of a block have in common, beside its seal: shards, length of
the payload, namespace, key; depth."""


class _Blocks(NamedTuple):
    """Columns, an entry per block."""

    first: Pages
    sizes: Pages  # of their pages
    depths: Pages
    seals: Pages


class Adoption:
    """One ledger on its way into a prefix index.

    Args:
        geometry: cut of the pool that the ledger belongs to.
        blocks: gets what is found.
        old: gets page sizes and first pages of blocks that are to go before all that it has got so
            far, the first of them first.
    """

    def __init__(
        self,
        ledger: Ledger,
        geometry: Geometry,
        blocks: PrefixIndex,
        old: Callable[[int, Pages], None] = lambda page_size, first: None,
    ) -> None:
        self._ledger, self._blocks, self._old = ledger, blocks, old
        self._sense = Sense(geometry)
        self._found: list[_Blocks] = []
        self._larger = np.empty((2, 0), np.int64)  # pages of blocks of several, and their seals
        self._work = self._steps()
        self.nonsense: list[PageId] = []  # pages to be voided
        self.quarantined: list[PageId] = []
        self.bytes_ = 0  # of the pool, in the slots of adopted blocks

    def step(self) -> bool:
        """Do a little more; False if all is done."""
        return next(self._work, False)

    def _steps(self) -> Iterator[bool]:
        records = self._ledger.records
        blocks = pages = 0
        for first in range(0, records, COUNTED_RECORDS):
            rows = self._ledger.rows()[first : first + COUNTED_RECORDS].view(ROW)[:, 0]
            used = self._ledger.rows()[first : first + COUNTED_RECORDS, 0] != 0
            pages += int(np.count_nonzero(used & (rows["shards"] > 1)))
            blocks += int(np.count_nonzero(used & (rows["shard"] == 0)))
            yield True
        self._blocks.reserve(blocks)
        self._larger = np.empty((2, pages), np.int64)
        larger = 0
        for first in range(0, records, CHUNK_RECORDS):
            larger = self._read(PageId(first), min(CHUNK_RECORDS, records - first), larger)
            yield True
        pages, seals = self._larger[:, :larger]
        parts = -(-larger // PART)
        for places in parted(larger, parts, lambda part: seals[part] % parts):
            if len(places):
                self._join(pages[places])
            yield True
        for _ in self._order():
            yield True

    def _read(self, first: PageId, count: int, larger: int) -> int:
        """Read some records; how many pages of larger blocks are known now."""
        chunk = scan(self._ledger, first, count)
        if chunk.leaving:
            self._ledger.stay(chunk.leaving)
            chunk = scan(self._ledger, first, count)
        self.quarantined += chunk.quarantined
        fits, sizes = self._sense.look(chunk)
        self._drop(chunk.pages[~fits])
        single = fits & (chunk.rows["shards"] == 1)
        rest = np.flatnonzero(fits & ~single)
        self._larger[0, larger : larger + len(rest)] = chunk.pages[rest]
        self._larger[1, larger : larger + len(rest)] = chunk.rows["seal"][rest]
        some = slice(None) if single.all() else np.flatnonzero(single)
        self._put(chunk.pages[some][:, None], chunk.rows[some], sizes[some])
        return larger + len(rest)

    def _join(self, pages: Pages) -> None:
        """Put blocks together: all pages of some seals."""
        records = self._ledger.rows().take(pages, axis=0)
        rows = records.view(ROW)[:, 0]
        order = np.lexsort((rows["shard"], rows["seal"]))
        pages, records, rows = pages[order], records[order], rows[order]
        new = np.ones(len(rows), np.bool_)
        new[1:] = rows["seal"][1:] != rows["seal"][:-1]
        starts = np.flatnonzero(new)
        counts = np.diff(starts, append=len(rows))
        heads = np.repeat(starts, counts)
        fits = rows["shards"] == np.repeat(counts, counts)
        fits &= rows["shard"] == np.arange(len(rows)) - heads
        raw = records.view(np.uint8)
        for begin, end in _ALIKE:
            fits &= (raw[:, begin:end] == raw[heads, begin:end]).all(axis=1)
        whole = np.logical_and.reduceat(fits, starts)
        self._drop(pages[~np.repeat(whole, counts)])
        starts, counts = starts[whole], counts[whole]
        for shards in distinct(counts).tolist():
            some = starts[counts == shards]
            block_pages = pages[some[:, None] + np.arange(shards)]
            self._put(block_pages, rows[some], page_sizes(rows[some]))

    def _put(self, pages: Pages, rows: npt.NDArray[Any], sizes: Pages) -> None:
        """Blocks are here, those excepted whose key another one has.

        Args:
            pages: a row per block, a column per shard.
            rows: records of their first pages.
            sizes: of their pages.
        """
        here = np.zeros(len(rows), np.bool_)
        for namespace, mine, hashes in by_namespace(rows):
            names = fold(namespace, hashes)
            for size in distinct(sizes[mine]).tolist():
                at = np.flatnonzero(mine & (sizes == size))
                some = slice(None) if len(at) == len(rows) else at
                named = names[sizes[mine] == size]
                here[at] = self._blocks.adopt(
                    Old(namespace, named, rows[some], pages[some], page_size=size)
                )
                self.bytes_ += int(np.count_nonzero(here[at])) * pages.shape[1] * slot_size(size)
        self._drop(pages[~here])
        depths, seals = rows["depth"].astype(np.int64), rows["seal"].astype(np.int64)
        self._found.append(_Blocks(pages[here, 0], sizes[here], depths[here], seals[here]))

    def _drop(self, pages: Pages) -> None:
        self.nonsense += map(PageId, np.ravel(pages).tolist())

    def _order(self) -> Iterator[None]:
        """Say which go first: the youngest blocks, then those that go before them, and so on."""
        count = sum(len(some.first) for some in self._found)
        parts = -(-count // PART)
        found = np.empty((len(_Blocks._fields), count), np.int64)
        filled = 0
        for some in self._found:
            found[:, filled : filled + len(some.first)] = some
            filled += len(some.first)
            yield
        self._found.clear()
        first, sizes, depths, seals = found
        borders = np.empty(0, np.complex128)
        if parts:
            each = PART // SAMPLE | 1  # odd: chains whose length is a power of 2 lie side by side
            sample = np.sort(_ages(depths[::each], seals[::each]))
            borders = sample[np.linspace(0, len(sample) - 1, parts + 1).astype(np.int64)[1:-1]]

        def age(part: slice) -> Pages:
            return parts - 1 - np.searchsorted(borders, _ages(depths[part], seals[part]))

        for places in parted(count, parts, age):
            order = places[np.lexsort((seals[places], -depths[places]))]
            for size in distinct(sizes[order]).tolist():
                self._old(size, first[order[sizes[order] == size]])
            yield


def _ages(depths: Pages, seals: Pages) -> npt.NDArray[np.complex128]:
    """Numbers that are ordered as blocks go, as far as a float tells seals apart."""
    ages = np.empty(len(depths), np.complex128)
    ages.real, ages.imag = -depths, seals
    return ages
