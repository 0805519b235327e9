"""The supervisor and its children, as the shell would run them.

`HostProc` is to a simulated process what Loop and a device (device.py of each actor) are to a real
one, and `House` is what serve.py is to the supervisor.  Reading records and watching a process are
done at once, everything else by worker threads, a step at a time, so that a pause or a death may
fall between two pieces of a copy.  With the supervisor's process all others die, and the next one
adopts the pool.  An index may die between any two words that it writes into the ledger.
"""

from collections import deque
from dataclasses import dataclass

from pegaflow.actors.allocator.actor import Allocator
from pegaflow.actors.flusher.actor import Flusher
from pegaflow.actors.gateway.actor import Gateway
from pegaflow.actors.index.actor import Index
from pegaflow.actors.runtime.contract import Actor, Dial, Hangup
from pegaflow.actors.runtime.host import Host, Step
from pegaflow.actors.runtime.member import member_of
from pegaflow.actors.session.actor import Session
from pegaflow.actors.supervisor.actor import Supervisor
from pegaflow.actors.supervisor.children import ChildState
from pegaflow.actors.supervisor.plan import Plan
from pegaflow.actors.supervisor.watchdog import SERVE_NS
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.ledger import Header, Ledger
from pegaflow.core.pool.scan import occupied
from pegaflow.core.pool.table import file_bytes
from pegaflow.wire.control import SILENT_NS, Fenced, Hello, Report
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import Incarnation, PageId
from pegaflow.wire.jobs import (
    Announce,
    CheckFiles,
    Done,
    DrawProof,
    EnterPages,
    Exited,
    FilesChecked,
    GrowExtent,
    IncarnationDrawn,
    Kill,
    Listen,
    Listening,
    Look,
    Looked,
    NextIncarnation,
    OpenPool,
    PagesEntered,
    PoolOpened,
    ProofDrawn,
    Publish,
    ReadRecords,
    RecordsRead,
    RecordsScanned,
    Result,
    ScanRecords,
    Spawn,
    Spawned,
    Stopping,
    ThreadState,
    UnmapEngine,
    WatchProcess,
)
from pegaflow.wire.message import Message
from pegaflow.wire.session import PROOF_BYTES
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, FLUSHER, GATEWAY, INDEX, SESSION, SUPERVISOR, Address
from tests.naming import as_pages

from .disk import FlushWork
from .files import Device, Files, Reader, Work, at_once
from .fragile import IndexMemory
from .world import CLEAN_END, MS, US, Proc, S, World

EXTENTS_SURE = 3
"""Extents for which there always is room."""

COPY_THREADS = 2
"""Of a session, as the setting has it."""

DISK_THREADS = 6
"""Of the flusher."""

STUCK_NS = 5 * S
"""So long no child hangs under a supervisor that was awake all the time."""


@dataclass(slots=True)
class _Job:
    """A job of the workers."""

    number: int
    left: int  # parts of it that are not over
    result: Result = Done(Status.OK)  # of the first that failed, or of the last


class HostProc(Proc):
    """A process that runs an actor."""

    def __init__(self, world: World, files: Files, address: Address) -> None:
        super().__init__(world, address)
        self.files = files
        self.host: Host | None = None  # None until the process has come up
        self.fenced: dict[Address, Address] = {}  # dead lives, and the index that said Fenced
        self._completions: deque[tuple[int, Result]] = deque()
        self._parts: deque[tuple[_Job, Work]] = deque()  # that no worker has begun
        self._idle = 1  # workers

    def begin(self, host: Host) -> None:
        """The actor's first step."""
        self.host = host
        self.input(lambda: self.apply(host.start(self.world.now)))

    def on_envelope(self, envelope: Envelope, frames: list[bytes]) -> None:
        """A message for the actor."""
        if self.host is None:
            return
        if isinstance(envelope.message, Fenced) and envelope.sender not in self.host._gone:
            self.fenced[envelope.message.address] = envelope.sender
        self.apply(self.host.deliver(envelope, self.world.now, frames))

    def wake_at(self) -> int | None:
        """The actor's."""
        return self.host.wake_at() if self.host is not None else None

    def wake(self) -> None:
        """The actor's."""
        assert self.host is not None
        self.apply(self.host.wake(self.world.now))

    def inform(self, msg: Message) -> None:
        """The shell tells the actor."""
        assert self.host is not None
        self.apply(self.host.inform(msg, self.world.now))

    def apply(self, step: Step) -> None:
        """Do what the actor wants, then what its finished jobs lead to."""
        assert self.host is not None
        self._effects(step)
        while self._completions and self.alive:
            number, result = self._completions.popleft()
            self._effects(self.host.complete(number, result, self.world.now))

    def work(self, number: int, job: Message) -> Result | None:
        """Subclass: carry out a job; None: later."""
        raise NotImplementedError

    def slowly(self, number: int, parts: list[Work]) -> None:
        """Leave this to the workers."""
        job = _Job(number, len(parts))
        self._parts.extend((job, part) for part in parts)
        while self._idle and self._parts:
            self._idle -= 1
            self._turn_worker(*self._parts.popleft())

    def complete(self, number: int, result: Result) -> None:
        """A job is over."""
        assert self.host is not None
        self.apply(self.host.complete(number, result, self.world.now))

    def _effects(self, step: Step) -> None:
        for link in step.links:
            if isinstance(link, Dial):
                self.dial(link.address)
            elif isinstance(link, Hangup):
                self.hang_up(link.address)
        for envelope in step.envelopes:
            self.world.send(self, envelope)
        for number, job in step.jobs:
            result = self.work(number, job)
            if result is not None:
                self._completions.append((number, result))
        if step.stop is not None:
            self.die(step.stop or CLEAN_END)

    def _turn_worker(self, job: _Job, part: Work) -> None:
        def turn() -> None:
            try:
                next(part)
            except StopIteration as end:
                self._part_over(job, end.value)
            else:
                self._turn_worker(job, part)

        slow = self.world.rough and self.world.rng.random() < 0.02
        self.after(self.world.between(5 * US, 20 * MS if slow else 300 * US), turn)

    def _part_over(self, job: _Job, result: Result) -> None:
        if job.result.ok:
            job.result = result
        job.left -= 1
        if self._parts:
            self._turn_worker(*self._parts.popleft())
        else:
            self._idle += 1
        if not job.left:
            self.complete(job.number, job.result)


class ChildProc(HostProc):
    """An allocator, an index, a session or the gateway."""

    def __init__(self, world: World, files: Files, address: Address, boss: Address) -> None:
        super().__init__(world, files, address)
        hello = Hello(self.pid, self.started_ticks, str(address))
        self.actor: Actor
        self.memory = IndexMemory(world, files)
        self._disk: FlushWork | None = None
        if address.name == INDEX:
            self.actor = Index(address, boss, hello, self.memory)
        elif address.name == FLUSHER:
            assert files.plan is not None
            self.actor = Flusher(address, boss, hello, files.plan)
            self._idle = DISK_THREADS
        elif address.name == SESSION:
            reader = Reader(address, world, files)
            self.actor = Session(
                address,
                boss,
                hello,
                open_hazards=reader.open_hazards,
                open_finder=reader.open_finder,
            )
        else:
            kinds = {ALLOCATOR: Allocator, GATEWAY: Gateway}
            self.actor = kinds[address.name](address, boss, hello)
        self.boss = world.procs[boss]
        self.shown: Report | None = None  # what HTTP answers from
        self._device: Device | None = None
        self.dial(boss)

    def _read(self, job: ReadRecords, path: str) -> RecordsRead:
        void = Ledger(self.files.named[path]).are_void(job.pages)
        return RecordsRead(tuple(p for p, v in zip(job.pages, void, strict=True) if not v))

    def _read_later(self, job: ReadRecords, path: str) -> Work:
        yield
        return self._read(job, path)

    def _scan(self, job: ScanRecords, path: str) -> Work:
        """Record by record, while others write."""
        pages: list[int] = []
        payloads: list[int] = []
        for page in range(job.first, job.first + job.count):
            found, lengths = occupied(Ledger(self.files.named[path]), PageId(page), 1)
            pages += found.tolist()
            payloads += lengths.tolist()
            yield
        return RecordsScanned(as_pages(*pages), tuple(payloads))

    def resume(self) -> None:
        """Whoever was stuck for so long is dead by now."""
        stuck = self.world.now - self.stopped_at >= STUCK_NS and not self.waited(self.stopped_at)
        if self.alive and stuck and self.boss.stopped_at < self.stopped_at - SILENT_NS:
            assert isinstance(self.boss, House)
            child = self.boss.supervisor.children[self.address]
            assert child.state is ChildState.STARTING, f"{self.address} hung and was not killed"
        super().resume()

    def lasts(self) -> int:
        """As long as the device of a session may read or write for it."""
        return self._device.gpus.lasts() if self._device is not None else 0

    def over(self) -> None:
        """The driver has taken it from its devices."""
        super().over()
        if self._device is not None:
            self._device.gpus.take_down()

    def work(self, number: int, job: Message) -> Result | None:
        """The jobs of the device.py of each actor."""
        world = self.world
        welcome = member_of(self.actor).welcome
        if isinstance(job, WatchProcess):
            proc = world.by_pid.get(job.pid)
            if proc is None or not proc.alive or proc.started_ticks != job.started_ticks:
                return Done(Status.OK)
            proc.watch(lambda: self.input(lambda: self.complete(number, Done(Status.OK))))
            return None
        assert welcome is not None
        if isinstance(self.actor, Flusher):
            if self._disk is None:
                pool = self.files.named[welcome.pool_path]
                self._disk = FlushWork(world, self, self.files, pool)
            self.slowly(number, [self._disk.part(job)])
            return None
        if isinstance(job, Listen):
            busy = world.rough and world.rng.random() < 0.3
            return Done(Status.BUSY, job.address) if busy else Listening(job.address, 1)
        if isinstance(job, Publish):
            self.shown = job.report
            return Done(Status.OK)
        if isinstance(job, ReadRecords):
            if world.rng.random() < 0.7:
                return self._read(job, welcome.ledger_path)
            self.slowly(number, [self._read_later(job, welcome.ledger_path)])
            return None
        if isinstance(job, ScanRecords):
            self.slowly(number, [self._scan(job, welcome.ledger_path)])
            return None
        if isinstance(job, GrowExtent):
            there = job.extent < EXTENTS_SURE or not world.rough or world.rng.random() < 0.9
            if not there:
                world.counts["no room for an extent"] += 1
            self.slowly(number, [at_once(Done(Status.OK if there else Status.NO_SPACE))])
            return None
        if isinstance(job, EnterPages):
            return PagesEntered(job.length)
        if isinstance(job, DrawProof):
            return ProofDrawn(world.rng.randbytes(PROOF_BYTES))
        if self._device is None:
            self._idle = COPY_THREADS
            pool = self.files.named[welcome.pool_path]
            self._device = Device(self, self.files, pool, self.complete)
        if self._device.gpus.takes(number, job):
            return None
        if isinstance(job, UnmapEngine):
            self._device.unmap(job)
            return Done(Status.OK)
        self.slowly(number, self._device.parts(job))
        return None


class House(HostProc):
    """The supervisor's process, and the memory that it makes."""

    def __init__(self, world: World, files: Files, plan: Plan, pool: Geometry) -> None:
        self.geometry = pool
        if files.paths is None:
            self._make(files)
        assert files.paths is not None
        self.ledger = Ledger(files.named[files.paths[1]])
        self.incarnation = Incarnation(self.ledger.header.incarnation + 1)
        self.ledger.set_incarnation(self.incarnation)
        super().__init__(world, files, Address(SUPERVISOR, self.incarnation))
        files.unlink(".bounce", ".hazards")
        self.plan = plan
        self.supervisor = Supervisor(self.address, plan)
        self.begin(Host(self.supervisor))

    def stop(self) -> None:
        """SIGTERM."""
        self.input(lambda: self.inform(Stopping()))

    def die(self, why: str) -> None:
        """All children share its fate."""
        if not self.alive:
            return
        super().die(why)
        for proc in self.world.alive():
            if isinstance(proc, ChildProc):
                proc.die("its supervisor is gone")

    def work(self, number: int, job: Message) -> Result | None:
        """The jobs of serve.py."""
        if isinstance(job, OpenPool):
            assert self.files.paths is not None
            pool, ledger = self.files.paths
            size, extent = self.geometry.pool_bytes, self.geometry.extent_bytes
            return PoolOpened(pool, ledger, size, extent, pool_file=(), ledger_file=())
        if isinstance(job, NextIncarnation):
            self.incarnation = Incarnation(self.incarnation + 1)
            self.ledger.set_incarnation(self.incarnation)
            return IncarnationDrawn(self.incarnation)
        if isinstance(job, Spawn):
            return self._spawn(job.address)
        if isinstance(job, Announce):
            return Done(Status.OK)
        if isinstance(job, CheckFiles):
            return FilesChecked((), ())
        assert isinstance(job, Kill | Look)
        child = self.world.procs.get(job.address)
        if isinstance(job, Look):
            waited = child.waited(job.since_ns) if child is not None else 0
            return Looked(waited, 0, self.world.now, ThreadState.UNKNOWN)
        if child is not None:
            self.world.at(self.world.now + self.world.delay(), lambda: child.die("killed"))
        return Done(Status.OK)

    def _effects(self, step: Step) -> None:
        for note in step.notes:
            if note.event == "child_silent":
                self._judge(dict(note.facts))
            elif note.event == "child_starved":
                self.world.counts["a starved child is waited for"] += 1
        super()._effects(step)

    def _judge(self, facts: dict[str, str | int]) -> None:
        """The watchdog kills a child: has that had its time?"""
        children = self.supervisor.children
        child = next(c for c in children if str(c.address) == facts["child"])
        silent = int(facts["silent_ms"]) * MS
        had = silent - self.world.procs[child.address].waited(self.world.now - silent)
        enough = had >= (SERVE_NS if child.state is ChildState.ASSIGNED else SILENT_NS)
        assert enough, (
            f"{child.address} is killed, and had {had / 1e6:.0f} of {silent / 1e6:.0f} ms"
        )
        self.world.counts["a hung child is killed"] += 1

    def _make(self, files: Files) -> None:
        g = self.geometry
        files.paths = ("1.pool", "1.ledger")
        files.create(files.paths[0], g.pool_bytes)
        ledger = files.create(files.paths[1], file_bytes(g.records))
        header = Header(
            bytes(16),
            b"boot",
            g.pool_bytes,
            g.extent_bytes,
            records_per_extent=g.records_per_extent,
            incarnation=files.incarnation,
        )
        Ledger.format(ledger, header)

    def _spawn(self, address: Address) -> Spawned:
        child = ChildProc(self.world, self.files, address, self.address)
        child.after(self.world.between(5 * MS, 150 * MS), lambda: child.begin(Host(child.actor)))

        def dead() -> None:
            self.files.unlink(f"{address}.")
            self.input(lambda: self.inform(Exited(address, child.exit_code)))

        child.watch(dead)
        return Spawned(child.pid, child.started_ticks)
