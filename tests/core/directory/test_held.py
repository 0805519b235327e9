"""What hosts have: as a set for each would say it, while the table grows and hosts come and go."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.directory.held import LAST_NAME, Held
from pegaflow.core.pool.fingerprints import U64
from pegaflow.wire.peer import HOSTS_MAX

HOSTS, EACH = 3, 60
ODD = 0x9E37_79B9_7F4A_7C15


def names_of(numbers: list[int]) -> U64:
    """Fingerprints all over the table, equal for equal numbers."""
    return np.array([number * ODD & LAST_NAME | 2 for number in numbers], np.uint64)


def spread(count: int, seed: int = 1) -> U64:
    return np.random.default_rng(seed).integers(2, 1 << 64, count, np.uint64)


def close(count: int, apart: int = 1) -> U64:
    """Fingerprints of one bucket."""
    return np.arange(1, count + 1, dtype=np.uint64) * np.uint64(apart) << np.uint64(12)


def has(held: Held, host: int, most: int = 7) -> set[int]:
    """All that a host has, chunk by chunk."""
    found: list[int] = []
    first = 0
    while first <= LAST_NAME:
        names, last = held.chunk(host, first, most)
        assert len(names) <= most and last >= first
        assert all(first <= name <= last for name in names.tolist())
        found += names.tolist()
        first = last + 1
    assert found == sorted(set(found))
    return set(found)


steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "replace", "drop", "step"]),
        st.integers(0, HOSTS - 1),
        st.lists(st.integers(1, 90), max_size=40),
    ),
    max_size=12,
)


@given(steps)
def test_it_has_what_a_set_for_each_host_would_have(
    some: list[tuple[str, int, list[int]]],
) -> None:
    held, sets = Held(HOSTS, EACH), [set[int]() for _ in range(HOSTS)]
    for what, host, numbers in some:
        names = names_of(numbers)
        one, asked = sets[host], set(names.tolist())
        if what == "add":
            refused = held.add(host, names)
            assert refused == max(0, len(one | asked) - EACH)
            one |= asked if not refused else has(held, host)
        elif what == "remove":
            assert held.remove(host, names) == len(one & asked)
            one -= asked
        elif what == "replace":
            first, last = (min(asked), max(asked)) if asked else (0, LAST_NAME)
            held.replace(host, first, last, names)
            kept = {name for name in one if not first <= name <= last}
            assert len(kept | asked) <= EACH or len(has(held, host)) == EACH
            sets[host] = kept | asked if len(kept | asked) <= EACH else has(held, host)
        elif what == "drop":
            held.drop(host)
            one.clear()
        else:
            held.step()
        held.check()
        every = names_of(list(range(1, 91)))
        for name, mask in zip(every.tolist(), held.owners_of(every).tolist(), strict=True):
            assert mask == sum(1 << n for n, names in enumerate(sets) if name in names)
        assert held.counts == [len(names) for names in sets]
    for host in range(HOSTS):
        assert has(held, host) == sets[host]


@pytest.mark.parametrize("hosts", [1, 8, 9, 17, 33, HOSTS_MAX])
def test_the_last_host_has_its_bit(hosts: int) -> None:
    held, names = Held(hosts, 10), spread(5)
    held.add(hosts - 1, names)
    assert held.owners_of(names).tolist() == [1 << hosts - 1] * 5
    held.drop(hosts - 1)
    assert not held.owners_of(names).any()
    held.check()


def test_it_grows_step_by_step_and_loses_nothing() -> None:
    held, names = Held(2, 12_000), spread(12_000)
    growing = set()
    for first in range(0, len(names), 100):
        assert held.add(first // 100 % 2, names[first : first + 100]) == 0
        growing.add(held._edge > 0)
        assert held.owners_of(names[: first + 100]).all()
        if first % 1000 == 0:
            held.check()
            assert len(has(held, 0, 400)) + len(has(held, 1, 30)) == first + 100
    assert growing == {False, True}
    masks = Counter(held.owners_of(names).tolist())
    assert masks == {1: 6000, 2: 6000}
    assert has(held, 0) | has(held, 1) == set(names.tolist())
    assert not held.owners_of(spread(1000, seed=2)).any()


def test_what_hosts_have_in_common_is_there_once() -> None:
    names = spread(20_000)
    one, all_of_them = Held(16, 20_000), Held(16, 20_000)
    one.add(0, names)
    for host in range(16):
        all_of_them.add(host, names)
    assert all_of_them.bytes_used == one.bytes_used < 20_000 * 10 / 0.5
    assert held_masks(all_of_them, names) == {(1 << 16) - 1}


def held_masks(held: Held, names: U64) -> set[int]:
    return set(held.owners_of(names).tolist())


def test_a_host_has_no_more_than_it_may() -> None:
    held, names = Held(2, 100), spread(250)
    assert held.add(0, names) == 150
    assert held.add(0, names) == 150
    assert held.add(1, names[:100]) == 0
    assert held.counts == [100, 100]
    held.check()


def test_what_is_no_fingerprint_is_not_taken() -> None:
    held = Held(2, 100)
    assert held.add(0, np.zeros(3, np.uint64)) == 1
    assert held.remove(0, np.zeros(3, np.uint64)) == 0
    assert held.owners_of(np.zeros(3, np.uint64)).tolist() == [0, 0, 0]
    assert len(held) == 0
    held.check()


def test_names_made_up_to_have_one_bucket_do_no_harm() -> None:
    held = Held(2, 10_000)
    others = spread(1000)
    held.add(1, others)
    refused = held.add(0, close(10_000))
    assert 0 < refused < 10_000
    held.check()
    assert held.owners_of(others).all()
    assert held.add(1, spread(2000, seed=2)) == 0
    held.check()


def test_a_dropped_host_is_cleared_in_steps_while_others_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pegaflow.core.directory.held.SWEPT_ROWS", 500)
    held = Held(8, 10_000)
    for host in range(8):
        held.add(host, spread(2000, seed=host))
    held.drop(3)
    assert held_masks(held, spread(2000, seed=3)) == {0}
    turns = 0
    while held.busy:
        held.add(7, spread(500, seed=100 + turns))
        held.step()
        turns += 1
    assert turns > 5
    held.check()
    held.add(3, spread(10))
    assert has(held, 3) == set(spread(10).tolist())


def test_a_host_that_comes_back_while_it_is_cleared_has_only_what_it_says_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pegaflow.core.directory.held.SWEPT_ROWS", 100)
    held, before = Held(4, 5000), spread(5000)
    held.add(2, before)
    held.drop(2)
    held.step()
    held.replace(2, 0, LAST_NAME, before[:10])
    assert not held.busy and has(held, 2) == set(before[:10].tolist())
    held.check()


def test_a_range_is_replaced_and_nothing_beside_it() -> None:
    held = Held(2, 5000)
    old, new = spread(3000), spread(3000, seed=2)
    held.add(0, old)
    held.add(1, old)
    first, last = 1 << 61, 3 << 61
    inside = new[(new >= first) & (new <= last)]
    held.replace(0, first, last, new)
    outside = {name for name in old.tolist() if not first <= name <= last}
    assert has(held, 0) == outside | set(inside.tolist())
    assert has(held, 1) == set(old.tolist())
    held.check()


def at(home: int, second: int, count: int) -> U64:
    """Fingerprints that have these two buckets of a new table."""
    low = home << 56 | (second - home - 1) << 2
    return (np.arange(1, count + 1, dtype=np.uint64) << np.uint64(12)) | np.uint64(low)


def test_what_is_moved_away_from_the_sweep_does_not_escape_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pegaflow.core.directory.held.SWEPT_ROWS", 2)
    held, new = Held(2, 5000), at(5, 10, 9)
    held.add(0, at(0, 10, 16))
    held.remove(0, held._buckets[0].copy())
    held.add(1, new[:8])
    held.drop(0)
    held.step()
    assert held.add(1, new) == 0 and held.busy
    while held.busy:
        held.step()
    held.check()
    assert len(held) == 9


def test_what_comes_in_the_order_of_its_fingerprints_finds_room_when_it_is_expected() -> None:
    held, names = Held(3, 40_000), np.sort(spread(40_000))
    held.add(0, spread(5000, seed=2))
    steps = 0
    while not (held.expect(1, 20_000) and held.expect(2, 20_000)):
        assert held.busy
        held.step()
        steps += 1
    assert steps > 1
    for first in range(0, 20_000, 1000):
        some = names[2 * first : 2 * first + 2000]
        assert held.replace(1, int(some[0]), int(some[-2]), some[::2]) == 0
        assert held.replace(2, int(some[1]), int(some[-1]), some[1::2]) == 0
    assert held.counts == [5000, 20_000, 20_000] and not held.busy
    assert held.expect(1, 0) and held.expect(2, 0)
    held.check()


def test_a_host_that_is_dropped_is_expected_no_more() -> None:
    held = Held(2, 40_000)
    held.expect(0, 40_000)
    held.drop(0)
    while held.busy:
        held.step()
    before = held.bytes_used
    assert held.expect(1, 30_000) and held.bytes_used == before
