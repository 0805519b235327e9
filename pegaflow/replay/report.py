"""From the records of a replay to the lines that people read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pegaflow.wire.units import Bytes

from .ceiling import Score, infinite, lru
from .engine import Record
from .runner import Outcome
from .trace import Trace
from .words import count, was

Row = tuple[str, str]

LARGE_BYTES: Bytes = 2 << 20
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
        asked=sum(row.asked for row in rows),
        served=sum(row.served for row in rows),
        verified_bytes=sum(row.verified_bytes for row in rows),
        wrong_bytes=sum(row.wrong_bytes for row in rows),
        wrong=next((row.wrong for row in rows if row.wrong), ""),
        load=_speeds([(row.load_bytes, row.load_seconds) for row in rows]),
        save=_speeds([(row.save_bytes, row.save_seconds) for row in rows]),
        lookup_p50=float(np.percentile(lookups, 50)),
        lookup_p99=float(np.percentile(lookups, 99)),
        failures=dict(failures),
    )


def rows(outcome: Outcome, ceiling: Score) -> Iterator[Row]:
    """The result as (name, value) lines.

    Args:
        ceiling: of an infinite cache.
    """
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
    requests = count(len(outcome.records), "request")
    served = f"{t.served or 'none'} {was(t.served)} served from the cache"
    said = [f"Of {count(t.asked, 'block')} asked for in {requests} {served}"]
    if t.served:
        its = "its" if t.served == 1 else "their"
        right = "every one was right"
        if t.wrong_bytes:
            right = f"{count(t.wrong_bytes, 'byte')} {was(t.wrong_bytes)} wrong"
        said[0] += f": each of {its} {t.verified_bytes} bytes was compared, and {right}"
    if t.served < t.asked:
        said.append(_computed(outcome, t.asked - t.served))
    return ". ".join(said) + "."


def _computed(outcome: Outcome, blocks: int) -> str:
    """What became of the blocks that were not served."""
    saved = sum(record.saved for record in outcome.records.values())
    known = sum(record.known for record in outcome.records.values())
    rest = (
        f"The other {blocks} {was(blocks)} computed: {saved or 'none'} of them {was(saved)} saved"
    )
    if known:
        rest += f", {known} another engine had saved meanwhile, since requests run side by side"
    return rest


def problem(outcome: Outcome, trace: Trace, engines: int) -> str:
    """Why the replay is no success, in one line; empty if it is one.

    Requests of different engines run side by side, so that nothing is served of what they share is
    none if the cache had it by the time it was saved again.  What an engine has asked for before is
    served to it whatever the others do.

    Args:
        engines: how many have shared the requests.
    """
    t = total(outcome.records.values())
    if t.wrong_bytes:
        return f"{count(t.wrong_bytes, 'wrong byte')}, the first in {t.wrong}"
    if outcome.errors:
        return outcome.errors[0]
    hit = infinite(trace).hit
    if t.served or not hit:
        return ""
    known = sum(record.known for record in outcome.records.values())
    alone = lru(trace, engines * len(trace.parents), engines).hit
    if not alone and known >= hit:
        return ""
    return f"nothing was served, where an infinite cache would serve {count(hit, 'block')}"


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
