"""A resident block is no object, and costs what its numbers cost."""

import gc
import tracemalloc

import numpy as np

from pegaflow.core.blocks.table import Fresh, PrefixIndex
from pegaflow.core.policy.lru import Lru
from pegaflow.core.pool.fingerprints import fingerprints
from pegaflow.wire.identities import Key, Namespace, PageId

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
