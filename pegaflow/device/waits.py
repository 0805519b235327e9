"""How long the threads of a process have waited for a core, as the scheduler counts it.

/proc/PID/task/TID/schedstat has the nanoseconds that a thread ran, the nanoseconds that it was
ready to run and had no core, and how often it got one.  The second number grows only when the
thread gets its core at last, so a thread that waits right now is told by two looks: ready to run
("R") at both, and between them it neither ran nor got a core.  It cannot have slept meanwhile: to
fall asleep it would have had to run.  The time that it ran is read from `stat` too, which is right
even on a core without a tick.

A word of a process has come late by the waits of several threads, one after the other: its loop, a
worker that holds a lock, the thread of ZeroMQ that sends, and those of whoever listens.  So the
waits of all of them count, for as much time as there was.  Where the kernel counts no waits
(`schedstat` is absent or zero) only those are seen that last from one look to the next.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from pegaflow.wire.jobs import ThreadState

_STATES = {
    b"R": ThreadState.RUNNING,
    b"S": ThreadState.SLEEPING,
    b"D": ThreadState.BLOCKED_IN_KERNEL,
    b"T": ThreadState.STOPPED,
    b"t": ThreadState.TRACED,
    b"Z": ThreadState.DEAD,
    b"X": ThreadState.DEAD,
}  # by the letter that `stat` has


@dataclass(frozen=True, slots=True)
class Thread:
    """One thread at one look."""

    state: ThreadState
    ticks: int  # clock ticks that it ran
    ran_ns: int  # the same; 0 if the kernel does not count it
    waited_ns: int  # without a wait that goes on
    slices: int  # how often it got a core

    def stood_still(self, before: Thread) -> bool:
        """Whether it has waited for a core ever since that look."""
        counted_ns = (self.ticks, self.ran_ns, self.slices)
        ready = self.state == before.state == ThreadState.RUNNING
        return ready and counted_ns == (before.ticks, before.ran_ns, before.slices)


@dataclass(frozen=True, slots=True)
class Wait:
    """What was seen from the first look to this one."""

    waited_ns: int  # in which some thread waited for a core
    ran_ns: int  # of all threads of the process together
    state: ThreadState  # of its main thread


class Waits:
    """A process, from its first look on, and those that listen to it."""

    def __init__(self, pid: int, *listeners: int) -> None:
        self._pid = pid
        self._listeners = listeners
        self._total = Wait(0, 0, ThreadState.UNKNOWN)
        self._looked_ns: int | None = None  # when the last look was
        self._seen: dict[int, Thread] = {}  # each living thread at the last look
        self._still_ns: dict[int, int] = {}  # since when those wait that did so then

    def look(self, now: int) -> Wait:
        """Look at them now (CLOCK_MONOTONIC nanoseconds)."""
        own = threads(self._pid)
        seen = {**own, **{t: s for pid in self._listeners for t, s in threads(pid).items()}}
        then = now if self._looked_ns is None else self._looked_ns
        still_ns: dict[int, int] = {}
        waited_ns = ran_ns = 0
        for tid, thread in seen.items():
            before = self._seen.get(tid)
            if before is None:
                continue
            if thread.stood_still(before):
                still_ns[tid] = self._still_ns.get(tid, then)
            counted_ns = then - self._still_ns.get(
                tid, then
            )  # of the wait that went on at that look
            more_ns = now - still_ns[tid] if tid in still_ns else 0
            waited_ns += max(0, thread.waited_ns - before.waited_ns + more_ns - counted_ns)
            ran_ns += thread.ran_ns - before.ran_ns if tid in own else 0
        self._looked_ns, self._seen, self._still_ns = now, seen, still_ns
        main = own.get(self._pid)
        self._total = Wait(
            self._total.waited_ns + min(waited_ns, now - then),
            self._total.ran_ns + max(ran_ns, 0),
            main.state if main is not None else ThreadState.DEAD,
        )
        return self._total


def threads(pid: int) -> dict[int, Thread]:
    """The threads of a process; none if it is gone."""
    folder = f"/proc/{pid}/task"
    try:
        names = os.listdir(folder)
    except OSError:
        return {}
    found = {int(name): _thread(f"{folder}/{name}") for name in names}
    return {tid: thread for tid, thread in found.items() if thread is not None}


def _thread(folder: str) -> Thread | None:
    stat = _read(f"{folder}/stat")
    if not stat:
        return None  # it has ended since we listed it
    fields = stat[stat.rindex(b")") + 2 :].split()
    counts = [int(word) for word in _read(f"{folder}/schedstat").split()] or [0, 0, 0]
    return Thread(
        state=_STATES.get(fields[0], ThreadState.UNKNOWN),
        ticks=int(fields[11]) + int(fields[12]),
        ran_ns=counts[0],
        waited_ns=counts[1],
        slices=counts[2],
    )


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""
