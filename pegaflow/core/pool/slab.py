"""The allocator's book: which page of the pool is whose.

The pool is cut into extents and an extent into equal pages, so freeing one page makes room for
exactly one page and nothing fragments. An extent is *absent* until its file space is really there,
then *free*, then *cut* for one page size; as soon as all its pages are free again it is a free
extent, and may be cut for another size. A page of a cut extent is free, granted to a holder under a
number, or *left*: nobody holds it, and it stays what it is for as long as its ledger record is
sealed. The book knows nothing of the ledger; the allocator looks there before it frees anything.

Low extents are given away first, so that a pool in light use keeps whole extents free.

Every verb takes many pages at once and costs some array operations for each extent that they lie
in, plus O(log extents) where a class gains or loses an extent with room.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from sortedcontainers import SortedSet

from pegaflow.wire.identities import GrantId, PageId

from .columns import column, grouped
from .fingerprints import U64
from .geometry import Geometry
from .geometry import slot_size as slot_size
from .owners import Owners

Grant = tuple[Hashable, GrantId]
"""Who fills a page, and the number that it was granted under."""


@dataclass(frozen=True, slots=True)
class Totals:
    """Where every byte of the pool is; the last five sum to the first."""

    total_bytes: int
    free_bytes: int  # free pages of cut extents, and free extents whole
    granted_bytes: int
    left_bytes: int
    absent_bytes: int
    waste_bytes: int  # tails of cut extents, too short for a page


@dataclass(slots=True)
class _Cut:
    """One extent cut for one page size; it has at least one page that is not free."""

    page_size: int
    slots: int  # pages in it
    fresh: int  # slots from here on were never given away since the cut
    returned: list[int]  # slots below `fresh` that are free again

    @property
    def free(self) -> int:
        return self.slots - self.fresh + len(self.returned)


@dataclass(slots=True)
class _Class:
    """All extents cut for one page size."""

    extents: int  # how many
    free: int  # free pages in them
    roomy: SortedSet  # of extents with a free page


class Slab:
    """Single-threaded; the allocator is the only caller."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self._absent: set[int] = set(range(geometry.extents))  # extents without file space
        self._free: SortedSet = SortedSet()  # extents with file space that no class has
        self._cuts: dict[int, _Cut] = {}  # all other extents
        self._classes: dict[int, _Class] = {}  # page size -> its extents; none without an extent
        self.owners = Owners(geometry)
        self._granted_bytes = 0  # slots of the granted pages
        self._left_bytes = 0  # slots of the left pages
        self._waste_bytes = 0  # tails of the cut extents

    def grow(self, extent: int) -> None:
        """The extent's file space is there: absent -> free."""
        self._absent.remove(extent)
        self._free.add(extent)

    def is_absent(self, extent: int) -> bool:
        """Whether the extent's file space is not known to be there."""
        return extent in self._absent

    def adopt(
        self, extent: int, page_size: int, left: U64, granted: Sequence[tuple[Grant, U64]]
    ) -> None:
        """absent -> cut: an earlier life has left it so.

        Args:
            left: page ids that nobody holds and whose records are sealed.
            granted: holders, the numbers of their grants, and their page ids. All of these and
                `left` are different, at least one, and pages of this extent and size.
        """
        self._absent.remove(extent)
        first = np.uint64(extent * self.geometry.records_per_extent)
        used = np.concatenate([left, *(pages for _, pages in granted)]) - first
        slots = self.geometry.pages_per_extent(page_size)
        fresh = int(used.max()) + 1
        free = np.ones(fresh, np.bool_)
        free[used] = False
        cut = _Cut(page_size, slots, fresh, np.flatnonzero(free).tolist())
        self._cuts[extent] = cut
        size_class = self._classes.setdefault(page_size, _Class(0, 0, SortedSet()))
        size_class.extents += 1
        size_class.free += cut.free
        if cut.free:
            size_class.roomy.add(extent)
        for (holder, number), pages in granted:
            self.owners.give(holder, number, extent, pages)
        self.owners.leave(left)
        size = slot_size(page_size)
        self._granted_bytes += (len(used) - len(left)) * size
        self._left_bytes += len(left) * size
        self._waste_bytes += self.geometry.extent_bytes - slots * size

    def can_ever_fit(self, page_size: int, count: int) -> bool:
        """Whether the whole pool, empty and grown to its end, could hold so many pages.

        Args:
            page_size: bytes, as everywhere in this class.
        """
        return count <= self.geometry.extents * self.geometry.pages_per_extent(page_size)

    def free_pages(self, page_size: int) -> int:
        """Pages that `take` could give now, those of free extents included."""
        size_class = self._classes.get(page_size)
        own = size_class.free if size_class else 0
        return own + len(self._free) * self.geometry.pages_per_extent(page_size)

    def cut_pages(self, page_size: int) -> int:
        """All pages of the extents that are cut for this size."""
        size_class = self._classes.get(page_size)
        extents = size_class.extents if size_class else 0
        return extents * self.geometry.pages_per_extent(page_size)

    def shortage(self, page_size: int, count: int) -> tuple[int, bool]:
        """What `take` would lack.

        Returns:
            Pages that are missing; and whether even emptying every extent that the class has now
            would not yield them, so that another class must give up an extent.
        """
        missing = max(0, count - self.free_pages(page_size))
        size_class = self._classes.get(page_size)
        used = self.cut_pages(page_size) - size_class.free if size_class else 0
        return missing, missing > used

    def take(self, page_size: int, count: int, holder: Hashable, number: GrantId) -> U64 | None:
        """Grant so many pages, or none at all.

        Args:
            number: of the grant, per holder; all pages of one call have the same.

        Returns:
            Page ids; None if there are not so many free ones.
        """
        if count > self.free_pages(page_size):
            return None
        taken: list[U64] = [column(())]
        missing = count
        while missing:
            extent = self._extent_with_room(page_size)
            pages = self._take_from(extent, missing)
            self.owners.give(holder, number, extent, pages)
            missing -= len(pages)
            taken.append(pages)
        self._granted_bytes += count * slot_size(page_size)
        return np.concatenate(taken)

    def hand_back(self, pages: U64, holder: Hashable) -> None:
        """Granted -> free. The caller has seen the pages' ledger records void.

        Args:
            pages: different ones.
            holder: who has them; anybody else's word is a bug.
        """
        for extent, some in grouped(pages, self.geometry.records_per_extent):
            self.owners.take_back(extent, some, holder)
            self._granted_bytes -= self._bytes(extent, some)
            self._put_back(extent, some)

    def leave(self, pages: U64, holder: Hashable) -> None:
        """Granted -> left: their ledger records are sealed, so the index has them.

        Args:
            pages: different ones.
            holder: who has them.
        """
        for extent, some in grouped(pages, self.geometry.records_per_extent):
            self.owners.take_back(extent, some, holder)
            self._granted_bytes -= self._bytes(extent, some)
            self._left_bytes += self._bytes(extent, some)
        self.owners.leave(pages)

    def free(self, pages: U64) -> None:
        """Left -> free. The caller has seen the pages' ledger records void.

        Args:
            pages: different ones.
        """
        self.owners.free(pages)
        for extent, some in grouped(pages, self.geometry.records_per_extent):
            self._left_bytes -= self._bytes(extent, some)
            self._put_back(extent, some)

    def page_size_of(self, page: PageId) -> int:
        """Page size of the cut extent that the page lies in."""
        return self._cuts[self.geometry.extent_of(page)].page_size

    def totals(self) -> Totals:
        """Where the bytes of the pool are."""
        total = self.geometry.pool_bytes
        absent = len(self._absent) * self.geometry.extent_bytes
        used = self._granted_bytes + self._left_bytes + self._waste_bytes + absent
        return Totals(
            total_bytes=total,
            free_bytes=total - used,
            granted_bytes=self._granted_bytes,
            left_bytes=self._left_bytes,
            absent_bytes=absent,
            waste_bytes=self._waste_bytes,
        )

    def _bytes(self, extent: int, pages: U64) -> int:
        """Bytes of the slots of pages of one extent."""
        return len(pages) * slot_size(self._cuts[extent].page_size)

    def _extent_with_room(self, page_size: int) -> int:
        """The lowest extent of the class with a free page; a free extent is cut if it has none."""
        size_class = self._classes.get(page_size)
        if size_class and size_class.roomy:
            return int(size_class.roomy[0])
        extent = int(self._free.pop(0))
        slots = self.geometry.pages_per_extent(page_size)
        self._cuts[extent] = _Cut(page_size, slots, 0, [])
        self._waste_bytes += self.geometry.extent_bytes - slots * slot_size(page_size)
        if size_class is None:
            size_class = self._classes[page_size] = _Class(0, 0, SortedSet())
        size_class.extents += 1
        size_class.free += slots
        size_class.roomy.add(extent)
        return extent

    def _take_from(self, extent: int, most: int) -> U64:
        cut = self._cuts[extent]
        count = min(most, cut.free)
        reused = min(count, len(cut.returned))
        slots = cut.returned[len(cut.returned) - reused :]
        del cut.returned[len(cut.returned) - reused :]
        slots += range(cut.fresh, cut.fresh + count - reused)
        cut.fresh += count - reused
        size_class = self._classes[cut.page_size]
        size_class.free -= count
        if not cut.free:
            size_class.roomy.remove(extent)
        return column(slots) + np.uint64(extent * self.geometry.records_per_extent)

    def _put_back(self, extent: int, pages: U64) -> None:
        """There is room again for these pages of one extent."""
        cut = self._cuts[extent]
        size_class = self._classes[cut.page_size]
        if not cut.free:
            size_class.roomy.add(extent)
        first = np.uint64(extent * self.geometry.records_per_extent)
        cut.returned.extend((pages - first).tolist())
        size_class.free += len(pages)
        if cut.free == cut.slots:
            self._uncut(extent, cut, size_class)

    def _uncut(self, extent: int, cut: _Cut, size_class: _Class) -> None:
        """All pages of the extent are free: it is a free extent again."""
        del self._cuts[extent]
        self._free.add(extent)
        self._waste_bytes -= self.geometry.extent_bytes - cut.slots * slot_size(cut.page_size)
        size_class.extents -= 1
        size_class.free -= cut.slots
        size_class.roomy.remove(extent)
        if not size_class.extents:
            del self._classes[cut.page_size]

    def check(self) -> None:
        """Every page is in one state, and the totals add up."""
        geometry = self.geometry
        extents = sorted([*self._absent, *self._free, *self._cuts])
        assert extents == list(range(geometry.extents)), "an extent is missing or in two states"
        self.owners.check()
        for extent in range(geometry.extents):
            used, _ = self.owners.used(extent)
            here = self._cuts.get(extent)
            assert bool(used) == bool(here), "a cut extent without a used page, or the reverse"
            if here is None:
                continue
            assert here.slots == geometry.pages_per_extent(here.page_size)
            assert len(set(here.returned)) == len(here.returned)
            assert used.isdisjoint(here.returned)
            assert used | set(here.returned) == set(range(here.fresh))
        self._check_classes()
        self._check_bytes()

    def _check_classes(self) -> None:
        assert {cut.page_size for cut in self._cuts.values()} == self._classes.keys()
        for page_size, size_class in self._classes.items():
            own = {e: cut for e, cut in self._cuts.items() if cut.page_size == page_size}
            assert size_class.extents == len(own)
            assert size_class.free == sum(cut.free for cut in own.values())
            assert set(size_class.roomy) == {e for e, cut in own.items() if cut.free}

    def _check_bytes(self) -> None:
        extent_bytes = self.geometry.extent_bytes
        left = granted = 0
        for extent, cut in self._cuts.items():
            used, filled = self.owners.used(extent)
            left += (len(used) - filled) * slot_size(cut.page_size)
            granted += filled * slot_size(cut.page_size)
        free = len(self._free) * extent_bytes
        waste = 0
        for cut in self._cuts.values():
            free += cut.free * slot_size(cut.page_size)
            waste += extent_bytes - cut.slots * slot_size(cut.page_size)
        assert self.totals() == Totals(
            total_bytes=self.geometry.pool_bytes,
            free_bytes=free,
            granted_bytes=granted,
            left_bytes=left,
            absent_bytes=len(self._absent) * extent_bytes,
            waste_bytes=waste,
        )
