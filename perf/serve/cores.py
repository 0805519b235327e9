"""Which cores each process of perf.serve has.

A process inherits the cores of the thread that starts it, so whoever is started inside of `on` has
those and no others, as by `taskset`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

FREE, BUSY = "free", "busy"


@dataclass(frozen=True)
class Cores:
    """Who has which."""

    name: str
    engine: frozenset[int]
    rest: frozenset[int]  # the service and the client


def ways(available: set[int]) -> dict[str, Cores]:
    """By name: `free` leaves the last core to the service, `busy` leaves nobody any.

    Args:
        available: cores of this machine; with one alone there is no `free`.
    """
    every = frozenset(available)
    found = {BUSY: Cores(BUSY, every, every)}
    if len(available) > 1:
        last = frozenset({max(available)})
        found = {FREE: Cores(FREE, every - last, last), **found}
    return found


@contextmanager
def on(cores: frozenset[int]) -> Iterator[None]:
    """What this thread starts meanwhile has these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
