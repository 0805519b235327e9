"""One Report of the supervisor, to be read by name."""

from collections.abc import Iterator, Mapping

from pegaflow.wire.control import KindRow, ProcessRow, Report

_S = 1_000_000_000

Sample = tuple[tuple[str, ...], float]
"""Label values and the value."""


class View:
    """A Report, to be read by name."""

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

    def totals(self) -> Iterator[tuple[str, Mapping[str, int]]]:
        """Every kind with all its counters."""
        yield from self._sums.items()

    def gauge(self, kind: str, *names: str) -> float:
        """Gauges of a kind of actor, summed over its living processes."""
        rows = [row for process, row in self._rows if process.address.name == kind]
        return sum(row.get(name, 0) for row in rows for name in names)

    def each(self, name: str, scale: float = 1) -> Iterator[Sample]:
        """A gauge of each process that has it, labelled with its actor and incarnation."""
        for process, row in self._rows:
            if name in row:
                labels = (process.address.name, str(process.address.incarnation))
                yield labels, row[name] * scale
