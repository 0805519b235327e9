"""What HTTP shows: metrics, readiness and status, as functions of one Report and the time.

METRICS is the whole list; docs/metrics.md is its printed form (`table`), and a test compares the
two.  Names that the original PegaFlow has are used with its meaning, so that its users' dashboards
keep working; a name that is there once never changes.

One definition of a hit: a lookup of n blocks counts n block requests, each under exactly one tier,
ram + rdma + ssd + miss = blocks asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from pegaflow.actors.roster import SPECS
from pegaflow.core.series import RESIDENCE
from pegaflow.wire.control import KindState, ProcessState, Report
from pegaflow.wire.units import Nanoseconds
from pegaflow.wire.values import ALLOCATOR, INDEX, SESSION, SUPERVISOR

from .engines import ENGINE_METRICS
from .peers import PEER_METRICS
from .processes import ACTOR_METRICS
from .shown import Shown
from .ssd import SSD_METRICS, ssd_line
from .view import Sample, View

_S = 1_000_000_000

Encoder = Callable[[Collector], bytes]
"""Of prometheus-client."""

STALE_NS: Nanoseconds = 5 * _S
"""A report this old means that the supervisor does not answer: it is asked every second."""


RESERVE_FAILURES = ("reserve_no_space", "reserve_too_large", "reserve_busy", "reserve_expired")


def _build_info(view: View) -> Iterator[Sample]:
    if view.report:
        yield (view.report.version,), 1


def _tiers(view: View) -> Iterator[Sample]:
    hit, below = view.blocks_hit, {"rdma": 0, "ssd": 0, **view.hits_below}
    yield ("ram",), hit - sum(below.values())
    for tier, blocks in below.items():
        yield (tier,), blocks
    yield ("miss",), view.blocks_asked - hit


def _parts(view: View) -> Iterator[Sample]:
    for part in ("free", "held", "sealed", "absent", "waste"):
        yield (part,), view.gauge(ALLOCATOR, f"pool_{part}_bytes")


def _allocs(view: View) -> Iterator[Sample]:
    yield ("ready",), view.total(ALLOCATOR, "reserve_at_once")
    yield ("waited",), view.total(ALLOCATOR, "reserve_waited")


METRICS = (
    Shown(
        "pegaflow_build_info", SUPERVISOR, "1, with the version.", _build_info, labels=("version",)
    ),
    Shown("pegaflow_ready", "gateway", "1 if /readyz says so.", lambda v: not reasons(v)),
    Shown(
        "pegaflow_uptime_seconds",
        SUPERVISOR,
        "Age of the service.",
        lambda v: (v.now - v.report.started_ns) / _S if v.report else 0,
    ),
    Shown(
        "pegaflow_snapshot_age_seconds",
        "gateway",
        "Age of everything shown here; it grows while the supervisor does not answer.",
        lambda v: v.age,
    ),
    Shown(
        "pegaflow_pool_capacity_bytes",
        SUPERVISOR,
        "Size of the pool; 0 while a new one is being made.",
        lambda v: v.report.pool_bytes if v.report else 0,
    ),
    Shown(
        "pegaflow_pool_page_bytes",
        SUPERVISOR,
        "Size of the memory pages that the pool's file is made of: of huge pages with "
        "--use-hugepages.",
        lambda v: v.gauge(SUPERVISOR, "pool_page_bytes"),
    ),
    Shown(
        "pegaflow_pool_used_bytes",
        ALLOCATOR,
        "Bytes of pages that hold a block or are granted to a session.",
        lambda v: v.gauge(ALLOCATOR, "pool_held_bytes", "pool_sealed_bytes"),
    ),
    Shown(
        "pegaflow_pool_bytes",
        ALLOCATOR,
        "The whole pool by what is in it: free, held (by sessions), sealed (blocks), absent (not "
        "there yet), waste (extents that their page size does not fill).",
        _parts,
        labels=("part",),
    ),
    Shown(
        "pegaflow_pool_allocs_total",
        ALLOCATOR,
        "Requests for pages that were granted: ready if so many were free, waited if they had to "
        "be evicted first, or the pool had to grow.",
        _allocs,
        labels=("state",),
    ),
    Shown(
        "pegaflow_pool_alloc_failures_total",
        ALLOCATOR,
        "Requests for pages that were refused or expired.",
        lambda v: v.total(ALLOCATOR, *RESERVE_FAILURES),
    ),
    Shown(
        "pegaflow_inflight_bytes",
        ALLOCATOR,
        "Bytes of pages that sessions hold for saves, their spare pages included.",
        lambda v: v.gauge(ALLOCATOR, "pool_held_bytes"),
    ),
    Shown(
        "pegaflow_cache_resident_bytes",
        INDEX,
        "Bytes of the pages of all blocks in memory.",
        lambda v: v.gauge(INDEX, "resident_bytes"),
    ),
    Shown(
        "pegaflow_cache_resident_blocks",
        INDEX,
        "Blocks in memory; class is `retained` for every block that was saved on this host.",
        lambda v: iter([(("retained",), v.gauge(INDEX, "blocks_resident"))]),
        labels=("class",),
    ),
    Shown(
        "pegaflow_cache_block_hits_total",
        "index, session",
        "Blocks that lookups asked for and got.",
        lambda v: v.blocks_hit,
    ),
    Shown(
        "pegaflow_cache_block_misses_total",
        "index, session",
        "Blocks that lookups asked for and did not get.",
        lambda v: v.blocks_asked - v.blocks_hit,
    ),
    Shown(
        "pegaflow_cache_tier_block_requests_total",
        "index, session",
        "Blocks that lookups asked for, by where they were found: ram, rdma, ssd or miss.  The sum "
        "over the tiers is the number of blocks asked for.",
        _tiers,
        labels=("tier",),
    ),
    Shown(
        "pegaflow_cache_block_insertions_total",
        INDEX,
        "Blocks that became visible after a save.",
        lambda v: v.total(INDEX, "blocks_sealed"),
    ),
    Shown(
        "pegaflow_cache_block_evictions_total",
        INDEX,
        "Blocks evicted to make room.",
        lambda v: v.total(INDEX, "blocks_evicted"),
    ),
    Shown(
        "pegaflow_cache_block_evictions_by_class_total",
        INDEX,
        "The same by class; all blocks are `retained`.",
        lambda v: iter([(("retained",), v.total(INDEX, "blocks_evicted"))]),
        labels=("class",),
    ),
    Shown(
        "pegaflow_cache_block_evictions_still_referenced_total",
        INDEX,
        "0: a block that somebody uses is not evicted.",
        lambda v: 0,
    ),
    Shown(
        "pegaflow_cache_block_admission_rejections_total",
        INDEX,
        "0: every block that is saved is taken in.",
        lambda v: 0,
    ),
    Shown(
        "pegaflow_cache_residence_duration_seconds",
        INDEX,
        "Time that blocks stayed in memory, by why they went: pressure (evicted) or cleanup "
        "(corrupt).  A block of an earlier life of the index is not counted: its age is unknown.",
        lambda v: v.histogram(INDEX, RESIDENCE),
        labels=("reason",),
        histogram=True,
    ),
    Shown(
        "pegaflow_cache_eviction_reclaimed_bytes_total",
        INDEX,
        "Bytes of the pages of evicted blocks.",
        lambda v: v.total(INDEX, "bytes_evicted"),
    ),
    Shown(
        "pegaflow_save_bytes_total",
        INDEX,
        "Bytes of KV cache in the blocks that became visible after a save.",
        lambda v: v.total(INDEX, "bytes_sealed"),
    ),
    Shown(
        "pegaflow_load_bytes_total",
        SESSION,
        "Bytes of KV cache that reached engines in loads that succeeded.",
        lambda v: v.total(SESSION, "bytes_loaded"),
    ),
    Shown(
        "pegaflow_load_failures_total",
        SESSION,
        "Loads that were refused or whose copy failed; their blocks are computed instead.",
        lambda v: v.total(SESSION, "loads_refused", "loads_failed"),
    ),
    *ENGINE_METRICS,
    Shown(
        "pegaflow_blocks_adopted_total",
        INDEX,
        "Blocks taken over from an earlier life of the index or the service.",
        lambda v: v.total(INDEX, "blocks_adopted"),
    ),
    Shown(
        "pegaflow_blocks_corrupt_total",
        INDEX,
        "Blocks whose bytes were not those that were saved (--verify): found, and never served.",
        lambda v: v.total(INDEX, "blocks_corrupt"),
    ),
    Shown(
        "pegaflow_pool_quarantined_pages",
        INDEX,
        "Pages that nobody uses as long as the pool lives, since corrupt blocks were in them.",
        lambda v: v.gauge(INDEX, "quarantined_pages"),
    ),
    *SSD_METRICS,
    *PEER_METRICS,
    *ACTOR_METRICS,
)


def table() -> list[str]:
    """METRICS as the rows of a Markdown table."""
    rows = ["| name | type | labels | from | meaning |", "|---|---|---|---|---|"]
    for m in METRICS:
        labels = ", ".join(f"`{label}`" for label in m.labels)
        rows.append(f"| `{m.name}` | {m.type} | {labels} | {m.source} | {m.help} |")
    return rows


def render(report: Report | None, now: int, encode: Encoder = generate_latest) -> bytes:
    """The exposition of all metrics.

    Args:
        report: the newest; None: there was none yet, and every number is 0 or absent.
        now: CLOCK_MONOTONIC of this host, in nanoseconds, as in the report.
        encode: of prometheus-client, for the format that is asked for.
    """
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(View(report, now)))
    return encode(registry)


def reasons(view: View) -> tuple[str, ...]:
    """Why no engine can be served as it should be now; empty if nothing is wrong.  Without the SSD
    tier it can: `ssd_line` says what is wrong there."""
    if view.report is None:
        return ("the supervisor has not answered yet",)
    found = list(view.report.faults)
    if view.now - view.report.at > STALE_NS:
        found.append(f"the supervisor has not answered for {view.age:.0f} s")
    state = view.processes[0].state
    if state != ProcessState.UP:
        found.append(f"the service is {state}")
    for kind in view.kinds:
        spec = SPECS.get(kind.name)  # None: of another version
        if kind.state == KindState.BROKEN and (spec is None or spec.missed):
            rest = max(0, kind.retry_at_ns - view.now) / _S
            found.append(f"{kind.name} fails again and again; it is tried again in {rest:.0f} s")
    return tuple(found)


def readiness(report: Report | None, now: int) -> dict[str, Any]:
    """Whether engines can be served.

    Args:
        report: as for `render`.
        now: as for `render`.

    Returns:
        An object for JSON: `ready`, the `reasons` why not, how the SSD tier is (`ssd`, empty: there
        is none), and `remarks` about engines.
    """
    view = View(report, now)
    why = reasons(view)
    remarks = list(view.remarks(SESSION))
    return {"ready": not why, "reasons": list(why), "ssd": ssd_line(view), "remarks": remarks}


def status(report: Report | None, now: int) -> dict[str, Any]:
    """The report for people and scripts.

    Args:
        report: as for `render`.
        now: as for `render`.

    Returns:
        An object for JSON: what `readiness` says, the report's age in seconds, and the report
        itself, null if there is none.
    """
    body = _plain(asdict(report)) if report else None
    age = View(report, now).age
    return {**readiness(report, now), "age_seconds": age, "report": body}


def _plain(value: Any) -> Any:
    """Addresses as `name.incarnation`, counters as objects."""
    if isinstance(value, dict):
        return {key: _numbers(v) if key == "counters" else _plain(v) for key, v in value.items()}
    if isinstance(value, tuple) and hasattr(value, "incarnation"):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _numbers(counters: Any) -> dict[str, int]:
    return {counter["name"]: counter["value"] for counter in counters}


class _Families(Collector):
    """METRICS as prometheus-client wants them."""

    def __init__(self, view: View) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        """Every metric, with the samples that there are."""
        for m in METRICS:
            found = m.read(self._view)
            if isinstance(found, dict):
                histogram = HistogramMetricFamily(m.name, m.help, labels=m.labels)
                for labels, buckets in sorted(found.items()):
                    histogram.add_metric(labels, buckets.cumulative, buckets.total)
                yield histogram
                continue
            kind = CounterMetricFamily if m.type == "counter" else GaugeMetricFamily
            family = kind(m.name, m.help, labels=m.labels)
            samples = [((), float(found))] if isinstance(found, int | float) else found
            for labels, value in samples:
                family.add_metric(labels, value)
            yield family
