"""What an engine counts, and what of it is shown: a fake service, and Prometheus's classes."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pegaflow.connector import PegaKVConnector
from pegaflow.connectors.vllm import metrics

from .fakes import Request, Store
from .pair import Pair

NAMES = {
    "vllm:pega_pending_prefetches",
    "vllm:pega_pending_save_requests",
    "vllm:pega_prefetch_duration_seconds",
    "vllm:pega_prefetch_blocks",
    "vllm:pega_load_duration_seconds",
    "vllm:pega_load_blocks",
    "vllm:pega_save_duration_seconds",
    "vllm:pega_save_blocks",
    "vllm:pega_load_success_total",
    "vllm:pega_load_failure_total",
    "vllm:pega_save_success_total",
    "vllm:pega_save_failure_total",
    "vllm:pega_hit_blocks_total",
}


@pytest.fixture
def shown() -> CollectorRegistry:
    """Where the metrics of a test are registered."""
    return CollectorRegistry()


def front_end(registry: CollectorRegistry, engines: int = 1) -> Any:
    kinds = {kind: partial(kind, registry=registry) for kind in (Gauge, Counter, Histogram)}
    values = {number: ["llama", str(number)] for number in range(engines)}
    config = SimpleNamespace(kv_transfer_config=None)
    made = PegaKVConnector.build_prom_metrics(config, kinds, ["model_name", "engine"], values)
    assert made is not None
    return made


def value(registry: CollectorRegistry, name: str, engine: int = 0, **labels: str) -> float | None:
    found = {"model_name": "llama", "engine": str(engine), **labels}
    return registry.get_sample_value(f"vllm:pega_{name}", found)


def test_no_name_is_taken_back(shown: CollectorRegistry) -> None:
    front_end(shown)
    exposed = {
        family.name + ("_total" if family.type == "counter" else "") for family in shown.collect()
    }
    assert exposed == NAMES == {metric.shown for metric in metrics.METRICS}


def test_a_save_and_a_load(store: Store) -> None:
    pair = Pair(world=2)
    store.on_disk = Request("a", 25).block_hashes[4:]
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    request = Request("b", 25)
    assert pair.load(request, [10, 11, 12, 13, 14, 15]) == 24
    pair.until(lambda: pair.received == ["b"])
    pair.step()
    data = pair.counted.data
    assert (data["save_success"], data["load_success"]) == (2, 2), "of each rank its part"
    assert (data["save_blocks"], data["load_blocks"]) == ([6, 6], [6, 6])
    assert all(0 < took < 10 for took in data["save_duration_seconds"])
    assert all(0 < took < 10 for took in data["load_duration_seconds"])
    assert (data["hit_blocks_host"], data["hit_blocks_disk"]) == (4, 2)
    assert data["prefetch_blocks"] == [0, 6] and len(data["prefetch_duration_seconds"]) == 2
    assert (data.get("pending_prefetches", 0), data["pending_save_requests"]) == (0, 0)
    assert not any("failure" in name for name in data)
    pair.close()


def test_what_is_found_without_a_message_is_no_prefetch(pair: Pair, store: Store) -> None:
    store.finds = True
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    assert pair.load(Request("b", 25), [10, 11, 12, 13, 14, 15]) == 24
    pair.until(lambda: pair.received == ["b"])
    assert not any("prefetch" in name for name in pair.counted.data)
    assert pair.counted.data["hit_blocks_host"] == 6


def test_what_waits(pair: Pair, store: Store) -> None:
    store.holding = True
    for name in ("b", "c"):
        pair.scheduler.on_new_request(Request(name, 25, salt=name))
    pair.step()
    assert pair.counted.data["pending_prefetches"] == 2
    pair.compute(Request("b", 25, salt="b"), [1, 2, 3, 4, 5, 6, 7])
    assert pair.counted.data["pending_save_requests"] == 1
    store.let_go()
    pair.until(lambda: not pair.counted.data["pending_prefetches"])
    pair.until(lambda: not pair.counted.data["pending_save_requests"])


def test_a_load_that_fails_in_part_is_a_failure(pair: Pair, store: Store) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    store.failing = 2
    assert pair.load(Request("b", 25), [10, 11, 12, 13, 14, 15]) == 24
    pair.until(lambda: pair.received == ["b"])
    assert pair.counted.data["load_failure"] == 1
    assert "load_success" not in pair.counted.data and "load_blocks" not in pair.counted.data


def test_a_load_that_nobody_began_is_a_failure(pair: Pair, store: Store) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    assert pair.load(Request("b", 25), [10, 11, 12, 13, 14, 15]) == 24
    pair.worker.unregister_kv_caches()
    pair.until(lambda: pair.received == ["b"])
    assert pair.counted.data["load_failure"] == 1


def test_a_save_that_the_engine_gives_up_is_none(pair: Pair, store: Store) -> None:
    store.holding = True
    pair.compute(Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    pair.step(out=None)
    assert pair.worker._worker is not None
    pair.worker._worker.drop_all()
    store.let_go()
    pair.until(lambda: not pair.counted.data.get("pending_save_requests") and pair.idle())
    assert not any(name.startswith("save_") for name in pair.counted.data)


def test_each_number_is_shown_under_its_engine(shown: CollectorRegistry) -> None:
    made = front_end(shown, engines=2)
    made.observe({"load_success": 2, "load_blocks": [3, 5], "pending_prefetches": 4}, 1)
    made.observe({"hit_blocks_host": 7, "hit_blocks_disk": 1, "pending_prefetches": 1}, 1)
    assert value(shown, "load_success_total", 1) == 2
    assert value(shown, "load_success_total", 0) == 0
    assert value(shown, "load_blocks_sum", 1) == 8
    assert value(shown, "pending_prefetches", 1) == 1
    assert value(shown, "hit_blocks_total", 1, source="host") == 7
    assert value(shown, "hit_blocks_total", 1, source="disk") == 1


def test_nothing_that_arrives_raises(
    shown: CollectorRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    made = front_end(shown)
    made.observe({"load_success": 1}, engine_idx=9)
    made.observe({"of a later version": [1], "load_success": 1})
    assert caplog.records == []
    for strange in ({"load_success": "many"}, {"load_blocks": [None]}, None):
        made.observe(strange)
    assert len(caplog.records) == 1, "once is enough"
    assert value(shown, "load_success_total") == 1
    assert PegaKVConnector.build_prom_metrics(None, {}, None, None) is None


def test_numbers_travel_as_plain_values_and_add_up() -> None:
    tally = metrics.Tally()
    tally.moved("load", 0.5, 3)
    tally.gauge("pending_prefetches", 2)
    first = tally.take()
    assert first is not None and tally.take() is None
    tally.moved("load", 0.25, 5)
    tally.gauge("pending_prefetches", 2)
    second = tally.take()
    assert second is not None and "pending_prefetches" not in second.data, "it has not changed"
    tally.gauge("pending_prefetches", 0)
    both = metrics.stats(first.data).aggregate(second).aggregate(tally.take())
    assert first.data["load_blocks"] == [3], "vLLM shows what it adds up, too"
    assert both.data == {
        "load_success": 2,
        "load_duration_seconds": [0.5, 0.25],
        "load_blocks": [3, 5],
        "pending_prefetches": 0,
    }
    assert both.reduce() == {
        "load_success": 2,
        "mean load_duration_seconds": 0.375,
        "mean load_blocks": 4.0,
        "pending_prefetches": 0,
    }
    assert not both.is_empty()
    both.reset()
    assert both.is_empty() and both.aggregate(None).is_empty() and metrics.stats(7).is_empty()


def test_what_nobody_takes_does_not_grow_for_ever() -> None:
    tally, kept = metrics.Tally(), metrics.VALUES_MAX
    for number in range(kept + 10):
        tally.observe("load_blocks", number)
    taken = tally.take()
    assert taken is not None and taken.data["load_blocks"] == list(range(10, kept + 10))
    assert len(taken.aggregate(metrics.stats(taken.data)).data["load_blocks"]) == kept
