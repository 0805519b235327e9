"""The slab against a dict of pages and a byte map of the pool."""

from collections.abc import Iterable

import numpy as np
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pegaflow.core.grants import omitted
from pegaflow.core.pool.columns import column
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

    @rule(holder=holders, newer=counts, every=st.integers(1, 4))
    def state(self, holder: tuple[str, int], newer: int, every: int) -> None:
        """What a statement omits is what it is by the rule for grants of any kind."""
        granted = {p: GrantId(n) for p, (_, by, n) in self.pages.items() if by == holder}
        stated, upto = list(granted)[::every], GrantId(max(0, self.number - newer))
        gone = self.slab.owners.omitted(holder, upto, column(stated))
        assert sorted(gone.tolist()) == sorted(omitted(granted, upto, stated))

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
        for page in pages.tolist():
            assert page not in self.pages
            extent = self.geometry.extent_of(page)
            assert extent in self.grown and cuts[extent] in (page_size, None)
            self.pages[page] = (page_size, holder, self.number)
        opened = {
            self.geometry.extent_of(p)
            for p in pages.tolist()
            if cuts[self.geometry.extent_of(p)] is None
        }
        if opened:
            free = sorted(e for e in self.grown if cuts[e] is None)
            assert sorted(opened) == free[: len(opened)], "the lowest free extents go first"

    @precondition(lambda self: any(holder for _, holder, _ in self.pages.values()))
    @rule(data=st.data(), sealed=st.booleans())
    def end_grant(self, data: st.DataObject, sealed: bool) -> None:
        granted = [page for page, (_, holder, _) in self.pages.items() if holder]
        _, holder, _ = self.pages[data.draw(st.sampled_from(granted))]
        mine = [page for page in granted if self.pages[page][1] == holder]
        pages = data.draw(st.lists(st.sampled_from(mine), min_size=1, unique=True))
        ended = [(page, self.pages[page][0], self.pages[page][2]) for page in pages]
        if sealed:
            self.slab.leave(column(pages), holder)
            self.pages.update((page, (size, None, number)) for page, size, number in ended)
        else:
            self.slab.hand_back(column(pages), holder)
            self.drop(pages)

    @precondition(lambda self: any(holder is None for _, holder, _ in self.pages.values()))
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        left = [page for page, (_, holder, _) in self.pages.items() if holder is None]
        pages = data.draw(st.lists(st.sampled_from(left), min_size=1, unique=True))
        self.slab.free(column(pages))
        self.drop(pages)

    @rule(holder=holders)
    def fence(self, holder: tuple[str, int]) -> None:
        mine = {p: number for p, (_, h, number) in self.pages.items() if h == holder}
        held = self.slab.owners.held_by(holder)
        assert dict(zip(held.pages.tolist(), held.numbers.tolist(), strict=True)) == mine
        assert self.slab.owners.are_granted(*held, holder).all()
        others = held.numbers + np.uint64(1)
        assert not self.slab.owners.are_granted(held.pages, others, holder).any()
        self.slab.hand_back(held.pages, holder)
        self.drop(mine)
        assert not len(self.slab.owners.held_by(holder).pages)

    def drop(self, pages: Iterable[int]) -> None:
        for page in list(pages):
            del self.pages[page]

    @invariant()
    def same(self) -> None:
        self.slab.check()
        bytes_used: set[int] = set()
        for page, (page_size, holder, _) in self.pages.items():
            assert self.slab.owners.holder_of(PageId(page)) == holder
            assert self.slab.owners.is_granted(PageId(page)) == (holder is not None)
            assert self.slab.owners.is_left(PageId(page)) == (holder is None)
            assert self.slab.page_size_of(PageId(page)) == page_size
            start = self.geometry.offset(PageId(page), page_size)
            span = set(range(start, start + slot_size(page_size), 4096))
            assert bytes_used.isdisjoint(span), "two pages share bytes"
            bytes_used |= span
        left = sorted(page for page, (_, holder, _) in self.pages.items() if holder is None)
        found, at = self.slab.owners.left_from(PageId(0), len(left) + 1)
        assert (found.tolist(), at) == (left, 0)
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
    assert pages is not None and pages.tolist() == [0, 1]
    assert slab.take(2 * MIN_PAGE, 1, "b", GrantId(1)) is None
    assert slab.shortage(2 * MIN_PAGE, 1) == (1, True)
    assert slab.shortage(MIN_PAGE, 1) == (1, False)
    slab.hand_back(pages, "a")
    again = slab.take(2 * MIN_PAGE, 1, "b", GrantId(1))
    assert again is not None and again.tolist() == [0]
    slab.check()


def test_numbers_that_are_no_pages_and_pages_of_others_are_nobodys() -> None:
    slab = Slab(Geometry(2 * MIN_PAGE, 2 * MIN_PAGE))
    slab.grow(0)
    assert slab.take(MIN_PAGE, 1, "a", GrantId(3)) is not None
    pages = slab.owners.known(column((1, 0, 0, 2, 1 << 63)))
    assert pages.tolist() == [0, 1]
    held = slab.owners.held_of(pages, "a")
    assert (held.pages.tolist(), held.numbers.tolist()) == ([0], [3])
    assert not len(slab.owners.held_of(pages, "b").pages)


def test_the_pages_of_the_index_are_seen_by_and_by() -> None:
    slab = Slab(Geometry(8 * MIN_PAGE, 2 * MIN_PAGE))
    for extent in range(4):
        slab.grow(extent)
    pages = slab.take(MIN_PAGE, 7, "a", GrantId(1))
    assert pages is not None
    slab.leave(pages[[1, 2, 4, 6]], "a")
    first, at = slab.owners.left_from(PageId(0), 3)
    assert (first.tolist(), at) == ([1, 2, 4], 5)
    rest, at = slab.owners.left_from(at, 3)
    assert (rest.tolist(), at) == ([6], 0)
