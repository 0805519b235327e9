"""How an earlier life has left the pool, page by page, until a slab can be made of it."""

from collections.abc import Hashable

from pegaflow.wire.identities import GrantId, PageId
from pegaflow.wire.layout import PAGE_ALIGN

from .geometry import MIN_PAGE, Geometry
from .slab import Grant, Slab


class Plan:
    """How an earlier life has left the pool, page by page; then a slab that goes on from there."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._sizes: dict[int, int] = {}  # extent -> page size
        self._granted: dict[int, dict[PageId, Grant]] = {}  # extent -> page -> grant
        self._left: dict[int, set[PageId]] = {}  # extent -> pages
        self._bare: set[PageId] = set()  # pages that are not free, of a size that nobody knows

    def grant(self, page: PageId, page_size: int, holder: Hashable, number: GrantId) -> bool:
        """A holder states this page.

        Args:
            number: the newest grant that the holder has heard of.

        Returns:
            False if it cannot be his: another has stated it, or it does not fit the cut of its
            extent.
        """
        granted = self._granted.setdefault(self._geometry.extent_of(page), {})
        if page in granted or not self._fits(page, page_size):
            return False
        granted[page] = (holder, number)
        return True

    def leave(self, page: PageId, length: int) -> None:
        """The ledger has this page. A record that does not fit the cut of its extent is about to be
        voided, and no page.

        Args:
            length: bytes of payload; 0: the page is quarantined, and its size not known.
        """
        if not length:
            self._bare.add(page)
        elif self._fits(page, -(-length // PAGE_ALIGN) * PAGE_ALIGN):
            self._left.setdefault(self._geometry.extent_of(page), set()).add(page)

    def slab(self) -> Slab:
        """The book."""
        for page in self._bare:
            extent = self._geometry.extent_of(page)
            if self._fits(page, self._sizes.get(extent, MIN_PAGE)):
                self._left.setdefault(extent, set()).add(page)
        slab = Slab(self._geometry)
        for extent in sorted(self._sizes):
            granted = self._granted.get(extent, {})
            left = self._left.get(extent, set()) - granted.keys()
            if left or granted:
                slab.adopt(extent, self._sizes[extent], left, granted)
        return slab

    def _fits(self, page: PageId, page_size: int) -> bool:
        sound = 0 < page_size and page_size % PAGE_ALIGN == 0
        if not sound or not self._geometry.holds(page, page_size):
            return False
        size = self._sizes.setdefault(self._geometry.extent_of(page), page_size)
        return size == page_size
