"""What is shown of engines, and that no series outlives what it is of."""

from collections import Counter

import pytest

from pegaflow.actors.session.orders import count_dropped
from pegaflow.core.series import LOAD, RPC
from pegaflow.observe import metrics
from pegaflow.observe.engines import REASONS
from pegaflow.wire.status import Status
from pegaflow.wire.values import INDEX, SESSION, SUPERVISOR

from .test_metrics import counted, counts, kind, report, row, samples


def test_saves_and_calls_are_counted_and_timed() -> None:
    def call(books: Counter[str]) -> None:
        RPC.count(books, 3_000, "save", "ok")
        RPC.count(books, 9_000_000, "save", "expired")
        RPC.count(books, 100, "lookup", "ok", times=5)
        count_dropped(books, Status.EXPIRED, 7)
        count_dropped(books, Status.CORRUPT, 2)

    desk = counts(lambda books: RPC.count(books, 40_000, "open_session", "ok"))
    sums = counted(SESSION, counts(call)), counted(SUPERVISOR, desk)
    found = samples(report("up", *sums))
    assert found["pegaflow_save_duration_seconds_count", ()] == 1
    assert found["pegaflow_save_duration_seconds_sum", ()] == pytest.approx(0.003)
    assert found["pegaflow_rpc_requests_total", ("lookup", "ok")] == 5
    assert found["pegaflow_rpc_requests_total", ("open_session", "ok")] == 1
    assert found["pegaflow_rpc_duration_seconds_bucket", ("10.0", "save", "expired")] == 1
    assert found["pegaflow_rpc_duration_seconds_bucket", ("5.0", "save", "expired")] == 0
    assert found["pegaflow_inflight_gc_cleaned_total", ()] == 7
    name = "pegaflow_save_dropped_blocks_total"
    reasons = {labels[0]: value for (n, labels), value in found.items() if n == name}
    assert {r: n for r, n in reasons.items() if n} == {"expired": 7, "corrupt": 2}
    assert {r.label for r in REASONS} <= reasons.keys()
    assert samples(None)[name, ("no_space",)] == 0
    assert samples(None)["pegaflow_save_duration_seconds_count", ()] == 0


def test_what_sessions_find_by_themselves_is_in_memory() -> None:
    """Each lookup is counted by the index or by a session, and its blocks under one tier each."""
    asked = kind(INDEX, blocks_asked=100, blocks_hit=60, blocks_hit_ssd=25, blocks_unpinned=3)
    local = kind(
        SESSION,
        blocks_asked=100,
        blocks_asked_local=50,
        blocks_hit_local=45,
        lookups_client=5,
        lookups_local=6,
        lookups_by_message=7,
        blocks_unpinned=2,
    )
    found = samples(report("up", asked, local))
    tier = "pegaflow_cache_tier_block_requests_total"
    tiers = {labels[0]: value for (name, labels), value in found.items() if name == tier}
    assert tiers == {"ram": 80, "rdma": 0, "ssd": 25, "miss": 45} and sum(tiers.values()) == 150
    assert found["pegaflow_cache_block_hits_total", ()] == 105
    assert found["pegaflow_cache_block_misses_total", ()] == 45
    assert found["pegaflow_unpinned_blocks_total", ()] == 5
    by = "pegaflow_lookups_total"
    assert [found[by, (who,)] for who in ("client", "session", "index")] == [5, 6, 7]


def test_engines_are_told_apart_by_their_seats() -> None:
    found = samples(report())
    assert found["pegaflow_engine_leases", ("1",)] == 3
    assert found["pegaflow_engine_leased_bytes", ("3",)] == 4096
    assert found["pegaflow_engine_inflight_bytes", ("1",)] == 0
    assert ("pegaflow_engine_leases", ("2",)) not in found


def test_nothing_is_labelled_with_a_life_or_an_engine() -> None:
    """A label's values are bounded by what there can be at a time, whatever was there before."""

    def labels(incarnation: int, engine: str) -> set[tuple[str, tuple[str, ...]]]:
        more = (row(SESSION, incarnation, "serving", engine, engine_seat=2, process_open_fds=3),)
        return set(samples(report(more=more)))

    assert labels(70, "one") == labels(71, "two")
    allowed = {
        "version",
        "part",
        "class",
        "tier",
        "reason",
        "method",
        "status",
        "seat",
        "state",
        "by",
    }
    allowed |= {"directory", "actor", "event"}
    assert {label for m in metrics.METRICS for label in m.labels} <= allowed


def test_a_labelled_counter_is_no_event() -> None:
    sums = counted(SESSION, {"loads": 1, **counts(lambda books: LOAD.count(books, 1))})
    events = {labels for name, labels in samples(report("up", sums)) if "events" in name}
    assert events == {(SESSION, "loads")}
