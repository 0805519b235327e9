"""The block size of a trace, from its rows alone."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegaflow.replay.errors import TraceError
from pegaflow.replay.fitting import Fit, check

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=30)
SIZES = st.integers(1, 700)


def ids_for(tokens: int, size: int, rounding: str, row: int) -> int:
    down, up = tokens // size, -(-tokens // size)
    return {"up": up, "down": down, "either": (down, up)[row % 2]}[rounding]


@settings(max_examples=300, deadline=None)
@given(LENGTHS, SIZES, st.sampled_from(["up", "down", "either"]))
def test_the_true_size_is_never_refused(lengths: list[int], size: int, rounding: str) -> None:
    fit = Fit()
    for row, tokens in enumerate(lengths):
        ids = ids_for(tokens, size, rounding, row)
        fit.add(f"row {row}", tokens, ids)
        check(f"row {row}", tokens, ids, size, said="")
    assert size in fit.either
    assert rounding == "either" or size in getattr(fit, rounding)
    if rounding != "either":
        assert fit.size("trace", usual=size) == size


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 12)), min_size=1, max_size=6))
def test_a_size_is_allowed_if_and_only_if_every_row_fits_it(rows: list[tuple[int, int]]) -> None:
    """Against a search through all sizes."""
    fits = {
        rounding: {
            size
            for size in range(1, 100)
            if all(ids in allowed(tokens, size, rounding) for tokens, ids in rows)
        }
        for rounding in ("up", "down", "either")
    }
    fit = Fit()
    try:
        for number, (tokens, ids) in enumerate(rows):
            fit.add(f"row {number}", tokens, ids)
    except TraceError as error:
        assert not fits["either"]
        assert "row" in str(error)
        return
    for rounding in ("up", "down", "either"):
        interval = getattr(fit, rounding)
        assert {size for size in range(1, 100) if size in interval} == fits[rounding]


def allowed(tokens: int, size: int, rounding: str) -> set[int]:
    down, up = tokens // size, -(-tokens // size)
    return {"up": {up}, "down": {down}, "either": {up, down}}[rounding]


def test_sixteen_tokens_are_not_taken_for_512() -> None:
    fit = Fit()
    fit.add("row 1", 512, 32)
    assert fit.size("trace", usual=512) == 16


def test_two_rows_that_fit_no_size_are_both_named() -> None:
    fit = Fit()
    fit.add("a:1", 512, 32)
    fit.add("a:2", 640, 40)
    with pytest.raises(TraceError) as caught:
        fit.add("a:3", 512, 1)
    line = str(caught.value)
    assert line.startswith("a:3: 1 block id for 512 tokens, while a:1 has 32 block ids for 512")
    with pytest.raises(TraceError, match="^a:1: 5 block ids for 0 tokens: no block size fits$"):
        Fit().add("a:1", 0, 5)


def test_an_open_choice_is_the_users() -> None:
    fit = Fit()
    fit.add("row", 1000, 2)
    assert fit.size("trace", usual=400) == 400
    assert fit.size("trace", usual=None) == 512  # the one power of two of 334 to 999
    loose = Fit()
    loose.add("row", 1000, 1)
    with pytest.raises(TraceError, match="^a: blocks of 501 to .* would fit: .*--block-tokens"):
        loose.size("a", usual=None)


def test_a_known_size_is_held_against_each_row() -> None:
    check("a:1", 1500, 2, 512, said="as said")
    check("a:1", 1500, 3, 512, said="as said")
    check("a:1", 0, 0, 512, said="as said")
    with pytest.raises(TraceError) as caught:
        check("a:7", 1500, 4, 512, said="as said")
    assert str(caught.value) == (
        "a:7: 4 block ids for 1500 tokens, where blocks of 512 tokens (as said) make 2 or 3"
    )
    with pytest.raises(TraceError, match="1 block id for 1024 tokens, where .* make 2$"):
        check("a:7", 1024, 1, 512, said="as said")
