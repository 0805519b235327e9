"""`pegaflow serve`: the supervisor's process.

It takes the run directory's lock, adopts the pool of an earlier life or makes one, and runs the
supervisor actor over the same loop as every other actor, with jobs of its own: spawn, kill, the
proof of death of each child by pidfd, and a look at the files by which others find the service.
All children share its process group and die with it; they inherit its mask of blocked signals
(signals.py).  As the first process of a container it also buries those whom nobody else waits for.

An old pool never keeps a service from starting: what cannot be adopted is removed, with one line
that says why; one in which another service lives is left to it.  A pool with blocks in it is kept
on stop, for the next life.
"""

import hashlib
import os
import resource
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pegaflow import version
from pegaflow.actors.peer.door import door_of
from pegaflow.actors.runtime.host import Host
from pegaflow.actors.runtime.loop import Loop, monotonic
from pegaflow.actors.runtime.process import child_command
from pegaflow.actors.runtime.tcp import TcpPlan, tcp_of
from pegaflow.actors.runtime.vitals import Vitals
from pegaflow.actors.supervisor.actor import Supervisor
from pegaflow.actors.supervisor.plan import Plan
from pegaflow.client.place import pid_namespace
from pegaflow.core import limits
from pegaflow.core.directory.plan import PeerPlan
from pegaflow.core.errors import UserError
from pegaflow.core.pool.geometry import Geometry
from pegaflow.device import hugepages, poolfiles, poolnames
from pegaflow.device.memory import FileId
from pegaflow.device.poolfiles import PoolFiles, Wanted
from pegaflow.device.procs import open_pidfd, start_ticks
from pegaflow.device.waits import Waits
from pegaflow.wire.control import Welcome
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.jobs import (
    Announce,
    CheckFiles,
    Done,
    Exited,
    FilesChecked,
    IncarnationDrawn,
    Kill,
    Look,
    Looked,
    NextIncarnation,
    OpenPool,
    PoolOpened,
    Result,
    Spawn,
    Spawned,
)
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import SUPERVISOR, Address

from . import exits, keys, logs, poolsize, rundir, sdnotify, sizes, values
from .asked import Asked
from .settings import Settings

SHM = Path("/dev/shm")

STILL_MAPPED = (
    "the pool of an earlier life was removed, but its pages are free only when no engine has it "
    "mapped: those that are served staged do until they notice that their session is gone"
)


def shm_stem(run_dir: Path) -> str:
    """What the names of all files in shared memory of this run directory's service begin with."""
    run = hashlib.blake2b(str(run_dir).encode(), digest_size=6).hexdigest()
    return f"pegaflow-{os.getuid()}-{run}"


class _House:
    """The supervisor's jobs."""

    def __init__(self, settings: Settings, lock: rundir.ServiceLock) -> None:
        self.settings = settings
        self.loop: Loop | None = None
        self._lock = lock
        self._children: dict[Address, subprocess.Popen[bytes]] = {}
        self._sockets: dict[Address, FileId] = {}  # of children, the last that was seen
        self._unreachable = ""  # why children would find no way to us, or not to us
        self._silences: dict[Address, tuple[int, Waits]] = {}  # since when, and what was seen
        self.manager = sdnotify.Notifier()
        self._jobs: dict[type[Message], Callable[[Any], Result]] = {
            OpenPool: self._open_pool,
            CheckFiles: self._check,
            NextIncarnation: self._draw,
            Spawn: self._spawn,
            Look: self._look,
            Kill: self._kill,
            Announce: self._announce,
        }
        self._stem = str(SHM / shm_stem(settings.run_dir))
        self.reason = ""  # why the pool is as it is
        self._removed_bytes = 0  # of pools of earlier lives
        given = poolfiles.incarnation_of(self._stem)
        above = max(poolnames.numbers(self._stem), default=0)
        self.files = self._adopt() or self._make(given, above)
        self.incarnation = max(given, self.files.header.incarnation)  # the last one given away
        self.supervisor = self._next()  # our own
        self.files.share(self.supervisor)

    def _adopt(self) -> PoolFiles | None:
        """The pool of an earlier life, if there is one as it is wanted; others are removed, but for
        those that are in use."""
        settings = self.settings
        extent = settings.extent_size
        log = logs.get_logger()
        huge = hugepages.best(hugepages.look()) if settings.use_hugepages else None
        wanted = Wanted(
            settings.pool_size,
            None if extent == Settings.extent_size else extent,
            settings.fresh,
            str(settings.run_dir),
            huge=settings.use_hugepages,
            check=lambda there: poolsize.choose(
                settings.pool_size, poolsize.look().plus(there), extent, huge
            ),
            say=self._waits,
        )
        found = poolfiles.adopt(self._stem, wanted)
        if found.orphans:
            log.warning("orphans_killed", pids=list(found.orphans))
        files = found.files
        then = "starting with an empty one" if files is None else "starting with an older one"
        for why in found.in_use:
            log.warning("pool_in_use", why=why, then=then)
        for why in found.refused:
            log.warning("pool_not_adopted", why=why, then=then)
        self._removed_bytes, _ = poolnames.remove(self._stem, files, self._waits)
        if files is not None:
            pages, bytes_ = files.sealed()
            held = f"{sizes.show(bytes_)} in {pages} pages"
            self.reason = f"adopted from an earlier life with {held}"
            if found.was_bytes != files.header.pool_bytes:
                self.reason += f", when it had {sizes.show(found.was_bytes)}"
        return files

    def _waits(self, why: str) -> None:
        """What of an earlier life keeps us from having the pool."""
        logs.get_logger().warning("pool_waits", why=why)
        self.manager.say(f"STATUS={why}")

    def _make(self, incarnation: Incarnation, above: int) -> PoolFiles:
        """A new pool.

        Raises:
            UserError: there is no room for it.
        """
        extent = self.settings.extent_size
        pages = hugepages.best(hugepages.look()) if self.settings.use_hugepages else None
        chosen = poolsize.choose(self.settings.pool_size, poolsize.look(), extent, pages)
        self.reason = chosen.reason
        try:
            return poolfiles.make(
                self._stem,
                Geometry(chosen.size, extent),
                incarnation,
                above,
                run_dir=str(self.settings.run_dir),
                folder="" if pages is None else pages.folder,
            )
        except UserError as err:
            if not (pages and self._removed_bytes):
                raise
            raise UserError(f"{err}; {STILL_MAPPED}") from None

    def _next(self) -> Incarnation:
        """A number that nobody has had before."""
        self.incarnation = Incarnation(self.incarnation + 1)
        self.files.ledger.set_incarnation(self.incarnation)
        return self.incarnation

    def work(self, number: int, job: Message) -> Result:
        """Carry out one job."""
        return self._jobs[type(job)](job)

    def _open_pool(self, job: OpenPool) -> PoolOpened:
        header, pool, ledger = self.files.header, self.files.pool, self.files.file
        return PoolOpened(
            pool_path=pool.path,
            ledger_path=ledger.path,
            pool_bytes=header.pool_bytes,
            extent_bytes=header.extent_bytes,
            pool_file=pool.id,
            ledger_file=ledger.id,
            page_bytes=pool.page_bytes,
        )

    def _draw(self, job: NextIncarnation) -> IncarnationDrawn:
        return IncarnationDrawn(self._next())

    def _announce(self, job: Announce) -> Done:
        self.manager.say(job.lines)
        return Done(Status.OK)

    def _kill(self, job: Kill) -> Done:
        child = self._children.get(job.address)
        if child is not None:
            child.kill()
        return Done(Status.OK)

    def _look(self, job: Look) -> Looked:
        since, waits = self._silences.get(job.address, (None, None))
        if waits is None or since != job.since_ns:
            child = self._children.get(job.address)
            waits = Waits(child.pid if child is not None else 0, os.getpid())
            self._silences[job.address] = job.since_ns, waits
        now = monotonic()
        wait = waits.look(now)
        return Looked(waited_ns=wait.waited_ns, ran_ns=wait.ran_ns, at_ns=now, state=wait.state)

    def _spawn(self, job: Spawn) -> Spawned | Done:
        address = job.address
        if self._unreachable:
            return Done(Status.NO_SPACE, f"cannot start {address}: {self._unreachable}")
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
            self._sockets.pop(address, None)
            self._silences.pop(address, None)
            pool = Path(self.files.pool.path).stem
            for path in SHM.glob(f"{pool}.{address}.*"):
                path.unlink(missing_ok=True)
            self._lock.remove(f"{rundir.ACTORS}/{address}.sock")
            number = code if code >= 0 else 256 - code
            loop.inform(Exited(address, number, exits.words(code)))

        loop.watch(fd, dead)
        return Spawned(child.pid, started)

    def _check(self, job: CheckFiles) -> FilesChecked:
        """Whether others still find us; what can be made anew is."""
        assert self.loop is not None
        self._reap()
        self._unreachable = self._lock.look()
        lost = [] if self._unreachable or self.loop.is_bound() else [self.supervisor]
        self._unreachable = self._unreachable or self.loop.bind_again()
        found = [self._unreachable]
        for file in (self.files.pool, self.files.file):
            if not file.named():
                gone = f"{file.path} was removed or replaced: the cache is lost at the next start"
                found.append(f"{gone}, and staged engines are refused; restart the service")
        for address in () if self._unreachable else self._children:
            path = self._socket_of(address)
            if path.is_dir():
                found.append(f"{path} is a directory: remove it")
            elif self._is_deaf(address):
                lost.append(address.incarnation)
        return FilesChecked(tuple(filter(None, found)), tuple(lost))

    def _socket_of(self, address: Address) -> Path:
        return self.settings.run_dir / rundir.ACTORS / f"{address}.sock"

    def _is_deaf(self, address: Address) -> bool:
        """Whether a child's socket is not there, or is not the last one that was.  That it has
        bound another one is seen so too, and it is told once more in vain."""
        there = rundir.socket_at(self._socket_of(address))
        before = self._sockets.get(address)
        if there is None:
            return True
        self._sockets[address] = there
        return before not in (None, there)

    def _reap(self) -> None:
        """Bury the dead who are not our children by birth: whoever is orphaned in a container is
        given to its first process, or to a subreaper, and stays there as a zombie until it is
        waited for.  Ours are left to their pidfds, which want their exit status."""
        ours = {child.pid for child in self._children.values()}
        while True:
            try:
                dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if dead is None or dead.si_pid in ours:  # then the next look comes further
                    return
                os.waitpid(dead.si_pid, 0)
            except ChildProcessError:
                return

    def close(self) -> None:
        """Keep the pool for the next life, if there is a block in it."""
        pages, bytes_ = self.files.sealed()
        named = self.files.pool.named() and self.files.file.named()
        if pages and named and self.settings.keep_pool:
            logs.get_logger().info(
                "pool_kept",
                blocks=sizes.show(bytes_),
                pages=pages,
                path=self.files.pool.path,
                free_it=f"pegaflow purge --run-dir {self.settings.run_dir}",
            )
        else:
            self.files.unlink()


def serve(settings: Settings, read_again: Callable[[], Settings]) -> int:
    """Run the service in the foreground until it is told to stop; the exit status.

    `read_again` reads the settings anew, as they were read for this start.

    Raises:
        UserError: another service lives here, or there is no room.
    """
    asked = Asked(settings, read_again)
    run_dir = rundir.prepare(settings.run_dir)
    (run_dir / rundir.ACTORS).mkdir(mode=0o700, exist_ok=True)
    with rundir.ServiceLock.acquire(run_dir) as lock:
        lock.remove_stale_sockets()
        return _serve(settings, run_dir, lock, asked)


def _serve(settings: Settings, run_dir: Path, lock: rundir.ServiceLock, asked: Asked) -> int:
    tcp = tcp_of(TcpPlan(**settings.told(TcpPlan)))
    if settings.peer_listen is not None:
        door_of(PeerPlan(**settings.told(PeerPlan)))
    log = logs.get_logger()
    _raise_nofile()
    if settings.fresh_ssd:
        _remove_logs(settings.ssd_cache_path)
    house = _House(settings, lock)
    size = house.files.header.pool_bytes
    address = Address(SUPERVISOR, house.supervisor)
    plan = Plan(
        run_dir=str(run_dir),
        version=version.installed(),
        **settings.told(Plan),
        http_addr="" if settings.http_addr == values.NO_HTTP else settings.http_addr,
        told=settings.told(Welcome),
        ssd=bool(settings.ssd_cache_path),
        linked=settings.peer_listen is not None,
        pid=os.getpid(),
        pid_namespace=pid_namespace(),
        ping_ns=house.manager.ping_ns(os.getpid()),
    )
    supervisor = Supervisor(address, plan)
    loop = Loop(Host(supervisor), house.work)
    supervisor.reporting.measured = Vitals(loop)
    house.loop = loop
    asked.attach(loop)
    front_desk = rundir.front_desk(run_dir)
    loop.bind(front_desk)
    if tcp is not None:
        if tcp.keys is not None:
            keys.warn(tcp.keys.folder)
        port = loop.bind_tcp(tcp)
        log.info("serving_tcp", host=tcp.host, port=port, curve=tcp.keys is not None)
    log.info(
        "serving",
        endpoint=front_desk,
        pool=sizes.show(size),
        pages=sizes.show(house.files.pool.page_bytes),
        reason=house.reason,
        incarnation=house.supervisor,
    )
    unpinned = poolsize.pin_note(size)
    if unpinned:
        log.info("memlock_limit", why=unpinned)
    try:
        why = loop.run()
    finally:
        house.close()
        lock.remove(rundir.FRONT_DESK)
    if why:
        raise UserError(why)
    log.info("stopped")
    return 0


def _remove_logs(paths: Sequence[str]) -> None:
    """Begin with empty logs.

    Raises:
        UserError: something of them is still there.
    """
    from pegaflow.device.ssdwipe import remove_log  # and its checksums: few services need them here

    for path in paths:
        removed, why = remove_log(path)
        if why:
            raise UserError(f"cannot remove the log: {why}")
        logs.get_logger().info("ssd_removed", path=path, bytes=sizes.show(removed))


def kept_pools() -> list[poolfiles.Kept]:
    """All pools of this user in shared memory."""
    return poolfiles.kept(str(SHM / f"pegaflow-{os.getuid()}-"))


def purge_all() -> tuple[int, list[str]]:
    """Remove every pool of this user in which no service lives; the bytes that this frees, and the
    pools that stay."""
    stems = {str(SHM / Path(pool.path).with_suffix("").stem) for pool in kept_pools()}
    done = [poolnames.remove(stem) for stem in sorted(stems)]
    return sum(freed for freed, _ in done), [name for _, stay in done for name in stay]


def purge(run_dir: Path) -> int:
    """Remove the pool that a stopped service has left; the bytes that this frees.

    Raises:
        UserError: the service runs, another one lives in the pool, or there is no such directory.
    """
    stem = str(SHM / shm_stem(run_dir))
    if not run_dir.is_dir():
        if not poolnames.numbers(stem):
            raise UserError(f"there is no run directory {run_dir} and no pool of it; see --list")
        run_dir = rundir.prepare(run_dir)
    with rundir.ServiceLock.acquire(rundir.prepare(run_dir)):
        freed, in_use = poolnames.remove(stem)
        if in_use:
            raise UserError(f"another service lives in {', '.join(in_use)}: it stays as it is")
        return freed


def _raise_nofile() -> None:
    """Every engine costs descriptors; take what the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = limits.OPEN_FILES if hard == resource.RLIM_INFINITY else min(limits.OPEN_FILES, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
