"""Device threads: they take work from a queue and wake the loop when a job is done.

A worker holds no lock of the loop, and its copies release the GIL, so a long copy never delays a
message.  A job may be cut into parts, which the threads share; it is done when its last part is,
and its result is that of the first part that failed.  Threads whose work can wait yield to whoever
computes on this machine: they take no core from anybody when they wake, and weigh little.  An error
that nobody expected ends the process: a job without an end would be waited for in vain.
"""

import os
import queue
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from pegaflow.core.errors import UserError
from pegaflow.wire.jobs import Done, Result
from pegaflow.wire.status import Status
from pegaflow.wire.units import Constant

if TYPE_CHECKING:
    from .loop import Loop

Part = Callable[[], Result]

YIELDING_NICE: Constant = 10
"""A tenth of the weight of an engine's thread; beside one that waits for nothing a copy still gets
some hundred MB/s."""


class _Job:
    """One job and what is left of it."""

    def __init__(self, number: int, parts: int) -> None:
        self.number = number
        self.left = parts
        self.result: Result = Done(Status.OK)
        self.lock = threading.Lock()  # held for a few instructions by whoever ends a part

    def end(self, result: Result) -> bool:
        """A part is over; whether it was the last one."""
        with self.lock:
            if self.result.ok:
                self.result = result
            self.left -= 1
            return self.left == 0


class Workers:
    """One thread, or more once `grow` has been called; completions are collected from `fd`.

    Args:
        yielding: whether the work can wait.
    """

    def __init__(self, yielding: bool = False) -> None:
        self._yielding = yielding
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._threads = 0
        self._parts: queue.SimpleQueue[tuple[_Job, Part]] = queue.SimpleQueue()
        self._done: deque[tuple[int, Result]] = deque()
        self.grow(1)

    def grow(self, count: int) -> None:
        """Have at least so many threads."""
        while self._threads < count:
            name = f"worker-{self._threads}"
            threading.Thread(target=self._run, name=name, daemon=True).start()
            self._threads += 1

    def put(self, number: int, *parts: Part) -> None:
        """Do a job some time.

        Args:
            number: under which it is completed.
            *parts: run by whichever threads are free, in any order; the result is that of the first
                that fails, else of any.
        """
        job = _Job(number, len(parts))
        for part in parts:
            self._parts.put((job, part))

    def ended(self, number: int, result: Result) -> None:
        """A job is done, by a thread of ours or by another's."""
        self._done.append((number, result))
        os.eventfd_write(self.fd, 1)

    def deliver_to(self, loop: "Loop") -> None:
        """Complete the jobs of this loop."""

        def collect() -> None:
            for number, result in self.collect():
                loop.complete(number, result)

        loop.watch(self.fd, collect)

    def collect(self) -> list[tuple[int, Result]]:
        """What is done; call when `fd` is readable."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return []
        done = []
        while self._done:
            done.append(self._done.popleft())
        return done

    def _run(self) -> None:
        if self._yielding:
            give_way()
        while True:
            job, part = self._parts.get()
            try:
                result = part()
            except (OSError, UserError) as err:
                result = Done(Status.COPY_FAILED, str(err))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            if job.end(result):
                self.ended(job.number, job.result)


def give_way() -> None:
    """Let the calling thread yield to others, as far as the kernel lets it, and never less than
    the thread that started it."""
    own = threading.get_native_id()
    nice = max(YIELDING_NICE, os.getpriority(os.PRIO_PROCESS, own))
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, own, nice)
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
