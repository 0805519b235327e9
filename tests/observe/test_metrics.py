"""What HTTP shows of a report: names, sums, readiness."""

import json
from collections import Counter as Counting
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families

from pegaflow.actors.flusher.actor import Flusher
from pegaflow.core.series import LOAD, SSD_WRITE_RATE
from pegaflow.observe import metrics
from pegaflow.observe import ssd as ssdmetrics
from pegaflow.observe.view import View
from pegaflow.wire.control import Counter, KindRow, ProcessRow, Remark, Report, listed
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, FLUSHER, GATEWAY, INDEX, SESSION, SUPERVISOR, Address
from tests.actors.disks import PLAN
from tests.actors.rig import HELLO

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "metrics.md"
S = 1_000_000_000
AT = 100 * S


def row(name: str, incarnation: int, state: str, engine: str = "", **numbers: int) -> ProcessRow:
    return ProcessRow(
        Address(name, Incarnation(incarnation)),
        incarnation,
        state,
        0,
        engine=engine,
        counters=listed(numbers),
    )


def kind(name: str, state: str = "ok", retry_at_ns: int = 0, **sums: int) -> KindRow:
    return KindRow(name, state, retry_at_ns, 2, counters=listed(sums))


ENGINE_A = {"engine_seat": 1, "session_loads_open": 2, "session_leases": 3}
ENGINE_B = {"engine_seat": 3, "session_loads_open": 3, "session_pinned_bytes": 4096}


def counted(name: str, numbers: Mapping[str, int]) -> KindRow:
    return KindRow(name, "ok", 0, 2, counters=listed(numbers))


def report(
    state: str = "up", *kinds: KindRow, at: int = AT, more: tuple[ProcessRow, ...] = ()
) -> Report:
    processes = (
        row(SUPERVISOR, 1, state, opens_waiting=4),
        row(ALLOCATOR, 2, "up", pool_held_bytes=10, pool_sealed_bytes=20, pool_free_bytes=30),
        row(INDEX, 3, "up", blocks_resident=7, resident_bytes=70, leases=1),
        row(SESSION, 4, "serving", "a", loop_late_us=1500, asks_open=4, **ENGINE_A),
        row(SESSION, 5, "serving", "b", loop_longest_us=2500, asks_open=5, **ENGINE_B),
        row(SESSION, 6, "spare"),
    )
    default = (kind(SUPERVISOR), kind(INDEX, blocks_asked=100, blocks_hit=60, blocks_sealed=9))
    rows = processes + more
    return Report(
        "p",
        "l",
        60,
        32,
        started_ns=AT - 50 * S,
        version="1.2",
        processes=rows,
        http_addr="127.0.0.1:9091",
        at=at,
        kinds=kinds or default,
    )


def samples(shown: Report | None, now: int = AT) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, label values in order of their names) -> value, as a scraper reads them."""
    body = metrics.render(shown, now)
    return {
        (s.name, tuple(v for _, v in sorted(s.labels.items()))): s.value
        for family in text_string_to_metric_families(body.decode())
        for s in family.samples
    }


NAMES = """
pegaflow_build_info pegaflow_ready pegaflow_uptime_seconds pegaflow_snapshot_age_seconds
pegaflow_pool_capacity_bytes pegaflow_pool_page_bytes pegaflow_pool_used_bytes pegaflow_pool_bytes
pegaflow_pool_alloc_failures_total pegaflow_pool_allocs_total pegaflow_inflight_bytes
pegaflow_cache_resident_bytes
pegaflow_cache_resident_blocks pegaflow_cache_block_hits_total pegaflow_cache_block_misses_total
pegaflow_cache_tier_block_requests_total pegaflow_cache_block_insertions_total
pegaflow_cache_block_evictions_total pegaflow_cache_eviction_reclaimed_bytes_total
pegaflow_save_bytes_total pegaflow_leases pegaflow_engines pegaflow_engines_waiting
pegaflow_loads_open pegaflow_saves_open pegaflow_actor_restarts_total
pegaflow_blocks_adopted_total pegaflow_blocks_corrupt_total pegaflow_pool_quarantined_pages
pegaflow_actor_broken pegaflow_actor_processes pegaflow_actor_resident_memory_bytes
pegaflow_actor_open_fds pegaflow_actor_loop_lag_seconds pegaflow_actor_longest_turn_seconds
pegaflow_actor_open_asks pegaflow_actor_open_jobs pegaflow_actor_events_total
pegaflow_load_bytes_total
pegaflow_load_failures_total pegaflow_load_duration_seconds
pegaflow_ssd_write_bytes_total pegaflow_ssd_write_failures_total pegaflow_ssd_write_queue_pending
pegaflow_ssd_write_queue_full_total pegaflow_ssd_write_inflight pegaflow_ssd_prefetch_bytes_total
pegaflow_ssd_prefetch_success_total pegaflow_ssd_prefetch_failures_total
pegaflow_ssd_prefetch_inflight pegaflow_ssd_prefetch_backpressure_blocks_total
pegaflow_ssd_corrupt_blocks_total pegaflow_ssd_recovered_blocks_total
pegaflow_ssd_carried_blocks_total pegaflow_ssd_dropped_blocks_total pegaflow_ssd_blocks
pegaflow_ssd_stored_blocks pegaflow_ssd_backlog_blocks pegaflow_ssd_used_bytes
pegaflow_ssd_capacity_bytes pegaflow_ssd_directories pegaflow_ssd_faults_total
pegaflow_rpc_requests_total pegaflow_rpc_duration_seconds pegaflow_save_duration_seconds
pegaflow_save_dropped_blocks_total pegaflow_cache_residence_duration_seconds
pegaflow_cache_block_evictions_by_class_total pegaflow_engine_leases pegaflow_engine_leased_bytes
pegaflow_engine_inflight_bytes pegaflow_ssd_directory_used_bytes pegaflow_ssd_directory_blocks
pegaflow_ssd_directory_readable pegaflow_ssd_directory_writable
pegaflow_ssd_directory_write_bytes_total pegaflow_ssd_directory_prefetch_bytes_total
pegaflow_ssd_directory_faults_total
pegaflow_cache_block_evictions_still_referenced_total
pegaflow_cache_block_admission_rejections_total pegaflow_inflight_gc_cleaned_total
pegaflow_engine_pins_too_much pegaflow_pinned_bytes pegaflow_unpinned_blocks_total
pegaflow_ssd_write_throughput_bytes_per_second_per_second
pegaflow_ssd_prefetch_throughput_bytes_per_second_per_second pegaflow_ssd_prefetch_queue_full_total
pegaflow_prefetch_stale_gc_total pegaflow_ssd_lookups_waiting pegaflow_ssd_lookups_cut_total
pegaflow_ssd_carried_bytes_total pegaflow_ssd_recycled_blocks_total
pegaflow_ssd_drain_left_blocks_total pegaflow_lookups_total pegaflow_hazard_files
pegaflow_evictions_turned_back_total
pegaflow_transfer_lock_timeouts_total pegaflow_rdma_fetch_bytes_total pegaflow_transfer_lock_active
pegaflow_transfer_served_blocks_total pegaflow_peers pegaflow_rdma_fetch_total
""".split()
"""What dashboards are built on: only ever added to."""


def test_no_name_is_lost() -> None:
    shown = [m.name for m in metrics.METRICS]
    assert set(NAMES) == set(shown) and len(shown) == len(set(shown)), "NAMES has every metric"


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
    assert found["pegaflow_actor_loop_lag_seconds", (SESSION,)] == pytest.approx(0.0015)
    assert found["pegaflow_actor_longest_turn_seconds", (SESSION,)] == pytest.approx(0.0025)
    assert found["pegaflow_actor_open_asks", (SESSION,)] == 9
    assert found["pegaflow_actor_events_total", (INDEX, "blocks_sealed")] == 9


def test_loads_are_counted_and_timed() -> None:
    def load(books: Counting[str]) -> None:
        for took_us in (400, 1_500, 90_000_000, 1_000):
            LOAD.count(books, took_us)

    sums = counts(load)
    sums |= {"loads": 4, "bytes_loaded": 4096, "loads_refused": 1, "loads_failed": 2}
    found = samples(report("up", counted(SESSION, sums)))
    assert found["pegaflow_load_bytes_total", ()] == 4096
    assert found["pegaflow_load_failures_total", ()] == 3
    name = "pegaflow_load_duration_seconds"
    assert found[f"{name}_count", ()] == found[f"{name}_bucket", ("+Inf",)] == 4
    assert found[f"{name}_sum", ()] == pytest.approx(90.0029)
    upto = {le: found[f"{name}_bucket", (le,)] for le in ("0.0005", "0.001", "0.002", "60.0")}
    assert upto == {"0.0005": 1, "0.001": 2, "0.002": 3, "60.0": 3}
    assert samples(None)[f"{name}_count", ()] == 0


def counts(count: Callable[[Counting[str]], object]) -> dict[str, int]:
    """What an actor has in its books after this."""
    books: Counting[str] = Counting()
    count(books)
    return dict(books)


def test_there_are_metrics_before_there_is_a_report() -> None:
    found = samples(None)
    assert found["pegaflow_ready", ()] == 0
    assert found["pegaflow_cache_tier_block_requests_total", ("ram",)] == 0


def test_openmetrics_for_whoever_accepts_it() -> None:
    encode, content_type = choose_encoder("application/openmetrics-text;version=1.0.0")
    body = metrics.render(report(), AT, encode)
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
    (reason,) = metrics.readiness(shown, now)["reasons"]
    assert words in reason
    assert samples(shown, now)["pegaflow_ready", ()] == 0


def test_a_child_that_waits_for_its_back_off_is_no_reason() -> None:
    assert metrics.readiness(report("up", kind(SESSION, "waiting", AT + S)), AT)["ready"]


def test_status_is_json_that_a_person_can_read() -> None:
    body = json.loads(json.dumps(metrics.status(report(), AT + S)))
    assert (body["ready"], body["reasons"], body["age_seconds"]) == (True, [], 1)
    assert body["report"]["processes"][2]["address"] == "index.3"
    assert body["report"]["processes"][2]["counters"]["leases"] == 1
    assert body["report"]["processes"][5]["counters"] == {}
    assert metrics.status(None, AT)["report"] is None


def test_a_counter_of_an_unknown_actor_is_shown_too() -> None:
    shown = report("up", KindRow("flusher", "ok", 0, 0, counters=(Counter("bytes", 3),)))
    assert samples(shown)["pegaflow_actor_events_total", ("flusher", "bytes")] == 3


# the SSD tier


def flusher(**gauges: int) -> ProcessRow:
    numbers = listed({f"ssd_{name}": value for name, value in gauges.items()})
    return ProcessRow(Address(FLUSHER, Incarnation(7)), 1007, "up", 0, engine="", counters=numbers)


def ssd(process: ProcessRow | None, *kinds: KindRow, now: int = AT) -> str:
    """The line of a service with this flusher; it never keeps the service from being ready."""
    found = metrics.readiness(report("up", *kinds, more=(process,) if process else ()), now)
    assert found["ready"] and found["reasons"] == []
    line = found["ssd"]
    assert isinstance(line, str)
    return line


UP = {"volumes": 1, "readable_volumes": 1, "writable_volumes": 1, "blocks": 5, "bytes": 3 << 20}
THREE = {"volumes": 3, "readable_volumes": 3, "capacity_bytes": 512 << 30}


@pytest.mark.parametrize(
    ("gauges", "line"),
    [
        ({}, "ssd: starting"),
        (UP, "ssd: writable; 5 blocks in 3 MiB"),
        (UP | {"capacity_bytes": 1 << 30}, "ssd: writable; 5 blocks in 3 MiB of 1 GiB"),
        (
            UP | {"writable_volumes": 0, "loading_volumes": 1},
            "ssd: reading its inventory; 5 blocks in 3 MiB",
        ),
        (
            UP | {"writable_volumes": 0, "fault": int(Status.NO_SPACE)},
            f"ssd: read-only ({Status.NO_SPACE.words}; it is tried again); 5 blocks in 3 MiB",
        ),
        (
            {"volumes": 1, "fault": int(Status.COPY_FAILED)},
            f"ssd: off ({Status.COPY_FAILED.words}; it is tried again); 0 blocks in 0 B",
        ),
        (
            THREE | {"writable_volumes": 3},
            "ssd: writable, 3 directories; 0 blocks in 0 B of 512 GiB",
        ),
        (
            THREE | {"writable_volumes": 2, "fault": int(Status.READ_ONLY)},
            f"ssd: writable in 2 of 3 directories ({Status.READ_ONLY.words}; it is tried again); "
            "0 blocks in 0 B of 512 GiB",
        ),
    ],
)
def test_the_ssd_tier_says_how_it_is(gauges: dict[str, int], line: str) -> None:
    assert ssd(flusher(**gauges)) == line
    body = metrics.status(report(more=(flusher(**gauges),)), AT)
    assert body["ssd"] == line


def test_the_ssd_tier_says_the_reason_in_the_flushers_own_words() -> None:
    process = flusher(volumes=2, fault=int(Status.GONE), gone_volumes=1, in_use_volumes=1)
    remarks = (
        Remark(process.address, "/a: another directory"),
        Remark(process.address, "/b: used"),
    )
    gone = replace(report("up", more=(process,)), remarks=remarks)
    body = metrics.readiness(gone, AT)
    assert body["ready"] and body["ssd"].startswith(
        "ssd: off (/a: another directory; /b: used; it is tried again)"
    )
    found = samples(gone)
    assert found["pegaflow_ssd_directories", ("gone",)] == 1
    assert found["pegaflow_ssd_directories", ("in_use",)] == 1


def test_without_a_flusher_the_line_says_why_and_readiness_is_no_worse() -> None:
    never = KindRow(FLUSHER, "ok", 0, 0, counters=())
    assert ssd(None) == ssd(None, never) == "", "there is no SSD tier"
    assert metrics.readiness(None, AT)["ssd"] == "", "nobody knows yet"
    assert ssd(None, kind(FLUSHER, "waiting", AT + S)) == "ssd: off, its process is being replaced"
    broken = ssd(None, kind(FLUSHER, "broken", AT + 9 * S))
    assert broken == "ssd: off, its process fails again and again; it is tried again in 9 s"
    found = samples(report("up", kind(FLUSHER, "broken", AT + 9 * S)))
    assert found["pegaflow_actor_broken", (FLUSHER,)] == found["pegaflow_ready", ()] == 1


def test_blocks_from_a_tier_below_the_pool_are_a_tier_of_their_own() -> None:
    asked = kind(INDEX, blocks_asked=100, blocks_hit=60, blocks_hit_ssd=25, blocks_hit_far=5)
    found = samples(report("up", asked))
    tier = "pegaflow_cache_tier_block_requests_total"
    tiers = {labels[0]: value for (name, labels), value in found.items() if name == tier}
    assert tiers == {"ram": 30, "rdma": 0, "ssd": 25, "far": 5, "miss": 40}, "it names itself"
    assert found["pegaflow_cache_block_hits_total", ()] == 60


def test_numbers_of_the_ssd_tier_find_their_names() -> None:
    written = kind(
        FLUSHER,
        ssd_write_bytes=1,
        ssd_write_failures=2,
        ssd_prefetch_bytes=3,
        ssd_prefetch_success=4,
        ssd_prefetch_failures=5,
        ssd_blocks_corrupt=6,
        ssd_blocks_recovered=7,
        ssd_blocks_carried=8,
        ssd_faults=9,
        ssd_prefetch_queue_full=19,
    )
    each = {"ssd_directory_write_bytes|/a": 18, "ssd_directory_write_bytes|/b": 0}
    each |= counts(lambda books: SSD_WRITE_RATE.count(books, 3_000_000_000))
    written = replace(written, counters=written.counters + listed(each))
    seen = kind(
        INDEX,
        ssd_write_queue_full=10,
        ssd_prefetch_backpressure_blocks=11,
        ssd_blocks_dropped=12,
        ssd_fetches_expired=20,
    )
    knows = row(INDEX, 8, "up", ssd_stored_blocks=13, ssd_backlog_blocks=14)
    can = {"directory_writable|/a": 1, "directory_writable|/b": 0}
    has = flusher(write_queue_pending=15, write_inflight=16, prefetch_inflight=17, **UP, **can)
    found = samples(report("up", written, seen, more=(knows, has)))
    for name, value in {
        "write_bytes_total": 1,
        "write_failures_total": 2,
        "prefetch_bytes_total": 3,
        "prefetch_success_total": 4,
        "prefetch_failures_total": 5,
        "corrupt_blocks_total": 6,
        "recovered_blocks_total": 7,
        "carried_blocks_total": 8,
        "faults_total": 9,
        "write_queue_full_total": 10,
        "prefetch_backpressure_blocks_total": 11,
        "dropped_blocks_total": 12,
        "stored_blocks": 13,
        "backlog_blocks": 14,
        "write_queue_pending": 15,
        "write_inflight": 16,
        "prefetch_inflight": 17,
        "blocks": 5,
        "used_bytes": 3 << 20,
    }.items():
        assert found[f"pegaflow_ssd_{name}", ()] == value, name
    for directory, value in (("/a", 18), ("/b", 0)):
        assert found["pegaflow_ssd_directory_write_bytes_total", (directory,)] == value
        assert found["pegaflow_ssd_directory_writable", (directory,)] == (value > 0)
    assert found["pegaflow_ssd_prefetch_queue_full_total", ()] == 19
    assert found["pegaflow_prefetch_stale_gc_total", ()] == 20
    rates = "pegaflow_ssd_write_throughput_bytes_per_second_per_second"
    assert found[f"{rates}_sum", ()] == found[f"{rates}_bucket", ("3000000000.0",)] * 3e9 == 3e9
    assert found["pegaflow_ssd_directories", ("writable",)] == 1
    assert found["pegaflow_ssd_directories", ("loading",)] == 0


class Names(View):
    """Remembers what it was asked for."""

    def __init__(self) -> None:
        super().__init__(None, AT)
        self.asked: set[str] = set()

    def total(self, kind: str, *names: str) -> float:
        self.asked |= set(names)
        return 0

    def gauge(self, kind: str, *names: str) -> float:
        self.asked |= set(names)
        return 0

    def labelled(self, kind: str, name: str) -> dict[tuple[str, ...], int]:
        return {("/ssd",): 0} if name in COUNTED else {}

    def labelled_gauge(self, kind: str, name: str) -> dict[tuple[str, ...], int]:
        return {("/ssd",): 0} if name in COUNTED else {}


def everything_of_a_directory() -> set[str]:
    actor = Flusher(
        Address(FLUSHER, Incarnation(6)), Address(SUPERVISOR, Incarnation(1)), HELLO, PLAN
    )
    return {name.split("|")[0] for name in (*actor.counts, *actor.gauges()) if "|" in name}


COUNTED = everything_of_a_directory()


def test_what_is_shown_is_what_some_actor_counts() -> None:
    view = Names()
    for metric in metrics.METRICS:
        found = metric.read(view)
        of_ssd = metric in ssdmetrics.SSD_METRICS and not metric.histogram
        assert isinstance(found, int | float) or not of_ssd or list(found), metric.name
        list(found) if isinstance(found, Iterable) else None
    source = "".join(path.read_text() for path in sorted((ROOT / "actors").rglob("*.py")))
    made = {f"reserve_{status.name.lower()}" for status in Status}  # by the allocator, of a Status
    made |= {"ssd_waits"}  # by the lookup, of a tier's name
    assert len(view.asked) > 60
    unknown = {name for name in view.asked - made if f'"{name}"' not in source}
    assert unknown == set(), "no actor counts these"
