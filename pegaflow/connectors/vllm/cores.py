"""Where the threads of ours that live in an engine's process run, and how they yield to it.

vLLM's CPU backend has OpenMP bind each thread of a worker to a core of its own
(VLLM_CPU_OMP_THREADS_BIND), the main thread to the first.  A thread that the main thread starts
inherits that: ours would share one core with the engine's loop.  So each thread of ours chooses its
cores:

* the cores that the engine leaves: those that the engine may use, less those that it is bound to;
* all that the engine may use, if it is bound to every one of them, or to none.

The engine may use the cores of the process that started this one, if that process is of the same
engine (it came by multiprocessing), for our own mask may be a bound one already.  A user's
`taskset` holds for both.  Bound is a thread whose mask is smaller than that; other ranks are
children of the same parent.  Threads of ours are known by their scheduling class, and are not
counted.

A thread that steps aside is of class SCHED_BATCH: when it wakes it takes no core from a thread of
the engine, and waits for its turn.  It keeps its weight, for while it holds the interpreter's lock
the engine may wait for it.  What it starts (the threads of ZeroMQ) inherits all of this.
"""

import contextlib
import multiprocessing
import os
from pathlib import Path


def step_aside() -> None:
    """Let the calling thread keep out of the engine's way, as far as the kernel lets it."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, left_over())
    with contextlib.suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


def left_over() -> set[int]:
    """The cores that the engine leaves, or all that it may use."""
    parent = multiprocessing.parent_process()
    family = [os.getpid()]
    own = _masks(os.getpid())
    allowed = set().union(*own)
    if parent is not None and parent.pid is not None:
        allowed |= set().union(*_masks(parent.pid))
        family = _children(parent.pid) or family
    bound: set[int] = set()
    for pid in family:
        bound |= set().union(*(mask for mask in _masks(pid) if mask < allowed))
    return (allowed - bound) or allowed


def _masks(pid: int) -> list[set[int]]:
    """The cores of each thread of a process, but of those that have stepped aside."""
    found = []
    for tid in _numbers(Path(f"/proc/{pid}/task")):
        with contextlib.suppress(OSError):
            if os.sched_getscheduler(tid) != os.SCHED_BATCH:
                found.append(os.sched_getaffinity(tid))
    return found


def _children(pid: int) -> list[int]:
    """The children of all threads of a process; none where the kernel does not list them."""
    found: list[int] = []
    for tid in _numbers(Path(f"/proc/{pid}/task")):
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{pid}/task/{tid}/children").read_text().split())
    return found


def _numbers(folder: Path) -> list[int]:
    try:
        return [int(name) for name in os.listdir(folder)]
    except OSError:
        return []
