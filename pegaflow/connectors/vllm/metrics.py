"""`vllm:pega_*`: what the connector's halves have counted, on its way to the engine's own /metrics.

    Tally    a half counts into it; `take` is what is new since the last step
    Stats    that, as vLLM carries it: added up over the ranks, and with the scheduler's
    Metrics  in vLLM's front end: shows to Prometheus what arrives there

The names are those of the original PegaFlow's connector. Every rank loads and saves its own part of
a block, so of an engine with several ranks loads and saves count once for each of them; what the
scheduler counts (hits, waiting requests) counts once.

vLLM calls Stats and Metrics from outside of the connector's boundary, in processes that an
exception would kill. So neither raises: a value that is not understood is passed over.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pegaflow.connectors.common.tracked import Tracked
from pegaflow.wire.units import Constant, Count, Seconds

from . import compat

DURATIONS_S: tuple[Seconds, ...] = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""Bounds of durations: a load from memory takes milliseconds, and none takes over ten seconds."""

BLOCKS: tuple[Constant, ...] = tuple(2**power for power in range(13))
"""Bounds of numbers of blocks; 4096 are a prompt of 64 Ki tokens in blocks of 16."""

VALUES_MAX: Count = 4096
"""Values of one histogram kept until somebody takes them: vLLM does after each step, its log line
every ten seconds."""

SOURCES = ("host", "disk", "peer")
"""Where hits come from, in vLLM's words (its CacheHitSource)."""


class Metric(NamedTuple):
    """One name. Without bounds it is a number: a gauge, or a counter."""

    name: str  # after `vllm:pega_`; of a counter without its `_total`
    meaning: str
    gauge: bool = False
    bounds: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()  # values of its label `source`; none: it has no such label

    @property
    def kind(self) -> str:
        """In Prometheus's words."""
        return "histogram" if self.bounds else "gauge" if self.gauge else "counter"

    @property
    def shown(self) -> str:
        """Its name on /metrics."""
        return f"vllm:pega_{self.name}" + ("_total" if self.kind == "counter" else "")


METRICS = (
    Metric("pending_prefetches", "Requests whose lookup has no answer yet.", gauge=True),
    Metric("pending_save_requests", "Requests of which a save is under way.", gauge=True),
    Metric(
        "prefetch_duration_seconds",
        "Time to the answer of a lookup that was asked by message: what it waited for the SSD is in"
        " it.  A lookup of what is in memory costs no message and is not counted.",
        bounds=DURATIONS_S,
    ),
    Metric("prefetch_blocks", "Blocks that such an answer has brought.", bounds=BLOCKS),
    Metric("load_duration_seconds", "Time of each load that succeeded.", bounds=DURATIONS_S),
    Metric("load_blocks", "Blocks of each load that succeeded.", bounds=BLOCKS),
    Metric(
        "save_duration_seconds",
        "Time from a step's end until its blocks of one request are published.",
        bounds=DURATIONS_S,
    ),
    Metric("save_blocks", "Blocks of each save that succeeded.", bounds=BLOCKS),
    Metric("load_success", "Loads that brought all of their blocks."),
    Metric(
        "load_failure", "Loads of which a block is missing: vLLM computes it, or the request fails."
    ),
    Metric("save_success", "Saves of which every block is in the cache."),
    Metric(
        "save_failure",
        "Saves of which a block is not; one that the engine itself has given up is not counted.",
    ),
    Metric("hit_blocks", "Blocks that loads were ordered for, by where they are.", sources=SOURCES),
)

GAUGES = frozenset(metric.name for metric in METRICS if metric.gauge)


def table() -> list[str]:
    """The rows of docs/metrics.md."""
    rows = ["| name | type | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        label = "`source`" if metric.sources else ""
        rows.append(f"| `{metric.shown}` | {metric.kind} | {label} | {metric.meaning} |")
    return rows


class Stats(compat.Stats):  # type: ignore[misc]
    """Numbers of a time, by name: a list is a histogram's values; a hit's source ends its name."""

    def reset(self) -> None:
        """Begin anew."""
        self.data: dict[str, Any] = {}

    def aggregate(self, other: Any) -> "Stats":
        """Add what somebody else has counted, or the same one later."""
        for name, value in getattr(other, "data", {}).items():
            mine = self.data.get(name)
            if isinstance(value, list):
                known = mine if isinstance(mine, list) else []
                self.data[name] = [*known, *value][-VALUES_MAX:]
            elif name in GAUGES or not isinstance(mine, int):
                self.data[name] = value
            else:
                self.data[name] = mine + value
        return self

    def reduce(self) -> dict[str, int | float]:
        """For a line of vLLM's log: of a histogram the mean."""
        found: dict[str, int | float] = {}
        for name, value in self.data.items():
            if not isinstance(value, list):
                found[name] = value
            elif value:
                found[f"mean {name}"] = round(sum(value) / len(value), 4)
        return found

    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return not self.data


def stats(data: Any = None) -> Stats:
    """What another process has counted, from its plain values."""
    return Stats(dict(data) if isinstance(data, Mapping) else {})


class Tally:
    """What one half has counted since its last step."""

    def __init__(self) -> None:
        self._data: dict[str, Any] = {}
        self._told: dict[str, int] = {}  # gauges, as they were last taken

    def count(self, name: str, number: int = 1) -> None:
        """So many more."""
        if number:
            self._data[name] = self._data.get(name, 0) + number

    def observe(self, name: str, value: float) -> None:
        """One more of a histogram."""
        values = self._data.setdefault(name, [])
        values.append(value)
        del values[:-VALUES_MAX]

    def gauge(self, name: str, number: int) -> None:
        """As of now."""
        if self._told.get(name, 0) != number:
            self._data[name] = self._told[name] = number

    def moved(self, what: str, took_s: float, blocks: int) -> None:
        """A load or a save went well."""
        self.count(f"{what}_success")
        self.observe(f"{what}_duration_seconds", took_s)
        self.observe(f"{what}_blocks", blocks)

    def take(self) -> Stats | None:
        """All of it, once; None: nothing is new."""
        data, self._data = self._data, {}
        return Stats(data) if data else None


def _nowhere(_: float) -> None:
    """Takes what has a name that is not known."""


class SchedulerTally(Tally):
    """The scheduler half's, with what that waits for.

    Args:
        patience_s: a lookup is not waited for any longer.
    """

    def __init__(self, patience_s: float) -> None:
        super().__init__()
        self._patience_s = patience_s
        self._asked: dict[int, float] = {}  # lookups without an answer: ticket -> when
        self._saves: dict[int, Tracked] = {}  # orders that may not be over, and whose they are

    def asked(self, ticket: int, now_s: float) -> None:
        """A lookup was asked by message."""
        self._asked[ticket] = now_s

    def answered(self, ticket: int, now_s: float, blocks: int) -> None:
        """It has its answer."""
        asked_s = self._asked.pop(ticket, None)
        if asked_s is not None:
            self.observe("prefetch_duration_seconds", now_s - asked_s)
            self.observe("prefetch_blocks", blocks)

    def found(self, blocks: int, disk: int, peers: int) -> None:
        """A load was ordered.

        Args:
            blocks: all of it.
            disk: those of them that had to be read from SSD.
            peers: those that came from other hosts.
        """
        for source, number in zip(SOURCES, (blocks - disk - peers, disk, peers), strict=True):
            self.count(f"hit_blocks_{source}", number)

    def saving(self, order: int, request: Tracked) -> None:
        """A save was ordered."""
        self._saves[order] = request

    def step(self, now_s: float) -> Stats | None:
        """`take`, with what is waited for."""
        patience_s = self._patience_s
        self._asked = {t: at for t, at in self._asked.items() if now_s - at < patience_s}
        self._saves = {order: of for order, of in self._saves.items() if order in of.open}
        self.gauge("pending_prefetches", len(self._asked))
        self.gauge("pending_save_requests", len({id(of) for of in self._saves.values()}))
        return self.take()


class Metrics(compat.PromMetrics):  # type: ignore[misc]
    """The Prometheus metrics of all engines of a front end, made once."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: Mapping[Any, Any],
        labelnames: Sequence[str],
        per_engine_labelvalues: Mapping[int, Sequence[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._failed = False  # it was said
        # By engine and by name in a Stats, what takes a value.
        self._sinks: dict[int, dict[str, Callable[[float], None]]] = {}
        made = [(metric, self._made(metric, labelnames)) for metric in METRICS]
        for engine, labels in per_engine_labelvalues.items():
            self._sinks[engine] = {
                name: self._sink(metric, collector.labels(*labels, *more))
                for metric, collector in made
                for name, more in self._series(metric)
            }

    def _made(self, metric: Metric, labelnames: Sequence[str]) -> Any:
        name, labels = f"vllm:pega_{metric.name}", list(labelnames)
        if metric.bounds:
            return self._histogram_cls(
                name=name, documentation=metric.meaning, labelnames=labels, buckets=metric.bounds
            )
        if metric.gauge:
            return self._gauge_cls(
                name=name,
                documentation=metric.meaning,
                labelnames=labels,
                multiprocess_mode="mostrecent",
            )
        labels += ["source"] if metric.sources else []
        return self._counter_cls(name=name, documentation=metric.meaning, labelnames=labels)

    def _series(self, metric: Metric) -> list[tuple[str, tuple[str, ...]]]:
        """Its names in a Stats, each with its further labels."""
        if not metric.sources:
            return [(metric.name, ())]
        return [(f"{metric.name}_{source}", (source,)) for source in metric.sources]

    def _sink(self, metric: Metric, series: Any) -> Callable[[float], None]:
        sink = series.observe if metric.bounds else series.set if metric.gauge else series.inc
        taker: Callable[[float], None] = sink
        return taker

    def observe(self, transfer_stats_data: Any, engine_idx: int = 0) -> None:
        """An engine's numbers have arrived."""
        try:
            sinks = self._sinks.get(engine_idx, {})
            for name, value in transfer_stats_data.items():
                sink = sinks.get(name, _nowhere)
                for one in value if isinstance(value, list) else (value,):
                    sink(one)
        except Exception as error:
            if not self._failed:
                compat.logger().error("pegaflow: metrics are not shown: %r", error)
            self._failed = True
