"""A restart reads from the ledger exactly what an index had sealed there."""

import random
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.blocks import adoption, parting
from pegaflow.core.blocks.adoption import CHUNK_RECORDS, Adoption
from pegaflow.core.blocks.columns import Pages
from pegaflow.core.blocks.table import PrefixIndex
from pegaflow.core.pool.columns import column
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.ledger import Header, Ledger, Record, ledger_bytes
from pegaflow.core.pool.plan import Plan
from pegaflow.core.pool.records import bodies_of
from pegaflow.core.pool.slab import Slab
from pegaflow.wire.identities import GrantId, Incarnation, Key, Namespace, PageId, Stamp
from tests.actors.steps import steps

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


class Adopted(NamedTuple):
    blocks: PrefixIndex
    work: Adoption
    order: dict[int, list[int]]  # page size -> first pages, in the order in which they should go


def adopt(ledger: Ledger) -> Adopted:
    order: dict[int, list[int]] = {}

    def old(page_size: int, first: Pages) -> None:
        order[page_size] = first.tolist() + order.get(page_size, [])

    blocks = PrefixIndex(ledger.read)
    work = Adoption(ledger, GEOMETRY, blocks, old)
    while work.step():
        blocks.check()
    blocks.check()
    heads = sorted(block.pages[0] for block in blocks)
    assert sorted(page for pages in order.values() for page in pages) == heads
    return Adopted(blocks, work, order)


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
    assert list(adopt(ledger).order.values()) == [[3, 2, 1, 0]]


def test_a_block_that_lacks_a_shard_is_nonsense() -> None:
    ledger = fresh()
    for shard, page in enumerate((4, 0, 2)):
        ledger.seal([PageId(page)], [record(page, Key(b"whole"), shard, 3, seal=9)])
    ledger.seal([PageId(6)], [record(6, Key(b"half"), 1, 3, seal=10)])
    ledger.seal([PageId(7)], [record(7, Key(b"half"), 2, 3, seal=10)])
    blocks, work, _ = adopt(ledger)
    assert [(b.key, b.pages, b.stamps) for b in blocks] == [(b"whole", (4, 0, 2), (104, 100, 102))]
    assert sorted(work.nonsense) == [6, 7] and len(blocks) == 1
    assert work.bytes_ == 3 * PAGE


def test_shards_of_two_seals_are_no_block() -> None:
    ledger = fresh()
    ledger.seal([PageId(0)], [record(0, Key(b"key"), 0, 2, seal=9)])
    ledger.seal([PageId(1)], [record(1, Key(b"key"), 1, 2, seal=10)])
    blocks, work, _ = adopt(ledger)
    assert not len(blocks) and sorted(work.nonsense) == [0, 1]


def test_an_extent_has_one_page_size() -> None:
    ledger = fresh()
    ledger.seal([PageId(0)], [record(0, Key(b"first"))])
    ledger.seal([PageId(1)], [record(1, Key(b"other"))._replace(payload_bytes=9000)])
    blocks, work, _ = adopt(ledger)
    assert (blocks.pages(), work.nonsense) == ({0}, [1])
    slab = read(Plan(GEOMETRY), {0: 1000, 1: 9000})
    assert slab.owners.is_left(PageId(0)) and not slab.owners.is_left(PageId(1))


def test_of_two_blocks_with_one_key_one_stays() -> None:
    ledger = fresh()
    for page in (0, 1, 5):
        ledger.seal([PageId(page)], [record(page, Key(b"same"))])
    blocks, work, _ = adopt(ledger)
    assert len(blocks) == 1 and len(work.nonsense) == 2 and work.bytes_ == PAGE
    assert blocks.pages() | set(work.nonsense) == {0, 1, 5}


@pytest.mark.parametrize("step", [1, 2, 5])
def test_step_by_step_is_the_same(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of one page and of two, in whatever order, of several chains."""
    ledger, chance = fresh(), random.Random(step)
    pages = [page for page in range(6 * PER) if GEOMETRY.holds(PageId(page), size_of(page))]
    chance.shuffle(pages)
    for number in range(12):
        one = record(pages[number], Key(b"key%d" % number), seal=number + 1)
        ledger.seal([PageId(pages[number])], [one._replace(depth=chance.randrange(4))])
    alike = [page for page in pages[12:] if size_of(page) == PAGE]
    for number in range(len(alike) // 2):
        depth, seal, key = chance.randrange(4), 100 + number, Key(b"two%d" % number)
        for shard in range(2):
            page = alike[2 * number + shard]
            both = record(page, key, shard, 2, seal=seal)
            ledger.seal([PageId(page)], [both._replace(depth=depth)])
    blocks, work, order = adopt(ledger)
    assert not work.nonsense and len(blocks) > 12
    ages: dict[int, tuple[int, int]] = {b.pages[0]: (-b.depth, b.seal) for b in blocks}
    assert all(found == sorted(found, key=ages.__getitem__) for found in order.values())
    monkeypatch.setattr(adoption, "CHUNK_RECORDS", step)
    monkeypatch.setattr(adoption, "COUNTED_RECORDS", step)
    monkeypatch.setattr(adoption, "PART", step)
    monkeypatch.setattr(parting, "PART", step)
    again = adopt(ledger)
    assert (again.order, again.work.bytes_) == (order, work.bytes_)
    assert [b.pages for b in again.blocks] == [b.pages for b in blocks]


def full(extents: int, shards: int) -> Adoption:
    """What a ledger has whose pages are all in blocks of so many shards."""
    size = CHUNK_RECORDS * PAGE
    geometry = Geometry(extents * size, size)
    header = replace(
        HEADER,
        pool_bytes=geometry.pool_bytes,
        extent_bytes=size,
        records_per_extent=CHUNK_RECORDS,
    )
    ledger = Ledger.format(bytearray(ledger_bytes(extents, CHUNK_RECORDS)), header)
    count, blocks = geometry.records, geometry.records // shards
    bodies = bodies_of(
        SPACES[0],
        PAGE,
        shards,
        stamps=np.arange(1, count + 1, dtype=np.uint64),
        checksums=np.zeros(count, np.uint64),
        seals=np.arange(1, blocks + 1, dtype=np.uint64),
        keys=[Key(b"%08x" % number) for number in range(blocks)],
        depths=np.arange(blocks) % 64,
    )
    ledger.seal_bodies(np.arange(count), bodies)
    rows = ledger.rows()
    return Adoption(ledger, geometry, PrefixIndex(ledger.read, lambda at: rows.take(at, axis=0)))


@pytest.mark.parametrize("shards", [1, 2])
def test_no_step_is_longer_for_a_larger_pool(shards: int) -> None:
    most = []
    for extents in (4, 16):
        work, took, more = full(extents, shards), [], [True]
        while more[-1]:
            took.append(steps(lambda work=work, more=more: more.append(work.step())))  # type: ignore[misc]
        assert len(took) > 4 * extents and work.bytes_ == extents * CHUNK_RECORDS * PAGE
        most.append(max(took))
    assert most[1] <= 1.5 * most[0], most


def read(plan: Plan, lengths: dict[int, int], each: int = PER) -> Slab:
    """The plan reads records of these payloads, so many at a time."""
    for first in range(0, GEOMETRY.records, each):
        upto = min(first + each, GEOMETRY.records)
        here = sorted(page for page in lengths if first <= page < upto)
        payloads = np.array([lengths[page] for page in here], np.int64)
        plan.read(PageId(upto), np.array(here, np.int64), payloads)
    return plan.slab()


def stated(plan: Plan, holder: str, number: int, sizes: dict[int, int]) -> int:
    """How many of these pages cannot be his."""
    return plan.grant(holder, GrantId(number), column(list(sizes)), column(list(sizes.values())))


@pytest.mark.parametrize("each", [1, 3, PER, 6 * PER])
def test_a_plan_makes_the_slab_that_was_left(each: int) -> None:
    plan = Plan(GEOMETRY)
    assert stated(plan, "holder", 7, {3: 4096}) == 0
    others = {3: 4096, 4: PAGE, 6 * PER: 4096, 5: 4095, 1 << 63: 4096, 7: 1 << 63}
    assert stated(plan, "other", 1, others) == len(others), "his; another size than its extent's"
    slab = read(plan, {1: 1000, 3: 1000, 2 * PER: 3 * PAGE, 4 * PER + 2: 0}, each)
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


def test_a_page_that_is_stated_twice_is_his_once() -> None:
    plan = Plan(GEOMETRY)
    assert plan.grant("holder", GrantId(1), column((2, 2, 5)), column((PAGE,) * 3)) == 1
    slab = read(plan, {})
    slab.check()
    assert slab.owners.held_by("holder").pages.tolist() == [2, 5]


def test_one_page_may_be_the_whole_pool() -> None:
    plan = Plan(Geometry(PAGE, PAGE))
    assert plan.grant("holder", GrantId(1), column((0,)), column((PAGE,))) == 0
    plan.read(PageId(1), np.empty(0, np.int64), np.empty(0, np.int64))
    assert plan.slab().owners.held_by("holder").pages.tolist() == [0]
