"""From the records of a replay to the lines that people read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from pegaflow.replay.ceiling import Score
from pegaflow.replay.engine import Record
from pegaflow.replay.runner import Outcome

Row = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Totals:
    """All records together; speeds in bytes per second, times in seconds."""

    asked: int  # blocks
    served: int  # blocks loaded and compared
    verified_bytes: int
    wrong_bytes: int
    wrong: str  # where the first wrong byte was
    load_speed: float
    save_speed: float
    lookup_p50: float
    lookup_p99: float
    failures: dict[str, int]  # times, by what failed how

    @property
    def rate(self) -> float:
        """Blocks served per block asked, 0..1."""
        return self.served / self.asked if self.asked else 0.0


def total(records: Iterable[Record]) -> Totals:
    """Add records up."""
    rows = list(records)
    lookups = [seconds for row in rows for seconds in row.lookup_seconds] or [0.0]
    failures: Counter[str] = Counter()
    for row in rows:
        failures.update(row.failures)
    return Totals(
        sum(row.asked for row in rows),
        sum(row.served for row in rows),
        sum(row.verified_bytes for row in rows),
        sum(row.wrong_bytes for row in rows),
        next((row.wrong for row in rows if row.wrong), ""),
        _speed(sum(r.load_bytes for r in rows), sum(r.load_seconds for r in rows)),
        _speed(sum(r.save_bytes for r in rows), sum(r.save_seconds for r in rows)),
        float(np.percentile(lookups, 50)),
        float(np.percentile(lookups, 99)),
        dict(failures),
    )


def rows(outcome: Outcome, ceiling: Score) -> Iterator[Row]:
    """The result as (name, value) lines."""
    t = total(outcome.records.values())
    yield "blocks asked", f"{t.asked}"
    yield "blocks served", f"{t.served}"
    yield "bytes verified", f"{t.verified_bytes}"
    yield "bytes wrong", f"{t.wrong_bytes}" + (f" (first in {t.wrong})" if t.wrong else "")
    yield "hit rate", f"{percent(t.rate)}; an infinite cache: {percent(ceiling.rate)}"
    yield "load", f"{_gigabytes(t.load_speed)} per engine"
    yield "save", f"{_gigabytes(t.save_speed)} per engine"
    yield "memcpy", f"{_gigabytes(outcome.memcpy)} (the same blocks, one thread, copied by numpy)"
    yield "lookup", f"p50 {t.lookup_p50 * 1e6:.0f} us, p99 {t.lookup_p99 * 1e6:.0f} us"
    yield "time", f"{outcome.seconds:.1f} s"
    if t.failures:
        listed = (f"{times} x {what}" for what, times in sorted(t.failures.items()))
        yield "failures", ", ".join(listed)


def problem(outcome: Outcome, ceiling: Score) -> str:
    """Why the replay is no success, in one line; empty if it is one."""
    t = total(outcome.records.values())
    if t.wrong_bytes:
        return f"{t.wrong_bytes} wrong bytes, the first in {t.wrong}"
    if outcome.errors:
        return outcome.errors[0]
    if ceiling.hit and not t.served:
        return f"nothing was served, where an infinite cache would serve {ceiling.hit} blocks"
    return ""


def percent(rate: float) -> str:
    return f"{100 * rate:.1f} %"


def _gigabytes(speed: float) -> str:
    return f"{speed / 1e9:.1f} GB/s"


def _speed(size: int, seconds: float) -> float:
    return size / seconds if seconds else 0.0
