"""The slab against a dict of pages and a byte map of the pool."""

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pegaflow.core.pool.geometry import MIN_PAGE, Geometry
from pegaflow.core.pool.slab import Slab, slot_size
from pegaflow.wire.identities import GrantId, PageId

EXTENTS, PER_EXTENT = 4, 6
SIZES = [4096, MIN_PAGE, MIN_PAGE + 4096, 2 * MIN_PAGE, 5 * MIN_PAGE, 7 * MIN_PAGE]
sizes = st.sampled_from(SIZES)
holders = st.sampled_from([("session", 1), ("session", 2), ("index", 1)])
counts = st.integers(0, 9)


class SlabAgainstDict(RuleBasedStateMachine):
    """The model: page -> (page size, holder or None, number), and the set of grown extents."""

    def __init__(self) -> None:
        super().__init__()
        self.geometry = Geometry(EXTENTS * PER_EXTENT * MIN_PAGE, PER_EXTENT * MIN_PAGE)
        self.slab = Slab(self.geometry)
        self.grown: set[int] = set()
        self.pages: dict[int, tuple[int, tuple[str, int] | None, int]] = {}
        self.number = 0

    def cut_of(self, extent: int) -> int | None:
        """The page size the extent is cut for, by the pages in use."""
        for page, (page_size, _, _) in self.pages.items():
            if self.geometry.extent_of(PageId(page)) == extent:
                return page_size
        return None

    def room(self, page_size: int) -> int:
        slots = self.geometry.pages_per_extent(page_size)
        own = [e for e in self.grown if self.cut_of(e) in (page_size, None)]
        used = [page for page, (size, _, _) in self.pages.items() if size == page_size]
        return len(own) * slots - len(used)

    @rule(extent=st.integers(0, EXTENTS - 1))
    def grow(self, extent: int) -> None:
        if extent not in self.grown:
            self.slab.grow(extent)
            self.grown.add(extent)

    @rule(page_size=sizes, count=counts, holder=holders)
    def take(self, page_size: int, count: int, holder: tuple[str, int]) -> None:
        room = self.room(page_size)
        assert self.slab.free_pages(page_size) == room
        slots = self.geometry.pages_per_extent(page_size)
        assert self.slab.can_ever_fit(page_size, count) == (count <= EXTENTS * slots)
        missing, reassign = self.slab.shortage(page_size, count)
        used = sum(size == page_size for size, _, _ in self.pages.values())
        assert missing == max(0, count - room)
        assert reassign == (count > room + used)
        cuts = {e: self.cut_of(e) for e in range(EXTENTS)}
        self.number += 1
        pages = self.slab.take(page_size, count, holder, GrantId(self.number))
        if count > room:
            assert pages is None
            return
        assert pages is not None and len(pages) == count
        for page in pages:
            assert page not in self.pages
            extent = self.geometry.extent_of(page)
            assert extent in self.grown and cuts[extent] in (page_size, None)
            self.pages[page] = (page_size, holder, self.number)
        opened = {
            self.geometry.extent_of(p) for p in pages if cuts[self.geometry.extent_of(p)] is None
        }
        if opened:
            free = sorted(e for e in self.grown if cuts[e] is None)
            assert sorted(opened) == free[: len(opened)], "the lowest free extents go first"

    @precondition(lambda self: any(holder for _, holder, _ in self.pages.values()))
    @rule(data=st.data(), sealed=st.booleans())
    def end_grant(self, data: st.DataObject, sealed: bool) -> None:
        granted = [page for page, (_, holder, _) in self.pages.items() if holder]
        page = data.draw(st.sampled_from(granted))
        page_size, holder, number = self.pages[page]
        if sealed:
            self.slab.leave(PageId(page))
            self.pages[page] = (page_size, None, number)
        else:
            self.slab.hand_back(PageId(page), holder)
            del self.pages[page]

    @precondition(lambda self: any(holder is None for _, holder, _ in self.pages.values()))
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        left = [page for page, (_, holder, _) in self.pages.items() if holder is None]
        page = data.draw(st.sampled_from(left))
        self.slab.free(PageId(page))
        del self.pages[page]

    @rule(holder=holders)
    def fence(self, holder: tuple[str, int]) -> None:
        mine = {p: number for p, (_, h, number) in self.pages.items() if h == holder}
        held = self.slab.held_by(holder)
        assert held == mine
        for page in held:
            self.slab.hand_back(page, holder)
            del self.pages[page]
        assert self.slab.held_by(holder) == {}

    @invariant()
    def same(self) -> None:
        self.slab.check()
        bytes_used: set[int] = set()
        for page, (page_size, holder, _) in self.pages.items():
            assert self.slab.holder_of(PageId(page)) == holder
            assert self.slab.is_granted(PageId(page)) == (holder is not None)
            assert self.slab.is_left(PageId(page)) == (holder is None)
            assert self.slab.page_size_of(PageId(page)) == page_size
            start = self.geometry.offset(PageId(page), page_size)
            span = set(range(start, start + slot_size(page_size), 4096))
            assert bytes_used.isdisjoint(span), "two pages share bytes"
            bytes_used |= span
        left = sorted(page for page, (_, holder, _) in self.pages.items() if holder is None)
        assert sorted(self.slab.left_pages()) == left
        totals = self.slab.totals()
        assert (
            totals.total_bytes
            == self.geometry.pool_bytes
            == (
                totals.free_bytes
                + totals.granted_bytes
                + totals.left_bytes
                + totals.absent_bytes
                + totals.waste_bytes
            )
        )
        assert totals.granted_bytes + totals.left_bytes == len(bytes_used) * 4096


TestSlabAgainstDict = SlabAgainstDict.TestCase


def test_an_emptied_extent_changes_its_page_size() -> None:
    slab = Slab(Geometry(2 * MIN_PAGE, 2 * MIN_PAGE))
    slab.grow(0)
    pages = slab.take(MIN_PAGE, 2, "a", GrantId(1))
    assert pages == [0, 1]
    assert slab.take(2 * MIN_PAGE, 1, "b", GrantId(1)) is None
    assert slab.shortage(2 * MIN_PAGE, 1) == (1, True)
    assert slab.shortage(MIN_PAGE, 1) == (1, False)
    for page in pages:
        slab.hand_back(page, "a")
    assert slab.take(2 * MIN_PAGE, 1, "b", GrantId(1)) == [0]
    slab.check()
