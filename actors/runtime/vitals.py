"""What a process measures of itself: memory, descriptors, how late its loop is, what is open.

An actor is pure and knows none of it; it calls its `measured` when it says Beat and passes on what
comes back.
"""

import os

from pegaflow.wire.units import Nanoseconds

from .loop import Loop, monotonic

SAMPLE_NS: Nanoseconds = 1_000_000_000
"""A sample serves so long: reading /proc costs tens of microseconds, and everybody may ask."""

_PAGE = os.sysconf("SC_PAGE_SIZE")


class Vitals:
    """Measures the process of one loop."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._sample: dict[str, int] = {}
        self._until_ns = 0  # the sample is good until then

    def __call__(self) -> dict[str, int]:
        """Gauges; `loop_late_us` is the latest timer since the sample before this one,
        `loop_longest_us` the longest turn since the process began."""
        now = monotonic()
        if now >= self._until_ns:
            self._until_ns = now + SAMPLE_NS
            self._sample = self._measure()
        return self._sample

    def _measure(self) -> dict[str, int]:
        asks, jobs = self._loop.host.outstanding()
        turns = self._loop.turns
        late, turns.late_ns = turns.late_ns, 0
        with open("/proc/self/statm", "rb") as file:
            resident = int(file.read().split()[1])
        return {
            "process_resident_bytes": resident * _PAGE,
            "process_open_fds": len(os.listdir("/proc/self/fd")) - 1,  # without listdir's own
            "loop_late_us": late // 1000,
            "loop_longest_us": turns.longest_ns // 1000,
            "asks_open": asks,
            "jobs_open": jobs,
        }
