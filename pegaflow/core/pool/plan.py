"""How an earlier life has left the pool, as it comes to light, and the slab that goes on from that.

First the holders state what they hold, then the ledger is read from its first record to its last.
As soon as an extent is read to its end it is in the slab: whoever reads a few thousand records at a
time never works on more of the pool than that.
"""

from collections.abc import Hashable

import numpy as np
import numpy.typing as npt

from pegaflow.wire.identities import GrantId, PageId
from pegaflow.wire.layout import PAGE_ALIGN

from .columns import grouped
from .cuts import Cuts, Mask
from .fingerprints import U64
from .geometry import MIN_PAGE, Geometry
from .slab import Grant, Slab

Pages = npt.NDArray[np.int64]


class Plan:
    """`grant` what is stated, `read` all records in their order, then take the `slab`."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._cuts = Cuts(geometry)
        self._grants: dict[int, list[tuple[Grant, U64]]] = {}  # by extent
        self._granted: Mask = np.zeros(geometry.records, np.bool_)  # by page, as the next two
        self._left: Mask = np.zeros(geometry.records, np.bool_)
        self._bare: Mask = np.zeros(geometry.records, np.bool_)  # not free; nobody knows its size
        self._extents = 0  # those before this one are in the slab
        self._slab = Slab(geometry)

    def grant(self, holder: Hashable, number: GrantId, pages: U64, sizes: U64) -> int:
        """A holder states pages.

        Args:
            number: the newest grant that the holder has heard of.
            pages: any numbers.
            sizes: beside `pages`.

        Returns:
            How many of them cannot be his: another has stated them, or they do not fit the cut of
            their extents.
        """
        most = np.uint64(self._geometry.pool_bytes)  # no page id or size is more
        known = (pages <= most) & (sizes <= most)
        there = np.flatnonzero(known)
        ids, lengths = pages[there].astype(np.int64), sizes[there].astype(np.int64)
        once = np.zeros(len(ids), np.bool_)
        once[np.unique(ids, return_index=True)[1]] = True
        once[once] = self._cuts.fit(ids[once], lengths[once])
        mine = ids[once]
        mine = mine[~self._granted[mine]]
        self._granted[mine] = True
        for extent, some in grouped(mine.astype(np.uint64), self._geometry.records_per_extent):
            self._grants.setdefault(extent, []).append(((holder, number), some))
        return len(pages) - len(mine)

    def read(self, upto: PageId, pages: Pages, lengths: Pages) -> None:
        """The records of all pages before this one are read.  What does not fit the cut of its
        extent is about to be voided, and no page.

        Args:
            pages: those that are not void, since the last call.
            lengths: bytes of payload, beside `pages`; 0: the page is quarantined.
        """
        sized = lengths > 0
        here, sizes = pages[sized], -(-lengths[sized] // PAGE_ALIGN) * PAGE_ALIGN
        self._left[here[self._cuts.fit(here, sizes)]] = True
        self._bare[pages[~sized]] = True
        while self._extents < upto // self._geometry.records_per_extent:
            self._adopt(self._extents)
            self._extents += 1

    def slab(self) -> Slab:
        """The book, once all is read."""
        assert self._extents == self._geometry.extents
        return self._slab

    def _adopt(self, extent: int) -> None:
        own = self._geometry.records_per_extent
        first = extent * own
        bare = first + np.flatnonzero(self._bare[first : first + own])
        if len(bare):
            sizes = np.full(len(bare), self._cuts.of(extent) or MIN_PAGE)
            self._left[bare[self._cuts.fit(bare, sizes)]] = True
        left = self._left[first : first + own] & ~self._granted[first : first + own]
        pages = np.flatnonzero(left).astype(np.uint64) + np.uint64(first)
        granted = self._grants.pop(extent, [])
        if len(pages) or granted:
            self._slab.adopt(extent, self._cuts.of(extent), pages, granted)
