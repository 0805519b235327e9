"""Leases: what may be read, and when what was lent has come back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.device.link.tcplending import Lending, NotLentError
from pegaflow.wire.identities import Incarnation

from .rig import Word

ME, OTHER = Incarnation(1), Incarnation(2)
POOL = 64
EXTENTS = st.lists(
    st.integers(0, POOL - 1).flatmap(
        lambda start: st.tuples(st.just(start), st.integers(1, POOL - start))
    ),
    min_size=1,
    max_size=5,
)


def lent() -> Lending[str]:
    lending: Lending[str] = Lending(POOL)
    lending.lend(1, ME, [(0, 8), (8, 8), (32, 8)])
    return lending


@given(EXTENTS, EXTENTS)
def test_what_is_lent_may_be_read_and_nothing_else(
    extents: list[tuple[int, int]], places: list[tuple[int, int]]
) -> None:
    lending: Lending[str] = Lending(POOL)
    lending.lend(1, ME, extents)
    within = {at for start, size in extents for at in range(start, start + size)}
    wanted = {at for start, size in places for at in range(start, start + size)}
    if wanted <= within:
        assert lending.begin(1, ME, places, "s")
    else:
        with pytest.raises(NotLentError):
            lending.begin(1, ME, places, "s")


def test_another_s_lease_is_not_ours() -> None:
    with pytest.raises(NotLentError):
        lent().begin(1, OTHER, [(0, 1)], "s")


def test_what_was_never_lent_is_refused_and_comes_back_at_once() -> None:
    back = Word()
    assert not lent().begin(2, ME, [(0, 1)], "s")
    assert not lent().recall(2, back)
    assert back.said


@pytest.mark.parametrize("extent", [(-1, 2), (0, 0), (0, -1), (POOL - 1, 2), (POOL, 1)])
def test_what_is_not_of_the_pool_is_not_lent(extent: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="not of the pool"):
        lent().lend(2, ME, [extent])


def test_a_number_is_lent_once() -> None:
    lending = lent()
    with pytest.raises(ValueError, match="lease 1 is lent"):
        lending.lend(1, ME, [(0, 8)])


def test_it_comes_back_with_the_last_who_reads() -> None:
    lending, first, second = lent(), Word(), Word()
    assert lending.begin(1, ME, [(0, 16)], "a") and lending.begin(1, ME, [(32, 8)], "b")
    assert lending.recall(1, first)
    assert not lending.begin(1, ME, [(0, 1)], "a")
    lending.end(1, "a")
    assert lending.recall(1, second)
    assert not first.said and not second.said
    lending.end(1, "b")
    assert len(first.calls) == len(second.calls) == 1
    lending.lend(1, ME, [(0, 1)])  # nothing of it is left


def test_nobody_reads_and_it_comes_back_at_once() -> None:
    lending, back = lent(), Word()
    lending.begin(1, ME, [(0, 16)], "a")
    lending.end(1, "a")
    assert not lending.recall(1, back)
    assert back.said
    assert not lending.begin(1, ME, [(0, 16)], "a")


def test_who_reads_on_is_named_when_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    lending = lent()
    lending.begin(1, ME, [(0, 16)], "a")
    lending.begin(1, ME, [(0, 16)], "b")
    assert lending.overdue() == ([], None)
    lending.recall(1, Word())
    late, due = lending.overdue()
    assert late == [] and due is not None
    monkeypatch.setattr("time.monotonic_ns", lambda: due)
    assert lending.overdue() == (["a", "b"], None)
