"""Columns of numbers."""

import ast
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import pegaflow
from pegaflow.core.pool.columns import among, distinct

numbers = st.lists(st.integers(0, 40) | st.integers(0, (1 << 64) - 1), max_size=60)


@given(numbers, numbers)
def test_different_ones_and_those_among_others(mine: list[int], others: list[int]) -> None:
    here, there = np.array(mine, np.uint64), np.array(others, np.uint64)
    assert distinct(here).tolist() == sorted(set(mine))
    assert among(here, there).tolist() == [number in others for number in mine]


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
