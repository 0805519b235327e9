"""How the pool file is cut: extents of one size, each extent into pages of one size.

A page id names a page without knowing the page size: every extent owns as many ids as it would
have pages of the smallest size, and an extent of larger pages leaves the rest unused. So the ledger
has one record per id, at a place that never moves when an extent changes its page size.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from pegaflow.wire.identities import PageId
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.units import Bytes

MIN_PAGE: Bytes = 16 * 1024
"""The smallest slot: one 128-byte ledger record per slot is then under 1 % of the pool, and
its share of the table (table.py) another half of one at most."""


def slot_size(page_size: int) -> int:
    """Bytes of pool that a page of this size takes."""
    assert page_size > 0 and page_size % PAGE_ALIGN == 0, page_size
    return max(page_size, MIN_PAGE)


@dataclass(frozen=True, slots=True)
class Geometry:
    """The cut of one pool; whoever makes the pool rounds its size down to whole extents."""

    pool_bytes: int  # a multiple of extent_bytes
    extent_bytes: int  # a multiple of MIN_PAGE

    def __post_init__(self) -> None:
        assert self.extent_bytes > 0 and self.extent_bytes % MIN_PAGE == 0, self.extent_bytes
        assert self.pool_bytes >= 0 and self.pool_bytes % self.extent_bytes == 0, self.pool_bytes

    @property
    def extents(self) -> int:
        """Extents of the pool."""
        return self.pool_bytes // self.extent_bytes

    @property
    def records_per_extent(self) -> int:
        """Page ids, and so ledger records, that each extent owns."""
        return self.extent_bytes // MIN_PAGE

    @property
    def records(self) -> int:
        """Page ids of the pool."""
        return self.extents * self.records_per_extent

    def pages_per_extent(self, page_size: int) -> int:
        """Pages of this size in one extent; 0 if it is larger than an extent."""
        return self.extent_bytes // slot_size(page_size)

    def page_id(self, extent: int, slot: int) -> PageId:
        """The page in this slot of an extent.

        Args:
            extent: its number, from 0.
            slot: place in it, in pages of whatever size it is cut into.
        """
        assert 0 <= extent < self.extents and 0 <= slot < self.records_per_extent, (extent, slot)
        return PageId(extent * self.records_per_extent + slot)

    def holds(self, page: PageId, page_size: int) -> bool:
        """Whether there is such a page in an extent that is cut into pages of this size."""
        extent, slot = divmod(page, self.records_per_extent)
        return 0 <= extent < self.extents and slot < self.pages_per_extent(page_size)

    def hold(self, pages: Sequence[PageId], page_size: int) -> bool:
        """Whether there are all of these."""
        own = self.records_per_extent
        return not pages or (
            0 <= min(pages)
            and max(pages) < self.extents * own
            and max([page % own for page in pages]) < self.pages_per_extent(page_size)
        )

    def extent_of(self, page: PageId) -> int:
        """The extent that owns this page id."""
        return page // self.records_per_extent

    def offset(self, page: PageId, page_size: int) -> int:
        """The byte of the pool file at which a page begins, if its extent is cut into pages of this
        size."""
        extent, slot = divmod(page, self.records_per_extent)
        assert 0 <= extent < self.extents, page
        assert slot < self.pages_per_extent(page_size), (page, page_size)
        return extent * self.extent_bytes + slot * slot_size(page_size)

    def offsets(self, pages: Sequence[PageId], page_size: int) -> tuple[int, ...]:
        """`offset` of each page; all are of one size."""
        assert self.hold(pages, page_size), (pages, page_size)
        own, extent, slot = self.records_per_extent, self.extent_bytes, slot_size(page_size)
        return tuple([page // own * extent + page % own * slot for page in pages])
