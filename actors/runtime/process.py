"""Actors as processes: what each kind of child needs from its machine, and how it starts.

A child is spawned by exec from the supervisor's main thread (PDEATHSIG fires when that *thread*
ends), asks to die with it and is deaf to signals from its first instruction
(pegaflow/service/signals.py): it waits for the supervisor's Drain.  It learns by command line only
who it is and where the supervisor listens; the rest comes in Welcome.

When an assertion kills an actor, its last inputs are written to the run directory (blackbox.py).
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pegaflow.core.errors import UserError
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.device.memory import Extents, SharedFile
from pegaflow.device.procs import die_with_parent, open_pidfd, start_ticks
from pegaflow.service import logs, signals
from pegaflow.wire.control import Hello, Welcome
from pegaflow.wire.jobs import (
    Done,
    DrawProof,
    FillPages,
    GrowExtent,
    ReadBlocks,
    ReadRecords,
    ScanRecords,
    SetLog,
    SumPages,
    UnmapEngine,
    WatchProcess,
)
from pegaflow.wire.message import Message
from pegaflow.wire.session import PROOF_BYTES
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, FLUSHER, GATEWAY, INDEX, SESSION, SUPERVISOR, Address

from . import blackbox
from .contract import Actor
from .host import Host
from .loop import Loop
from .mapped import ledger_file, pool_file
from .member import member_of
from .vitals import Vitals
from .workers import Workers

if TYPE_CHECKING:
    from pegaflow.actors.flusher.device import FlushDevice
    from pegaflow.actors.gateway.device import HttpDevice
    from pegaflow.actors.session.device import Copies
    from pegaflow.service.settings import Settings

    from .tcp import Tcp


class _Device:
    """The job records of one child, carried out."""

    def __init__(self, actor: Actor) -> None:
        self._member = member_of(actor)
        self.loop: Loop | None = None
        self._pool: SharedFile | None = None
        self._ledger: SharedFile | None = None
        self._opening = threading.Lock()  # each of both is opened once: see locks.py
        self._records: Ledger | None = None  # of that file
        self._copies: Copies | None = None
        self._extents: Extents | None = None
        self._workers = Workers()
        self._savers: Workers | None = None  # of a session: what no engine waits for

    def attach(self, loop: Loop) -> None:
        """Deliver completions into this loop."""
        self.loop = loop
        self._collect(self._workers)

    def _collect(self, workers: Workers) -> None:
        loop = self.loop
        assert loop is not None

        def collect() -> None:
            for number, done in workers.collect():
                loop.complete(number, done)

        loop.watch(workers.fd, collect)

    def work(self, number: int, job: Message) -> Done | None:
        """Do a job at once, or leave it to the worker thread."""
        if isinstance(job, ReadRecords):
            return self._read_records(job)
        if isinstance(job, ScanRecords):
            self._workers.put(number, lambda: self._scan_records(job))
            return None
        if isinstance(job, WatchProcess):
            return self._watch(number, job)
        if isinstance(job, GrowExtent):
            self._workers.put(number, lambda: self._grow(job))
            return None
        if isinstance(job, DrawProof):
            return Done(Status.OK, os.urandom(PROOF_BYTES).hex())
        if isinstance(job, UnmapEngine):
            if self._copies is not None:
                self._copies.unmap(job.mapping)
            return Done(Status.OK)
        try:
            copies = self._session_copies()
        except OSError as err:
            gone = f"cannot map {self._welcome().pool_path}: {err.strerror}; restart the service"
            return Done(Status.COPY_FAILED, gone)
        save = isinstance(job, FillPages | ReadBlocks | SumPages)
        workers = self._savers if save and self._savers is not None else self._workers
        workers.put(number, *copies.parts(job))
        return None

    def _grow(self, job: GrowExtent) -> Done:
        why = self._space().grow(job.extent)
        return Done(Status.NO_SPACE, why) if why else Done(Status.OK)

    def _welcome(self) -> Welcome:
        assert self._member.welcome is not None
        return self._member.welcome

    def _pool_file(self) -> SharedFile:
        with self._opening:
            if self._pool is None:
                self._pool = pool_file(self._welcome(), self._member.supervisor)
            return self._pool

    def _ledger_file(self) -> SharedFile:
        with self._opening:
            if self._ledger is None:
                self._ledger = ledger_file(self._welcome(), self._member.supervisor)
            return self._ledger

    def _records_of_file(self) -> Ledger:
        if self._records is None:
            file = self._ledger_file()
            self._records = Ledger(file.map, file.read)
        return self._records

    def _space(self) -> Extents:
        if self._extents is None:
            w = self._welcome()
            geometry = Geometry(w.pool_bytes, w.extent_bytes)
            self._extents = Extents(self._pool_file(), self._ledger_file(), geometry)
        return self._extents

    def _scan_records(self, job: ScanRecords) -> Done:
        from pegaflow.core.pool.scan import occupied  # and numpy: not before the process is up

        return Done(Status.OK, "", occupied(self._records_of_file(), job.first, job.count))

    def _read_records(self, job: ReadRecords) -> Done:
        void = self._records_of_file().are_void(job.pages)
        return Done(Status.OK, "", tuple(p for p, v in zip(job.pages, void, strict=True) if not v))

    def _session_copies(self) -> Copies:
        if self._copies is None:
            from pegaflow.actors.session.device import Copies

            w = self._welcome()
            self._workers.grow(w.copy_threads)
            self._savers = Workers(yielding=True)
            self._savers.grow(w.copy_threads)
            self._collect(self._savers)
            stem = f"{w.pool_path.removesuffix('.pool')}.{self._member.address}"
            self._copies = Copies(self._pool_file(), stem, w.copy_threads)
        return self._copies

    def _watch(self, number: int, job: WatchProcess) -> Done | None:
        fd = open_pidfd(job.pid, job.started)
        if fd is None:
            return Done(Status.OK)
        loop = self.loop
        assert loop is not None

        def dead() -> None:
            loop.unwatch(fd)
            os.close(fd)
            loop.complete(number, Done(Status.OK))

        loop.watch(fd, dead)
        return None

    def close(self) -> None:
        """Remove what only this process used."""
        if self._copies is not None:
            self._copies.close()


def run_child(
    name: str,
    incarnation: int,
    run_dir: Path,
    *,
    supervisor: int,
    parent: int,
    tcp: Tcp | None,
    flush: FlushPlan | None,
) -> int:
    """The main function of `pegaflow.actors`; returns the exit status.  `flush`: of a flusher."""
    address = Address(name, incarnation)
    level = os.environ.get("PEGAFLOW_LOG_LEVEL", "info")
    form = os.environ.get("PEGAFLOW_LOG_FORMAT", "auto")
    logs.configure(level, form, actor=name, incarnation=incarnation)
    logs.take_over()
    logs.enable_faulthandler()
    signals.deaf()
    if not die_with_parent(parent):
        return 1
    endpoint = str(run_dir / "actors" / f"{address}.sock")
    boss = Address(SUPERVISOR, supervisor)
    hello = Hello(os.getpid(), start_ticks(os.getpid()), endpoint)
    actor = _make(name, address, boss, hello, flush)
    member = member_of(actor)
    device = _device(actor, flush)
    host = Host(actor)

    def work(number: int, job: Message) -> Done | None:
        return _set_log(job) if isinstance(job, SetLog) else device.work(number, job)

    loop = Loop(host, work)
    device.attach(loop)
    member.measured = Vitals(loop)
    log = logs.get_logger()
    try:
        loop.bind(endpoint)
        if tcp is not None:
            member.hello = dataclasses.replace(member.hello, port=loop.bind_tcp(tcp))
        loop.dial(boss, str(run_dir / "pegaflow.sock"))
        log.debug("actor_started")
        reason = loop.run()
    except UserError as err:
        reason = str(err)
    except AssertionError:
        log.exception("actor_broken", inputs=_last_words(host, run_dir))
        return 1
    finally:
        device.close()
        loop.unlink()
    if reason:
        log.error("actor_stopped", why=reason)
    return 1 if reason else 0


def _set_log(job: SetLog) -> Done:
    logs.set_level(job.level)
    why = logs.reopen(job.file) if job.file else ""
    return Done(Status.NO_SPACE, why) if why else Done(Status.OK)


def _last_words(host: Host, run_dir: Path) -> str:
    """Where the inputs of a broken actor are, or why they are nowhere."""
    try:
        return str(blackbox.write(host, run_dir))
    except OSError as err:
        return f"not written: {err.strerror}"


def _make(
    name: str, address: Address, supervisor: Address, hello: Hello, flush: FlushPlan | None
) -> Actor:
    """The actor; a process imports its own kind alone."""
    if flush is not None:
        from pegaflow.actors.flusher.actor import Flusher

        return Flusher(address, supervisor, hello, flush)
    if name == INDEX:
        from pegaflow.actors.index.actor import Index

        return Index(address, supervisor, hello, partial(_open_ledger, supervisor=supervisor))
    if name == ALLOCATOR:
        from pegaflow.actors.allocator.actor import Allocator

        return Allocator(address, supervisor, hello)
    if name == SESSION:
        from pegaflow.actors.session import device  # noqa: F401  (numpy: now, not while one waits)
        from pegaflow.actors.session.actor import Session

        return Session(address, supervisor, hello)
    from pegaflow.actors.gateway.actor import Gateway

    return Gateway(address, supervisor, hello)


def _device(actor: Actor, flush: FlushPlan | None) -> _Device | HttpDevice | FlushDevice:
    if flush is not None:
        from pegaflow.actors.flusher.device import FlushDevice

        return FlushDevice(actor, flush)
    if actor.address.name != GATEWAY:
        return _Device(actor)
    from pegaflow.actors.gateway.device import (
        HttpDevice,  # and its libraries: for this process only
    )

    return HttpDevice()


def _open_ledger(welcome: Welcome, supervisor: Address) -> Ledger:
    try:
        file = ledger_file(welcome, supervisor)
    except OSError as err:
        raise UserError(f"cannot map {err.filename}: {err.strerror}; restart the service") from None
    return Ledger(file.map, file.read)


def child_command(address: Address, settings: Settings, supervisor: int) -> list[str]:
    """The command line of a child.  A session listens on TCP where the front desk does."""
    command = [
        sys.executable,
        "-m",
        "pegaflow.actors",
        address.name,
        "--incarnation",
        str(address.incarnation),
        "--supervisor",
        str(supervisor),
        "--parent",
        str(os.getpid()),
        "--run-dir",
        str(settings.run_dir),
    ]
    if address.name == SESSION and settings.addr is not None:
        command += ["--addr", settings.addr.rpartition(":")[0] + ":0"]
        command += ["--curve-dir", settings.curve_dir] if settings.curve_dir else ["--insecure-tcp"]
    if address.name == FLUSHER:
        command += ["--flush", json.dumps(dataclasses.asdict(flush_plan(settings)))]
    return command


def flush_plan(settings: Settings) -> FlushPlan:
    """What the flusher is told."""
    return FlushPlan(
        settings.ssd_cache_path,
        settings.ssd_cache_capacity,
        settings.ssd_free_floor,
        settings.ssd_write_queue_depth,
        settings.ssd_write_inflight,
        settings.ssd_prefetch_inflight,
        settings.max_prefetch_blocks,
        settings.ssd_admission == "reused",
        settings.drain_timeout * 1_000_000_000,
    )
