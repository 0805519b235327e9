"""The dashboard that the original PegaFlow ships, against a service of ours under load."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from .service import Engine, eventually
from .test_gateway import Served
from .test_ssd import CHUNK, loaded, save, written

PANELS = {
    "Memory Accounting": "pool_used_bytes cache_resident_bytes inflight_bytes",
    "Pool Usage": "pool_capacity_bytes pool_used_bytes",
    "Save / Load Throughput": "save_bytes_total load_bytes_total",
    "Tier-Attributed Cache Hit Ratio (1m)": "cache_tier_block_requests_total",
    "Error Rate": "load_failures_total pool_alloc_failures_total ssd_prefetch_failures_total",
    "Tier-Attributed Cache Hit Ratio": "cache_tier_block_requests_total",
    "Cache Hit / Miss Rate": "cache_block_hits_total cache_block_misses_total",
    "Cache Insert / Evict Rate": "cache_block_insertions_total cache_block_evictions_total "
    "cache_block_admission_rejections_total cache_block_evictions_still_referenced_total",
    "RPC QPS (by method)": "rpc_requests_total",
    "RPC Latency (p95 / p99)": "rpc_duration_seconds_bucket",
    "Save Latency": "save_duration_seconds_bucket",
    "Load Latency": "load_duration_seconds_bucket",
    "SSD Throughput": "ssd_write_bytes_total ssd_prefetch_bytes_total",
    "SSD Prefetch Rate": "ssd_prefetch_success_total ssd_prefetch_failures_total",
    "SSD Write Throughput (per batch)": "ssd_write_throughput_bytes_per_second_per_second_bucket",
    "SSD Prefetch Throughput (per batch)": (
        "ssd_prefetch_throughput_bytes_per_second_per_second_bucket"
    ),
    "SSD Write Queue": "ssd_write_queue_pending",
    "SSD Prefetch Inflight": "ssd_prefetch_inflight",
    "Queue Full Events": "ssd_write_queue_full_total ssd_prefetch_queue_full_total",
    "Cache Eviction Reclaimed Rate (1m)": "cache_eviction_reclaimed_bytes_total",
    "Background GC Rates": "inflight_gc_cleaned_total prefetch_stale_gc_total",
    "Cache Residence TTL Quantiles": "cache_residence_duration_seconds_bucket",
    "Cache Residence TTL Distribution": "cache_residence_duration_seconds_bucket",
}
"""What each panel asks for, but two names that the original's server has never exported: the
unique bytes pinned for loads, and the largest free piece of the pool."""

AT_REST = {
    "load_failures_total",
    "pool_alloc_failures_total",
    "ssd_prefetch_failures_total",
    "cache_block_admission_rejections_total",
    "cache_block_evictions_still_referenced_total",
    "ssd_write_queue_pending",
    "ssd_prefetch_inflight",
    "ssd_write_queue_full_total",
    "ssd_prefetch_queue_full_total",
    "inflight_gc_cleaned_total",
    "prefetch_stale_gc_total",
    "inflight_bytes",
}
"""Of those, what may be 0 while all is well; it is there all the same."""

CHUNKS = 20  # of 4 MiB, in a pool of 64
LABELS = {"class", "status", "method", "reason", "tier", "le"}


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A service whose engine has saved more than the pool holds, and loaded it from both tiers."""
    folder = tmp_path_factory.mktemp("dashboard")
    extra = ("--ssd-cache-path", str(folder / "ssd"))
    try:
        with Served(folder / "run", http_addr="127.0.0.1:0", extra=extra) as service:
            with Engine(service) as engine:
                for chunk in range(CHUNKS):
                    save(engine, chunk)
                    written(service, (chunk + 1) * CHUNK)
                assert sum(loaded(engine, chunk) for chunk in range(CHUNKS)) == CHUNKS * CHUNK
                assert engine.client.lookup([b"nobody has this key" + bytes(13)]).blocks == 0
                most = CHUNKS * CHUNK * 65536
                eventually(
                    "all of it is counted",
                    lambda: service.metrics()["pegaflow_load_bytes_total"] == most,
                )

                def told() -> bool:
                    engine.client.poll(0)  # it says now and then what it has found itself
                    return not empty(exposed(service))

                eventually("no panel is empty: each actor has told its counts", told)
                yield service
    finally:
        shutil.rmtree(folder / "ssd", ignore_errors=True)


def exposed(service: Served) -> dict[str, float]:
    """Values by sample name, summed over labels, as a dashboard sees them."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(service.get("/metrics")[1]):
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                assert sample.labels.keys() <= LABELS
            found[sample.name] = found.get(sample.name, 0) + sample.value
    return found


def empty(found: dict[str, float]) -> set[tuple[str, str]]:
    """The panels, with the names that they ask for and that are absent or 0 under load."""
    return {
        (title, name)
        for title, names in PANELS.items()
        for name in names.split()
        if not found.get(f"pegaflow_{name}") and name not in AT_REST
    }


def test_no_panel_is_empty(busy: Served) -> None:
    found = exposed(busy)
    assert empty(found) == set()
    missing = [name for name in AT_REST if f"pegaflow_{name}" not in found]
    assert missing == []


def test_a_quantile_can_be_had_of_every_histogram(busy: Served) -> None:
    """The buckets ascend to the count, for each combination of the other labels."""
    seen = 0
    for family in text_string_to_metric_families(busy.get("/metrics")[1]):
        if family.type != "histogram":
            continue
        series: dict[frozenset[tuple[str, str]], list[float]] = {}
        counts: dict[frozenset[tuple[str, str]], float] = {}
        for sample in family.samples:
            rest = frozenset((k, v) for k, v in sample.labels.items() if k != "le")
            if sample.name.endswith("_bucket"):
                series.setdefault(rest, []).append(sample.value)
            elif sample.name.endswith("_count"):
                counts[rest] = sample.value
        assert series.keys() == counts.keys() != set(), family.name
        for rest, values in series.items():
            assert values == sorted(values) and values[-1] == counts[rest], (family.name, rest)
        seen += 1
    assert seen == 6


def test_directories_and_engines_are_shown_one_by_one(busy: Served) -> None:
    shown = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(busy.get("/metrics")[1])
        for sample in family.samples
        if {"directory", "seat"} & sample.labels.keys()
    }
    (directory,) = {key[1] for key in shown if key[0].startswith("pegaflow_ssd_directory_")}
    assert Path(directory).name == "ssd"
    assert shown["pegaflow_ssd_directory_blocks", directory] == CHUNKS * CHUNK
    assert shown["pegaflow_ssd_directory_write_bytes_total", directory] == CHUNKS * CHUNK * 65536
    assert shown["pegaflow_ssd_directory_writable", directory] == 1
    assert shown["pegaflow_engine_leases", "1"] == 0
    assert shown["pegaflow_engine_inflight_bytes", "1"] > 0
