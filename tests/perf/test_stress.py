"""The stress of finding under eviction: what it calls a failure."""

from __future__ import annotations

from collections import Counter

import pytest

from perf.chaosload import TIMEOUTS
from perf.stress import GONE, failures

CALM = Counter(blocks_loaded=5, evictions_turned_back=1)
IN_TIME = dict(TIMEOUTS)


def test_nothing_wrong_is_no_failure() -> None:
    assert failures(CALM, IN_TIME) == []


@pytest.mark.parametrize("name", ["wrong_bytes", "exceptions", *GONE])
def test_whatever_is_wrong_is_named(name: str) -> None:
    assert failures(CALM + Counter({name: 2}), IN_TIME) == [f"{name} 2"]


def test_a_late_call_is_named() -> None:
    assert failures(CALM, {**IN_TIME, "lookup": 9.0}) == ["lookup took 9.00 s"]


def test_a_run_that_shows_nothing_is_a_failure() -> None:
    found = failures(Counter(), IN_TIME)
    assert found == ["nothing was loaded", "no eviction met a hazard"]
