"""The device of the flusher: its directories, and the threads that wait for them.

Reads have threads of their own: a lookup waits for them, and they must not stand behind writes.
The process gives way to sessions and engines on a busy machine.
"""

import os

from pegaflow.actors.runtime.loop import Loop
from pegaflow.actors.runtime.mapped import pool_file
from pegaflow.actors.runtime.member import Member
from pegaflow.actors.runtime.workers import Workers
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.device.disk import Disk
from pegaflow.device.ssdfolder import Known
from pegaflow.wire.diskjobs import ReadRun
from pegaflow.wire.jobs import Done, Result
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.units import Constant, Count

from .tier import BATCH_PARTS

KNOWN = "ssd.json"
"""File in the run directory: which log was in which directory when it was used last."""

READERS_MAX: Count = 32
"""Threads that read: each of them waits in the kernel for most of its time, and more of them than
this only wait for each other."""

NICE: Constant = 5
"""How far the flusher's threads give way: a quarter of the others' share of a busy core."""


class FlushDevice:
    """The job records of the flusher, carried out."""

    def __init__(self, member: Member, plan: FlushPlan) -> None:
        os.nice(NICE)
        self._member = member
        self._plan = plan
        self._disk: Disk | None = None
        self._reads, self._others = Workers(), Workers()
        self._reads.grow(min(READERS_MAX, plan.prefetch_inflight * len(plan.paths)))
        self._others.grow((plan.write_inflight * BATCH_PARTS + 2) * len(plan.paths))

    def attach(self, loop: Loop) -> None:
        """Deliver completions into this loop."""
        self._reads.deliver_to(loop)
        self._others.deliver_to(loop)

    def work(self, number: int, job: Message) -> Result | None:
        """Leave a job to a thread."""
        try:
            disk = self._open()
        except OSError as err:
            return Done(Status.COPY_FAILED, f"cannot map the pool: {err.strerror}; restart")
        workers = self._reads if isinstance(job, ReadRun) else self._others
        workers.put(number, lambda: disk.work(job))
        return None

    def _open(self) -> Disk:
        if self._disk is None:
            assert self._member.welcome is not None
            welcome = self._member.welcome
            pool = pool_file(welcome, self._member.supervisor)
            known = Known(os.path.join(welcome.run_dir, KNOWN))
            self._disk = Disk(self._plan.paths, self._plan.floor_bytes, pool, known=known)
        return self._disk

    def close(self) -> None:
        """Nothing: files and locks end with the process."""
