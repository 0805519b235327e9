"""The tree of blocks against dictionaries, and what it costs."""

import tracemalloc

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pegaflow.replay import tree
from pegaflow.replay.tree import NONE, TREE_BYTES_PER_BLOCK, Clash, Keys, Prompt, Table, Tree, path

ROWS = st.lists(st.tuples(st.integers(0, 1), st.lists(st.integers(0, 3), max_size=6)), max_size=30)


def keys(ids: list[int]) -> Keys:
    return np.array(ids, dtype=np.uint64)


def prompts(rows: list[tuple[int, list[int]]]) -> list[Prompt]:
    return [Prompt(scope, keys(ids)) for scope, ids in rows]


def added(found: Tree, rows: list[tuple[int, list[int]]], batch: int) -> list[int]:
    ends: list[int] = []
    for at in range(0, len(rows), batch):
        part = found.add(at, prompts(rows[at : at + batch]), check=False)
        assert not isinstance(part, Clash)
        ends += part.tolist()
    return ends


@settings(max_examples=300, deadline=None)
@given(ROWS, st.integers(1, 40))
def test_a_node_is_a_scope_and_all_ids_up_to_it(
    rows: list[tuple[int, list[int]]], batch: int
) -> None:
    found = Tree()
    named: dict[int, tuple[int, ...]] = {}
    for (scope, ids), end in zip(rows, added(found, rows, batch), strict=True):
        nodes = path(found.parents, end)
        assert len(nodes) == len(ids)
        for n, node in enumerate(nodes):
            assert named.setdefault(node, (scope, *ids[: n + 1])) == (scope, *ids[: n + 1])
    assert len(named) == len(set(named.values())) == len(found)
    assert len(set(found.keys)) == len(found)
    first = {node: next(n for n, (s, ids) in enumerate(rows) if (s, *ids)[: len(name)] == name)
             for node, name in named.items()}  # fmt: skip
    assert all(found.requests[node] == request for node, request in first.items())


@given(ROWS)
def test_keys_are_of_the_prompt_and_not_of_the_order(rows: list[tuple[int, list[int]]]) -> None:
    one, other = Tree(), Tree()
    added(one, rows, 7)
    added(other, rows[::-1], 3)
    assert set(one.keys) == set(other.keys)


@settings(max_examples=300, deadline=None)
@given(ROWS, st.integers(1, 40))
def test_an_id_with_two_pasts_is_found(rows: list[tuple[int, list[int]]], batch: int) -> None:
    past: dict[tuple[int, int], tuple[tuple[int, ...], int]] = {}
    wrong = None
    for request, (scope, ids) in enumerate(rows):
        for n, one in enumerate(ids):
            before = (tuple(ids[:n]), request)
            if past.setdefault((scope, one), before)[0] != before[0]:
                wrong = wrong or (request, n, past[scope, one][1])
    found = Tree()
    clash = None
    for at in range(0, len(rows), batch):
        ends = found.add(at, prompts(rows[at : at + batch]), check=True)
        if isinstance(ends, Clash):
            clash = (ends.request, ends.position, ends.elsewhere)
            break
    assert clash == wrong


def test_a_prompt_may_go_on_from_a_node() -> None:
    found = Tree()
    whole, head = added(found, [(5, [1, 2, 3, 4]), (5, [1, 2])], 2)
    again = found.add(2, [Prompt(5, keys([3, 4]), head, 2), Prompt(5, keys([]), head, 2)], False)
    assert not isinstance(again, Clash)
    assert again.tolist() == [whole, head]
    assert found.up(whole, 2) == head and found.up(head, 2) == NONE


def test_a_table_finds_what_was_put_in_and_nothing_else() -> None:
    table = Table()
    held: dict[int, int] = {}
    chance = np.random.default_rng(1)
    for n in range(40):
        new = np.unique(chance.integers(0, 2**64, 700, dtype=np.uint64))
        numbers = np.arange(1000 * n, 1000 * n + len(new), dtype=np.int32)
        assert (table.find(new) == NONE).all()
        table.insert(new, numbers)
        held |= dict(zip(new.tolist(), numbers.tolist(), strict=True))
    asked = np.array(list(held), dtype=np.uint64)
    assert table.find(asked).tolist() == list(held.values())


def test_memory_is_of_different_blocks_and_not_of_ids() -> None:
    """A quarter of a million different blocks, two million ids, held to the stated bound."""
    blocks, each = 250_000, 25_000
    batch = np.arange(blocks, dtype=np.uint64).reshape(-1, each)
    found = Tree()
    tracemalloc.start()
    try:
        for again in range(8):
            for n, ids in enumerate(batch):
                assert not isinstance(found.add(n, [Prompt(0, ids)], check=not again), Clash)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(found) == blocks
    assert peak < blocks * TREE_BYTES_PER_BLOCK
    assert tree.TREE_BYTES_PER_BLOCK <= 140
