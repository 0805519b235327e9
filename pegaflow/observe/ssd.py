"""What is shown of the SSD tier: its metrics, and how it is in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from pegaflow.core.series import SSD_PREFETCH_RATE, SSD_WRITE_RATE
from pegaflow.service import sizes
from pegaflow.wire.control import KindState
from pegaflow.wire.status import Status
from pegaflow.wire.values import FLUSHER, INDEX

from .shown import Shown
from .view import Sample, View


def _of_each(name: str) -> Callable[[View], Iterator[Sample]]:
    """A number of each directory, be it a counter or a gauge."""

    def read(view: View) -> Iterator[Sample]:
        full = f"ssd_directory_{name}"
        counters = view.labelled(FLUSHER, full)
        yield from (counters or view.labelled_gauge(FLUSHER, full)).items()

    return read


def _total(*names: str) -> Callable[[View], float]:
    return lambda view: view.total(FLUSHER, *names)


def _gauge(name: str) -> Callable[[View], float]:
    return lambda view: view.gauge(FLUSHER, name)


SSD_METRICS = (
    Shown(
        "pegaflow_ssd_write_bytes_total",
        FLUSHER,
        "Bytes of blocks written to the log and durable.",
        _total("ssd_write_bytes"),
    ),
    Shown(
        "pegaflow_ssd_write_failures_total",
        FLUSHER,
        "Blocks whose write failed; they stay in memory and are tried again.",
        _total("ssd_write_failures"),
    ),
    Shown(
        "pegaflow_ssd_write_throughput_bytes_per_second_per_second",
        FLUSHER,
        "Bytes per second of each group of blocks written; the name is the one that the dashboard "
        "of the original asks for.",
        lambda v: v.histogram(FLUSHER, SSD_WRITE_RATE),
        histogram=True,
    ),
    Shown(
        "pegaflow_ssd_write_queue_pending",
        FLUSHER,
        "Batches of blocks that are to be written or are being written.",
        _gauge("ssd_write_queue_pending"),
    ),
    Shown(
        "pegaflow_ssd_write_inflight",
        FLUSHER,
        "Writes under way.",
        _gauge("ssd_write_inflight"),
    ),
    Shown(
        "pegaflow_ssd_write_queue_full_total",
        INDEX,
        "Blocks evicted from memory before they were written, since the queue was full.",
        lambda v: v.total(INDEX, "ssd_write_queue_full"),
    ),
    Shown(
        "pegaflow_ssd_dropped_blocks_total",
        INDEX,
        "Blocks evicted from memory before they were written, whatever the reason.",
        lambda v: v.total(INDEX, "ssd_blocks_dropped"),
    ),
    Shown(
        "pegaflow_ssd_backlog_blocks",
        INDEX,
        "Blocks in memory that are still to be written.",
        lambda v: v.gauge(INDEX, "ssd_backlog_blocks"),
    ),
    Shown(
        "pegaflow_ssd_prefetch_bytes_total",
        FLUSHER,
        "Bytes of blocks read from the log.",
        _total("ssd_prefetch_bytes"),
    ),
    Shown(
        "pegaflow_ssd_prefetch_success_total",
        FLUSHER,
        "Blocks read from the log and published.",
        _total("ssd_prefetch_success"),
    ),
    Shown(
        "pegaflow_ssd_prefetch_failures_total",
        FLUSHER,
        "Blocks that were to be read and were not: gone meanwhile, no pages, an error, too late.",
        _total("ssd_prefetch_failures"),
    ),
    Shown(
        "pegaflow_ssd_prefetch_throughput_bytes_per_second_per_second",
        FLUSHER,
        "Bytes per second of each run of blocks read; named as its like for writes.",
        lambda v: v.histogram(FLUSHER, SSD_PREFETCH_RATE),
        histogram=True,
    ),
    Shown(
        "pegaflow_ssd_prefetch_queue_full_total",
        FLUSHER,
        "Blocks that were to be read and were refused, since too many reads waited.",
        _total("ssd_prefetch_queue_full"),
    ),
    Shown(
        "pegaflow_prefetch_stale_gc_total",
        INDEX,
        "Requests for blocks from the log that were given up unanswered.",
        lambda v: v.total(INDEX, "ssd_fetches_expired"),
    ),
    Shown(
        "pegaflow_ssd_prefetch_inflight",
        FLUSHER,
        "Reads under way.",
        _gauge("ssd_prefetch_inflight"),
    ),
    Shown(
        "pegaflow_ssd_prefetch_backpressure_blocks_total",
        INDEX,
        "Blocks that lookups found in the log and did not wait for: the engine awaited too many.",
        lambda v: v.total(INDEX, "ssd_prefetch_backpressure_blocks"),
    ),
    Shown(
        "pegaflow_ssd_lookups_waiting",
        INDEX,
        "Lookups that wait for blocks from the log.",
        lambda v: v.gauge(INDEX, "ssd_waits"),
    ),
    Shown(
        "pegaflow_ssd_lookups_cut_total",
        INDEX,
        "Lookups that were answered at their deadline, before all of their blocks had come.",
        lambda v: v.total(INDEX, "ssd_waits_cut"),
    ),
    Shown(
        "pegaflow_ssd_blocks",
        FLUSHER,
        "Blocks in the log.",
        _gauge("ssd_blocks"),
    ),
    Shown(
        "pegaflow_ssd_stored_blocks",
        INDEX,
        "Blocks in the log that lookups know of: fewer while a start still reads the inventory.",
        lambda v: v.gauge(INDEX, "ssd_stored_blocks"),
    ),
    Shown(
        "pegaflow_ssd_used_bytes",
        FLUSHER,
        "Bytes of the log's files.",
        _gauge("ssd_bytes"),
    ),
    Shown(
        "pegaflow_ssd_capacity_bytes",
        FLUSHER,
        "Bytes that the log may have; 0: as far as the file system's floor.",
        _gauge("ssd_capacity_bytes"),
    ),
    Shown(
        "pegaflow_ssd_directories",
        FLUSHER,
        "Directories by what can be done: all (there are), readable, writable, loading; and by why "
        "not: gone (it, its file system or its marker), in_use (by another service).",
        lambda v: iter(
            [
                (("all",), v.gauge(FLUSHER, "ssd_volumes")),
                *(
                    ((state,), v.gauge(FLUSHER, f"ssd_{state}_volumes"))
                    for state in ("readable", "writable", "loading", "gone", "in_use")
                ),
            ]
        ),
        labels=("state",),
    ),
    Shown(
        "pegaflow_ssd_directory_used_bytes",
        FLUSHER,
        "Bytes of the log's files in each directory.",
        _of_each("used_bytes"),
        labels=("directory",),
    ),
    Shown(
        "pegaflow_ssd_directory_blocks",
        FLUSHER,
        "Blocks in each directory.",
        _of_each("blocks"),
        labels=("directory",),
    ),
    Shown(
        "pegaflow_ssd_directory_readable",
        FLUSHER,
        "1 for each directory that blocks may be read from.",
        _of_each("readable"),
        labels=("directory",),
    ),
    Shown(
        "pegaflow_ssd_directory_writable",
        FLUSHER,
        "1 for each directory that blocks may be written to.",
        _of_each("writable"),
        labels=("directory",),
    ),
    Shown(
        "pegaflow_ssd_directory_write_bytes_total",
        FLUSHER,
        "Bytes of blocks written to each directory and durable.",
        _of_each("write_bytes"),
        labels=("directory",),
    ),
    Shown(
        "pegaflow_ssd_directory_prefetch_bytes_total",
        FLUSHER,
        "Bytes of blocks read from each directory.",
        _of_each("prefetch_bytes"),
        labels=("directory",),
    ),
    Shown(
        "pegaflow_ssd_directory_faults_total",
        FLUSHER,
        "Times that each directory could not be written or used; each ends in a retry.",
        _of_each("faults"),
        labels=("directory",),
    ),
    Shown(
        "pegaflow_ssd_faults_total",
        FLUSHER,
        "Times that a directory could not be written or used; each ends in a retry.",
        _total("ssd_faults"),
    ),
    Shown(
        "pegaflow_ssd_corrupt_blocks_total",
        FLUSHER,
        "Blocks of the log whose bytes were not those that were written: never served.",
        _total("ssd_blocks_corrupt"),
    ),
    Shown(
        "pegaflow_ssd_recovered_blocks_total",
        FLUSHER,
        "Blocks found in the log at a start.",
        _total("ssd_blocks_recovered"),
    ),
    Shown(
        "pegaflow_ssd_carried_blocks_total",
        FLUSHER,
        "Blocks carried over from a recycled segment, since they had been read.",
        _total("ssd_blocks_carried"),
    ),
    Shown(
        "pegaflow_ssd_carried_bytes_total",
        FLUSHER,
        "Bytes of those: with the bytes written, what the disk was made to write.",
        _total("ssd_carried_bytes"),
    ),
    Shown(
        "pegaflow_ssd_recycled_blocks_total",
        FLUSHER,
        "Blocks that went with a recycled segment.",
        _total("ssd_blocks_recycled"),
    ),
    Shown(
        "pegaflow_ssd_drain_left_blocks_total",
        FLUSHER,
        "Blocks that were not written in time when the service stopped.",
        _total("ssd_drain_left"),
    ),
)


def ssd_line(view: View) -> str:
    """How the SSD tier is; empty if there is none, or it has not been started yet."""
    if not any(process.address.name == FLUSHER for process in view.processes):
        return _without_process(view)
    numbers = {
        name: int(view.gauge(FLUSHER, f"ssd_{name}"))
        for name in (
            "volumes",
            "readable_volumes",
            "writable_volumes",
            "loading_volumes",
            "blocks",
            "bytes",
            "capacity_bytes",
            "fault",
        )
    }
    if not numbers["volumes"]:
        return "ssd: starting"  # it has not said anything yet
    return f"ssd: {_state(numbers, view.remarks(FLUSHER))}; {_amount(numbers)}"


def _without_process(view: View) -> str:
    """Why there is none: it has died, or there never was one."""
    for kind in view.kinds:
        if kind.name != FLUSHER or not (kind.restarts or kind.counters):
            continue
        if kind.state != KindState.BROKEN:
            return "ssd: off, its process is being replaced"
        rest = max(0, kind.retry_at_ns - view.now) / 1e9
        return f"ssd: off, its process fails again and again; it is tried again in {rest:.0f} s"
    return ""


def _state(numbers: dict[str, int], remarks: tuple[str, ...]) -> str:
    count, readable = numbers["volumes"], numbers["readable_volumes"]
    writable = numbers["writable_volumes"]
    if numbers["loading_volumes"]:
        return "reading its inventory"
    if writable == count:
        return f"writable, {count} directories" if count != 1 else "writable"
    why = "; ".join(remarks) or Status(numbers["fault"]).words
    state = "read-only" if not writable else f"writable in {writable} of {count} directories"
    if not readable:
        state = "off"
    return f"{state} ({why}; it is tried again)"


def _amount(numbers: dict[str, int]) -> str:
    most = numbers["capacity_bytes"]
    of = f" of {sizes.show(most)}" if most else ""
    return f"{numbers['blocks']} blocks in {sizes.show(numbers['bytes'])}{of}"
