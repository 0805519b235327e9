"""One Report of the supervisor, to be read by name."""

from collections.abc import Callable, Iterator, Mapping

from pegaflow.core.series import SEPARATOR, Buckets, Histogram, labels_of
from pegaflow.wire.control import KindRow, ProcessRow, Report
from pegaflow.wire.values import INDEX, SESSION

_S = 1_000_000_000

Sample = tuple[tuple[str, ...], float]
"""Label values and the value."""


class View:
    """A Report, to be read by name.

    Args:
        report: None: there was none yet; every number is 0 or absent.
        now: CLOCK_MONOTONIC, in nanoseconds.
    """

    def __init__(self, report: Report | None, now: int) -> None:
        self.report = report
        self.now = now  # CLOCK_MONOTONIC ns
        self.processes: tuple[ProcessRow, ...] = report.processes if report else ()
        self.kinds: tuple[KindRow, ...] = report.kinds if report else ()
        self._sums = {k.name: {c.name: c.value for c in k.counters} for k in self.kinds}
        self._rows = [(p, {c.name: c.value for c in p.counters}) for p in self.processes]

    @property
    def age(self) -> float:
        """Seconds since the report was written."""
        return max(0, self.now - self.report.at) / _S if self.report else 0.0

    def total(self, kind: str, *names: str) -> float:
        """Counters of a kind of actor, summed over all its lives."""
        return sum(self._sums.get(kind, {}).get(name, 0) for name in names)

    @property
    def blocks_asked(self) -> float:
        """Blocks of all lookups: each was answered by the index or by a session itself."""
        return self.total(INDEX, "blocks_asked") + self.total(SESSION, "blocks_asked_local")

    @property
    def blocks_hit(self) -> float:
        """Those of them that were found."""
        return self.total(INDEX, "blocks_hit") + self.total(SESSION, "blocks_hit_local")

    @property
    def hits_below(self) -> dict[str, int]:
        """Of the blocks that were found, those that a tier below the pool had to bring, by tier."""
        counted, before = self._sums.get(INDEX, {}).items(), "blocks_hit_"
        return {n.removeprefix(before): value for n, value in counted if n.startswith(before)}

    def totals(self) -> Iterator[tuple[str, Mapping[str, int]]]:
        """Every kind with all its counters that have no labels."""
        for kind, counters in self._sums.items():
            yield kind, {n: value for n, value in counters.items() if SEPARATOR not in n}

    def labelled(self, kind: str, name: str) -> dict[tuple[str, ...], int]:
        """The counters of one name, summed over all lives.

        Returns:
            By the values of their labels.
        """
        return dict(labels_of(name, self._sums.get(kind, {})))

    def labelled_gauge(self, kind: str, name: str) -> dict[tuple[str, ...], int]:
        """The gauges of one name, of a kind that has but one living process.

        Returns:
            By the values of their labels.
        """
        rows = (row for process, row in self._rows if process.address.name == kind)
        return {labels: value for row in rows for labels, value in labels_of(name, row)}

    def histogram(self, kind: str, histogram: Histogram) -> dict[tuple[str, ...], Buckets]:
        """What the actors of a kind have counted in a histogram, summed over all lives.

        Returns:
            By the values of its labels.
        """
        return histogram.read(self._sums.get(kind, {}))

    def gauge(self, kind: str, *names: str) -> float:
        """Gauges of a kind of actor, summed over its living processes."""
        rows = [row for process, row in self._rows if process.address.name == kind]
        return sum(row.get(name, 0) for row in rows for name in names)

    def remarks(self, kind: str) -> tuple[str, ...]:
        """What the living processes of a kind say that is not as it should be."""
        said = self.report.remarks if self.report else ()
        return tuple(remark.text for remark in said if remark.address.name == kind)

    def by_actor(
        self, name: str, of: Callable[[list[int]], int], scale: float = 1
    ) -> Iterator[Sample]:
        """A gauge that every process has: one value for each kind.

        Args:
            of: makes one of all the values of a kind, for example max.
            scale: what the value is multiplied with, to have the unit shown.
        """
        values: dict[str, list[int]] = {}
        for process, row in self._rows:
            if name in row:
                values.setdefault(process.address.name, []).append(row[name])
        for kind, some in values.items():
            yield (kind,), of(some) * scale

    def by_seat(self, name: str) -> Iterator[Sample]:
        """A gauge of each session that serves an engine, labelled with the engine's seat."""
        for _, row in self._rows:
            if "engine_seat" in row:
                yield (str(row["engine_seat"]),), row.get(name, 0)
