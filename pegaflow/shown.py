"""What one metric is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from .view import Sample, View


@dataclass(frozen=True)
class Shown:
    """One metric.  `source` says which actor knows it; a summary reads as count and sum."""

    name: str
    source: str
    help: str
    read: Callable[[View], float | Iterator[Sample]]
    labels: tuple[str, ...] = field(default=())

    @property
    def type(self) -> str:
        """counter, gauge or summary."""
        if self.name.endswith("_duration_seconds"):
            return "summary"
        return "counter" if self.name.endswith("_total") else "gauge"
