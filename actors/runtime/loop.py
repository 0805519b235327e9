"""The shell: one thread, one plain blocking poll loop, and the only sockets of an actor.

Each process binds one ROUTER, where everybody who talks to it dials in with its address as routing
id (and, if it is told to, a second one on TCP, where only clients are heard, or only other hosts:
tcp.py), and opens a DEALER to each neighbour that it dials itself.  Answers go back the way the
question came.  A sender must be who its routing id says; everything that is not a well-formed
envelope is counted and dropped, and the loop lives on.

Order in one turn: the inbox before the timers, so that a process that was stopped hears what came
meanwhile before it decides that somebody was silent.

A turn is what its neighbours wait for, so all that an actor does in one is bounded, however much it
knows of; the longest is measured.  What was there before the first turn is of no interest to
Python's garbage collector: the 40,000 objects of the imports made each full collection 10 to 20 ms
long (Python 3.11, AMD EPYC), which now looks at what has come since.
"""

from __future__ import annotations

import gc
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import zmq

from pegaflow.service.logs import get_logger
from pegaflow.wire.envelope import HEADER_BYTES_MAX, Envelope, pack, unpack
from pegaflow.wire.jobs import Result, Unreachable
from pegaflow.wire.links import DRAIN_MAX, DRAIN_NS, QUEUE_MAX
from pegaflow.wire.message import BODY_BYTES_MAX, Message, WireError
from pegaflow.wire.values import ANY_PEER, CLIENT, PEER_PLACE, REMOTE_PEER, Address

from .contract import Dial, Hangup
from .door import DOMAIN, Door
from .host import Host, Step
from .inbox import Inbox

if TYPE_CHECKING:  # with what they need, the time of a spare to start; most services have no TCP
    from .tcp import Tcp

Readable = int | zmq.Socket[bytes]
"""A file descriptor, or a socket of ZeroMQ."""

Sink = Callable[[int, Message], Result | None]


def monotonic() -> int:
    """CLOCK_MONOTONIC in nanoseconds: the `now` of every actor on this host."""
    return time.monotonic_ns()


@dataclass(slots=True)
class Turns:
    """How punctual a loop is."""

    late_ns: int = 0  # the latest wake since somebody reset this
    longest_ns: int = 0  # from one look at the sockets to the next, without the wait for them


class _Remote(NamedTuple):
    """The inbox on TCP."""

    socket: zmq.Socket[bytes]
    hears: str  # name of those who are heard there
    tcp: Tcp  # how we are known there


class Loop:
    """Runs one host until it stops.

    Args:
        work: does a job, by its number: at once, and returns the result; or None, and calls
            `complete` later.
    """

    def __init__(self, host: Host, work: Sink) -> None:
        self.host = host
        self.work = work
        self.context = zmq.Context(1 if host.actor.abroad is None else 2)
        self.log = get_logger()
        self._poll = zmq.Poller()
        self._inbox: Inbox | None = None
        self._remote: _Remote | None = None  # the inbox on TCP, if there is one
        self._door = Door(self.context, host.actor.counts)
        self._links: dict[Address, zmq.Socket[bytes]] = {}  # neighbours that we dialled
        self._callers: dict[Readable, Callable[[], None]] = {}  # what to do when it is readable
        self._peers: dict[zmq.Socket[bytes], Address | None] = {}  # sockets; None: the inbox
        self._wake_ns: int | None = None  # the host's wake_at, as of the end of the last turn
        self._stop: str | None = None
        self.turns = Turns()
        self._due: deque[Callable[[int], Step]] = deque()  # inputs that our own step has brought
        self.watch(self._door.fd, self._door.answer)

    def bind(self, path: str) -> None:
        """The inbox.  The socket file is ours alone.

        Raises:
            UserError: the socket cannot be made.
        """
        socket = self._router()
        socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
        self._inbox = Inbox(socket, Path(path))
        self._inbox.listen()
        self._watch_socket(socket, None)

    def bind_again(self) -> str:
        """Have a socket of ours at the inbox's path; '' or why that cannot be."""
        return self._inbox.bind_again() if self._inbox is not None else ""

    def is_bound(self) -> bool:
        """Whether the file at the inbox's path is ours."""
        return self._inbox is not None and self._inbox.is_bound()

    def unlink(self) -> None:
        """Remove the inbox's file, if it is still ours."""
        if self._inbox is not None:
            self._inbox.unlink()

    def bind_tcp(self, where: Tcp, hears: str = CLIENT) -> int:
        """A second inbox, on TCP and for senders of one name only; the port it got.

        Raises:
            UserError: nobody can listen there.
        """
        self._remote = _Remote(self._router(), hears, where)
        self._door.guard = where.guard(self._door.socket)
        port = where.bind(self._remote.socket)
        self._watch_socket(self._remote.socket, None)
        return port

    def dial(self, address: Address, endpoint: str, key: bytes = b"") -> None:
        """Open a link to a neighbour, or to another host.

        Args:
            endpoint: path of its inbox; or tcp://...
            key: on TCP, its public key; empty: there are none.
        """
        assert address not in self._links
        link = self._socket(zmq.DEALER)
        abroad = self.host.actor.abroad
        if abroad is not None and endpoint.startswith("tcp://"):
            assert self._remote is not None, "who dials other hosts listens for them"
            link.setsockopt(zmq.ROUTING_ID, abroad.routing_id)
            link.setsockopt(zmq.AFFINITY, 2)  # its thread may wait for a name server
            self._remote.tcp.dial(link, endpoint, key)
        else:
            link.setsockopt(zmq.ROUTING_ID, self.host.actor.address.routing_id)
            link.connect(f"ipc://{endpoint}")
        self._links[address] = link
        self._watch_socket(link, address)

    def watch(self, fd: Readable, call: Callable[[], None]) -> None:
        """Call this whenever the descriptor, or this socket, is readable.

        Args:
            call: in the loop's thread, between two inputs of the actor.
        """
        self._callers[fd] = call
        self._poll.register(fd, zmq.POLLIN)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor."""
        del self._callers[fd]
        self._poll.unregister(fd)

    def apply(self, step: Step) -> None:
        """Do what the actor wants; jobs that are done at once feed it again."""
        for link in step.links:
            if isinstance(link, Dial):
                self.dial(link.address, link.endpoint, link.key)
            elif isinstance(link, Hangup):
                self._hang_up(link.address)
            else:
                why = self.bind_again()
                if why:
                    self.log.warning("socket_lost", why=why, repeats="socket_lost")
        for note in step.notes:
            facts = dict(note.facts)
            if note.repeats:
                facts["repeats"] = note.repeats
            getattr(self.log, note.level)(note.event, **facts)
        for envelope in step.envelopes:
            self._send(envelope)
        for number, job in step.jobs:
            result = self.work(number, job)
            if result is not None:
                self._due.append(partial(self.host.complete, number, result))
        if step.stop is not None and self._stop is None:
            self._stop = step.stop

    def complete(self, number: int, result: Result) -> None:
        """A job that took its time is over; said in the loop's thread."""
        self._due.append(partial(self.host.complete, number, result))
        self._go_on()

    def inform(self, msg: Message) -> None:
        """The shell has something to tell the actor."""
        self.apply(self.host.inform(msg, monotonic()))
        self._go_on()

    def run(self) -> str:
        """Until the actor stops; its reason, empty for a clean end."""
        gc.freeze()
        self.apply(self.host.start(monotonic()))
        self._go_on()
        self._wake_ns = self.host.wake_at()
        while self._stop is None:
            self._turn()
        self._door.close()
        for socket in self._peers:
            socket.close(linger=200)
        self.context.destroy(linger=200)
        return self._stop

    def _turn(self) -> None:
        timeout = None
        if self._wake_ns is not None:
            timeout = max(0, -(-(self._wake_ns - monotonic()) // 1_000_000))
        found = self._poll.poll(timeout)
        begun_ns = monotonic()
        for ready, _ in found:
            if ready in self._callers:
                self._callers[ready]()
            elif ready in self._peers:
                self._receive(ready, self._peers[ready])
        wake = self.host.wake_at()
        now = monotonic()
        if wake is not None and wake <= now:
            self.turns.late_ns = max(self.turns.late_ns, now - wake)
            self.apply(self.host.wake(now))
            self._go_on()
            wake = self.host.wake_at()
        self._wake_ns = wake
        self.turns.longest_ns = max(self.turns.longest_ns, monotonic() - begun_ns)

    def _receive(self, socket: zmq.Socket[bytes], peer: Address | None) -> None:
        """Everything that has come, up to two limits."""
        until = monotonic() + DRAIN_NS
        for _ in range(DRAIN_MAX):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            hears = self._remote.hears if self._remote and socket is self._remote.socket else ""
            self._take(frames, peer, hears)
            if socket.closed or self._stop is not None:
                return
            if not cast(int, socket.get(zmq.EVENTS)) & zmq.POLLIN:  # cheaper than Again
                return
            if monotonic() >= until:
                return

    def _take(self, frames: list[bytes], peer: Address | None, remote: str) -> None:
        """One envelope; `remote`: who is heard at this socket on TCP, by name."""
        try:
            if peer is None:
                routing_id = frames.pop(0)
                envelope = unpack(frames)
                if envelope.sender.routing_id != routing_id:
                    raise WireError("the sender is not who it says")
                if remote and envelope.sender.name != remote:
                    raise WireError(f"only {remote}s come over TCP")
            else:
                envelope = unpack(frames)
                sender = envelope.sender
                anybody = peer.name == PEER_PLACE and sender.name == REMOTE_PEER
                if sender != peer and not anybody:
                    raise WireError("the sender is not whom we dialled")
        except WireError as err:
            self.host.actor.counts["frames_bad"] += 1
            self.log.warning("bad_frame", why=str(err), repeats="bad_frame")
            return
        self.apply(self.host.deliver(envelope, monotonic(), frames, bool(remote)))
        self._go_on()

    def _go_on(self) -> None:
        while self._due:
            self.apply(self._due.popleft()(monotonic()))

    def _send(self, envelope: Envelope) -> None:
        receiver = envelope.receiver
        link = self._links.get(receiver)
        if link is not None:
            if receiver.name == PEER_PLACE:
                envelope = Envelope(envelope.sender, ANY_PEER, envelope.message)
            failed = _send(link, pack(envelope))
        else:
            frames = [receiver.routing_id, *pack(envelope)]
            failed = _send(self._inbox.socket if self._inbox is not None else None, frames)
            if failed == zmq.EHOSTUNREACH and self._remote is not None:
                failed = _send(self._remote.socket, frames)
            if failed == zmq.EHOSTUNREACH and receiver.name == CLIENT:
                if self.host.actor.accepts(Unreachable, self.host.actor.address.name):
                    self._due.append(partial(self.host.inform, Unreachable(receiver)))
        if failed:
            self.host.actor.counts["frames_unsent"] += 1

    def _socket(self, kind: int) -> zmq.Socket[bytes]:
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.AFFINITY, 1)
        socket.setsockopt(zmq.MAXMSGSIZE, BODY_BYTES_MAX + HEADER_BYTES_MAX)
        socket.setsockopt(zmq.SNDHWM, QUEUE_MAX)
        socket.setsockopt(zmq.RCVHWM, QUEUE_MAX)
        return socket

    def _router(self) -> zmq.Socket[bytes]:
        socket = self._socket(zmq.ROUTER)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # Who dials again takes its name over; what the old link still holds then has no sender.
        socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        return socket

    def _watch_socket(self, socket: zmq.Socket[bytes], peer: Address | None) -> None:
        self._peers[socket] = peer
        self._poll.register(socket, zmq.POLLIN)

    def _hang_up(self, address: Address) -> None:
        link = self._links.pop(address, None)
        if link is None:
            return
        del self._peers[link]
        self._poll.unregister(link)
        link.close(linger=0)


def _send(socket: zmq.Socket[bytes] | None, frames: list[bytes]) -> int:
    """Send, or the reason why not: EAGAIN (its queue is full) or EHOSTUNREACH (it is not there)."""
    if socket is None:
        return zmq.EHOSTUNREACH
    try:
        socket.send_multipart(frames, zmq.NOBLOCK)
    except zmq.ZMQError as err:
        if err.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            raise
        return err.errno
    return 0
