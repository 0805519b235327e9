"""What a request asks for with `kv_transfer_params` or `kv_hints`, seen from both halves."""

from types import SimpleNamespace
from typing import Any

import pytest

import pegaflow.connectors.common.requests
import pegaflow.connectors.vllm.scheduler
from pegaflow.client import Lease
from pegaflow.connectors.vllm.opener import Opener

from .fakes import Request, Store, output
from .pair import PATIENCE_S, Pair
from .test_scheduler import ask

SAVED = [1, 2, 3, 4, 5, 6, 7]
LOADED = [10, 11, 12, 13, 14, 15]
PATIENT = {"pegaflow.timeout_ms": 9000 * PATIENCE_S}


def routed(**payload: Any) -> Any:
    """A KvHintsEnvelope with an action for us."""
    mine = SimpleNamespace(action_type="pegaflow", action_version="1", payload=payload)
    return SimpleNamespace(actions=[mine])


@pytest.mark.parametrize("by", ["client", "router"])
def test_nothing_of_a_request_that_says_so_is_saved(pair: Pair, store: Store, by: str) -> None:
    request = Request("a", 25)
    if by == "client":
        request.kv_transfer_params = {"pegaflow.skip_save": True}
    else:
        request.kv_hints = routed(skip_save=True)
    pair.scheduler.on_new_request(request)
    assert pair.compute(request, SAVED).saves == ()
    assert not pair.finish(request)
    pair.save(store, Request("b", 25), SAVED)
    assert store.has(request), "the next one shares the prompt, and does not say so"
    assert pair.load(Request("c", 25, kv_transfer_params={"pegaflow.skip_save": True}), LOADED)
    pair.until(lambda: pair.received == ["c"])
    assert pair.errors == set() and pair.holds(LOADED, SAVED[:6]), "it may be loaded all the same"


@pytest.mark.parametrize("finds", [True, False])
def test_the_cache_is_not_asked_for_a_request_that_says_so(
    pair: Pair, store: Store, finds: bool
) -> None:
    pair.save(store, Request("a", 25), SAVED)
    store.finds = finds
    before = store.number
    request = Request("b", 33, kv_transfer_params={"pegaflow.skip_load": True})
    assert pair.load(request, [*LOADED, 16, 17, 18]) == 0
    assert store.number == before and store.leases == {}
    pair.compute(request, [*LOADED, 16, 17, 18])
    pair.until(lambda: len(store.pages) == 8)
    assert not pair.finish(request)


def test_what_is_not_understood_is_one_line_and_harms_nothing(
    pair: Pair,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = {"pegaflow.skip_save": "yes", "pegaflow.keep": 1, "pegaflow.ttl_s": 60}
    for name in "abc":
        request = Request(name, 25, salt=name, kv_transfer_params=said, kv_hints=object())
        pair.save(store, request, SAVED)
        assert store.has(request)
    lines = [r.getMessage() for r in caplog.records if "asks" in r.getMessage()]
    assert len(lines) == 1 and "skip_save 'yes'" in lines[0] and "'keep' is unknown" in lines[0]
    monkeypatch.setattr(pegaflow.connectors.vllm.scheduler, "IGNORED_EVERY_S", -1.0)
    pair.save(store, Request("d", 25, salt="d", kv_transfer_params=7), SAVED)
    assert caplog.text.count("asks") == 2
    assert pair.scheduler._errors == 0


@pytest.mark.parametrize("finds", [True, False])
@pytest.mark.parametrize("by", ["request", "engine"])
def test_a_request_waits_for_its_full_prefix(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch, by: str, finds: bool
) -> None:
    monkeypatch.setattr(pegaflow.connectors.common.requests, "FULL_EVERY_S", 0.0)
    pair.save(store, Request("a", 17), SAVED[:5])
    store.finds = finds
    engine = {"pegaflow.wait_for_full_prefix": True} if by == "engine" else {}
    other = Pair(extra={**PATIENT, **engine})
    request = Request("b", 25)
    if by == "request":
        request.kv_transfer_params = {"pegaflow.wait_for_full_prefix": True}
    for _ in range(5):
        assert ask(other, request) == (None, False)
        other.step()
    assert len(store.leases) <= 1, "short answers are given back"
    grown = Request("c", 25)
    pair.scheduler.on_new_request(grown)
    pair.compute(grown, SAVED)
    other.until(lambda: ask(other, request) == (24, True))
    pair.finish(grown)
    other.finish(request)
    pair.until(lambda: not store.leases)
    other.close()


def test_a_prefix_that_never_becomes_full_is_used_as_far_as_it_goes(
    pair: Pair, store: Store
) -> None:
    pair.save(store, Request("a", 17), SAVED[:5])
    other = Pair(extra={"pegaflow.timeout_ms": 50, "pegaflow.wait_for_full_prefix": True})
    request = Request("b", 25)
    assert ask(other, request) == (None, False)
    assert other.load(request, LOADED) == 16
    other.until(lambda: other.received == ["b"])
    assert ask(other, Request("c", 17)) == (16, True), "all of it is there"
    other.close()


def test_a_request_that_waits_is_not_held_by_a_service_that_goes(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pegaflow.connectors.common.requests, "FULL_EVERY_S", 0.0)
    request = Request("b", 25, kv_transfer_params={"pegaflow.wait_for_full_prefix": True})
    assert ask(pair, request) == (None, False)

    def nobody(self: Opener, keys: Any, *, timeout: float = 0.0) -> None:
        """Between two sessions."""

    monkeypatch.setattr(Opener, "start_lookup", nobody)
    pair.until(lambda: ask(pair, request) == (0, False))


def test_a_request_waits_for_its_prefix_once(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pegaflow.connectors.common.requests, "FULL_EVERY_S", 0.0)
    pair.save(store, Request("a", 25), SAVED)
    other = Pair(extra={**PATIENT, "pegaflow.wait_for_full_prefix": True})
    request = Request("b", 25)
    assert other.load(request, LOADED) == 24
    other.until(lambda: other.received == ["b"])
    other.compute(request, [*LOADED, 16], 24)
    with store.lock:
        del store.pages[list(store.pages)[-1]]
    other.step(output(preempted={"b"}))
    other.until(lambda: ask(other, request) == (20, True))
    other.close()


def test_a_lease_that_a_waiting_request_gives_back_is_given_back_once(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pegaflow.connectors.common.requests, "FULL_EVERY_S", 0.0)
    pair.save(store, Request("a", 17), SAVED[:5])
    store.finds = True
    released: list[int] = []
    half = pair.scheduler._scheduler
    assert half is not None
    give_back = half._client.release

    def noted(self: Opener, lease: Lease) -> None:
        released.append(lease.number)
        give_back(lease)

    monkeypatch.setattr(Opener, "release", noted)
    request = Request("b", 25, kv_transfer_params={"pegaflow.wait_for_full_prefix": True})
    assert [ask(pair, request) for _ in range(4)] == [(None, False)] * 4
    pair.finish(request)
    assert len(released) == len(set(released)) == 4 and store.leases == {}
