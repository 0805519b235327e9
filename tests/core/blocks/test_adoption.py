"""A restart reads from the ledger exactly what an index had sealed there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.blocks import adoption
from pegaflow.core.blocks.adoption import Adoption
from pegaflow.core.blocks.table import Block, PrefixIndex
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.ledger import Header, Ledger, Record, ledger_bytes
from pegaflow.core.pool.plan import Plan
from pegaflow.wire.identities import GrantId, Incarnation, Key, Namespace, PageId, Stamp

PAGE = 16 * 1024
EXTENT = 8 * PAGE
GEOMETRY = Geometry(6 * EXTENT, EXTENT)
PER = GEOMETRY.records_per_extent
HEADER = Header(
    bytes(16),
    b"boot",
    GEOMETRY.pool_bytes,
    EXTENT,
    records_per_extent=PER,
    incarnation=Incarnation(1),
)
SPACES = tuple(Namespace(letter * 16) for letter in (b"a", b"b", b"c"))
SIZES = (1000, PAGE, 3 * PAGE)  # payloads: an extent holds 8, 8 and 2 pages of them


def fresh() -> Ledger:
    return Ledger.format(bytearray(ledger_bytes(GEOMETRY.extents, PER)), HEADER)


def record(
    page: int, key: Key, shard: int = 0, shards: int = 1, seal: int = 0, space: int = 0
) -> Record:
    """A sealed page of an extent: payloads by extent, so that every extent is cut once."""
    length = SIZES[page // PER % len(SIZES)]
    return Record(
        Stamp(100 + page),
        seal or page,
        shard,
        shards,
        payload_bytes=length,
        namespace=SPACES[space],
        key=key,
        checksum=None,
        depth=3,
    )


def adopt(ledger: Ledger) -> tuple[PrefixIndex, Adoption, list[Block]]:
    blocks = PrefixIndex(ledger.read)
    work = Adoption(ledger, GEOMETRY, blocks)
    while work.step():
        blocks.check()
    made = work.finish()
    blocks.check()
    return blocks, work, made


@given(
    st.dictionaries(
        st.integers(0, 6 * PER - 1),
        st.tuples(st.integers(0, 2), st.binary(min_size=1, max_size=64)),
        max_size=30,
    ),
    st.sets(st.integers(0, 6 * PER - 1), max_size=3),
)
def test_single_pages(sealed: dict[int, tuple[int, bytes]], bad: set[int]) -> None:
    ledger = fresh()
    fits = {
        p: e for p, e in sealed.items() if GEOMETRY.holds(PageId(p), size_of(p)) and p not in bad
    }
    for page, (space, key) in sealed.items():
        ledger.seal([PageId(page)], [record(page, Key(key), space=space)])
    for page in bad:
        ledger.quarantine(PageId(page))
    blocks, work, _ = adopt(ledger)
    here = blocks.pages()
    assert here | set(work.nonsense) == sealed.keys() - bad and not here & set(work.nonsense)
    assert {fits[p] for p in here} == set(fits.values()) and len(here) == len(set(fits.values()))
    assert sorted(work.quarantined) == sorted(bad)
    coldest = [p for pages in work.coldest().values() for p in pages]
    assert here <= set(coldest)
    for page in here:
        block = blocks.by_page(page)
        assert block is not None and blocks.get(block.namespace, block.key) is block
        assert (block.pages, block.stamps, block.page_size) == (
            (page,),
            (100 + page,),
            size_of(page),
        )
    blocks.check()


def size_of(page: int) -> int:
    return -(-SIZES[page // PER % len(SIZES)] // 4096) * 4096


def test_tails_go_before_heads_and_older_before_younger() -> None:
    ledger = fresh()
    for page, (depth, seal) in enumerate([(0, 5), (1, 4), (1, 3), (2, 1)]):
        ledger.seal(
            [PageId(page)], [record(page, Key(bytes([page + 1])))._replace(depth=depth, seal=seal)]
        )
    _, work, _ = adopt(ledger)
    (pages,) = work.coldest().values()
    assert list(pages) == [3, 2, 1, 0]


def test_a_block_that_lacks_a_shard_is_nonsense() -> None:
    ledger = fresh()
    for shard, page in enumerate((4, 0, 2)):
        ledger.seal([PageId(page)], [record(page, Key(b"whole"), shard, 3, seal=9)])
    ledger.seal([PageId(6)], [record(6, Key(b"half"), 1, 3, seal=10)])
    ledger.seal([PageId(7)], [record(7, Key(b"half"), 2, 3, seal=10)])
    blocks, work, made = adopt(ledger)
    assert [(b.key, b.pages, b.stamps) for b in made] == [(b"whole", (4, 0, 2), (104, 100, 102))]
    assert sorted(work.nonsense) == [6, 7] and len(blocks) == 1
    assert work.bytes_ == 3 * PAGE


def test_shards_of_two_seals_are_no_block() -> None:
    ledger = fresh()
    ledger.seal([PageId(0)], [record(0, Key(b"key"), 0, 2, seal=9)])
    ledger.seal([PageId(1)], [record(1, Key(b"key"), 1, 2, seal=10)])
    _, work, made = adopt(ledger)
    assert not made and sorted(work.nonsense) == [0, 1]


def test_an_extent_has_one_page_size() -> None:
    ledger = fresh()
    ledger.seal([PageId(0)], [record(0, Key(b"first"))])
    ledger.seal([PageId(1)], [record(1, Key(b"other"))._replace(payload_bytes=9000)])
    blocks, work, _ = adopt(ledger)
    assert (blocks.pages(), work.nonsense) == ({0}, [1])
    plan = Plan(GEOMETRY)
    plan.leave(PageId(0), 1000)
    plan.leave(PageId(1), 9000)
    slab = plan.slab()
    assert slab.owners.is_left(PageId(0)) and not slab.owners.is_left(PageId(1))


def test_of_two_blocks_with_one_key_one_stays() -> None:
    ledger = fresh()
    for page in (0, 1, 5):
        ledger.seal([PageId(page)], [record(page, Key(b"same"))])
    blocks, work, _ = adopt(ledger)
    assert len(blocks) == 1 and len(work.nonsense) == 2 and work.bytes_ == PAGE
    assert blocks.pages() | set(work.nonsense) == {0, 1, 5}


def test_chunk_by_chunk_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = fresh()
    for page in range(PER):
        ledger.seal([PageId(page)], [record(page, Key(b"key%d" % page))])
    before = adopt(ledger)[0].pages()
    monkeypatch.setattr(adoption, "CHUNK_RECORDS", 3)
    assert adopt(ledger)[0].pages() == before == set(range(PER))


def test_a_plan_makes_the_slab_that_was_left() -> None:
    plan = Plan(GEOMETRY)
    assert plan.grant(PageId(3), 4096, "holder", GrantId(7)) and not plan.grant(
        PageId(3), 4096, "other", GrantId(1)
    )
    assert not plan.grant(PageId(4), PAGE, "other", GrantId(1)), "another size than its extent's"
    assert not plan.grant(PageId(6 * PER), 4096, "other", GrantId(1)) and not plan.grant(
        PageId(5), 4095, "other", GrantId(1)
    )
    plan.leave(PageId(1), 1000)
    plan.leave(PageId(3), 1000)
    plan.leave(PageId(2 * PER), 3 * PAGE)
    plan.leave(PageId(4 * PER + 2), 0)
    slab = plan.slab()
    slab.check()
    held = slab.owners.held_by("holder")
    assert (held.pages.tolist(), held.numbers.tolist()) == ([3], [7])
    assert slab.owners.left_from(PageId(0), 9)[0].tolist() == [1, 2 * PER, 4 * PER + 2], (
        "sealed, but still in his hands: his"
    )
    assert [slab.is_absent(e) for e in range(6)] == [False, True, False, True, False, True]
    for extent in (1, 3, 5):
        slab.grow(extent)
    slab.take(4096, 20, "new", GrantId(1))
    slab.check()
