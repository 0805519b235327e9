"""The models beside the measured hit rate, against a naive one and against known figures."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pegaflow.replay.ceiling import infinite, lru
from pegaflow.replay.reading import read
from pegaflow.replay.trace import BUNDLED

from .counting import traced


def prefixes(chains: list[list[int]]) -> list[list[tuple[int, ...]]]:
    """A block is its id after all ids before it."""
    return [[tuple(chain[: n + 1]) for n in range(len(chain))] for chain in chains]


def naive(chains: list[list[int]], capacity: int) -> int:
    """A list, newest first: a request's chain comes to its front, and its end is cut."""
    held: list[tuple[int, ...]] = []
    hits = 0
    for chain in prefixes(chains):
        hit = 0
        while hit < len(chain) and chain[hit] in held:
            hit += 1
        hits += hit
        held = (chain + [b for b in held if b not in chain])[:capacity]
    return hits


CHAINS = st.lists(st.lists(st.integers(0, 12), max_size=6, unique=True), max_size=30)


@settings(max_examples=200, deadline=None)
@given(CHAINS, st.integers(0, 15))
def test_lru_is_the_naive_list(chains: list[list[int]], capacity: int) -> None:
    assert lru(traced(chains), capacity).hit == naive(chains, capacity)


@settings(max_examples=100, deadline=None)
@given(CHAINS, st.integers(0, 15))
def test_isolated_pools_are_caches_of_their_own(chains: list[list[int]], capacity: int) -> None:
    split = lru(traced(chains), capacity, pools=2)
    assert split.hit == sum(naive(chains[first::2], capacity // 2) for first in (0, 1))


@given(CHAINS)
def test_the_infinite_cache_is_lru_that_never_evicts(chains: list[list[int]]) -> None:
    assert infinite(traced(chains)) == lru(traced(chains), 6 * 30)


def test_a_hit_ends_at_the_first_missing_block() -> None:
    assert infinite(traced([[1, 2], [1, 9, 2]])).hit == 1


def test_the_tail_of_a_chain_goes_before_its_head() -> None:
    assert lru(traced([[1, 2, 3], [1, 2, 3]]), 2).hit == 2


def test_an_empty_trace_has_a_rate() -> None:
    assert infinite(traced([])).rate == 0.0


def test_figures_of_the_bundled_slice() -> None:
    trace = read([BUNDLED])
    unique = infinite(trace).missed
    assert round(100 * infinite(trace).rate, 1) == 27.5
    shared = [lru(trace, unique * percent // 100).rate for percent in (5, 10, 25)]
    split = [lru(trace, unique * percent // 100, 2).rate for percent in (5, 10, 25)]
    assert [round(100 * rate, 1) for rate in shared] == [4.3, 6.4, 16.9]
    assert [round(100 * rate, 1) for rate in split] == [3.9, 5.0, 11.5]
