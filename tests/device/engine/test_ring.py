"""What is taken of a ring, and what of the pool is registered."""

import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.device.engine.ring import Registered, Ring

CAPACITY = 64


@given(st.lists(st.integers(1, CAPACITY), max_size=40), st.randoms())
def test_what_is_taken_is_in_no_other_part(sizes: list[int], chance: st.DrawFn) -> None:
    """Parts are given back whenever there is no room, and sometimes before."""
    ring, open_parts = Ring(0, CAPACITY), list[tuple[int, int]]()
    for size in sizes:
        while open_parts and (not room(open_parts, size) or chance.random() < 0.2):  # type: ignore[attr-defined]
            open_parts.pop(0)
            ring.give()
        at = ring.take(size)
        assert 0 <= at <= CAPACITY - size
        assert all(at + size <= first or end <= at for first, end in open_parts)
        open_parts.append((at, at + size))


def room(parts: list[tuple[int, int]], size: int) -> bool:
    """Whether a part fits behind the newest, or before the oldest."""
    first, end = parts[0][0], parts[-1][1]
    if first < end:
        return CAPACITY - end >= size or first >= size
    return first - end >= size


def test_who_finds_no_room_waits_for_it() -> None:
    ring, found = Ring(0, CAPACITY), list[int]()
    ring.take(40)
    for _ in range(CAPACITY):  # what is passed over at the end comes back once
        ring.take(23)
        ring.give()
        ring.take(40)
        ring.give()
    waiting = threading.Thread(target=lambda: found.append(ring.take(40)), daemon=True)
    waiting.start()
    waiting.join(0.02)
    assert not found
    ring.give()
    waiting.join(20)
    assert found == [0]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_a_page_is_reached_if_one_registration_has_all_of_it(order: tuple[int, ...]) -> None:
    registered, offsets = Registered(), np.arange(0, 1000, 50, dtype=np.uint64)
    assert not registered.hold(offsets, 1).any()
    parts = [(100, 200), (300, 100), (700, 130)]
    for number in order:
        registered.add(*parts[number])
    held = registered.hold(offsets, 60)
    meant = [
        any(start <= at and at + 60 <= start + length for start, length in parts)
        for at in offsets.tolist()
    ]
    assert held.tolist() == meant and sum(meant) == 6
