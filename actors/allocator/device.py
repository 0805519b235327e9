"""The device of the allocator: what the ledger says of pages, and extents of the pool.

A single look at some records is done at once; to scan many, or to have the kernel give memory, is
left to a thread.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pegaflow.actors.runtime.loop import Loop
from pegaflow.actors.runtime.mapped import Mapped
from pegaflow.actors.runtime.member import Member
from pegaflow.actors.runtime.workers import Workers
from pegaflow.core.pool.columns import column, said
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.pool.scan import occupied
from pegaflow.device import numa
from pegaflow.device.memory import Extents
from pegaflow.wire.jobs import (
    Done,
    GrowExtent,
    ReadRecords,
    RecordsRead,
    RecordsScanned,
    Result,
    ScanRecords,
)
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status


class AllocatorDevice:
    """The jobs of the allocator, carried out."""

    def __init__(self, member: Member) -> None:
        self._files = Mapped(member)
        self._workers = Workers()
        self._records: Ledger | None = None  # of the ledger's file
        self._extents: Extents | None = None
        self._nodes: list[int] = []  # of memory, that have GPUs; none where there is no choice

    def attach(self, loop: Loop) -> None:
        """Deliver completions into this loop."""
        self._workers.deliver_to(loop)

    def work(self, number: int, job: Message) -> Result | None:
        """Do a job at once, or leave it to the thread."""
        if isinstance(job, ReadRecords):
            return self._read(job)
        if isinstance(job, ScanRecords):
            self._workers.put(number, lambda: self._scan(job))
            return None
        assert isinstance(job, GrowExtent), job
        self._workers.put(number, lambda: self._grow(job))
        return None

    def _ledger(self) -> Ledger:
        if self._records is None:
            file = self._files.ledger()
            self._records = Ledger(file.map, file.read)
        return self._records

    def _read(self, job: ReadRecords) -> RecordsRead:
        pages = column(job.pages)
        return RecordsRead(said(pages[~self._ledger().void_among(pages)]))

    def _scan(self, job: ScanRecords) -> RecordsScanned:
        return RecordsScanned(*map(said, occupied(self._ledger(), job.first, job.count)))

    def _grow(self, job: GrowExtent) -> Done:
        files = self._files
        if self._extents is None:
            self._extents = Extents(files.pool(), files.ledger(), files.geometry)
            if files.welcome.numa:
                self._nodes = numa.beside_gpus(files.welcome.gpus)
        if not self._nodes:
            why, elsewhere = self._extents.grow(job.extent), ""
        else:
            with self._placing(job.extent) as elsewhere:
                why = self._extents.grow(job.extent)
        return Done(Status.NO_SPACE, why) if why else Done(Status.OK, elsewhere)

    @contextmanager
    def _placing(self, extent: int) -> Iterator[str]:
        """Have an extent beside a GPU, if the kernel lets us; yields why not, for people."""
        node, size = self._nodes[extent % len(self._nodes)], self._files.geometry.extent_bytes
        pool = self._files.pool()
        if pool.huge:
            with numa.preferring(node) as why:
                yield self._said("set_mempolicy", node, why)
        else:
            yield self._said("mbind", node, numa.prefer(pool.address + extent * size, size, node))

    def _said(self, call: str, node: int, why: str) -> str:
        if not why:
            return ""
        self._nodes = []
        return f"{call} to node {node}: {why}; docker needs --cap-add SYS_NICE for it"

    def close(self) -> None:
        """Nothing: what it has mapped ends with the process."""
