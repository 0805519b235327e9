"""The shell around the client's machine: its sockets, its clock, its copies.

All of it runs in the thread that calls: there is none of ours.  `_turn` is one look at the sockets
and the time; `_apply` does what the machine wants.
"""

import contextlib
import ctypes
import errno
import os
import select
import signal
import time
from dataclasses import dataclass, replace

import msgspec
import zmq

from pegaflow.wire.envelope import Envelope, VersionMismatch, pack, unpack
from pegaflow.wire.identities import EngineNamespace
from pegaflow.wire.links import DRAIN_MAX, QUEUE_MAX
from pegaflow.wire.message import WireError
from pegaflow.wire.session import PROOF_BYTES, Attach, Attached, Way
from pegaflow.wire.units import Nanoseconds

from . import place
from .buffers import EngineMemory, FileView, copy
from .curve import ClientKeys
from .effects import (
    CopyIn,
    CopyOut,
    DialSession,
    Effect,
    Finish,
    HangUp,
    Identity,
    KillSession,
    MapFiles,
    Memory,
    ToDesk,
    WriteProof,
)
from .finding import Finding
from .gpu import GpuRegions
from .handshake import Monitor
from .lent import open_lent
from .machine import Machine, State
from .presence import look
from .results import Done

LOOK_NS: Nanoseconds = 50_000_000
"""Longest wait of one look at the sockets where nothing has a deadline."""

DYING_LOOK_NS: Nanoseconds = 2_000_000
"""Time between two looks at a session that was killed: a load that it may still write waits for
them, and nothing tells when its last thread is past running."""

NOT_NAMED = "its session is on TCP, in another pid namespace or older; or staged copies were wished"
"""Why a session may not have been told of GPU memory, or not have understood it."""

_HELD: "set[zmq.Context[zmq.Socket[bytes]] | zmq.Socket[bytes]]" = set()
"""What is open here: a context that is garbage together with its sockets waits for them for ever,
so both live until their client's end, which has an order."""


@dataclass(frozen=True, slots=True)
class Who:
    """What every life of a client has in common; see `Client`."""

    engine: str
    namespace: EngineNamespace
    probe: bytes
    world: int
    opens: bool
    way: Way
    generation: bytes | None  # None: the process's own
    endpoint: str  # URL
    keys: ClientKeys | None  # for TCP
    trust: frozenset[int]  # the users whose service may be ours
    context: "zmq.Context[zmq.Socket[bytes]] | None"  # None: one of our own

    def check_rank(self, rank: int, replicas: int) -> None:
        """Raises ValueError if there is no such rank, or not so many that hold the same bytes."""
        sound = 0 <= rank < self.world and replicas > 0
        if not sound or rank - rank % replicas + replicas > self.world:
            raise ValueError(f"rank {rank} of {self.world}, {replicas} alike")


class Shell:
    """One client in one process; again after a fork."""

    def __init__(self, who: Who) -> None:
        self._who = who
        self._memory: EngineMemory | GpuRegions | None = None  # what is registered
        self._rank, self._replicas = 0, 1  # of it
        self._closed = False
        self._setup()

    def _setup(self) -> None:
        """Everything that belongs to this process: again after a fork."""
        who = self._who
        self._pid = os.getpid()
        self._machine = Machine(
            Identity(
                address=place.new_address(),
                engine=who.engine,
                generation=who.generation or place.generation(),
                namespace=who.namespace,
                probe=who.probe,
                world=who.world,
                pid=self._pid,
                started_ticks=place.start_ticks(),
                opens=who.opens,
                pid_namespace=place.pid_namespace(),
            ),
            busy=lambda: place.is_ready(self._session_pid),
        )
        self._finding = Finding(self._machine, open_lent)
        self._context = who.context or zmq.Context()
        if who.context is None:
            _HELD.add(self._context)
        self._poller = zmq.Poller()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._desk: zmq.Socket[bytes] | None = None
        self._link: zmq.Socket[bytes] | None = None
        self._monitors: dict[zmq.Socket[bytes], Monitor] = {}  # of links over TCP
        self._unsent: list[tuple[zmq.Socket[bytes], Envelope]] = []  # waits for its connection
        self._pidfd = -1
        self._death = select.poll()  # of the process behind it
        self._session_pid = 0  # of the process behind it
        self._killed = False  # we have sent it SIGKILL
        self._pool: FileView | None = None
        self._bounce: FileView | None = None
        self._slot_bytes = 0
        self._done: list[Done] = []
        self._later: list[CopyIn] = []  # copies that need no message, and wait for a look
        self._scratch = (ctypes.c_char * PROOF_BYTES)()
        if self._memory is not None:
            self._machine.register(self._described(self._memory))

    def _described(self, memory: EngineMemory | GpuRegions) -> Memory:
        return Memory(
            rank=self._rank,
            replicas=self._replicas,
            layout=memory.layout,
            region_bytes=memory.region_bytes,
            way=self._who.way,
            bases=memory.addresses,
            scratch=ctypes.addressof(self._scratch),
            gpu=memory.gpu,
        )

    def _turn(self, deadline: int | None) -> None:
        """One look at sockets and time; waits until then (None: as long as it may)."""
        if self._later:
            later, self._later, deadline = self._later, [], 0
            self._apply([e for e in later if e.ticket in self._machine.operations.open])
        now = time.monotonic_ns()
        wakes = self._machine.wake_at(), self._finding.wake_at()
        times = [t for t in (deadline, *wakes) if t is not None]
        wait = max(0, min(times, default=now + LOOK_NS) - now)
        if self._machine.state is State.DYING:
            wait = min(wait, DYING_LOOK_NS)
        for ready, event in self._poller.poll(-(-wait // 1_000_000) if wait >= 1_000_000 else 0):
            if ready == self._pidfd:
                self._apply(self._machine.session_died(time.monotonic_ns()))
            elif (watched := self._watched(ready)) is not None:
                # Only a handshake tells more than that nobody answers: who is kept out is told why.
                self._machine.seen = ""
                self._machine.refusal = watched.read() or self._machine.refusal
            elif isinstance(ready, zmq.Socket) and not ready.closed:
                if event & zmq.POLLOUT:
                    self._flush(ready)
                self._receive(ready)
        dying = self._killed and self._machine.state is State.DYING and not self._machine.by_gpu
        if dying and place.is_past_running(self._session_pid):
            self._apply(self._machine.session_died(time.monotonic_ns()))
        self._apply(self._machine.wake(time.monotonic_ns()))
        self._apply(self._finding.wake(time.monotonic_ns()))
        self._take_back()

    def _receive(self, socket: "zmq.Socket[bytes]") -> None:
        for _ in range(DRAIN_MAX):
            if socket.closed:
                return
            try:
                frames = self._frames(socket)
            except zmq.Again:
                return
            try:
                envelope = unpack(frames)
            except VersionMismatch as err:
                self._machine.seen = f"the service is of another version: {err}"
                continue
            except WireError:
                continue
            self._apply(self._machine.receive(envelope, time.monotonic_ns()))

    def _frames(self, socket: "zmq.Socket[bytes]") -> list[bytes]:
        """A message; of the front desk only if it is of somebody whom we trust: between our look
        and its answer the directory may have become somebody else's."""
        if socket is not self._desk or place.ipc_path(self._who.endpoint) is None:
            return socket.recv_multipart(zmq.NOBLOCK)
        frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
        return [f.bytes for f in frames] if place.is_from(frames[0], self._who.trust) else []

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Finish):
                self._done.append(effect.done)
            elif isinstance(effect, DialSession):
                self._dial(effect)
            elif isinstance(effect, HangUp):
                self._hang_up()
            elif isinstance(effect, KillSession):
                self._kill_session()
            elif isinstance(effect, WriteProof):
                self._scratch.raw = effect.proof
            elif isinstance(effect, MapFiles):
                self._map(effect.attached)
            elif isinstance(effect, CopyIn):
                self._copy_in(effect)
            elif isinstance(effect, CopyOut):
                self._copy_out(effect)
            elif isinstance(effect, ToDesk):
                self._to_desk(effect.envelope)
            else:
                self._send(self._link, self._lending(effect.envelope))

    def _lending(self, envelope: Envelope) -> Envelope:
        """An Attach with descriptors of what the memory lies in; anything else as it is."""
        said, memory = envelope.message, self._memory
        if not isinstance(said, Attach) or not isinstance(memory, GpuRegions):
            return envelope
        lent = replace(said, gpu=memory.lend(said.gpu))
        return msgspec.structs.replace(envelope, message=lent)

    def _take_back(self) -> None:
        """Close these descriptors, unless a session may still take them."""
        settled = self._machine.state is not State.JOINING and not self._machine.state.is_going
        if settled and isinstance(self._memory, GpuRegions):
            self._memory.take_back()

    def _copy_in(self, effect: CopyIn) -> None:
        assert self._memory is not None
        ok = self._memory.wait(effect.deadline) and copy(
            self._memory.load,
            self._memory.payload_bytes,
            None if self._pool is None else self._pool.bytes,
            effect.offsets,
            blocks=effect.blocks,
            deadline=effect.deadline,
        )
        self._apply(self._machine.operations.copied_in(effect.ticket, ok, time.monotonic_ns()))

    def _copy_out(self, effect: CopyOut) -> None:
        assert self._memory is not None and self._bounce is not None
        offsets = [slot * self._slot_bytes for slot in effect.slots]
        ok = self._memory.wait(effect.deadline) and copy(
            self._memory.save,
            self._memory.payload_bytes,
            self._bounce.bytes,
            offsets,
            blocks=effect.blocks,
            deadline=effect.deadline,
        )
        now = time.monotonic_ns()
        self._apply(self._machine.operations.copied_out(effect.ticket, effect.batch, ok, now))

    def _map(self, attached: Attached) -> None:
        if attached.loads is Way.STAGED and self._memory is not None and not self._memory.staged:
            why = f"GPU memory is not served: {attached.note or NOT_NAMED}"
            self._apply(self._machine.mapped(False, why, time.monotonic_ns()))
            return
        try:
            if attached.loads is Way.STAGED:
                if self._pool is None or not self._pool.shows(
                    attached.pool_path, attached.pool_file, attached.pool_bytes
                ):
                    self._pool = FileView(attached.pool_path, write=False, known=attached.pool_file)
            if attached.saves is Way.STAGED:
                path, known = attached.bounce_path, attached.bounce_file
                self._bounce = FileView(path, write=True, known=known)
        except OSError as err:
            why = f"cannot map {err.filename}: {err.strerror}"
            if err.errno in (errno.ENOENT, errno.ESTALE):
                folder = os.path.dirname(err.filename)
                why += f"; was it removed, or is {folder} not shared with us?"
            self._apply(self._machine.mapped(False, why, time.monotonic_ns()))
            return
        except ValueError as err:  # an empty file, or no path at all
            why = f"cannot map what the session named: {err}"
            self._apply(self._machine.mapped(False, why, time.monotonic_ns()))
            return
        self._slot_bytes = attached.page_size
        self._apply(self._machine.mapped(True, "", time.monotonic_ns()))

    def _dial(self, effect: DialSession) -> None:
        self._hang_up()
        try:
            url, why = self._look(place.session_url(self._who.endpoint, effect.endpoint))
            if url:
                self._link = self._socket(url)
        except (zmq.ZMQError, ValueError) as err:
            url, why = "", str(err)
        if not url:
            why = f"cannot dial the session at {effect.endpoint[:80]!r}: {why}"
            self._apply(self._machine.mapped(False, why, time.monotonic_ns()))
            return
        try:
            self._pidfd = os.pidfd_open(effect.pid)
            self._session_pid, self._killed = effect.pid, False
            self._poller.register(self._pidfd, zmq.POLLIN)
            self._death.register(self._pidfd, select.POLLIN)
            place.permit_tracer(effect.pid)
        except (OSError, OverflowError):
            self._pidfd = -1  # another pid namespace, or dead already: its silence will tell
        self._apply(self._machine.dialled(self._pidfd >= 0, time.monotonic_ns()))

    def _kill_session(self) -> None:
        """Its death is seen by its pidfd, whoever kills it, or before that by its threads."""
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self._killed = True

    def _hang_up(self) -> None:
        self._close(self._link)
        self._link = None
        self._pool = None  # the next service may remove it, and needs its memory
        if self._pidfd >= 0:
            self._poller.unregister(self._pidfd)
            self._death.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        self._take_back()

    def _close_all(self) -> None:
        for socket in (self._desk, self._link):
            self._close(socket, linger=100)
        if self._pidfd >= 0:
            os.close(self._pidfd)
        os.close(self._wake_fd)
        self._pool = self._bounce = None
        if self._who.context is None:
            _HELD.discard(self._context)
            self._context.term()

    def _to_desk(self, envelope: Envelope) -> None:
        """A new socket per question: the service may have restarted under the same path."""
        self._close(self._desk)
        self._desk = None
        url, why = self._look(self._who.endpoint)
        self._machine.seen = why
        if url:
            try:
                self._desk = self._socket(url)
            except (zmq.ZMQError, ValueError) as err:
                self._machine.seen = f"cannot dial the service at {url[:80]!r}: {err}"
        if self._desk is None:
            self._apply(self._machine.unreachable(time.monotonic_ns()))
        self._send(self._desk, envelope)

    def _look(self, url: str) -> tuple[str, str]:
        """(what to dial; empty if nobody is there, or nobody whom we trust, why nobody answers)"""
        path = place.ipc_path(url)
        if path is None:
            return url, f"no answer at {url[:80]}: is the service there, and its --addr this one?"
        seen = look(path, self._who.trust)
        return (place.as_url(seen.path) if seen.listens else ""), seen.line

    def _socket(self, endpoint: str) -> "zmq.Socket[bytes]":
        url, keys = place.as_url(endpoint), self._who.keys
        monitors: list[Monitor] = []

        def watch(socket: "zmq.Socket[bytes]") -> None:
            if url.startswith(place.TCP):
                monitors.append(Monitor(socket, url, keys is not None))

        try:
            socket = place.dealer(self._context, url, self._machine.me.address, keys, before=watch)
        except (zmq.ZMQError, ValueError):
            for monitor in monitors:
                monitor.close()
            raise
        for monitor in monitors:
            self._monitors[socket] = monitor
            self._poller.register(monitor.socket, zmq.POLLIN)
            _HELD.add(monitor.socket)
        self._poller.register(socket, zmq.POLLIN)
        _HELD.add(socket)
        return socket

    def _watched(self, ready: object) -> Monitor | None:
        return next((m for m in self._monitors.values() if m.socket is ready), None)

    def _close(self, socket: "zmq.Socket[bytes] | None", linger: int = 0) -> None:
        """Close a link and forget what waited for it."""
        if socket is not None:
            self._unsent = [kept for kept in self._unsent if kept[0] is not socket]
            self._poller.unregister(socket)
            _HELD.discard(socket)
            monitor = self._monitors.pop(socket, None)
            if monitor is not None:
                self._poller.unregister(monitor.socket)
                _HELD.discard(monitor.socket)
                monitor.close()
            socket.close(linger)

    def _send(self, socket: "zmq.Socket[bytes] | None", envelope: Envelope) -> None:
        """Send, or keep it until the peer is connected; its question has a deadline anyway."""
        if socket is None:
            return
        try:
            socket.send_multipart(pack(envelope), zmq.NOBLOCK)
        except zmq.Again:
            if len(self._unsent) < QUEUE_MAX:
                self._unsent.append((socket, envelope))
                self._poller.modify(socket, zmq.POLLIN | zmq.POLLOUT)

    def _flush(self, socket: "zmq.Socket[bytes]") -> None:
        """The peer is connected: send what was kept for it."""
        unsent, self._unsent = self._unsent, []
        self._poller.modify(socket, zmq.POLLIN)
        for target, envelope in unsent:
            self._send(target, envelope)

    def _woken(self) -> bool:
        try:
            os.eventfd_read(self._wake_fd)
        except BlockingIOError:
            return False
        return True

    @property
    def _own(self) -> Machine:
        """The machine of this process: after a fork another one, with sockets of its own."""
        if os.getpid() != self._pid:
            self._setup()
        return self._machine

    @property
    def _search(self) -> Finding:
        """What this process looks up by itself."""
        assert self._own is self._machine
        return self._finding

    def _deadline(self, timeout: float) -> int:
        return time.monotonic_ns() + int(timeout * 1e9)
