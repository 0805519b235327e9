"""Columns of numbers."""

import ast
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import pegaflow
from pegaflow.core.pool.columns import again, among, chained, distinct, first_of, led_by, repeats
from pegaflow.wire.identities import Key
from pegaflow.wire.values import PackedKeys

numbers = st.lists(st.integers(0, 40) | st.integers(0, (1 << 64) - 1), max_size=60)


@given(numbers, numbers)
def test_different_ones_and_those_among_others(mine: list[int], others: list[int]) -> None:
    here, there = np.array(mine, np.uint64), np.array(others, np.uint64)
    assert distinct(here).tolist() == sorted(set(mine))
    assert among(here, there).tolist() == [number in others for number in mine]
    assert again(here).tolist() == [number in mine[:at] for at, number in enumerate(mine)]
    assert repeats(here) == (len(set(mine)) < len(mine))


def packed(keys: list[Key]) -> PackedKeys:
    return PackedKeys(bytes([len(keys[0])]) + b"".join(keys))


@given(st.lists(st.sampled_from([Key(b"%08d" % n) for n in range(3)]), min_size=2, max_size=5))
def test_keys_that_were_not_taken_apart_are_a_chain_as_others_are(run: list[Key]) -> None:
    keys, parents = run[1:], run[:-1]
    assert chained(tuple(keys), tuple(parents)) and chained(packed(keys), packed(parents))
    other = Key(b"%08d" % 9)
    for at in range(len(keys)):
        broken = [*parents[:at], other, *parents[at + 1 :]]
        assert chained(tuple(keys), tuple(broken)) == (at == 0)
        assert chained(packed(keys), packed(broken)) == (at == 0)
    assert first_of(packed(keys)) == first_of(tuple(keys)) == keys[0]
    assert tuple(led_by(other, packed(keys))) == led_by(other, tuple(keys)) == (other, *keys)
    assert tuple(led_by(Key(b"9"), packed(keys))) == (b"9", *keys)


def imports_masked_arrays(call: ast.Call) -> bool:
    """np.isin, and np.unique that is asked for nothing besides, import numpy.ma when first called:
    40 ms, in which an actor hears nobody."""
    name = ast.unparse(call.func)
    return name == "np.isin" or (name == "np.unique" and not call.keywords)


def test_no_actor_imports_masked_arrays_with_its_first_message() -> None:
    home, found = Path(pegaflow.__file__).parent, []
    for part in ("actors", "core", "device", "client"):
        for path in home.joinpath(part).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and imports_masked_arrays(node):
                    found.append(f"{path.name}:{node.lineno}")
    assert not found, "distinct() and among() of core/pool/columns.py do not"
