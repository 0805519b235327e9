"""The device of a session: bounce files, engines' memory, and both with the pool; client processes.
And the shared memory in which the session finds and keeps blocks by itself (hazards.py).

Copies run in the worker threads.  What no engine waits for has threads of its own, which give way.
GPU memory is moved by threads of its device (pegaflow/device/engine/lanes.py), and whole; others
open it, for the first memory of a device waits for the driver, and one more makes what a spare has
ahead.  Any other copy is cut into as many parts as there are threads, so that a single large load
is moved by all of them.
"""

import os
import threading
from collections.abc import Callable
from functools import partial

import numpy as np
from xxhash import xxh3_64_intdigest

from pegaflow.actors.runtime.loop import Loop
from pegaflow.actors.runtime.mapped import Mapped, ledger_file
from pegaflow.actors.runtime.member import Member
from pegaflow.actors.runtime.workers import Part, Workers
from pegaflow.core.errors import UserError
from pegaflow.core.pool.columns import column, said
from pegaflow.core.pool.finder import Finder
from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.hazards import ROWS_MOST, Hazards, LentRows, cut, hazard_bytes
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.pool.table import TableReader
from pegaflow.device import gpuusers, locks, membarrier, pagetables
from pegaflow.device.engine.cuda_ipc import Gpus, Opened
from pegaflow.device.engine.process_vm import ForeignMemory
from pegaflow.device.engine.staged import Bounce
from pegaflow.device.memory import SharedFile
from pegaflow.device.procs import open_pidfd
from pegaflow.wire.control import Welcome
from pegaflow.wire.gpujobs import GpuWarmed, MapGpu, PinPages, WarmGpu
from pegaflow.wire.jobs import (
    BounceOpened,
    Done,
    DrawProof,
    EnterPages,
    FillPages,
    MapEngine,
    OpenBounce,
    PagesDiffer,
    PagesEntered,
    PagesSummed,
    ProofDrawn,
    ReadBlocks,
    Result,
    SumPages,
    UnmapEngine,
    WatchProcess,
    WriteBlocks,
)
from pegaflow.wire.message import Message
from pegaflow.wire.session import PROOF_BYTES
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Count
from pegaflow.wire.values import Address

from .hazards import Opened as OpenedHazards
from .registration import AT_ONCE_SPARE

PART_BYTES: Bytes = 1 << 20
"""Least bytes of a part: to wake another thread costs as much as copying some hundred KiB."""

OPENERS_MAX: Count = 8
"""Ranks whose GPU memory is opened at once: each on a device of its own, of which a host has about
as many."""


class Copies:
    """One session's mappings.

    Args:
        pool: the pool's file.
        stem: path that the names of our bounce files begin with.
        threads: how many parts a copy is worth cutting into.
    """

    def __init__(self, pool: SharedFile, stem: str, threads: int) -> None:
        self._pool = pool
        self._stem = stem
        self._threads = threads
        self._bounces: dict[int, Bounce] = {}  # by mapping
        self._engines: dict[int, ForeignMemory] = {}  # by mapping
        self._gpus = Gpus(pool.address)
        self._opened: dict[int, Opened] = {}  # by mapping: GPU memory
        self._said = threading.Lock()  # of `_uses_gpu`, held while that is said
        self._uses_gpu = False  # whether we have said that a GPU copies for us

    def parts(self, job: Message) -> list[Part]:
        """A job as parts for the threads, or one part if it is no copy."""
        if isinstance(job, FillPages):
            fill = self._bounces[job.mapping].fill
            pool, slots, places = self._pool.map, column(job.slots), column(job.offsets)

            def fill_part(first: int, last: int) -> Done:
                fill(pool, slots[first:last], places[first:last], job.payload_bytes)
                return Done(Status.OK)

            return self._cut(len(job.slots), job.payload_bytes, fill_part)
        if isinstance(job, SumPages):
            return [lambda: PagesSummed(said(self._sums(column(job.offsets), job.payload_bytes)))]
        if isinstance(job, ReadBlocks | WriteBlocks):
            engine = self._engines[job.mapping]
            move = engine.read if isinstance(job, ReadBlocks) else engine.write
            address = self._pool.address
            ids, pages = column(job.blocks), column(job.offsets)

            def move_part(first: int, last: int) -> Done | PagesDiffer:
                part = slice(first, last)
                differ = self._checked(job, part)
                if differ is not None:
                    return differ
                return Done(*move(address, ids[part], pages[part], job.deadline))

            return self._cut(len(job.blocks), engine.payload_bytes, move_part)
        if isinstance(job, EnterPages):
            return [lambda: PagesEntered(pagetables.enter(self._pool, job.offset, job.length))]
        if isinstance(job, OpenBounce):
            return [lambda: self._open_bounce(job)]
        if isinstance(job, MapGpu):
            return [lambda: self._map_gpu(job)]
        if isinstance(job, WarmGpu):
            return [lambda: GpuWarmed(*self._gpus.warm(job.gpu))]
        if isinstance(job, PinPages):
            return [lambda: self._pin(job)]
        assert isinstance(job, MapEngine), job
        return [lambda: self._map(job)]

    def by_gpu(self, job: Message, over: Callable[[Result], None]) -> bool:
        """Leave a job to the threads of a GPU, if it is about memory there.

        Args:
            over: called with its result, by any thread.
        """
        if isinstance(job, UnmapEngine):
            opened = self._opened.pop(job.mapping, None)
            if opened is not None:
                opened.close(lambda: over(Done(Status.OK)))
            return opened is not None
        if not (isinstance(job, ReadBlocks | WriteBlocks) and job.mapping in self._opened):
            return False
        opened, ids, pages = self._opened[job.mapping], column(job.blocks), column(job.offsets)
        if isinstance(job, ReadBlocks):
            opened.read(ids, pages, job.deadline, over)
        else:
            check = partial(self._checked, job, slice(None))
            opened.write(ids, pages, job.deadline, over, check=check)
        return True

    def _map_gpu(self, job: MapGpu) -> Done:
        with self._said:
            if not self._uses_gpu:
                gpuusers.leave(self._stem)  # once for all, before the first is opened
            self._uses_gpu = True
        self._opened[job.mapping] = self._gpus.open(
            job.memory, job.layout, pid=job.pid, started_ticks=job.started_ticks
        )
        return Done(Status.OK)

    def _pin(self, job: PinPages) -> Done:
        self._gpus.pin(job.offset, job.length)
        return Done(Status.OK)

    def _cut(self, count: int, size: int, part: Callable[[int, int], Result]) -> list[Part]:
        """Parts of about equal size over `count` blocks of `size` bytes."""
        cuts = max(1, min(self._threads, count, count * size // PART_BYTES))
        edges = [count * n // cuts for n in range(cuts + 1)]
        return [
            lambda first=first, last=last: part(first, last)  # type: ignore[misc]
            for first, last in zip(edges, edges[1:], strict=False)
        ]

    def _sums(self, offsets: U64, payload_bytes: int) -> U64:
        """Checksums of the pool's bytes; never 0, which means that there is none."""
        with memoryview(self._pool.map) as pool:
            pages = (pool[at : at + payload_bytes] for at in offsets.tolist())
            return np.fromiter((xxh3_64_intdigest(page) or 1 for page in pages), np.uint64)

    def _checked(self, job: ReadBlocks | WriteBlocks, part: slice) -> PagesDiffer | None:
        """What of a part does not hold what was sealed; None: nothing, as far as that is asked."""
        if isinstance(job, ReadBlocks) or not job.checksums:
            return None
        pages, sums = column(job.offsets)[part], column(job.checksums)[part]
        bad = self._differing(pages, sums, job.summed_bytes)
        return PagesDiffer(said(bad)) if len(bad) else None

    def _differing(self, offsets: U64, sums: U64, payload_bytes: int) -> U64:
        """The offsets where the pool does not hold what was sealed."""
        differ: U64 = offsets[(sums != 0) & (sums != self._sums(offsets, payload_bytes))]
        return differ

    def _open_bounce(self, job: OpenBounce) -> BounceOpened | Done:
        name = f"{job.slots}x{job.page_size}.{os.urandom(4).hex()}.bounce"
        bounce = Bounce(f"{self._stem}.{name}", job.slots, job.page_size)
        why = bounce.reserve()
        if why:
            bounce.file.unlink()
            return Done(Status.NO_SPACE, f"no room for a bounce file in /dev/shm: {why}")
        self._bounces[job.mapping] = bounce
        return BounceOpened(bounce.file.path, bounce.file.id)

    def _map(self, job: MapEngine) -> Done:
        self._engines[job.mapping] = ForeignMemory(
            pid=job.pid,
            started_ticks=job.started_ticks,
            bases=tuple(job.bases),
            layout=job.layout,
            scratch=job.scratch,
            proof=job.proof,
        )
        return Done(Status.OK)

    def unmap(self, mapping: int) -> None:
        """Running copies of this mapping stop at their next chunk; new ones are not asked for."""
        engine = self._engines.pop(mapping, None)
        if engine is not None:
            engine.closed = True
        bounce = self._bounces.pop(mapping, None)
        if bounce is not None:
            bounce.file.unlink()

    def close(self) -> None:
        """Remove what only this process used."""
        for bounce in self._bounces.values():
            bounce.file.unlink()


class Reader:
    """What the session looks up by itself in: the ledger, and a hazard file of its own."""

    def __init__(self, address: Address, supervisor: Address) -> None:
        self._address, self._supervisor = address, supervisor
        self._file: SharedFile | None = None  # with hazards

    def open_finder(self, welcome: Welcome) -> Finder:
        """The ledger, and the index's table in it, for reading alone.

        Raises:
            UserError: it cannot be mapped.
        """
        try:
            file = ledger_file(welcome, self._supervisor, write=False)
        except OSError as err:
            raise UserError(f"cannot map {err.filename}: {err.strerror}") from None
        geometry = Geometry(welcome.pool_bytes, welcome.extent_bytes)
        ledger = Ledger(file.map, file.read)
        return Finder(ledger, TableReader(file.map, ledger.records), geometry)

    def open_hazards(self, welcome: Welcome) -> OpenedHazards:
        """A hazard file, for an index that makes our stores visible by a barrier.

        Raises:
            UserError: there is no room, or no barrier.
        """
        why = membarrier.register()
        if why:
            raise UserError(f"there is no memory barrier: {why}")
        path = f"{welcome.ledger_path.removesuffix('.ledger')}.{self._address}.hazards"
        try:
            file = SharedFile.create(path, hazard_bytes(ROWS_MOST, sections=2))
        except FileExistsError:
            raise UserError(f"{path} is somebody else's") from None
        self._file = file
        locks.take(file.fd)
        why = file.reserve(0, file.length)
        if why:
            self.close()
            raise UserError(f"no room for hazards in /dev/shm: {why}")
        own, lent = cut(file.map, 2)
        return OpenedHazards(Hazards(own), LentRows(lent), path, file.id)

    def close(self) -> None:
        """Remove the hazard file's name; an index that knows it goes on honouring it."""
        if self._file is not None:
            self._file.unlink()


class SessionDevice:
    """The jobs of a session, carried out."""

    def __init__(self, member: Member, reader: Reader) -> None:
        self._member, self._reader = member, reader
        self._files = Mapped(member)
        self._loop: Loop | None = None
        self._copies: Copies | None = None  # from the first job that needs the pool
        self._workers = Workers()
        self._savers: Workers | None = None  # what no engine waits for
        self._pinners: Workers | None = None  # of the pool with a driver, if there is one
        self._warmers: Workers | None = None  # of GPUs that a spare is to be ready for
        self._openers: Workers | None = None  # of engines' memory on GPUs, if there is any
        self._to_open = 0  # memories that were asked of them so far

    def attach(self, loop: Loop) -> None:
        """Deliver completions into this loop."""
        self._loop = loop
        self._workers.deliver_to(loop)

    def work(self, number: int, job: Message) -> Result | None:
        """Do a job at once, or leave it to the worker threads."""
        if isinstance(job, WatchProcess):
            return self._watch(number, job)
        if isinstance(job, DrawProof):
            return ProofDrawn(os.urandom(PROOF_BYTES))
        over = partial(self._workers.ended, number)
        if self._copies is not None and self._copies.by_gpu(job, over):
            return None
        if isinstance(job, UnmapEngine):
            if self._copies is not None:
                self._copies.unmap(job.mapping)
            return Done(Status.OK)
        try:
            copies = self._open()
        except OSError as err:
            path = self._files.welcome.pool_path
            gone = f"cannot map {path}: {err.strerror}; restart the service"
            return Done(Status.COPY_FAILED, gone)
        self._workers_for(job).put(number, *copies.parts(job))
        return None

    def _workers_for(self, job: Message) -> Workers:
        """Who does it.  Copies wait for no context; and who makes one starts the threads of that
        device, which give way no more than it does."""
        if isinstance(job, WarmGpu):
            self._warmers = self._warmers or self._delivering(Workers())
            return self._warmers
        if isinstance(job, MapGpu):
            self._openers = self._openers or self._delivering(Workers())
            self._to_open += 1
            self._openers.grow(min(OPENERS_MAX, self._to_open))
            return self._openers
        if isinstance(job, PinPages):
            if self._pinners is None:
                self._pinners = self._delivering(Workers(yielding=True))
                self._pinners.grow(AT_ONCE_SPARE)
            return self._pinners
        patient = isinstance(job, EnterPages | FillPages | ReadBlocks | SumPages)
        return self._savers if patient and self._savers is not None else self._workers

    def _delivering(self, workers: Workers) -> Workers:
        assert self._loop is not None
        workers.deliver_to(self._loop)
        return workers

    def _open(self) -> Copies:
        if self._copies is None:
            assert self._loop is not None
            welcome, pool = self._files.welcome, self._files.pool()
            self._workers.grow(welcome.copy_threads)
            self._savers = Workers(yielding=True)
            self._savers.grow(welcome.copy_threads)
            self._savers.deliver_to(self._loop)
            stem = f"{welcome.ledger_path.removesuffix('.ledger')}.{self._member.address}"
            self._copies = Copies(pool, stem, welcome.copy_threads)
        return self._copies

    def _watch(self, number: int, job: WatchProcess) -> Done | None:
        fd = open_pidfd(job.pid, job.started_ticks)
        if fd is None:
            return Done(Status.OK)
        loop = self._loop
        assert loop is not None

        def dead() -> None:
            loop.unwatch(fd)
            os.close(fd)
            loop.complete(number, Done(Status.OK))

        loop.watch(fd, dead)
        return None

    def close(self) -> None:
        """Remove what only this process used."""
        self._reader.close()
        if self._copies is not None:
            self._copies.close()
