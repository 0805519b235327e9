"""Lookups that the scheduler's client answers by itself: the step that asks has the answer."""

import pytest

from .fakes import Request, Store, blocks
from .pair import Pair


@pytest.fixture
def finding(pair: Pair, store: Store) -> Pair:
    """An engine that has saved 24 tokens and finds them by itself; nobody answers messages."""
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    store.finds = store.holding = True
    return pair


def test_the_step_that_asks_has_the_answer(finding: Pair, store: Store) -> None:
    request = Request("b", 25)
    assert finding.scheduler.get_num_new_matched_tokens(request, 0) == (24, True)
    assert finding.scheduler.get_num_new_matched_tokens(request, 8) == (16, True)
    assert len(store.private) == 1


def test_a_miss_is_an_answer_too(finding: Pair, store: Store) -> None:
    request = Request("b", 25, salt="other")
    assert finding.scheduler.get_num_new_matched_tokens(request, 0) == (0, False)
    assert not store.leases


def test_a_lease_is_passed_on_before_the_workers_hear_of_it(finding: Pair, store: Store) -> None:
    request = Request("b", 25)
    ask = finding.scheduler.get_num_new_matched_tokens
    assert ask(request, 0) == (24, True)
    ids = [10, 11, 12, 13, 14, 15]
    finding.scheduler.update_state_after_alloc(request, blocks(ids), 24)
    assert not store.private and len(store.leases) == 1
    store.let_go()
    finding.until(lambda: finding.received == ["b"])
    assert finding.errors == set() and store.leases == {}
    assert [int(b[0]) for b in finding.memory[1, 10:16]] == [1, 2, 3, 4, 5, 6]


def test_a_lease_that_is_not_needed_goes_back(finding: Pair, store: Store) -> None:
    request = Request("b", 25)
    assert finding.scheduler.get_num_new_matched_tokens(request, 0) == (24, True)
    assert not finding.finish(request)
    assert store.leases == {}


def test_what_it_cannot_say_is_asked_for(finding: Pair, store: Store) -> None:
    store.finds = False
    request = Request("b", 25)
    assert finding.scheduler.get_num_new_matched_tokens(request, 0) == (None, False)
    store.let_go()
    finding.step()
    assert finding.scheduler.get_num_new_matched_tokens(request, 0) == (24, True)
