"""What one metric is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pegaflow.core.series import Buckets

from .view import Sample, View

Read = Callable[[View], float | Iterator[Sample] | dict[tuple[str, ...], Buckets]]
"""One value, or samples with their labels; of a histogram its buckets, by labels."""


@dataclass(frozen=True)
class Shown:
    """One metric.  `source` says which actor knows it."""

    name: str
    source: str
    help: str
    read: Read
    labels: tuple[str, ...] = field(default=())
    histogram: bool = False

    @property
    def type(self) -> str:
        """counter, gauge or histogram."""
        if self.histogram:
            return "histogram"
        return "counter" if self.name.endswith("_total") else "gauge"
