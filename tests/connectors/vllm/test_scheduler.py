"""The scheduler half while its session is not there, or not whole: requests wait for it, and how
long."""

from functools import partial
from types import SimpleNamespace

import pytest

from .fakes import FakeClient, Request, Store, output
from .pair import PATIENCE_S, Pair


def after_another(pair: Pair, store: Store) -> tuple[Pair, Request]:
    """A patient engine behind one that has saved a prompt, and a request for that."""
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    return Pair(extra={"pegaflow.timeout_ms": 1000 * PATIENCE_S}), Request("b", 25)


def ask(pair: Pair, request: Request) -> tuple[int | None, bool]:
    return pair.scheduler.get_num_new_matched_tokens(request, 0)


def test_the_first_requests_wait_for_ranks_that_are_on_their_way(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, request = after_another(pair, store)
    with monkeypatch.context() as patched:
        patched.setattr(FakeClient, "complete", False)
        other.scheduler.on_new_request(request)
        assert [ask(other, request) for _ in range(5)] == [(None, False)] * 5
    other.until(lambda: ask(other, request) == (24, True))
    other.close()


def test_a_rank_that_never_comes_is_waited_for_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(extra={"pegaflow.timeout_ms": 50})
    monkeypatch.setattr(FakeClient, "complete", False)
    request, later = Request("a", 25), Request("b", 25)
    pair.scheduler.on_new_request(request)
    assert ask(pair, request) == (None, False)
    pair.until(lambda: ask(pair, request) == (0, False))
    pair.scheduler.on_new_request(later)
    assert ask(pair, later) == (0, False)
    pair.close()


@pytest.mark.parametrize("refusal", ["", "the service is another user's"])
def test_the_first_requests_wait_for_a_session_that_is_being_opened(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch, refusal: str
) -> None:
    other, request = after_another(pair, store)
    client = next(c for c in store.clients[2:] if c.opens)
    with monkeypatch.context() as patched:
        patched.setattr(FakeClient, "attached", False)
        patched.setattr(client, "refusal", refusal)
        other.scheduler.on_new_request(request)
        first = ask(other, request)
    assert first == ((0, False) if refusal else (None, False))
    if not refusal:
        other.until(lambda: ask(other, request) == (24, True))
    other.close()


def test_a_vllm_that_does_not_count_what_is_under_way_is_left_alone(
    pair: Pair, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    saved, other = Request("a", 25), Pair()
    pair.save(store, saved, [1, 2, 3, 4, 5, 6, 7])
    for name in ("b", "c"):
        old = SimpleNamespace(request_id=name, num_tokens=25, block_hashes=saved.block_hashes)
        other.scheduler.on_new_request(old)
        assert other.scheduler.get_num_new_matched_tokens(old, 0) == (0, False)
        step = output(new=[(name, [1, 2, 3, 4, 5, 6, 7], 0, 25)])
        assert other.scheduler.build_connector_meta(step).saves == ()
    (line,) = [one.getMessage() for one in caplog.records if "off" in one.getMessage()]
    assert "0.28" in line
    other.close()


def test_hashes_of_other_tokens_than_the_configuration_says_name_no_block(
    pair: Pair, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    request, other = Request("a", 25), Pair()
    pair.save(store, request, [1, 2, 3, 4, 5, 6, 7])
    other.scheduler.bind_gpu_block_pool(SimpleNamespace(hash_block_size=2))
    other.scheduler.on_new_request(request)
    assert other.scheduler.get_num_new_matched_tokens(request, 0) == (0, False)
    (line,) = [one.getMessage() for one in caplog.records if "off" in one.getMessage()]
    assert "cover 2 tokens" in line and "4" in line
    other.close()


def hits(pair: Pair, request: Request) -> bool:
    return ask(pair, request) == (24, True)


def test_a_session_that_is_lost_and_comes_back_costs_no_hit(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    other = Pair(extra={"pegaflow.timeout_ms": 1000 * PATIENCE_S})
    for life in range(3):
        request = Request(f"b{life}", 25)
        with monkeypatch.context() as patched:
            patched.setattr(FakeClient, "attached", False)
            other.scheduler.on_new_request(request)
            assert [ask(other, request) for _ in range(5)] == [(None, False)] * 5
        other.until(partial(hits, other, request))
    other.close()


def test_that_it_was_lost_is_no_miss_where_it_is_read_once_it_is_back(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, request = after_another(pair, store)
    with monkeypatch.context() as patched:
        patched.setattr(FakeClient, "attached", False)
        other.scheduler.on_new_request(request)
    other.until(lambda: hits(other, request))
    other.close()


def test_a_service_that_stays_away_is_waited_for_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = Pair(extra={"pegaflow.timeout_ms": 50})
    served, request, later = (Request(name, 25) for name in "abc")
    pair.scheduler.on_new_request(served)
    pair.until(lambda: ask(pair, served) == (0, False))
    monkeypatch.setattr(FakeClient, "attached", False)
    pair.scheduler.on_new_request(request)
    assert ask(pair, request) == (None, False)
    pair.until(lambda: ask(pair, request) == (0, False))
    pair.scheduler.on_new_request(later)
    assert ask(pair, later) == (0, False)
    pair.close()
