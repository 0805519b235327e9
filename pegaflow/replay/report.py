"""From the records of a replay to the lines that people read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .ceiling import Score
from .engine import Record
from .runner import Outcome

Row = tuple[str, str]

LARGE_BYTES = 2 << 20
"""A copy so large is a matter of bandwidth; most of a trace's are smaller."""


@dataclass(frozen=True, slots=True)
class Speeds:
    """Bytes per second, from the call to its return."""

    overall: float  # all bytes over all time: small requests bring it down to their latency
    large: float  # the median of requests with LARGE_BYTES or more; 0 if there were none


@dataclass(frozen=True, slots=True)
class Totals:
    """All records together; times in seconds."""

    asked: int  # blocks
    served: int  # blocks loaded and compared
    verified_bytes: int
    wrong_bytes: int
    wrong: str  # where the first wrong byte was
    load: Speeds
    save: Speeds
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
        _speeds([(row.load_bytes, row.load_seconds) for row in rows]),
        _speeds([(row.save_bytes, row.save_seconds) for row in rows]),
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
    yield "load", _both(t.load)
    yield "save", _both(t.save)
    yield "memcpy", f"{_gigabytes(outcome.memcpy)}: the same blocks copied by numpy"
    yield "lookup", f"p50 {t.lookup_p50 * 1e6:.0f} us, p99 {t.lookup_p99 * 1e6:.0f} us"
    yield "time", f"{outcome.seconds:.1f} s"
    if t.failures:
        listed = (f"{times} x {what}" for what, times in sorted(t.failures.items()))
        yield "failures", ", ".join(listed)


def restarted(outcome: Outcome, engine: int) -> Row:
    """What became of the engine that was to be killed half way."""
    again = outcome.restarted
    if again is None:
        return "restarted engine", f"none: engine {engine} ended before it could be killed"
    return (
        "restarted engine",
        f"attached {again.connect_seconds * 1e3:.0f} ms after it asked, "
        f"{again.attach_seconds * 1e3:.0f} ms after its process was started",
    )


def summary(outcome: Outcome) -> str:
    """What was asked, served and verified, in a sentence or two."""
    t = total(outcome.records.values())
    if not t.asked:
        return "No request was answered."
    known = sum(record.known for record in outcome.records.values())
    saved = sum(record.saved for record in outcome.records.values())
    right = f"{t.wrong_bytes} bytes were wrong" if t.wrong_bytes else "every one was right"
    served = f"each of their {t.verified_bytes} bytes was compared, and {right}"
    return (
        f"Of {t.asked} blocks asked for in {len(outcome.records)} requests {t.served} were served "
        f"from the cache{f': {served}' if t.served else ''}. The others were computed: {saved} of "
        f"them were saved, {known} another engine had saved meanwhile."
    )


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
    """A share, as people read it."""
    return f"{100 * rate:.1f} %"


def _both(speeds: Speeds) -> str:
    large = f"{_gigabytes(speeds.large)} in requests of 2 MiB and more, " if speeds.large else ""
    return f"{large}{_gigabytes(speeds.overall)} over all, each engine"


def _gigabytes(speed: float) -> str:
    return f"{speed / 1e9:.2f} GB/s"


def _speeds(copies: Sequence[tuple[int, float]]) -> Speeds:
    """Of copies given as (bytes, seconds)."""
    timed = [(size, seconds) for size, seconds in copies if seconds > 0]
    if not timed:
        return Speeds(0.0, 0.0)
    large = [size / seconds for size, seconds in timed if size >= LARGE_BYTES]
    overall = sum(size for size, _ in timed) / sum(seconds for _, seconds in timed)
    return Speeds(overall, float(np.median(large)) if large else 0.0)
