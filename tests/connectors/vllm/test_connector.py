"""Both halves behind the boundary, called in vLLM's order, over a fake client: an engine of one
rank."""

import queue
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import pegaflow.connectors.common.requests
import pegaflow.connectors.vllm.compat
import pegaflow.connectors.vllm.worker
from pegaflow.connectors.vllm import plugin
from pegaflow.connectors.vllm.connector import MAX_ERRORS
from pegaflow.connectors.vllm.mover import LOAD_TIMEOUT_S
from pegaflow.connectors.vllm.orders import SavesDone, StepOrders
from pegaflow.connectors.vllm.worker import GIVE_WAY_S

from .fakes import Request, Store, blocks, output
from .pair import PATIENCE_S, Pair


def test_what_one_engine_saves_another_loads(pair: Pair, store: Store) -> None:
    first = Request("a", 25)
    pair.save(store, first, [1, 2, 3, 4, 5, 6, 7])
    other = Pair()
    again = Request("b", 25)
    assert other.load(again, [10, 11, 12, 13, 14, 15]) == 24
    other.until(lambda: other.received == ["b"])
    assert other.errors == set()
    assert [int(b[0]) for b in other.memory[1, 10:16]] == [1, 2, 3, 4, 5, 6]
    assert other.compute(again, [10, 11, 12, 13, 14, 15, 16], 24).saves == ()
    assert not other.finish(again)
    other.step()
    assert (other.sent, other.received, store.leases) == ([], ["b"], {})
    other.close()


def test_an_answer_that_is_late_is_asked_for_later(pair: Pair, store: Store) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    store.holding = True
    request = Request("b", 25)
    pair.scheduler.on_new_request(request)
    start = time.monotonic()
    answers = {pair.scheduler.get_num_new_matched_tokens(request, 0) for _ in range(50)}
    assert answers == {(None, False)}
    assert time.monotonic() - start < 0.1, "one budget for all requests of a step"
    store.let_go()
    pair.step()
    assert pair.scheduler.get_num_new_matched_tokens(request, 0) == (24, True)
    assert pair.scheduler.get_num_new_matched_tokens(request, 8) == (16, True)


def test_a_service_that_never_answers_is_a_miss(store: Store) -> None:
    pair = Pair(extra={"pegaflow.timeout_ms": 1})
    store.holding = True
    request = Request("b", 25)
    pair.scheduler.on_new_request(request)
    ask = pair.scheduler.get_num_new_matched_tokens
    pair.until(lambda: bool(ask(request, 0) == (0, False)))
    pair.close()


def test_failed_blocks_are_named_with_the_load_and_refused_later(pair: Pair, store: Store) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    store.failing = 2
    request = Request("b", 25)
    assert pair.load(request, [10, 11, 12, 13, 14, 15]) == 24
    pair.until(lambda: pair.received == ["b"])
    assert pair.errors == {14, 15}
    store.failing = 0
    assert pair.scheduler.get_num_new_matched_tokens(request, 0) == (16, True)


def test_a_load_that_vllm_starts_long_after_it_took_the_offer(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    late, never = Request("b", 25), Request("c", 25)
    for request in (late, never):
        assert pair.scheduler.get_num_new_matched_tokens(request, 0) == (24, True)
    assert not pair.finish(never), "aborted before its load was started: nobody reports it"
    monkeypatch.setattr(pegaflow.connectors.common.requests, "KEEP_S", -1.0)
    pair.step()
    assert store.leases == {}
    pair.scheduler.update_state_after_alloc(late, blocks([10, 11, 12, 13, 14, 15]), 24)
    pair.step()
    assert (pair.received, pair.errors) == (["b"], {10, 11, 12, 13, 14, 15})
    assert pair.scheduler._errors == 0


def test_an_aborted_load_ends_as_received_only(pair: Pair, store: Store) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    request = Request("b", 25)
    assert pair.load(request, [10, 11, 12, 13, 14, 15]) == 24
    store.holding = True
    pair.step()
    assert not pair.finish(request)
    pair.step(finished={"b"})
    store.let_go()
    pair.until(lambda: pair.received == ["b"])
    pair.step()
    assert (pair.received, "b" in pair.sent) == (["b"], False)


def test_nothing_ever_raises(pair: Pair, store: Store) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    assert pair.load(Request("b", 25), [10, 11, 12, 13, 14, 15]) == 24
    store.broken = True
    for number in range(MAX_ERRORS):
        request = Request(f"c{number}", 25)
        pair.scheduler.on_new_request(request)
        assert pair.scheduler.get_num_new_matched_tokens(request, 0) == (0, False)
        assert not pair.finish(request)
    store.broken = False
    request = Request("d", 25)
    pair.scheduler.on_new_request(request)
    assert pair.scheduler.get_num_new_matched_tokens(request, 0) == (0, False), "off by now"
    orders = pair.step()
    assert [name for name, _ in orders.abandoned] == ["b"]
    pair.until(lambda: pair.received == ["b"])
    assert pair.errors >= {10, 11, 12, 13, 14, 15}


def test_a_step_gives_way_to_whoever_ends_an_overdue_load(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    clock = SimpleNamespace(now=100.0, sleep=slept.append)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(pegaflow.connectors.vllm.worker, "time", clock)
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    assert pair.load(Request("b", 25), [10, 11, 12, 13, 14, 15]) == 24
    store.holding = True
    pair.step()
    clock.now += LOAD_TIMEOUT_S - 0.1
    pair.step()
    assert slept == [], "a load in time costs the engine nothing"
    clock.now += 0.1
    pair.step()
    pair.step()
    assert slept == [GIVE_WAY_S] * 2
    store.let_go()
    pair.until(lambda: pair.received == ["b"])
    slept.clear()
    pair.step()
    assert slept == []


def test_loads_that_an_error_kept_from_beginning_are_reported_failed(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])

    def broken(orders: StepOrders) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(pair.worker._worker, "begin", broken)
    assert pair.load(Request("b", 25), [10, 11, 12, 13, 14, 15]) == 24
    pair.until(lambda: pair.received == ["b"])
    assert pair.errors == {10, 11, 12, 13, 14, 15}


def test_nonsense_from_vllm_is_survived(pair: Pair) -> None:
    for connector in (pair.scheduler, pair.worker):
        connector.on_new_request(None)
        assert connector.get_num_new_matched_tokens(None, 0) == (0, False)
        connector.update_state_after_alloc(None, None, 3)
        assert connector.request_finished(None, []) == (False, None)
        assert isinstance(connector.build_connector_meta(None), StepOrders)
        connector.bind_connector_metadata(None)
        connector.start_load_kv(None)
        connector.wait_for_save()
        connector.handle_preemptions({"a"})
        assert connector.get_finished({"x"}) == (None, None)
        assert connector.get_block_ids_with_load_errors() == set()
        assert connector.build_connector_worker_meta() is None
        connector.update_connector_output(None)
        assert connector.requires_kv_delivery is False


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_mover_that_dies_keeps_every_promise(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pegaflow.connectors.vllm.worker, "DEAD_LOAD_S", 0.0)
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    loading, saving = Request("b", 25), Request("c", 25, salt="c")
    assert pair.load(loading, [10, 11, 12, 13, 14, 15]) == 24
    late = Request("d", 25)
    assert pair.scheduler.get_num_new_matched_tokens(late, 0) == (24, True)
    pair.scheduler.on_new_request(saving)
    store.holding = True
    pair.compute(saving, [21, 22, 23, 24, 25, 26, 27])
    assert pair.finish(saving)
    store.broken = True
    mover = pair.mover
    assert mover._thread is not None
    mover._wake()
    mover._thread.join(PATIENCE_S)
    store.broken = False
    pair.step(finished={"c"})
    assert (pair.received, pair.sent[-1], pair.errors) == (["b"], "c", {10, 11, 12, 13, 14, 15})
    store.let_go()
    pair.scheduler.update_state_after_alloc(late, blocks([30, 31, 32, 33, 34, 35]), 24)
    pair.step()
    assert pair.received == ["b", "d"] and pair.errors >= {30, 35}


def test_after_a_reset_nothing_old_is_used(pair: Pair, store: Store) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    old = {c.identity[1:] for c in store.clients}
    assert len(old) == 1, "both halves share namespace and generation"
    asking, later = Request("b", 25), Request("c", 25)
    store.holding = True
    pair.scheduler.on_new_request(asking)
    store.let_go()
    assert pair.scheduler.reset_cache() is True
    assert pair.scheduler.get_num_new_matched_tokens(asking, 0) == (None, False)
    pair.until(lambda: pair.scheduler.get_num_new_matched_tokens(asking, 0) == (0, False))
    pair.until(lambda: len(store.clients) == 4)
    assert {c.identity[1:] for c in store.clients[2:]}.isdisjoint(old)
    assert len({c.identity[1:] for c in store.clients[2:]}) == 1
    assert [c.closed for c in store.clients] == [True, True, False, False]
    pair.until(lambda: store.clients[2].complete)
    pair.save(store, later, [1, 2, 3, 4, 5, 6, 7])
    assert pair.load(Request("d", 25), [10, 11, 12, 13, 14, 15]) == 24


def test_saves_under_way_when_the_cache_is_reset_are_not_published(
    pair: Pair, store: Store
) -> None:
    request = Request("a", 25)
    pair.scheduler.on_new_request(request)
    store.holding = True
    pair.compute(request, [1, 2, 3, 4, 5, 6, 7])
    pair.scheduler.reset_cache()
    orders = pair.scheduler.build_connector_meta(output())
    pair.worker.handle_preemptions(orders)
    pair.memory[:] = 99
    store.let_go()
    pair.until(lambda: len(store.clients) == 4 and pair.idle())
    assert store.pages == {}


def test_a_reset_does_not_wait_for_a_session_that_hangs(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    (opener,) = (client for client in store.clients if client.opens)
    let_go, ended = threading.Event(), list[bool]()
    monkeypatch.setattr(opener, "close", lambda: ended.append(let_go.wait(PATIENCE_S)))
    assert pair.scheduler.reset_cache() is True
    assert ended == []
    let_go.set()
    pair.until(lambda: ended == [True])


def test_a_load_across_a_reset_is_reported_failed(pair: Pair, store: Store) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    assert pair.load(Request("b", 25), [10, 11, 12, 13, 14, 15]) == 24
    store.holding = True
    pair.step()
    pair.scheduler.reset_cache()
    pair.step()
    store.let_go()
    pair.until(lambda: pair.received == ["b"])
    assert pair.errors == {10, 11, 12, 13, 14, 15}


def test_halves_that_disagree_do_not_work_together(pair: Pair, store: Store) -> None:
    other = Pair(dtype="fp8")
    pair.workers, other.workers = other.workers, pair.workers
    request = Request("a", 25)
    pair.scheduler.on_new_request(request)
    pair.compute(request, [1, 2, 3, 4, 5, 6, 7])
    pair.step()
    assert store.pages == {}
    other.close()


def test_hits_are_told_apart_by_tier(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiers = SimpleNamespace(HOST="host", DISK="disk", P2P="p2p")
    monkeypatch.setattr(pegaflow.connectors.vllm.compat, "_Source", tiers)
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    sources: Any = pair.scheduler.get_external_cache_hit_sources
    request = Request("b", 25)
    store.on_disk = request.block_hashes[4:]
    pair.load(request, [10, 11, 12, 13, 14, 15])
    assert sources(request, 24) == {"host": 16, "disk": 8}
    store.on_disk, store.elsewhere = (), request.block_hashes[1:3]
    third = Request("d", 25)
    pair.load(third, [20, 21, 22, 23, 24, 25])
    assert sources(third, 24) == {"host": 16, "p2p": 8}
    store.elsewhere = ()
    other = Request("c", 25)
    pair.load(other, [30, 31, 32, 33, 34, 35])
    assert sources(other, 24) == {"host": 24}
    assert sources(None, 24) == {}, "vLLM then calls them external_unspecified"


def test_memory_that_cannot_be_described_is_a_cache_that_has_nothing(store: Store) -> None:
    pair = Pair(memory=np.zeros((2, 3, 16), np.uint8))
    request = Request("a", 25)
    pair.scheduler.on_new_request(request)
    pair.compute(request, [])
    assert not pair.finish(request)
    pair.close()


def test_reports_of_ranks_add_up() -> None:
    both = SavesDone({1: 1, 2: 2}).aggregate(SavesDone({2: 1, 3: 1}))
    assert both.saves == {1: 1, 2: 3, 3: 1}
    assert both.aggregate(both) == both


def test_the_plugin_registers_once_and_is_harmless(monkeypatch: pytest.MonkeyPatch) -> None:
    class Factory:
        _registry: dict[str, Any] = {}

        @classmethod
        def register_connector(cls, name: str, module: str, class_name: str) -> None:
            """As vLLM's."""
            assert name not in cls._registry
            cls._registry[name] = (module, class_name)

    module = "vllm.distributed.kv_transfer.kv_connector.factory"
    for name in [module.rsplit(".", n)[0] for n in range(4, 0, -1)]:
        monkeypatch.setitem(sys.modules, name, SimpleNamespace())
    monkeypatch.setitem(sys.modules, module, SimpleNamespace(KVConnectorFactory=Factory))
    plugin.register()
    plugin.register()
    assert Factory._registry == {
        "PegaKVConnector": ("pegaflow.connectors.vllm.connector", "PegaKVConnector")
    }
    monkeypatch.setitem(sys.modules, module, SimpleNamespace())
    plugin.register()


def test_kv_memory_is_given_up_before_it_goes_and_offered_again(pair: Pair, store: Store) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    pair.scheduler.reset_cache()
    pair.until(lambda: len(store.clients) == 4)
    pair.worker.unregister_kv_caches()
    assert [c.closed for c in store.clients[:2]] == [True, True]
    assert {c.opens: c.closed for c in store.clients[2:]} == {True: False, False: True}
    pair.worker.unregister_kv_caches()
    asleep = Request("b", 25)
    assert pair.load(asleep, [1, 2, 3, 4, 5, 6]) == 0
    pair.compute(asleep, [1, 2, 3, 4, 5, 6, 7])
    pair.end(asleep)
    pair.worker.restore_kv_caches()
    pair.worker.restore_kv_caches()
    pair.until(lambda: len(store.clients) == 5 and store.clients[2].complete)
    assert store.clients[4].identity == store.clients[2].identity, "still in the epoch of the reset"
    pair.save(store, Request("c", 25), [1, 2, 3, 4, 5, 6, 7])
    assert pair.load(Request("d", 25), [10, 11, 12, 13, 14, 15]) == 24


def test_what_is_open_when_kv_memory_goes_is_reported(pair: Pair, store: Store) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    loading, saving = Request("b", 25), Request("c", 25, salt="c")
    assert pair.load(loading, [10, 11, 12, 13, 14, 15]) == 24
    pair.scheduler.on_new_request(saving)
    store.holding = True
    pair.compute(saving, [21, 22, 23, 24, 25, 26, 27])
    pair.worker.unregister_kv_caches()
    pair.worker.restore_kv_caches()
    store.let_go()
    other = Request("d", 9, salt="d")
    pair.scheduler.on_new_request(other)
    pair.compute(other, [30, 31, 32])
    assert (pair.received, pair.errors) == (["b"], {10, 11, 12, 13, 14, 15})
    pair.end(other)
    assert not pair.finish(saving)
    assert not store.has(saving) and not store.has(other), "saved in a step with errors"


def test_a_service_that_does_not_let_go_is_waited_for_but_not_for_ever(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pegaflow.connectors.vllm.worker, "FAREWELL_S", 0.01)
    let_go = threading.Event()
    mover = pair.mover
    client: Any = mover._client
    monkeypatch.setattr(client, "unregister", lambda timeout: let_go.wait(PATIENCE_S))
    pair.worker.unregister_kv_caches()
    assert "not let go" in caplog.text and not client.closed
    let_go.set()
    assert mover.stop(PATIENCE_S) and client.closed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("how", ["the thread dies", "the memory goes"])
def test_a_load_is_reported_when_nobody_can_write_into_its_blocks_any_more(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    for limit in ("DEAD_LOAD_S", "FAREWELL_S"):
        monkeypatch.setattr(pegaflow.connectors.vllm.worker, limit, 0.01)
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    mover, asked, answers = pair.mover, threading.Semaphore(0), queue.SimpleQueue[bool]()

    def unregister(timeout: float) -> bool:
        asked.release()
        return answers.get(timeout=PATIENCE_S)

    monkeypatch.setattr(mover._client, "unregister", unregister)
    assert pair.load(Request("b", 25), [10, 11, 12, 13, 14, 15]) == 24
    store.holding = True
    pair.step()
    if how == "the thread dies":
        store.broken = True
        mover._wake()
    else:
        pair.worker.unregister_kv_caches()
    for _ in range(2):  # the session hangs, and hangs on
        assert asked.acquire(timeout=PATIENCE_S)
        pair.step()
        pair.worker.restore_kv_caches()
        assert pair.received == [] and not mover.dead
        answers.put(False)
    store.broken = store.holding = False
    answers.put(True)
    pair.until(lambda: mover.dead)
    pair.step()
    assert (pair.received, pair.errors) == (["b"], {10, 11, 12, 13, 14, 15})
    assert pair.mover is not mover and not pair.mover.stopping
