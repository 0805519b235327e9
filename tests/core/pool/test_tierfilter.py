"""The filter of the tiers: what a tier has is never denied, and mostly nothing else is named."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.table import Table, TableReader, TierWord, file_bytes
from pegaflow.core.pool.tierfilter import (
    CELLS_EACH,
    CELLS_LEAST,
    CELLS_MOST,
    TierFilter,
    cells_log2,
)

RECORDS = 1024
CELLS = CELLS_EACH * RECORDS
AT = 64


def room(offset: int, length: int) -> str:
    return ""


def fresh(reserve: Callable[[int, int], str] = room) -> tuple[bytearray, TierFilter]:
    buffer = bytearray(AT + CELLS)
    return buffer, TierFilter(memoryview(buffer), AT, RECORDS, reserve)


def spread(count: int, seed: int = 1) -> U64:
    return np.random.default_rng(seed).integers(2, 1 << 64, count, np.uint64)


def named(filter_: TierFilter, fingerprints: U64) -> int:
    return sum(filter_.may_have(name) for name in fingerprints.tolist())


def test_cells_grow_with_the_pool_to_a_most() -> None:
    assert 1 << cells_log2(0) == 1 << cells_log2(1) == CELLS_LEAST
    assert 1 << cells_log2(RECORDS) == CELLS
    assert cells_log2(RECORDS + 1) == cells_log2(RECORDS) + 1
    assert 1 << cells_log2(1 << 40) == CELLS_MOST


@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(2, 40), unique=True)), max_size=30))
def test_what_a_tier_has_is_never_denied(steps: list[tuple[bool, list[int]]]) -> None:
    _, filter_ = fresh()
    has: set[int] = set()
    for come, names in steps:
        changed = set(names) - has if come else has & set(names)
        words = np.array(sorted(changed), np.uint64) << np.uint64(40)
        (filter_.add if come else filter_.remove)(words)
        has = has | changed if come else has - changed
    assert all(filter_.may_have(name << 40) for name in has)
    if not has:
        assert not any(filter_.may_have(name << 40) for name in range(2, 41))


@pytest.mark.parametrize(("cells_each", "most"), [(8, 0.06), (4, 0.18), (2, 0.44)])
def test_how_much_else_it_names(cells_each: int, most: float) -> None:
    _, filter_ = fresh()
    filter_.add(spread(CELLS // cells_each))
    assert named(filter_, spread(4000, seed=2)) < most * 4000


def test_fingerprints_that_differ_in_a_few_bits_have_other_cells() -> None:
    _, filter_ = fresh()
    low, high = np.arange(2, 502, dtype=np.uint64), np.uint64(54)
    filter_.add(low)
    filter_.add(low << high)
    assert named(filter_, np.arange(502, 4502, dtype=np.uint64)) < 0.1 * 4000


def test_what_has_gone_is_not_named() -> None:
    _, filter_ = fresh()
    first, second = spread(100), spread(100, seed=2)
    filter_.add(first)
    filter_.add(second)
    filter_.remove(first)
    assert named(filter_, second) == 100 and named(filter_, first) < 10
    filter_.remove(second)
    assert named(filter_, first) == named(filter_, second) == 0


def test_a_full_cell_stays() -> None:
    _, filter_ = fresh()
    one = spread(1)
    for _ in range(300):
        filter_.add(one)
    for _ in range(300):
        filter_.remove(one)
    assert filter_.may_have(int(one[0]))


def test_nothing_is_real_before_a_tier_has_something() -> None:
    asked: list[tuple[int, int]] = []

    def reserve(offset: int, length: int) -> str:
        asked.append((offset, length))
        return ""

    _, filter_ = fresh(reserve)
    assert not filter_.counts and asked == []
    filter_.add(spread(1))
    filter_.add(spread(1, seed=2))
    assert filter_.counts and asked == [(AT, CELLS)]


def test_a_new_index_counts_from_nothing() -> None:
    buffer, old = fresh()
    old.add(spread(50))
    new = TierFilter(memoryview(buffer), AT, RECORDS, room)
    new.add(spread(1, seed=2))
    assert named(new, spread(50)) < 5


def test_without_room_it_is_of_no_use_until_it_is_cleared() -> None:
    answers = ["no room", ""]
    _, filter_ = fresh(lambda offset, length: answers.pop(0))
    filter_.add(spread(1))
    filter_.add(spread(1))
    filter_.remove(spread(1))
    assert (filter_.counts, filter_.fault) == (False, "no room")
    filter_.clear()
    assert filter_.fault == ""
    filter_.add(spread(1, seed=2))
    assert filter_.counts and named(filter_, spread(1)) == 0


def test_a_file_that_ends_before_it_has_none() -> None:
    filter_ = TierFilter(memoryview(bytearray(AT + CELLS - 1)), AT, RECORDS, room)
    filter_.add(spread(1))
    assert not filter_.counts and "ends before" in filter_.fault


def test_readers_do_as_the_word_says() -> None:
    buffer = bytearray(file_bytes(RECORDS))
    table, reader = Table(buffer, RECORDS, room), TableReader(buffer, RECORDS)
    had, other = spread(2).tolist()
    assert not reader.may_go_on(had)
    table.set_tiers(TierWord.ASK)
    assert reader.may_go_on(had) and reader.may_go_on(other)
    table.filter.add(spread(1))
    table.set_tiers(TierWord.FILTER)
    assert reader.may_go_on(had) and not reader.may_go_on(other)
    table.set_tiers(3)  # type: ignore[arg-type]  # of a later version
    assert reader.may_go_on(other)
    table.set_tiers(TierWord.NONE)
    assert not reader.may_go_on(had)


def test_cells_are_counted_one_by_one() -> None:
    buffer, filter_ = fresh()
    filter_.add(spread(20))
    filter_.add(spread(20, seed=2))
    assert sum(buffer[AT:]) == 80 and max(Counter(buffer[AT:])) < 10
