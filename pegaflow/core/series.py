"""Numbers with labels, and histograms, as the named numbers that Beats carry.

An actor counts under plain names.  A number of one directory, or of one reason, has its labels
behind its name (`name|label`).  A histogram is a set of such numbers: each value is counted once,
under the least bound that it does not exceed (`name|label|500`; `inf` above the last one), and
added to `name|label|sum`.  All of them only grow, so the supervisor adds them up over lives like
any other counter, and only who shows them makes the cumulative buckets that Prometheus wants.

The bounds are fixed here, in whole units, and are part of what a metric means.  Those that the
original PegaFlow has are among them, so that a quantile of its dashboards means the same; ours
begin earlier, since a load from memory takes less than its first bound.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

from pegaflow.wire.units import Constant, Count

SEPARATOR = "|"
"""Between a name and its labels."""

VALUE_MAX: Count = (1 << 64) - 1
"""What a message can carry."""


def labelled(name: str, *labels: str) -> str:
    """The name of a number with labels; what a message cannot carry in them is written out."""
    clean = (label.replace(SEPARATOR, "/").encode(errors="backslashreplace") for label in labels)
    return SEPARATOR.join((name, *(label.decode() for label in clean)))


def labels_of(name: str, numbers: Mapping[str, int]) -> Iterator[tuple[tuple[str, ...], int]]:
    """The numbers of one name.

    Args:
        name: without labels.
        numbers: of an actor, by full name.

    Yields:
        The values of the labels, and the number.
    """
    for full, value in numbers.items():
        first, *labels = full.split(SEPARATOR)
        if first == name and labels:
            yield tuple(labels), value


@dataclass(frozen=True, slots=True)
class Buckets:
    """What one histogram has counted."""

    cumulative: tuple[tuple[str, int], ...]  # (upper bound as it is shown, values up to it)
    total: float  # of all values, in the unit shown

    @property
    def count(self) -> int:
        """Values."""
        return self.cumulative[-1][1]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Values in fixed buckets."""

    name: str  # of its numbers
    bounds: tuple[int, ...]  # upper ones, ascending
    per_unit: int  # so many are one of the unit shown
    labels: int = 0  # how many there are

    def count(self, counts: Counter[str], value: int, *labels: str, times: int = 1) -> None:
        """Count a value, or several that are equal.

        Args:
            counts: of the actor; the histogram's numbers in it grow.
            value: in the unit of `bounds`, not in the one shown.
            *labels: as many as the histogram has.
            times: how many values are this one.
        """
        assert len(labels) == self.labels and value >= 0
        at = bisect_left(self.bounds, value)
        bound = self.bounds[at] if at < len(self.bounds) else None
        bucket, total = _names(self.name, labels, bound)
        counts[bucket] += times
        counts[total] = min(counts[total] + value * times, VALUE_MAX)

    def empty(self) -> Buckets:
        """Nothing was counted."""
        return self._buckets({})

    def read(self, numbers: Mapping[str, int]) -> dict[tuple[str, ...], Buckets]:
        """What was counted.

        Args:
            numbers: of an actor, or sums over several.

        Returns:
            By label values; a histogram without labels is there before it has counted anything.
        """
        found: dict[tuple[str, ...], dict[str, int]] = {} if self.labels else {(): {}}
        for (*labels, part), value in labels_of(self.name, numbers):
            if len(labels) == self.labels:  # a child may say what it will
                found.setdefault(tuple(labels), {})[part] = value
        return {labels: self._buckets(parts) for labels, parts in found.items()}

    def _buckets(self, parts: Mapping[str, int]) -> Buckets:
        cumulative: list[tuple[str, int]] = []
        sum_ = 0
        for bound in self.bounds:
            sum_ += parts.get(str(bound), 0)
            cumulative.append((repr(bound / self.per_unit), sum_))
        cumulative.append(("+Inf", sum_ + parts.get("inf", 0)))
        return Buckets(tuple(cumulative), parts.get("sum", 0) / self.per_unit)


NAMES_KEPT: Count = 4096
"""Names that are made once: those of every bucket of every kind of question."""


@lru_cache(NAMES_KEPT)
def _names(name: str, labels: tuple[str, ...], bound: int | None) -> tuple[str, str]:
    """Of a bucket, and of the sum beside it."""
    upto = "inf" if bound is None else str(bound)
    return labelled(name, *labels, upto), labelled(name, *labels, "sum")


def rate(bytes_: int, took_ns: int) -> int:
    """Bytes per second, if so many bytes took so long."""
    return bytes_ * 1_000_000_000 // max(1, took_ns)


_MS = 1_000
_S = 1_000_000

DURATIONS_US: tuple[Constant, ...] = (
    *(500, 1 * _MS, 2 * _MS, 5 * _MS, 10 * _MS, 20 * _MS, 50 * _MS),
    *(100 * _MS, 200 * _MS, 500 * _MS, 1 * _S, 2 * _S, 5 * _S, 10 * _S, 30 * _S, 60 * _S),
)
"""Bounds of answers and copies: the original's for a call, and on to its last for a transfer."""

RESIDENCE_S: tuple[Constant, ...] = (
    *(1, 5, 10, 30, 60, 120, 300, 600),
    *(1_800, 3_600, 7_200, 21_600, 43_200, 86_400),
)
"""Bounds of a block's stay in memory: the original's."""

_MB = 1_000_000
_GB = 1_000_000_000

RATES: tuple[Constant, ...] = (
    *(10 * _MB, 25 * _MB, 50 * _MB, 100 * _MB, 250 * _MB, 500 * _MB, 1 * _GB, 2 * _GB, 3 * _GB),
    *(4 * _GB, 5 * _GB, 6 * _GB, 7 * _GB, 8 * _GB, 10 * _GB, 12 * _GB, 16 * _GB, 20 * _GB),
    *(30 * _GB, 40 * _GB),
)
"""Bounds of a disk's bytes per second: from a network disk to the original's last."""

RPC = Histogram("rpc_us", DURATIONS_US, _S, 2)
"""From a client's question to our answer; labels are its kind and what became of it."""

LOAD = Histogram("load_us", DURATIONS_US, _S)
"""From a rank's question for a load to the end of its copy, of those that succeed."""

RESIDENCE = Histogram("residence_ms", tuple(int(1000 * s) for s in RESIDENCE_S), 1000, 1)
"""From a block's publication to its removal from memory; the label is why."""

SSD_WRITE_RATE = Histogram("ssd_write_rate", RATES, 1)
"""Bytes per second of each group of blocks that is written."""

SSD_PREFETCH_RATE = Histogram("ssd_prefetch_rate", RATES, 1)
"""Bytes per second of each run of blocks that is read."""
