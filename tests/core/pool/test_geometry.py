"""Page ids and offsets: no two pages of one cut share an id or a byte."""

from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.pool.geometry import MIN_PAGE, Geometry, slot_size
from pegaflow.wire.identities import PageId
from tests.naming import as_pages


@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 40))
def test_pages_tile_their_extent(extents: int, per_extent: int, units: int) -> None:
    geometry = Geometry(extents * per_extent * MIN_PAGE, per_extent * MIN_PAGE)
    page_size = units * 4096
    assert geometry.extents == extents
    assert geometry.records_per_extent == per_extent
    count = geometry.pages_per_extent(page_size)
    assert (
        count * slot_size(page_size) <= geometry.extent_bytes < (count + 1) * slot_size(page_size)
    )
    seen: list[tuple[int, int]] = []
    for extent in range(extents):
        for slot in range(count):
            page = geometry.page_id(extent, slot)
            assert geometry.extent_of(page) == extent
            start = geometry.offset(page, page_size)
            end = start + page_size
            assert extent * geometry.extent_bytes <= start
            assert end <= (extent + 1) * geometry.extent_bytes
            assert not seen or (seen[-1][0] < page and seen[-1][1] <= start)
            seen.append((page, end))


@given(st.lists(st.integers(-1, 50)), st.integers(1, 40))
def test_many_pages_are_what_each_of_them_is(pages: list[int], units: int) -> None:
    geometry, page_size = Geometry(4 * 10 * MIN_PAGE, 10 * MIN_PAGE), units * 4096
    assert geometry.hold(as_pages(*pages), page_size) == all(
        geometry.holds(PageId(p), page_size) for p in pages
    )
    there = [page for page in pages if geometry.holds(PageId(page), page_size)]
    each = tuple(geometry.offset(PageId(page), page_size) for page in there)
    assert geometry.offsets(as_pages(*there), page_size) == each
