"""The client: what runs inside an engine, or in any program that has KV blocks.

A `Machine` (machine.py) decides; this class owns its sockets and does its copies.  There is no
thread of ours: all I/O and all copying happens inside `poll` and the blocking calls, in the thread
that calls them.  Nothing raises because the service is slow, dead or not there yet, and nothing
waits longer than its timeout (plus one block's copy); it becomes a status.

    client = Client("my-engine", namespace=bytes(16))
    client.register(Layout(...), [buffer])
    client.connect(timeout=5.0)
    client.save(keys, blocks)
    found = client.lookup(keys)
    if found.lease:
        client.load(found.lease, blocks[: found.blocks])
"""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy.typing as npt
import zmq

from pegaflow.wire.envelope import Envelope, pack, unpack
from pegaflow.wire.layout import Layout
from pegaflow.wire.message import WireError
from pegaflow.wire.session import Attached
from pegaflow.wire.values import KEY_BYTES_MAX, LIST_MAX

from . import place
from .buffers import EngineMemory, FileView
from .machine import (
    CopyIn,
    CopyOut,
    DialSession,
    Effect,
    Finish,
    HangUp,
    Identity,
    Machine,
    MapFiles,
    ToDesk,
)
from .results import Done, Lease, LoadDone, LookupDone, SaveDone

_T = TypeVar("_T", LookupDone, LoadDone, SaveDone)


class Client:
    """One engine's connection; single-threaded but for `wake`.

    Args:
        engine: the engine's id; clients of one engine and generation share one session.
        namespace: 16..64 bytes: all that changes the meaning of the bytes, but the layout.
        probe: the engine's hash of a fixed block; engines that differ in it alone are told so.
        world: tensor-parallel ranks of the engine.
        generation: 16 bytes drawn anew for each life of the engine; default: one per process.
        endpoint: the front desk: a socket's path, or tcp://HOST:PORT.
        curve: key file for TCP; default: PEGAFLOW_CURVE names it.
        context: a ZeroMQ context to share; default: an own one.
    """

    def __init__(
        self,
        engine: str,
        namespace: bytes,
        *,
        probe: bytes = b"",
        world: int = 1,
        generation: bytes | None = None,
        endpoint: str | None = None,
        curve: str | None = None,
        context: "zmq.Context[zmq.Socket[bytes]] | None" = None,
    ) -> None:
        if not 16 <= len(namespace) <= 64:
            raise ValueError(f"a namespace has 16..64 bytes, not {len(namespace)}")
        if generation is not None and len(generation) != 16:
            raise ValueError(f"a generation has 16 bytes, not {len(generation)}")
        self._endpoint = place.as_url(endpoint)
        self._keys = place.client_keys(curve) if self._endpoint.startswith(place.TCP) else None
        self._who = (engine, namespace, probe, world, generation)
        self._given_context = context
        self._memory: EngineMemory | None = None
        self._registered: tuple[int, Layout] | None = None
        self._closed = False
        self._setup()

    def _setup(self) -> None:
        """Everything that belongs to this process: again after a fork."""
        engine, namespace, probe, world, generation = self._who
        self._pid = os.getpid()
        life = generation or place.generation()
        pid, started = self._pid, place.start_ticks()
        self._machine = Machine(
            Identity(place.new_address(), engine, life, namespace, probe, world, pid, started)
        )
        self._context = self._given_context or zmq.Context()
        self._poller = zmq.Poller()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller.register(self._wake_fd, zmq.POLLIN)
        self._desk: zmq.Socket[bytes] | None = None
        self._link: zmq.Socket[bytes] | None = None
        self._unsent: list[tuple[zmq.Socket[bytes], Envelope]] = []  # waits for its connection
        self._pidfd = -1
        self._pool: FileView | None = None
        self._bounce: FileView | None = None
        self._slot_bytes = 0
        self._done: list[Done] = []
        if self._memory is not None and self._registered is not None:
            rank, layout = self._registered
            self._machine.register(rank, layout, self._memory.region_bytes)

    @property
    def attached(self) -> bool:
        """Whether a session serves this client now."""
        return self._machine.state == "ready"

    @property
    def refusal(self) -> str:
        """Why the service refused us last, in one line for a log; empty if it did not."""
        return self._machine.refusal

    @property
    def advice(self) -> str:
        """What the service had to say when it took us, in one line for a log; usually empty."""
        return self._machine.advice

    def register(
        self,
        layout: Layout,
        buffers: Sequence[npt.NDArray[Any] | memoryview | bytearray],
        *,
        rank: int = 0,
    ) -> None:
        """Name the memory that holds the KV blocks of this rank.

        It is attached as soon as the service is there, and again after every reconnect.

        Args:
            layout: where the blocks lie; sizes and strides in bytes.
            buffers: region i of the layout: writable, C-contiguous; kept referenced.
            rank: tensor-parallel rank.

        Raises:
            ValueError: the layout overlaps or overruns the buffers, or they are read-only.
        """
        memory = EngineMemory(layout, buffers)
        if not memory.writable:
            raise ValueError("the buffers are read-only: a load could not write them")
        self._memory, self._registered = memory, (rank, layout)
        self._apply(self._machine.register(rank, layout, memory.region_bytes))

    # poll style

    def start_lookup(self, keys: Sequence[bytes], *, timeout: float) -> int:
        """Ask for the longest prefix hit of these block hashes (8..64 bytes each, one length).

        Returns a ticket; `poll` returns its LookupDone once, within `timeout` seconds.
        """
        ticket, effects = self._machine.lookup(_keys(keys), self._deadline(timeout))
        self._apply(effects)
        return ticket

    def start_load(
        self, lease: Lease, blocks: Sequence[int], *, first: int = 0, timeout: float
    ) -> int:
        """Write blocks first..first+len(blocks) of a lease into these blocks of the engine.

        Consumes this rank's share of the lease.  Returns a ticket for a LoadDone.
        """
        if first < 0 or not blocks or first + len(blocks) > lease.blocks:
            raise ValueError(f"blocks {first}..{first + len(blocks)} of a lease of {lease.blocks}")
        ids = self._blocks(blocks)
        ticket, effects = self._machine.load(lease, ids, first, self._deadline(timeout))
        self._apply(effects)
        return ticket

    def start_save(
        self,
        keys: Sequence[bytes],
        blocks: Sequence[int],
        *,
        timeout: float,
        parent: bytes = b"",
        valid: Callable[[], bool] = lambda: True,
    ) -> int:
        """Save the engine's blocks under these keys.  Returns a ticket for a SaveDone.

        Args:
            keys: block hashes in chain order.
            blocks: the engine's block of each key.
            timeout: seconds; then what is not copied yet is not saved.
            parent: the key before the first, if there is one; it orders eviction.
            valid: asked (from the thread that polls) before each copy and once more after it;
                False means that the engine has taken its blocks back, and nothing of what was
                copied meanwhile is published.
        """
        if len(keys) != len(blocks) or not keys:
            raise ValueError(f"{len(keys)} keys for {len(blocks)} blocks")
        ids, hashes = self._blocks(blocks), _keys(keys)
        deadline = self._deadline(timeout)
        ticket, effects = self._machine.save(hashes, ids, parent, valid, deadline)
        self._apply(effects)
        return ticket

    def drop_save(self, ticket: int) -> None:
        """Give a save up: what was not copied yet is not saved and never published."""
        self._apply(self._machine.drop(ticket))

    def release(self, lease: Lease) -> None:
        """Give a lease back unused; unknown ones are ignored."""
        self._apply(self._machine.release(lease))

    def poll(self, timeout: float = 0.0) -> list[Done]:
        """Do all I/O and copying that is due; what has ended.

        Waits up to `timeout` seconds if there is nothing yet (a `wake` ends the wait).
        """
        if os.getpid() != self._pid:
            self._setup()
        if self._closed:
            return []
        until = self._deadline(timeout)
        while True:
            self._turn(0 if self._done else until)
            if self._done or time.monotonic_ns() >= until:
                done, self._done = self._done, []
                return done
            if self._woken():
                return []

    def wake(self) -> None:
        """Make a waiting `poll` return; may be called from any thread."""
        os.eventfd_write(self._wake_fd, 1)

    # blocking style

    def connect(self, timeout: float) -> bool:
        """Wait until a session serves this client; whether one does."""
        until = self._deadline(timeout)
        while not self.attached and time.monotonic_ns() < until:
            self._turn(until)
        return self.attached

    def lookup(self, keys: Sequence[bytes], *, timeout: float = 1.0) -> LookupDone:
        """`start_lookup`, waited for."""
        return self._await(self.start_lookup(keys, timeout=timeout), LookupDone)

    def load(
        self, lease: Lease, blocks: Sequence[int], *, first: int = 0, timeout: float = 10.0
    ) -> LoadDone:
        """`start_load`, waited for."""
        return self._await(self.start_load(lease, blocks, first=first, timeout=timeout), LoadDone)

    def save(
        self,
        keys: Sequence[bytes],
        blocks: Sequence[int],
        *,
        parent: bytes = b"",
        timeout: float = 10.0,
    ) -> SaveDone:
        """`start_save`, waited for."""
        ticket = self.start_save(keys, blocks, parent=parent, timeout=timeout)
        return self._await(ticket, SaveDone)

    def close(self) -> None:
        """Leave the session and close all sockets; the client is of no use after that."""
        if self._closed or os.getpid() != self._pid:
            return
        self._apply(self._machine.leave())
        self._closed = True
        for socket in (self._desk, self._link):
            if socket is not None:
                socket.close(linger=100)
        if self._pidfd >= 0:
            os.close(self._pidfd)
        os.close(self._wake_fd)
        if self._given_context is None:
            self._context.term()

    # inside

    def _await(self, ticket: int, kind: type[_T]) -> _T:
        self._turn(0)  # also a client that has no session must look at the world
        while True:
            for at, done in enumerate(self._done):
                if done.ticket == ticket:
                    del self._done[at]
                    assert isinstance(done, kind)
                    return done
            self._turn(None)

    def _turn(self, until: int | None) -> None:
        """One look at sockets and time; waits until then (None: as long as it may)."""
        now = time.monotonic_ns()
        times = [t for t in (until, self._machine.wake_at()) if t is not None]
        wait = max(0, min(times, default=now) - now)
        for ready, event in self._poller.poll(-(-wait // 1_000_000) if wait >= 1_000_000 else 0):
            if ready == self._pidfd:
                self._apply(self._machine.session_died(time.monotonic_ns()))
            elif isinstance(ready, zmq.Socket) and not ready.closed:
                if event & zmq.POLLOUT:
                    self._flush(ready)
                self._receive(ready)
        self._apply(self._machine.wake(time.monotonic_ns()))

    def _receive(self, socket: "zmq.Socket[bytes]") -> None:
        while not socket.closed:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                envelope = unpack(frames)
            except WireError:
                continue
            self._apply(self._machine.receive(envelope, time.monotonic_ns()))

    def _apply(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Finish):
                self._done.append(effect.done)
            elif isinstance(effect, DialSession):
                self._dial(effect)
            elif isinstance(effect, HangUp):
                self._hang_up()
            elif isinstance(effect, MapFiles):
                self._map(effect.attached)
            elif isinstance(effect, CopyIn):
                self._copy_in(effect)
            elif isinstance(effect, CopyOut):
                self._copy_out(effect)
            elif isinstance(effect, ToDesk):
                self._to_desk(effect.envelope)
            else:
                self._send(self._link, effect.envelope)

    def _copy_in(self, effect: CopyIn) -> None:
        assert self._memory is not None and self._pool is not None
        ok = self._memory.copy(
            self._memory.load, self._pool.bytes, effect.offsets, effect.blocks, effect.deadline
        )
        self._apply(self._machine.copied_in(effect.ticket, ok, time.monotonic_ns()))

    def _copy_out(self, effect: CopyOut) -> None:
        assert self._memory is not None and self._bounce is not None
        offsets = [slot * self._slot_bytes for slot in effect.slots]
        ok = self._memory.copy(
            self._memory.save, self._bounce.bytes, offsets, effect.blocks, effect.deadline
        )
        now = time.monotonic_ns()
        self._apply(self._machine.copied_out(effect.ticket, effect.batch, ok, now))

    def _map(self, attached: Attached) -> None:
        try:
            if self._pool is None or self._pool.path != attached.pool_path:
                self._pool = FileView(attached.pool_path, write=False)
            self._bounce = FileView(attached.bounce_path, write=True)
        except OSError as err:
            why = (
                f"cannot map the pool: {err.strerror} ({err.filename}); is /dev/shm shared with us?"
            )
            self._apply(self._machine.mapped(False, why, time.monotonic_ns()))
            return
        self._slot_bytes = attached.page_size
        self._apply(self._machine.mapped(True, "", time.monotonic_ns()))

    def _dial(self, effect: DialSession) -> None:
        self._hang_up()
        self._link = self._socket(place.session_url(self._endpoint, effect.endpoint))
        try:
            self._pidfd = os.pidfd_open(effect.pid)
            self._poller.register(self._pidfd, zmq.POLLIN)
        except OSError:
            self._pidfd = -1  # another pid namespace, or dead already: its silence will tell

    def _hang_up(self) -> None:
        self._close(self._link)
        self._link = None
        if self._pidfd >= 0:
            self._poller.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1

    def _to_desk(self, envelope: Envelope) -> None:
        """A new socket per question: the service may have restarted under the same path."""
        self._close(self._desk)
        self._desk = self._socket(self._endpoint)
        self._send(self._desk, envelope)

    def _socket(self, endpoint: str) -> "zmq.Socket[bytes]":
        socket = place.dealer(self._context, endpoint, self._machine.me.address, self._keys)
        self._poller.register(socket, zmq.POLLIN)
        return socket

    def _close(self, socket: "zmq.Socket[bytes] | None") -> None:
        """Close a link and forget what waited for it."""
        if socket is not None:
            self._unsent = [kept for kept in self._unsent if kept[0] is not socket]
            self._poller.unregister(socket)
            socket.close(linger=0)

    def _send(self, socket: "zmq.Socket[bytes] | None", envelope: Envelope) -> None:
        """Send, or keep it until the peer is connected; its question has a deadline anyway."""
        if socket is None:
            return
        try:
            socket.send_multipart(pack(envelope), zmq.NOBLOCK)
        except zmq.Again:
            if len(self._unsent) < place.QUEUE_MAX:
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

    def _blocks(self, blocks: Sequence[int]) -> tuple[int, ...]:
        ids = tuple(map(int, blocks))
        if self._memory is None:
            raise ValueError("register the engine's memory first")
        if min(ids) < 0 or max(ids) >= self._memory.layout.blocks:
            raise ValueError(f"block ids go from 0 to {self._memory.layout.blocks - 1}")
        return ids

    def _deadline(self, timeout: float) -> int:
        if os.getpid() != self._pid:
            self._setup()
        return time.monotonic_ns() + int(timeout * 1e9)


def _keys(keys: Sequence[bytes]) -> tuple[bytes, ...]:
    """Keys as the wire wants them: at least one, 8..64 bytes, all of one length."""
    lengths = set(map(len, keys))
    if len(lengths) != 1 or not 8 <= min(lengths) <= KEY_BYTES_MAX or len(keys) > LIST_MAX:
        raise ValueError(f"1..{LIST_MAX} keys of one length of 8..{KEY_BYTES_MAX} bytes are needed")
    return tuple(keys)
