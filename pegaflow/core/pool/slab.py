"""The allocator's book: which page of the pool is whose.

The pool is cut into extents and an extent into equal pages, so freeing one page makes room for
exactly one page and nothing fragments. An extent is *absent* until its file space is really there,
then *free*, then *cut* for one page size; as soon as all its pages are free again it is a free
extent, and may be cut for another size. A page of a cut extent is free, granted to a holder under a
number, or *left*: nobody holds it, and it stays what it is for as long as its ledger record is
sealed. The book knows nothing of the ledger; the allocator looks there before it frees anything.

Low extents are given away first, so that a pool in light use keeps whole extents free. Every verb
costs O(1) per page, plus O(log extents) where a class gains or loses an extent with room.
"""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from sortedcontainers import SortedSet

from pegaflow.wire.identities import GrantId, PageId
from pegaflow.wire.layout import PAGE_ALIGN

from .geometry import MIN_PAGE, Geometry
from .geometry import slot_size as slot_size

_Grant = tuple[Hashable, GrantId]
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
        self._granted: dict[PageId, _Grant] = {}  # page -> (holder, number)
        self._held: dict[Hashable, dict[PageId, GrantId]] = {}  # the same by holder; no empty ones
        self._left: set[PageId] = set()  # pages; disjoint from the granted ones
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
        self,
        extent: int,
        page_size: int,
        left: set[PageId],
        granted: dict[PageId, _Grant],
    ) -> None:
        """absent -> cut: an earlier life has left it so.

        Args:
            left: page ids that nobody holds and whose records are sealed.
            granted: page id -> holder, and the number of its grant. `left` and `granted` are
                disjoint, not both empty, and pages of this extent and size.
        """
        self._absent.remove(extent)
        first = extent * self.geometry.records_per_extent
        used = left | granted.keys()
        slots = self.geometry.pages_per_extent(page_size)
        fresh = max(used) - first + 1
        returned = [slot for slot in range(fresh) if first + slot not in used]
        cut = self._cuts[extent] = _Cut(page_size, slots, fresh, returned)
        size_class = self._classes.setdefault(page_size, _Class(0, 0, SortedSet()))
        size_class.extents += 1
        size_class.free += cut.free
        if cut.free:
            size_class.roomy.add(extent)
        for page, (holder, number) in granted.items():
            self._granted[page] = (holder, number)
            self._held.setdefault(holder, {})[page] = number
        self._left |= left
        size = slot_size(page_size)
        self._granted_bytes += len(granted) * size
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

    def shortage(self, page_size: int, count: int) -> tuple[int, bool]:
        """What `take` would lack.

        Returns:
            Pages that are missing; and whether even emptying every extent that the class has now
            would not yield them, so that another class must give up an extent.
        """
        missing = max(0, count - self.free_pages(page_size))
        size_class = self._classes.get(page_size)
        used = 0
        if size_class:
            slots = size_class.extents * self.geometry.pages_per_extent(page_size)
            used = slots - size_class.free
        return missing, missing > used

    def take(
        self, page_size: int, count: int, holder: Hashable, number: GrantId
    ) -> list[PageId] | None:
        """Grant so many pages, or none at all.

        Args:
            number: of the grant, per holder; all pages of one call have the same.

        Returns:
            Page ids; None if there are not so many free ones.
        """
        if count > self.free_pages(page_size):
            return None
        pages: list[PageId] = []
        held = self._held.setdefault(holder, {}) if count else {}
        while len(pages) < count:
            extent = self._extent_with_room(page_size)
            for page in self._take_from(extent, count - len(pages)):
                self._granted[page] = (holder, number)
                held[page] = number
                pages.append(page)
        self._granted_bytes += count * slot_size(page_size)
        return pages

    def hand_back(self, page: PageId, holder: Hashable) -> None:
        """Granted -> free. The caller has seen the page's ledger record void.

        Args:
            holder: who has it; anybody else's word is a bug.
        """
        self._end_grant(page, holder)
        self._put_back(page)

    def leave(self, page: PageId) -> None:
        """Granted -> left: its ledger record is sealed, so the index has it."""
        holder, _ = self._granted[page]
        self._left_bytes += self._end_grant(page, holder)
        self._left.add(page)

    def free(self, page: PageId) -> None:
        """Left -> free. The caller has seen the page's ledger record void."""
        self._left.remove(page)
        self._left_bytes -= slot_size(self.page_size_of(page))
        self._put_back(page)

    def held_by(self, holder: Hashable) -> dict[PageId, GrantId]:
        """A copy of what the holder has: page -> the number it was granted under."""
        return dict(self._held.get(holder, {}))

    def holders(self) -> set[Hashable]:
        """Everyone who has a page."""
        return set(self._held)

    def holder_of(self, page: PageId) -> Hashable | None:
        """Who fills the page; None: nobody."""
        granted = self._granted.get(page)
        return granted[0] if granted else None

    def grant_of(self, page: PageId) -> _Grant | None:
        """Holder and number of the page's present grant; None: nobody fills it."""
        return self._granted.get(page)

    def is_granted(self, page: PageId) -> bool:
        """Whether somebody fills it."""
        return page in self._granted

    def is_left(self, page: PageId) -> bool:
        """Whether it is the index's."""
        return page in self._left

    def left_pages(self) -> list[PageId]:
        """A copy, to free pages while walking over it."""
        return list(self._left)

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

    def _take_from(self, extent: int, most: int) -> list[PageId]:
        cut = self._cuts[extent]
        count = min(most, cut.free)
        reused = min(count, len(cut.returned))
        slots = [cut.returned.pop() for _ in range(reused)]
        slots += range(cut.fresh, cut.fresh + count - reused)
        cut.fresh += count - reused
        size_class = self._classes[cut.page_size]
        size_class.free -= count
        if not cut.free:
            size_class.roomy.remove(extent)
        first = extent * self.geometry.records_per_extent
        pages: list[Any] = [first + slot for slot in slots]
        return pages

    def _end_grant(self, page: PageId, holder: Hashable) -> int:
        """Takes the page from its holder's book; returns the bytes of its slot."""
        assert self.holder_of(page) == holder, (page, holder)
        del self._granted[page]
        held = self._held[holder]
        del held[page]
        if not held:
            del self._held[holder]
        size = slot_size(self.page_size_of(page))
        self._granted_bytes -= size
        return size

    def _put_back(self, page: PageId) -> None:
        extent, slot = divmod(page, self.geometry.records_per_extent)
        cut = self._cuts[extent]
        size_class = self._classes[cut.page_size]
        if not cut.free:
            size_class.roomy.add(extent)
        cut.returned.append(slot)
        size_class.free += 1
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
        assert self._left.isdisjoint(self._granted)
        by_holder: dict[Hashable, dict[PageId, GrantId]] = {}
        for page, (holder, number) in self._granted.items():
            by_holder.setdefault(holder, {})[page] = number
        assert by_holder == self._held
        used: dict[int, set[int]] = {}
        for page in (*self._granted, *self._left):
            extent, slot = divmod(page, geometry.records_per_extent)
            used.setdefault(extent, set()).add(slot)
        assert used.keys() == self._cuts.keys(), "a cut extent without a used page, or the reverse"
        for extent, cut in self._cuts.items():
            assert cut.slots == geometry.pages_per_extent(cut.page_size)
            assert len(set(cut.returned)) == len(cut.returned)
            assert used[extent].isdisjoint(cut.returned)
            assert used[extent] | set(cut.returned) == set(range(cut.fresh))
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
        size = {page: slot_size(self.page_size_of(page)) for page in (*self._granted, *self._left)}
        free = len(self._free) * extent_bytes
        waste = 0
        for cut in self._cuts.values():
            free += cut.free * slot_size(cut.page_size)
            waste += extent_bytes - cut.slots * slot_size(cut.page_size)
        assert self.totals() == Totals(
            total_bytes=self.geometry.pool_bytes,
            free_bytes=free,
            granted_bytes=sum(size[page] for page in self._granted),
            left_bytes=sum(size[page] for page in self._left),
            absent_bytes=len(self._absent) * extent_bytes,
            waste_bytes=waste,
        )


class Plan:
    """How an earlier life has left the pool, page by page; then a slab that goes on from there."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._sizes: dict[int, int] = {}  # extent -> page size
        self._granted: dict[int, dict[PageId, _Grant]] = {}  # extent -> page -> grant
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
