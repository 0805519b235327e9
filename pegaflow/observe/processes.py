"""What is shown of the processes themselves.

A process is replaced by one of another incarnation, and a session lives as long as its engine, so
nothing here is labelled with a life: of several processes of a kind one number is shown, that of
the worst or their sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from pegaflow.wire.control import KindState
from pegaflow.wire.values import SUPERVISOR

from .shown import Shown
from .view import Sample, View


def _restarts(view: View) -> Iterator[Sample]:
    for kind in view.kinds:
        yield (kind.name,), kind.restarts


def _broken(view: View) -> Iterator[Sample]:
    for kind in view.kinds:
        yield (kind.name,), kind.state == KindState.BROKEN


def _processes(view: View) -> Iterator[Sample]:
    found = Counter((p.address.name, p.state) for p in view.processes[1:])
    yield from sorted(found.items())


def _events(view: View) -> Iterator[Sample]:
    for kind, counters in view.totals():
        for name, value in counters.items():
            yield (kind, name), value


ACTOR_METRICS = (
    Shown(
        "pegaflow_actor_restarts_total",
        SUPERVISOR,
        "Processes of this kind that failed and were replaced.",
        _restarts,
        labels=("actor",),
    ),
    Shown(
        "pegaflow_actor_broken",
        SUPERVISOR,
        "1 while this kind of process failed too often and rests before it is tried again.",
        _broken,
        labels=("actor",),
    ),
    Shown(
        "pegaflow_actor_processes",
        SUPERVISOR,
        "Living processes by kind and state.",
        _processes,
        labels=("actor", "state"),
    ),
    Shown(
        "pegaflow_actor_resident_memory_bytes",
        "each actor",
        "Resident memory of the largest process of this kind, the part of the pool that it has "
        "touched included.",
        lambda v: v.by_actor("process_resident_bytes", max),
        labels=("actor",),
    ),
    Shown(
        "pegaflow_actor_open_fds",
        "each actor",
        "Open file descriptors of the process of this kind that has most.",
        lambda v: v.by_actor("process_open_fds", max),
        labels=("actor",),
    ),
    Shown(
        "pegaflow_actor_loop_lag_seconds",
        "each actor",
        "How late the latest timer of the last second or two was in the latest process of this "
        "kind: a busy or starved loop.",
        lambda v: v.by_actor("loop_late_us", max, 1e-6),
        labels=("actor",),
    ),
    Shown(
        "pegaflow_actor_longest_turn_seconds",
        "each actor",
        "The longest that a process of this kind has not listened to anybody since it began: of "
        "work, or since it got no core.",
        lambda v: v.by_actor("loop_longest_us", max, 1e-6),
        labels=("actor",),
    ),
    Shown(
        "pegaflow_actor_open_asks",
        "each actor",
        "Questions to other actors without an answer yet.",
        lambda v: v.by_actor("asks_open", sum),
        labels=("actor",),
    ),
    Shown(
        "pegaflow_actor_open_jobs",
        "each actor",
        "Device work under way or queued, watches over other processes included.",
        lambda v: v.by_actor("jobs_open", sum),
        labels=("actor",),
    ),
    Shown(
        "pegaflow_actor_events_total",
        "each actor",
        "Every counter without labels that an actor keeps, under its internal name; names may "
        "change.",
        _events,
        labels=("actor", "event"),
    ),
)
