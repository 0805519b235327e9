"""The connectors of an engine with several ranks, over a fake service."""

from collections.abc import Iterator, Sequence
from itertools import permutations
from typing import Any

import pytest

import pegaflow.connectors.vllm.connector
import pegaflow.connectors.vllm.worker
from pegaflow.connectors.vllm import compat, kvgroups
from pegaflow.connectors.vllm.mover import Load
from pegaflow.connectors.vllm.settings import Engine, engine

from .fakes import Request, Store, config, kv_cache_config, output
from .pair import PATIENCE_S, SCHEDULER, Pair
from .test_publishing import Pool
from .test_weights import Said

SAVED = [1, 2, 3, 4, 5, 6, 7]
LOADED = [10, 11, 12, 13, 14, 15]


@pytest.fixture
def both(store: Store) -> Iterator[Pair]:
    """An engine of two ranks."""
    made = Pair(world=2)
    yield made
    made.close()


@pytest.mark.parametrize("order", list(permutations([SCHEDULER, 0, 1])))
def test_the_processes_of_an_engine_come_up_in_any_order(
    both: Pair, store: Store, order: Sequence[int]
) -> None:
    both.save(store, Request("a", 25), SAVED)
    other = Pair(world=2, order=order)
    assert sum(client.opens for client in store.clients[3:]) == 1
    assert other.load(Request("b", 25), LOADED) == 24
    other.until(lambda: other.received == ["b"])
    assert other.errors == set() and other.holds(LOADED, SAVED[:6]) and store.leases == {}
    other.save(store, Request("c", 25, salt="c"), SAVED)
    other.close()


def test_data_parallel_ranks_are_engines_of_their_own() -> None:
    for rank in range(4):
        seen = config(rank=rank, world=2, data=2)
        assert (compat.world(seen), compat.rank(seen)) == (2, rank % 2)
    launched = config(rank=1, data=2, executor="external_launcher")
    assert (compat.world(launched), compat.rank(launched)) == (1, 0)
    assert compat.unsupported(launched, kv_cache_config()) == ""


def test_an_engine_with_a_rank_missing_misses_and_saves_nothing(both: Pair, store: Store) -> None:
    both.save(store, Request("a", 25), SAVED)
    both.workers[1].unregister_kv_caches()
    assert both.load(Request("b", 25), LOADED) == 0
    request = Request("c", 25, salt="c")
    both.scheduler.on_new_request(request)
    both.compute(request, SAVED)
    both.workers[0].unregister_kv_caches()
    both.end(request)
    assert not store.has(request)


def test_a_request_waits_for_the_load_of_every_rank(both: Pair, store: Store) -> None:
    both.save(store, Request("a", 25), SAVED)
    store.failing, store.failing_ranks = 2, {1}
    assert both.load(Request("b", 25), LOADED) == 24
    both.until(lambda: both.received == ["b"])
    assert both.errors == {14, 15}, "what one rank lacks is computed by all"
    store.failing = 0
    again, late = both.scheduler.get_num_new_matched_tokens(Request("b", 25), 0)
    assert (again, late) == (16, True)


def test_a_step_in_which_one_rank_reports_errors_is_published_by_none(
    both: Pair, store: Store
) -> None:
    both.save(store, Request("a", 25), SAVED)
    store.failing, store.failing_ranks = 2, {1}
    both.load(Request("b", 25), LOADED)
    both.step()
    for mover in both.movers:
        while not any(isinstance(job, Load) for job in mover.done.copy()):
            assert not mover.dead
    other = Request("c", 25, salt="c")
    both.scheduler.on_new_request(other)
    assert both.compute(other, [20, 21, 22, 23, 24, 25, 26]).saves != ()
    assert both.errors == {14, 15}
    both.until(both.idle)
    assert not store.has(other), "rank 0 has saved its part of a poisoned step"
    both.end(other)


def test_a_step_in_which_one_rank_sees_other_weights_is_not_stood_by(
    both: Pair, store: Store
) -> None:
    both.save(store, Request("a", 25), SAVED)
    committed, half = len(store.committed), both.workers[1]._worker
    assert half is not None and half._watch is not None
    half._watch.weights = Said(sames=[False] * 9)
    request = Request("c", 25, salt="c")
    both.scheduler.on_new_request(request)
    assert both.compute(request, [20, 21, 22, 23, 24, 25, 26]).saves != ()
    both.until(both.idle)
    assert half._watch.stale and len(store.committed) == committed and not store.has(request)
    both.end(request)


def test_what_other_ranks_report_does_not_end_the_wait_of_one_that_is_stale(
    both: Pair, store: Store
) -> None:
    both.save(store, Request("a", 25), SAVED)
    half, request = both.workers[1]._worker, Request("c", 25, salt="c")
    assert half is not None and half._watch is not None
    both.scheduler.on_new_request(request)
    store.holding = True
    both.compute(request, [20, 21, 22, 23, 24, 25, 26])
    half._watch.weights = Said(sames=[False])
    both.step()
    store.let_go()
    both.until(both.idle)
    assert half._watch.stale
    assert both.load(Request("b", 25), LOADED) == 0, "one rank would not load it"


def test_blocks_that_one_rank_gives_back_too_early_are_published_by_none(
    both: Pair, store: Store
) -> None:
    request = Request("a", 25)
    both.scheduler.on_new_request(request)
    store.holding = True
    both.compute(request, SAVED)
    half = both.workers[1]._worker
    assert half is not None
    half._drop("a")
    store.let_go()
    both.until(both.idle)
    both.step()
    assert store.pages == {}
    assert not both.finish(request)


def test_blocks_of_a_preempted_request_are_published_by_none(both: Pair, store: Store) -> None:
    request = Request("a", 25)
    both.scheduler.on_new_request(request)
    store.holding = True
    both.compute(request, SAVED)
    both.step(output(preempted={"a"}))
    both.memories[:] = 99
    store.let_go()
    both.until(both.idle)
    assert store.pages == {}


def test_a_finished_request_is_held_until_every_rank_has_saved(both: Pair, store: Store) -> None:
    request = Request("a", 25)
    both.scheduler.on_new_request(request)
    both.scheduler.on_new_request(Request("w", 25, salt="w"))
    store.holding = True
    both.compute(request, SAVED)
    assert both.finish(request)
    half = both.workers[1]._worker
    assert half is not None
    half._drop("a")
    both.step()
    both.step()
    assert both.sent == []
    store.let_go()
    both.until(lambda: both.sent == ["a"])


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_rank_without_its_thread_keeps_its_promises(
    both: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pegaflow.connectors.vllm.worker, "DEAD_LOAD_S", 0.0)
    both.save(store, Request("a", 25), SAVED)
    loading, saving = Request("b", 25), Request("c", 25, salt="c")
    assert both.load(loading, LOADED) == 24
    both.scheduler.on_new_request(saving)
    assert both.movers[1].stop(PATIENCE_S)
    both.compute(saving, [21, 22, 23, 24, 25, 26, 27])
    both.until(lambda: both.received == ["b"])
    assert both.errors == set(LOADED)
    both.workers[0].unregister_kv_caches()
    both.end(saving)
    assert not store.has(saving)


def test_a_rank_whose_connector_cannot_be_made_keeps_its_promises(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(vllm_config: Any, kv_cache_config: Any) -> tuple[Engine, list[str]]:
        if vllm_config.parallel_config.rank == 1:
            raise OSError("the model's files cannot be read here")
        return engine(vllm_config, kv_cache_config)

    monkeypatch.setattr(pegaflow.connectors.vllm.connector, "engine", fails)
    crippled = Pair(world=2)
    request = Request("a", 25)
    assert crippled.load(request, SAVED) == 0
    crippled.compute(request, SAVED)
    crippled.workers[0].unregister_kv_caches()
    crippled.end(request)
    assert store.pages == {}
    crippled.close()


@pytest.mark.parametrize("which", [0, 1])
def test_a_rank_that_finds_layers_of_which_the_scheduler_was_not_told_keeps_its_promises(
    store: Store, monkeypatch: pytest.MonkeyPatch, which: int
) -> None:
    """vLLM's scheduler knows one layer of each group, a worker all of them."""
    said = ["", "", ""]  # of both ranks and the scheduler, in the order in which they come up
    said[which] = "a layer that is not served"
    monkeypatch.setattr(kvgroups, "unsupported", lambda *_: said.pop(0))
    crippled = Pair(world=2, waits=False)
    pool = Pool()
    pool.free = 0
    crippled.scheduler.bind_gpu_block_pool(pool)
    request = Request("a", 25)
    crippled.scheduler.on_new_request(request)
    crippled.scheduler.on_new_request(Request("w", 37, salt="w"))
    crippled.compute(request, SAVED)
    assert crippled.finish(request), "its blocks are kept for what is never saved"
    crippled.until(lambda: crippled.sent == ["a"])
    assert store.pages == {}
    crippled.close()


def test_after_a_reset_all_ranks_go_on_together(both: Pair, store: Store) -> None:
    both.save(store, Request("a", 25), SAVED)
    assert both.scheduler.reset_cache() is True
    both.until(lambda: len(store.clients) == 6 and store.clients[3].complete)
    assert len({client.identity for client in store.clients[3:]}) == 1
    assert both.load(Request("b", 25), LOADED) == 0
    both.step()
    both.save(store, Request("c", 25), SAVED)
    assert both.load(Request("d", 25), LOADED) == 24
