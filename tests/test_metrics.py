"""What HTTP shows of a report: names, sums, readiness."""

import json
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pegaflow import metrics
from pegaflow.wire.control import Counter, KindRow, ProcessRow, Report, listed
from pegaflow.wire.values import ALLOCATOR, GATEWAY, INDEX, SESSION, SUPERVISOR, Address

DOCS = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"
S = 1_000_000_000
AT = 100 * S


def row(name: str, incarnation: int, state: str, engine: str = "", **numbers: int) -> ProcessRow:
    return ProcessRow(Address(name, incarnation), incarnation, state, 0, engine, listed(numbers))


def kind(name: str, state: str = "ok", retry_at: int = 0, **sums: int) -> KindRow:
    return KindRow(name, state, retry_at, 2, listed(sums))


def report(state: str = "up", *kinds: KindRow, at: int = AT) -> Report:
    processes = (
        row(SUPERVISOR, 1, state, opens_waiting=4),
        row(ALLOCATOR, 2, "up", pool_held_bytes=10, pool_sealed_bytes=20, pool_free_bytes=30),
        row(INDEX, 3, "up", blocks_resident=7, resident_bytes=70, leases=1),
        row(SESSION, 4, "serving", "a", session_loads_open=2, loop_late_us=1500),
        row(SESSION, 5, "serving", "b", session_loads_open=3, loop_late_us=0),
        row(SESSION, 6, "spare"),
    )
    default = (kind(SUPERVISOR), kind(INDEX, blocks_asked=100, blocks_hit=60, blocks_sealed=9))
    return Report(
        "p", "l", 60, 32, AT - 50 * S, "1.2", processes, "127.0.0.1:9091", at, kinds or default
    )


def samples(shown: Report | None, now: int = AT) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, label values in order of their names) -> value, as a scraper reads them."""
    body, _ = metrics.render(shown, now)
    return {
        (s.name, tuple(v for _, v in sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(body.decode())
        for s in family.samples
    }


NAMES = """
pegaflow_build_info pegaflow_ready pegaflow_uptime_seconds pegaflow_snapshot_age_seconds
pegaflow_pool_capacity_bytes pegaflow_pool_used_bytes pegaflow_pool_bytes
pegaflow_pool_alloc_failures_total pegaflow_inflight_bytes pegaflow_cache_resident_bytes
pegaflow_cache_resident_blocks pegaflow_cache_block_hits_total pegaflow_cache_block_misses_total
pegaflow_cache_tier_block_requests_total pegaflow_cache_block_insertions_total
pegaflow_cache_block_evictions_total pegaflow_cache_eviction_reclaimed_bytes_total
pegaflow_save_bytes_total pegaflow_leases pegaflow_engines pegaflow_engines_waiting
pegaflow_loads_open pegaflow_saves_open pegaflow_actor_restarts_total
pegaflow_blocks_adopted_total pegaflow_blocks_corrupt_total pegaflow_pool_quarantined_pages
pegaflow_actor_broken pegaflow_actor_processes pegaflow_actor_resident_memory_bytes
pegaflow_actor_open_fds pegaflow_actor_loop_lag_seconds pegaflow_actor_open_asks
pegaflow_actor_open_jobs pegaflow_actor_events_total pegaflow_load_bytes_total
pegaflow_load_failures_total pegaflow_load_duration_seconds
""".split()
"""What dashboards are built on: only ever added to."""


def test_no_name_is_lost() -> None:
    shown = [m.name for m in metrics.METRICS]
    assert set(NAMES) <= set(shown) and len(shown) == len(set(shown))


def test_the_documentation_is_the_list() -> None:
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith("| `pegaflow_")]
    assert rows == metrics.table()[2:], "to write it anew:\n" + "\n".join(metrics.table())


def test_every_request_of_a_block_is_in_one_tier() -> None:
    found = samples(report())
    tier = "pegaflow_cache_tier_block_requests_total"
    tiers = {labels[0]: value for (name, labels), value in found.items() if name == tier}
    assert tiers == {"ram": 60, "rdma": 0, "ssd": 0, "miss": 40}
    assert found["pegaflow_cache_block_hits_total", ()] == 60
    assert found["pegaflow_cache_block_misses_total", ()] == 40


def test_numbers_find_their_names() -> None:
    found = samples(report(), AT + 2 * S)
    for name, value in {
        "ready": 1,
        "uptime_seconds": 52,
        "snapshot_age_seconds": 2,
        "pool_capacity_bytes": 60,
        "pool_used_bytes": 30,
        "inflight_bytes": 10,
        "cache_resident_bytes": 70,
        "leases": 1,
        "engines": 2,
        "engines_waiting": 4,
        "loads_open": 5,
        "cache_block_insertions_total": 9,
    }.items():
        assert found[f"pegaflow_{name}", ()] == value, name
    assert found["pegaflow_build_info", ("1.2",)] == 1
    assert found["pegaflow_cache_resident_blocks", ("retained",)] == 7
    assert found["pegaflow_actor_processes", (SESSION, "serving")] == 2
    assert found["pegaflow_actor_restarts_total", (INDEX,)] == 2
    assert found["pegaflow_actor_loop_lag_seconds", (SESSION, "4")] == pytest.approx(0.0015)
    assert found["pegaflow_actor_events_total", (INDEX, "blocks_sealed")] == 9


def test_loads_are_counted_and_timed() -> None:
    loads = kind(
        SESSION, loads=4, bytes_loaded=4096, load_ns=2 * S, loads_refused=1, loads_failed=2
    )
    found = samples(report("up", loads))
    assert found["pegaflow_load_bytes_total", ()] == 4096
    assert found["pegaflow_load_failures_total", ()] == 3
    assert found["pegaflow_load_duration_seconds_count", ()] == 4
    assert found["pegaflow_load_duration_seconds_sum", ()] == 2
    assert samples(None)["pegaflow_load_duration_seconds_count", ()] == 0


def test_there_are_metrics_before_there_is_a_report() -> None:
    found = samples(None)
    assert found["pegaflow_ready", ()] == 0
    assert found["pegaflow_cache_tier_block_requests_total", ("ram",)] == 0


def test_openmetrics_for_whoever_accepts_it() -> None:
    body, content_type = metrics.render(report(), AT, "application/openmetrics-text;version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("shown", "now", "words"),
    [
        (None, AT, "has not answered yet"),
        (report(), AT + metrics.STALE_NS + S, "has not answered for 6 s"),
        (report("starting"), AT, "is starting"),
        (report("recovering"), AT, "is recovering"),
        (report("draining"), AT, "is draining"),
        (report("up", kind(GATEWAY, "broken", AT + 9 * S)), AT, "gateway fails again and again"),
        (report("up", kind(GATEWAY, "broken", AT + 9 * S)), AT, "tried again in 9 s"),
    ],
)
def test_what_is_wrong_is_said(shown: Report | None, now: int, words: str) -> None:
    (reason,) = metrics.unready(shown, now)
    assert words in reason
    assert samples(shown, now)["pegaflow_ready", ()] == 0


def test_a_child_that_waits_for_its_back_off_is_no_reason() -> None:
    assert metrics.unready(report("up", kind(SESSION, "waiting", AT + S)), AT) == ()


def test_status_is_json_that_a_person_can_read() -> None:
    body = json.loads(json.dumps(metrics.status(report(), AT + S)))
    assert (body["ready"], body["reasons"], body["age_seconds"]) == (True, [], 1)
    assert body["report"]["processes"][2]["address"] == "index.3"
    assert body["report"]["processes"][2]["counters"]["leases"] == 1
    assert body["report"]["processes"][5]["counters"] == {}
    assert metrics.status(None, AT)["report"] is None


def test_a_counter_of_an_unknown_actor_is_shown_too() -> None:
    shown = report("up", KindRow("flusher", "ok", 0, 0, (Counter("bytes", 3),)))
    assert samples(shown)["pegaflow_actor_events_total", ("flusher", "bytes")] == 3
