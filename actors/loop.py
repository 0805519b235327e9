"""The shell: one thread, one plain blocking poll loop, and the only sockets of an actor.

Each process binds one ROUTER, where everybody who talks to it dials in with its address as routing
id, and opens a DEALER to each neighbour that it dials itself.  Answers go back the way the question
came.  A sender must be who its routing id says; everything that is not a well-formed envelope is
counted and dropped, and the loop lives on.

Order in one turn: the inbox before the timers, so that a process that was stopped hears what came
meanwhile before it decides that somebody was silent.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import zmq

from pegaflow.errors import UserError
from pegaflow.logs import get_logger
from pegaflow.wire.envelope import HEADER_BYTES_MAX, Envelope, pack, unpack
from pegaflow.wire.jobs import Done
from pegaflow.wire.message import BODY_BYTES_MAX, Message, WireError
from pegaflow.wire.values import Address

from .actor import Dial
from .asks import Host, Step

QUEUE_MAX = 10_000
"""Messages queued per link and direction; a neighbour that far behind is about to be killed."""

DRAIN_MAX = 256
"""Messages taken from one socket per turn, so that no neighbour starves the others."""

Sink = Callable[[int, Message], Done | None]


def monotonic() -> int:
    """CLOCK_MONOTONIC in nanoseconds: the `now` of every actor on this host."""
    return time.monotonic_ns()


class Loop:
    """Runs one host until it stops.  `work` does a job: at once (its Done) or later (None)."""

    def __init__(self, host: Host, work: Sink) -> None:
        self.host = host
        self.work = work
        self.context = zmq.Context()
        self.log = get_logger()
        self._poll = zmq.Poller()
        self._inbox: zmq.Socket[bytes] | None = None
        self._links: dict[Address, zmq.Socket[bytes]] = {}  # neighbours that we dialled
        self._callers: dict[int, Callable[[], None]] = {}  # fd -> what to do when it is readable
        self._peers: dict[zmq.Socket[bytes], Address | None] = {}  # sockets; None: the inbox
        self._stop: str | None = None
        self.late_ns = 0  # the latest wake since somebody reset this
        self._completions: list[tuple[int, Done]] = []  # of jobs that were done at once

    def bind(self, path: str) -> None:
        """The inbox.  The socket file is ours alone.

        Raises:
            UserError: the socket cannot be made.
        """
        self._inbox = self._socket(zmq.ROUTER)
        self._inbox.setsockopt(zmq.ROUTER_MANDATORY, 1)
        # Who dials again takes its name over; what the old link still holds then has no sender.
        self._inbox.setsockopt(zmq.ROUTER_HANDOVER, 1)
        Path(path).unlink(missing_ok=True)
        before = os.umask(0o177)
        try:
            self._inbox.bind(f"ipc://{path}")
        except zmq.ZMQError as err:
            raise UserError(f"cannot listen at {path}: {err.strerror}") from None
        finally:
            os.umask(before)
        self._watch_socket(self._inbox, None)

    def dial(self, address: Address, endpoint: str) -> None:
        """A link to a neighbour."""
        assert address not in self._links
        link = self._socket(zmq.DEALER)
        link.setsockopt(zmq.ROUTING_ID, self.host.actor.address.routing_id)
        link.connect(f"ipc://{endpoint}")
        self._links[address] = link
        self._watch_socket(link, address)

    def watch(self, fd: int, call: Callable[[], None]) -> None:
        """Call this whenever the descriptor is readable."""
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
                self.dial(link.address, link.endpoint)
            else:
                self._hang_up(link.address)
        for note in step.notes:
            facts = dict(note.facts)
            if note.repeats:
                facts["repeats"] = note.repeats
            getattr(self.log, note.level)(note.event, **facts)
        for envelope in step.envelopes:
            self._send(envelope)
        for number, job in step.jobs:
            done = self.work(number, job)
            if done is not None:
                self._completions.append((number, done))
        if step.stop is not None and self._stop is None:
            self._stop = step.stop

    def complete(self, number: int, done: Done) -> None:
        """A job that took its time is over."""
        self._completions.append((number, done))
        self._drain_completions()

    def inform(self, msg: Message) -> None:
        """The shell has something to tell the actor."""
        self.apply(self.host.inform(msg, monotonic()))
        self._drain_completions()

    def run(self) -> str:
        """Until the actor stops; its reason, empty for a clean end."""
        self.apply(self.host.start(monotonic()))
        self._drain_completions()
        while self._stop is None:
            self._turn()
        for socket in (*self._links.values(), self._inbox):
            if socket is not None:
                socket.close(linger=200)
        self.context.destroy(linger=200)
        return self._stop

    def _turn(self) -> None:
        wake = self.host.wake_at()
        timeout = None
        if wake is not None:
            timeout = max(0, -(-(wake - monotonic()) // 1_000_000))
        for ready, _ in self._poll.poll(timeout):
            if isinstance(ready, int):
                call = self._callers.get(ready)
                if call is not None:
                    call()
            elif ready in self._peers:
                self._receive(ready, self._peers[ready])
        wake = self.host.wake_at()
        now = monotonic()
        if wake is not None and wake <= now:
            self.late_ns = max(self.late_ns, now - wake)
            self.apply(self.host.wake(now))
            self._drain_completions()

    def _receive(self, socket: "zmq.Socket[bytes]", peer: Address | None) -> None:
        """Everything that has come, up to a limit."""
        for _ in range(DRAIN_MAX):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(frames, peer)
            if socket.closed or self._stop is not None:
                return

    def _take(self, frames: list[bytes], peer: Address | None) -> None:
        try:
            if peer is None:
                routing_id = frames.pop(0)
                envelope = unpack(frames)
                if envelope.sender.routing_id != routing_id:
                    raise WireError("the sender is not who it says")
            else:
                envelope = unpack(frames)
                if envelope.sender != peer:
                    raise WireError("the sender is not whom we dialled")
        except WireError as err:
            self.host.actor.counts["frames_bad"] += 1
            self.log.warning("bad_frame", why=str(err), repeats="bad_frame")
            return
        self.apply(self.host.deliver(envelope, monotonic(), frames))
        self._drain_completions()

    def _drain_completions(self) -> None:
        while self._completions:
            number, done = self._completions.pop(0)
            self.apply(self.host.complete(number, done, monotonic()))

    def _send(self, envelope: Envelope) -> None:
        link = self._links.get(envelope.receiver)
        try:
            if link is not None:
                link.send_multipart(pack(envelope), zmq.NOBLOCK)
            elif self._inbox is not None:
                frames = [envelope.receiver.routing_id, *pack(envelope)]
                self._inbox.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError as err:
            if err.errno not in (zmq.EAGAIN, zmq.EHOSTUNREACH):
                raise
            self.host.actor.counts["frames_unsent"] += 1

    def _socket(self, kind: int) -> "zmq.Socket[bytes]":
        socket = self.context.socket(kind)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.MAXMSGSIZE, BODY_BYTES_MAX + HEADER_BYTES_MAX)
        socket.setsockopt(zmq.SNDHWM, QUEUE_MAX)
        socket.setsockopt(zmq.RCVHWM, QUEUE_MAX)
        return socket

    def _watch_socket(self, socket: "zmq.Socket[bytes]", peer: Address | None) -> None:
        self._peers[socket] = peer
        self._poll.register(socket, zmq.POLLIN)

    def _hang_up(self, address: Address) -> None:
        link = self._links.pop(address, None)
        if link is None:
            return
        del self._peers[link]
        self._poll.unregister(link)
        link.close(linger=0)


class Signals:
    """Signals as readable bytes of a descriptor."""

    def __init__(self, *numbers: int) -> None:
        self.fd, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in numbers:
            signal.signal(number, lambda *_: None)

    def read(self) -> bytes:
        """The numbers of the signals that have come."""
        try:
            return os.read(self.fd, 4096)
        except BlockingIOError:
            return b""
