"""`pegaflow serve`: the supervisor's process.

It takes the run directory's lock, makes pool and ledger, and runs the supervisor actor over the
same loop as every other actor, with jobs of its own: spawn, kill, and the proof of death of each
child by pidfd.  All children share its process group and die with it.
"""

import hashlib
import os
import resource
import signal
import subprocess
from importlib.metadata import version
from pathlib import Path

from pegaflow import limits, logs, poolsize, rundir, sdnotify, sizes
from pegaflow.actors.asks import Host
from pegaflow.actors.loop import Loop, Signals
from pegaflow.actors.process import child_command
from pegaflow.actors.supervisor import Plan, Supervisor
from pegaflow.actors.tcp import tcp_of
from pegaflow.actors.vitals import Vitals
from pegaflow.cache.geometry import Geometry
from pegaflow.cache.ledger import Header, Ledger
from pegaflow.config import Settings
from pegaflow.device.memory import SharedFile, make_pool
from pegaflow.device.procs import open_pidfd, start_ticks
from pegaflow.errors import UserError
from pegaflow.wire.jobs import (
    Announce,
    Done,
    Exited,
    Kill,
    MakePool,
    NextIncarnation,
    Spawn,
    Stopping,
)
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import SUPERVISOR, Address

SHM = Path("/dev/shm")


def shm_stem(run_dir: Path) -> str:
    """What the names of all files in shared memory of this run directory's service begin with."""
    run = hashlib.blake2b(str(run_dir).encode(), digest_size=6).hexdigest()
    return f"pegaflow-{os.getuid()}-{run}"


class _House:
    """The supervisor's jobs."""

    def __init__(self, settings: Settings, pool_bytes: int) -> None:
        self.settings = settings
        self.pool_bytes = pool_bytes
        self.loop: Loop | None = None
        self.incarnation = 0  # the last one given away; also in the ledger's header
        self.supervisor = 0  # our own
        self._children: dict[Address, subprocess.Popen[bytes]] = {}
        self._files: tuple[SharedFile, SharedFile] | None = None
        self._ledger: Ledger | None = None
        self._manager = sdnotify.Notifier()
        self._stem = shm_stem(settings.run_dir)

    def adopt_counter(self) -> None:
        """Go on counting incarnations where an earlier life stopped; then clear its files."""
        for path in SHM.glob(f"{self._stem}.*"):
            if path.suffix == ".ledger":
                self.incarnation = max(self.incarnation, _counter_of(path))
            path.unlink(missing_ok=True)
        self.incarnation += 1
        self.supervisor = self.incarnation

    def work(self, number: int, job: Message) -> Done | None:
        """Carry out one job."""
        if isinstance(job, MakePool):
            return self._make_pool(job)
        if isinstance(job, NextIncarnation):
            self.incarnation += 1
            assert self._ledger is not None
            self._ledger.set_incarnation(self.incarnation)
            return Done(Status.OK, "", (self.incarnation,))
        if isinstance(job, Spawn):
            return self._spawn(job.address)
        if isinstance(job, Announce):
            self._manager.say(job.lines)
            return Done(Status.OK)
        assert isinstance(job, Kill)
        child = self._children.get(job.address)
        if child is not None:
            child.kill()
        return Done(Status.OK)

    def _make_pool(self, job: MakePool) -> Done:
        self.unlink()
        extent = self.settings.extent_size
        geometry = Geometry(self.pool_bytes // extent * extent, extent)
        header = Header(
            os.urandom(16),
            Path("/proc/sys/kernel/random/boot_id").read_bytes().strip(),
            geometry.pool_bytes,
            extent,
            geometry.records_per_extent,
            self.incarnation,
        )
        try:
            self._files = make_pool(str(SHM / f"{self._stem}.{job.generation}"), geometry, header)
        except UserError as err:
            return Done(Status.NO_SPACE, str(err))
        pool, ledger = self._files
        self._ledger = Ledger(ledger.map)
        return Done(Status.OK, f"{pool.path}\n{ledger.path}", (geometry.pool_bytes,))

    def _spawn(self, address: Address) -> Done:
        command = child_command(address, self.settings, self.supervisor)
        try:
            child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        except OSError as err:
            return Done(Status.NO_SPACE, f"cannot start {address}: {err.strerror}")
        self._children[address] = child
        started = start_ticks(child.pid)
        fd = open_pidfd(child.pid, started)
        assert fd is not None, "a child that was not waited for has a pid"
        loop = self.loop
        assert loop is not None

        def dead() -> None:
            loop.unwatch(fd)
            os.close(fd)
            code = self._children.pop(address).wait()
            for path in SHM.glob(f"{self._stem}.*.{address}.*.bounce"):
                path.unlink(missing_ok=True)
            Path(self.settings.run_dir, rundir.ACTORS, f"{address}.sock").unlink(missing_ok=True)
            loop.inform(Exited(address, code if code >= 0 else 256 - code))

        loop.watch(fd, dead)
        return Done(Status.OK, "", (child.pid, started))

    def unlink(self) -> None:
        """Remove the names of pool and ledger; whoever has them mapped keeps them."""
        for file in self._files or ():
            file.unlink()
        self._files = None


def serve(settings: Settings) -> int:
    """Run the service in the foreground until it is told to stop; the exit status.

    Raises:
        UserError: another service lives here, or there is no room.
    """
    run_dir = rundir.prepare(settings.run_dir)
    (run_dir / rundir.ACTORS).mkdir(mode=0o700, exist_ok=True)
    with rundir.ServiceLock.acquire(run_dir) as lock:
        lock.remove_stale_sockets()
        return _serve(settings, run_dir)


def _serve(settings: Settings, run_dir: Path) -> int:
    tcp = tcp_of(settings.addr, settings.curve_dir, settings.insecure_tcp)
    chosen = poolsize.choose(settings.pool_size, poolsize.look(), settings.extent_size)
    log = logs.get_logger()
    _raise_nofile()
    house = _House(settings, chosen.size)
    house.adopt_counter()
    address = Address(SUPERVISOR, house.supervisor)
    plan = Plan(
        chosen.size,
        settings.extent_size,
        settings.spares,
        str(run_dir),
        version("pegaflow"),
        "" if settings.http_addr == "none" else settings.http_addr,
        settings.copy_threads,
        os.getpid(),
    )
    signals = Signals(signal.SIGINT, signal.SIGTERM)
    supervisor = Supervisor(address, plan)
    loop = Loop(Host(supervisor), house.work)
    supervisor.measured = Vitals(loop)
    house.loop = loop

    def on_signal() -> None:
        for _ in signals.read():
            loop.inform(Stopping())

    loop.watch(signals.fd, on_signal)
    front_desk = rundir.front_desk(run_dir)
    loop.bind(front_desk)
    if tcp is not None:
        port = loop.bind_tcp(tcp)
        log.info("serving_tcp", host=tcp.host, port=port, curve=tcp.keys is not None)
    log.info(
        "serving",
        endpoint=front_desk,
        pool=sizes.show(chosen.size),
        reason=chosen.reason,
        incarnation=house.supervisor,
    )
    unpinned = poolsize.pin_note(chosen.size)
    if unpinned:
        log.info("memlock_limit", why=unpinned)
    try:
        why = loop.run()
    finally:
        house.unlink()
        Path(front_desk).unlink(missing_ok=True)
    if why:
        raise UserError(why)
    log.info("stopped")
    return 0


def _counter_of(path: Path) -> int:
    """The incarnation counter of an earlier life's ledger; 0 if it has none."""
    try:
        file = SharedFile.open(str(path), write=False)
        return 0 if Ledger.fault(file.map) else Ledger(file.map).header.incarnation
    except (OSError, ValueError):
        return 0


def _raise_nofile() -> None:
    """Every engine costs descriptors; take what the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.OPEN_FILES if hard == resource.RLIM_INFINITY else min(limits.OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
