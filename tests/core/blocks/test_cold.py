"""Cold blocks: found by their key, whatever its hash, until they are taken."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.blocks import cold
from pegaflow.core.blocks.cold import ColdTable
from pegaflow.core.pool.fingerprints import hash_of, hashes_of
from pegaflow.core.pool.ledger import MAX_KEY, Record
from pegaflow.wire.identities import Key, Namespace, PageId, Stamp

any_key = st.binary(min_size=1, max_size=MAX_KEY).map(Key)


def table_of(
    keys: list[Key], parts: int = 2, hashed: Callable[[Key], int] = hash_of
) -> tuple[ColdTable, list[PageId]]:
    """Key i in page i; the pages that were dropped."""

    def read(page: int) -> Record:
        return Record(
            Stamp(1),
            1,
            0,
            1,
            payload_bytes=4096,
            namespace=Namespace(bytes(16)),
            key=keys[page],
            checksum=None,
            depth=0,
        )

    table = ColdTable(read)
    hashes = np.array([hashed(key) for key in keys], np.uint64)
    pages = np.arange(len(keys))
    for part in range(parts):
        table.add(hashes[part::parts], pages[part::parts])
    return table, table.settle()


@given(st.lists(any_key, min_size=1))
def test_one_by_one_or_all_at_once_the_hash_is_the_same(keys: list[Key]) -> None:
    for width in (MAX_KEY, -(-max(map(len, keys)) // 8) * 8):
        rows = np.frombuffer(b"".join(key.ljust(width, b"\0") for key in keys), np.uint8)
        assert hashes_of(rows.reshape(-1, width)).tolist() == [hash_of(key) for key in keys]


def test_keys_of_a_counter_have_different_hashes() -> None:
    keys = [b"%016x%016x" % (chain, block) for chain in range(100) for block in range(100)]
    assert len({hash_of(Key(key)) for key in keys}) == len(keys)


@pytest.mark.parametrize("same", [False, True], ids=["hashed", "all hashes are one"])
@given(keys=st.lists(any_key, min_size=1, max_size=30), strangers=st.lists(any_key, max_size=3))
def test_what_is_there_is_found(same: bool, keys: list[Key], strangers: list[Key]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        hashed = (lambda key: 7) if same else hash_of
        patch.setattr(cold, "hash_of", hashed)
        table, dropped = table_of(keys, 1, hashed)
        last = {key: page for page, key in enumerate(keys)}
        assert sorted(dropped) == sorted(set(range(len(keys))) - set(last.values()))
        assert len(table) == len(last) and sorted(table) == sorted(last.values())
        for key in strangers:
            assert table.find(key) == last.get(key)
        for key, page in list(last.items()):
            some = table.any_page()
            assert some in last.values()
            assert table.find(key) == page
            assert table.pop(key, PageId(page + 1)) is None, "it is in another page"
            here = table.pop(key)
            assert here is not None and (here[0], here[1].key) == (page, key)
            del last[key]
            assert table.find(key) is None
        assert not table and table.any_page() is None


def test_parts_are_one_table() -> None:
    keys = [Key(b"%d" % n) for n in range(50)]
    table, dropped = table_of(keys, parts=7)
    assert not dropped and [table.find(key) for key in keys] == list(range(50))
