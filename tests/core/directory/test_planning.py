"""Plans: as good as trying everything, and what they say can be done."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.directory.planning import (
    SOURCES_MOST,
    SSD,
    Piece,
    Plan,
    Run,
    Source,
    _make_room,
    delivered,
    plan,
)

MB = 1_000_000
MS = 1_000_000
BLOCK = MB


def run_of(*where: set[int] | None) -> Run:
    """A run; of each block the sources, or None: it is in memory."""
    return Run(
        np.array([some is None for some in where], np.bool_),
        np.array([SSD in (some or ()) for some in where], np.bool_),
        np.array([sum(1 << n for n in some or () if n >= 0) for some in where], np.uint64),
        BLOCK,
    )


def capacity(source: Source, took_ns: int) -> int:
    return int(delivered([source], np.array([float(took_ns)]), BLOCK)[0, 0])


def fits(needed: list[set[int]], sources: dict[int, Source], took_ns: int) -> bool:
    """Try every way to give these blocks to sources."""
    room = {name: capacity(source, took_ns) for name, source in sources.items()}
    choices = [[name for name in some if name in room] for some in needed]
    return any(
        all(way.count(name) <= most for name, most in room.items()) for way in product(*choices)
    )


def reach(
    where: list[set[int] | None], sources: dict[int, Source], took_ns: int
) -> tuple[int, int]:
    """The longest prefix that can be there by then, and what of it is fetched."""
    found, fetched = 0, list[set[int]]()
    for some in where:
        if some is not None:
            fetched.append(some)
            if not fits(fetched, sources, took_ns):
                return found, len(fetched) - 1
        found += 1
    return found, len(fetched)


def possible(planned: Plan, where: list[set[int] | None], sources: dict[int, Source]) -> None:
    """Each block that is not in memory is fetched once, from who has it, and in time."""
    blocks = {}
    for piece in planned.pieces:
        for at in range(piece.first, piece.first + piece.blocks):
            assert at not in blocks
            blocks[at] = piece.source
    assert sorted(blocks) == [n for n in range(planned.blocks) if where[n] is not None]
    assert all(name in (where[at] or ()) for at, name in blocks.items())
    for name, source in sources.items():
        assert list(blocks.values()).count(name) <= capacity(source, planned.took_ns)
    together = zip(planned.pieces, planned.pieces[1:], strict=False)
    assert all((b.first, b.source) != (a.first + a.blocks, a.source) for a, b in together)


source_names = st.sampled_from([SSD, 0, 1, 40])
places = st.lists(st.one_of(st.none(), st.sets(source_names, max_size=3)), max_size=7)
measured = st.dictionaries(
    source_names,
    st.builds(
        Source,
        st.sampled_from([1000.0 * MB, 500.0 * MB, 300.0 * MB]),
        st.sampled_from([0, MS, 3 * MS]),
        st.sampled_from([0, 2 * MB]),
    ),
)


@given(places, measured, st.integers(0, 12))
def test_the_longest_prefix_in_the_shortest_time(
    where: list[set[int] | None], sources: dict[int, Source], budget_ms: int
) -> None:
    budget = budget_ms * MS
    planned = plan(run_of(*where), sources, budget)
    possible(planned, where, sources)
    assert planned.blocks == reach(where, sources, budget)[0]
    assert planned.took_ns <= budget
    earlier = planned.took_ns - max(1, budget // 500)
    if planned.pieces and earlier > 0:
        assert reach(where, sources, earlier)[0] < planned.blocks


@given(places, measured, st.sampled_from([100.0, 400.0, 900.0, 3000.0]))
def test_the_run_is_there_soonest(
    where: list[set[int] | None], sources: dict[int, Source], megabytes: float
) -> None:
    budget, prefill = 12 * MS, megabytes * MB
    planned = plan(run_of(*where), sources, budget, prefill)
    possible(planned, where, sources)

    def ends(blocks: int, took_ns: int) -> float:
        return took_ns + (len(where) - blocks) * BLOCK / prefill * 1e9

    at_once, _ = reach(where, sources, 0)
    assert ends(planned.blocks, planned.took_ns) <= ends(at_once, 0)
    for quarter in range(4 * 12 + 1):
        took = quarter * MS // 4
        best = ends(reach(where, sources, took)[0], took)
        assert ends(planned.blocks, planned.took_ns) <= best + budget / 500


FAST = Source(1000.0 * MB, 0)


def test_several_owners_share_a_run_in_long_pieces() -> None:
    planned = plan(run_of(*[{0, 1, 2, 3}] * 40), dict.fromkeys(range(4), FAST), 100 * MS)
    assert (planned.blocks, len(planned.pieces)) == (40, 4)
    assert {piece.blocks for piece in planned.pieces} == {10}
    assert planned.took_ns == pytest.approx(10 * MS, rel=0.02)


def test_who_has_much_to_do_gets_less() -> None:
    sources = {0: FAST, 1: FAST._replace(queued_bytes=10 * MB)}
    planned = plan(run_of(*[{0, 1}] * 30), sources, 100 * MS)
    assert planned.pieces == [Piece(0, 0, 20), Piece(1, 20, 10)]


def test_memory_behind_a_gap_counts_when_the_gap_can_be_filled() -> None:
    where = [None, None, {0}, {0}, None, None, None, set[int](), None]
    assert plan(run_of(*where), {0: FAST}, 2 * MS) == Plan(7, 2 * MS, [Piece(0, 2, 2)])
    assert plan(run_of(*where), {0: FAST}, MS).blocks == 3
    assert plan(run_of(*where), {}, 2 * MS) == Plan(2, 0, [])


def test_an_island_is_worth_a_gap_that_alone_is_not() -> None:
    slow = {0: Source(100.0 * MB, 0)}
    prefill = 150.0 * MB
    assert plan(run_of({0}, {0}), slow, 100 * MS, prefill).blocks == 0
    assert plan(run_of({0}, {0}, None, None), slow, 100 * MS, prefill).blocks == 4


def test_of_many_hosts_those_are_taken_without_which_the_run_ends() -> None:
    many = {0} | set(range(20, 40))
    where: list[set[int] | None] = [many, many, {7}, many, {9}, many]
    planned = plan(run_of(*where), dict.fromkeys(range(64), FAST), 100 * MS)
    assert planned.blocks == 6
    assert len({piece.source for piece in planned.pieces}) <= SOURCES_MOST


def test_a_long_run_of_many_kinds_is_planned_and_possible() -> None:
    chance = np.random.default_rng(1)
    where: list[set[int] | None] = [
        set(np.flatnonzero(row).tolist()) | {8} for row in chance.random((1024, 8)) < 0.3
    ]
    sources = {n: Source((100.0 + 50 * n) * MB, n * MS) for n in range(9)}
    planned = plan(run_of(*where), sources, 5000 * MS)
    possible(planned, where, sources)
    assert planned.blocks == 1024


@pytest.mark.parametrize("names", [3, 5])
def test_what_is_scarce_is_moved_until_everything_has_a_source(names: int) -> None:
    chance = np.random.default_rng(names)
    for _ in range(150):
        rows = chance.random((int(chance.integers(4, 40)), names)) < 0.35
        where: list[set[int] | None] = [set(np.flatnonzero(row).tolist()) | {0} for row in rows]
        rates = chance.integers(1, 20, names) * 100.0 * MB
        sources = {n: Source(rate, 0) for n, rate in enumerate(rates.tolist())}
        possible(plan(run_of(*where), sources, 10 * MS), where, sources)


def test_no_more_is_moved_than_is_there() -> None:
    shares, left = [[0, 0], [2, 0]], [0, 10]
    assert _make_room(0, 5, ([[0], [0, 1]], shares, left)) == 2
    assert (shares, left) == ([[2, 0], [0, 2]], [0, 8])
