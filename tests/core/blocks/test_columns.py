"""A resident block is no object, and costs what its numbers cost."""

import dataclasses
import gc
import random
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.blocks.columns import Columns
from pegaflow.core.blocks.handles import Block, Handles
from pegaflow.core.blocks.table import Fresh, PrefixIndex
from pegaflow.core.policy.lru import Lru
from pegaflow.core.pool.fingerprints import fingerprints
from pegaflow.core.pool.ledger import Header, Ledger, ledger_bytes
from pegaflow.core.pool.records import bodies_of
from pegaflow.wire.identities import NO_KEY, Incarnation, Key, Namespace, PageId, Stamp

NAMESPACE = Namespace(b"n" * 16)
PAGE, BATCH, BLOCKS = 16384, 1024, 98_304

OBJECTS_MOST = BLOCKS // 100
"""A chunk of the order for each 4,096 blocks, and what numpy keeps."""

BYTES_MOST = 96
"""Of private memory for each block, beside the ledger and the table behind it."""


def keys_of(first: int) -> tuple[Key, ...]:
    return tuple([Key(n.to_bytes(32, "little")) for n in range(first, first + BATCH)])


def test_no_block_is_an_object_and_none_costs_more_than_its_columns() -> None:
    gc.collect()
    before = len(gc.get_objects())
    tracemalloc.start()
    try:
        index = PrefixIndex()
        order = Lru(index.handles)
        index.columns.reach(BLOCKS)
        order.reach(BLOCKS)
        for first in range(0, BLOCKS, BATCH):
            keys = keys_of(first)
            pages = np.arange(first, first + BATCH)
            names = fingerprints(NAMESPACE, keys)
            new = Fresh(NAMESPACE, keys, names, pages=pages[:, None], page_size=PAGE)
            index.put(new, first + 1)
            index.columns.link(pages, pages - 1, names)
            order.make_young(PAGE, pages)
            del keys, new
        for first in range(0, BLOCKS, BATCH):
            order.make_young(PAGE, np.arange(first, first + BATCH))
        gc.collect()
        used, _ = tracemalloc.get_traced_memory()
        objects = len(gc.get_objects()) - before
    finally:
        tracemalloc.stop()
    assert len(index) == len(order) == BLOCKS
    assert objects < OBJECTS_MOST
    assert used / BLOCKS < BYTES_MOST


def test_what_nobody_refers_to_any_more_is_no_object() -> None:
    index = PrefixIndex()
    keys, pages = keys_of(0), np.arange(BATCH)
    new = Fresh(
        NAMESPACE, keys, fingerprints(NAMESPACE, keys), pages=pages[:, None], page_size=PAGE
    )
    index.put(new, 1)
    assert not index.handles.leased(pages).any()
    assert all(index.handles.get(PageId(page)) is None for page in range(BATCH))


def test_only_what_somebody_refers_to_can_be_leased() -> None:
    handles = Handles(
        lambda page: Block(
            NAMESPACE, Key(b"k"), PAGE, pages=(page,), stamps=(Stamp(1),), seal=1, depth=0
        )
    )
    pages, kept = np.arange(64), [handles.of(PageId(page)) for page in (3, 5, 60)]
    for block in kept:
        block.leases = 1
    handles.of(PageId(7))
    assert handles.leased(pages).nonzero()[0].tolist() == [3, 5, 60]
    assert handles.leased(np.array([5000, 5, 7])).tolist() == [False, True, False]
    handles.forget(np.array([5, 7, 5000]))
    assert handles.get(PageId(5)) is None and handles.get(PageId(3)) is kept[0]
    assert handles.leased(pages).nonzero()[0].tolist() == [3, 60]
    assert handles.of(PageId(5)) is not kept[1]


def walked_one_by_one(parents: list[int], first: int, most: int) -> list[int]:
    found: list[int] = []
    while first >= 0 and first not in found and len(found) < most:
        found.append(first)
        first = parents[first]
    return found


@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(1, 40)), min_size=1, max_size=8),
    st.integers(1, 300),
    st.randoms(use_true_random=False),
)
def test_a_chain_is_walked_as_its_blocks_lie(
    runs: list[tuple[int, int]], most: int, dice: random.Random
) -> None:
    """Runs of pages that lie equally far apart, cut by others; it may go round."""
    parents = [-1] * 200
    for step, length in runs:
        page = dice.randrange(200)
        for _ in range(length):
            if not 0 <= page + step < 200:
                break
            parents[page] = page + step
            page += step
        parents[page] = dice.randrange(-1, 200)
    columns = Columns()
    columns.reach(200)
    columns.link(np.arange(200), np.array(parents), np.zeros(200, np.uint64))
    for first in range(0, 200, 7):
        found = columns.walk(PageId(first), most).tolist()
        assert found == walked_one_by_one(parents, first, most)


@pytest.mark.parametrize("shards", [1, 3])
def test_objects_that_are_made_together_are_those_made_one_by_one(shards: int) -> None:
    count = 40
    size = ledger_bytes(1, 256)
    header = Header(
        bytes(16),
        b"boot",
        PAGE * 256,
        PAGE * 256,
        records_per_extent=256,
        incarnation=Incarnation(1),
    )
    ledger = Ledger.format(bytearray(size), header)
    index = PrefixIndex(ledger.read, lambda pages: ledger.rows().take(pages, axis=0))
    keys = keys_of(0)[:count]
    pages = np.random.default_rng(1).permutation(200)[: count * shards].reshape(count, shards)
    flat = pages.reshape(-1)
    bodies = bodies_of(
        NAMESPACE,
        PAGE - 7,
        shards,
        stamps=flat.astype(np.uint64) + np.uint64(500),
        checksums=(flat % 3).tolist(),
        seals=range(1, count + 1),
        keys=keys,
        depths=np.arange(count),
    )
    ledger.seal_bodies(flat, bodies)
    names = fingerprints(NAMESPACE, keys)
    index.put(Fresh(NAMESPACE, keys, names, pages=pages, page_size=PAGE), 17)
    before = np.concatenate(([-1], pages[:-1, 0]))
    before[20] = -1  # nobody knows
    index.columns.link(pages[:, 0], before, ledger.rows()[before, 1])
    index.columns.link(pages[30:31, 0], before[30:31], np.array([9], np.uint64))  # another is there
    one_by_one = [index._made(PageId(page)) for page in pages[:, 0].tolist()]
    kept = index.handles.of(PageId(int(pages[3, 0])))
    together = index.handles.all_of(np.append(pages[:, 0], pages[5, 0]))
    assert together[3] is kept and together[5] is together[-1]
    assert together[5] is index.handles.of(PageId(int(pages[5, 0])))
    for mine, other in zip(together[:-1], one_by_one, strict=True):
        for field in dataclasses.fields(Block):
            if field.name != "leases":
                assert getattr(mine, field.name) == getattr(other, field.name), field.name
    assert [block.parent for block in together[19:22]] == [keys[18], NO_KEY, keys[20]]
    assert together[30].parent == NO_KEY
