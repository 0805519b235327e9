"""One TCP stream of a link, in the clear or within TLS: sends from memory, receives into memory.

A stream belongs to one thread, which sends, receives and at last closes it; any other thread may
`cut` it, and whatever the first one waits for then ends with an error.  Nothing waits longer than
STALL_S without a byte that moves: the kernel keeps that time (SO_RCVTIMEO, SO_SNDTIMEO), so that
the sockets stay blocking and one call moves megabytes (MSG_WAITALL).
"""

import errno
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from struct import pack
from typing import TypeVar

from pegaflow.core.limits import IOV_MAX
from pegaflow.wire.units import Bytes, Seconds

from . import STALL_S
from .tcpframes import BATCH_BYTES

CALL_BYTES: Bytes = BATCH_BYTES
"""Of one call that receives or sends, the rest is left for the next: within it nobody can see that
bytes move."""

AHEAD_BYTES: Bytes = 4096
"""Received at once of what has frames alone: several requests, the largest too, cost one call."""

_P = TypeVar("_P", bytes, memoryview)

_TICK_S = 1e-6  # to the kernel, less than this is for ever

_KEEPALIVE = (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3))


class Stream:
    """A connected socket.

    Args:
        sock: owned from now on.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._ahead = b""  # received, and not asked for yet
        self._lock = threading.Lock()  # between `cut` and `close`: no number of another's file
        sock.setblocking(True)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        self.patient(STALL_S)

    def patient(self, seconds: Seconds) -> None:
        """Wait so long for bytes to move; STALL_S from the beginning.

        Raises:
            TimeoutError: it is no time at all.
        """
        if seconds < _TICK_S:
            raise TimeoutError(errno.ETIMEDOUT, "it takes too long to say anything")
        if isinstance(self._sock, ssl.SSLSocket):
            self._sock.settimeout(seconds)
            return
        value = pack("ll", int(seconds), int(seconds % 1 * 1e6))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            self._sock.setsockopt(socket.SOL_SOCKET, option, value)

    def secure(self, context: ssl.SSLContext, *, name: str | None, timeout: Seconds) -> None:
        """Speak TLS from now on.

        Args:
            name: of the host that is expected there; None: we are the server.

        Raises:
            OSError: the other side does not, or is not who it should be.
        """
        self._sock.settimeout(timeout)
        with self._lock:
            self._sock = context.wrap_socket(
                self._sock,
                server_side=name is None,
                server_hostname=name,
                do_handshake_on_connect=False,
            )
        self._sock.do_handshake()
        self.patient(STALL_S)

    def send(self, parts: Sequence[memoryview]) -> None:
        """All of these bytes.

        Raises:
            OSError: they cannot be sent, or nobody takes them.
        """
        if isinstance(self._sock, ssl.SSLSocket):
            for part in parts:
                self._sock.sendall(part)
            return
        left = list(parts)
        while left:
            sent = self._sock.sendmsg(_call(left))
            left = _after(left, sent)

    def receive(self, views: Sequence[memoryview]) -> None:
        """Fill these.

        Raises:
            OSError: nothing more comes.
        """
        left = list(views)
        while left:
            left = _after(left, self._some(left))

    def frame(self, size: int) -> bytes:
        """The next bytes."""
        raw = bytearray(size)
        self.receive([memoryview(raw)])
        return bytes(raw)

    def frame_within(self, size: int, seconds: Seconds) -> bytes:
        """The next bytes, all of them within this time."""
        until = time.monotonic() + seconds
        raw = bytearray(size)
        left = [memoryview(raw)]
        try:
            while left:
                self.patient(until - time.monotonic())
                left = _after(left, self._some(left))
        finally:
            self.patient(STALL_S)
        return bytes(raw)

    def next_frame(self, size: int) -> bytes | None:
        """The next bytes, whenever they come; once the first is there, the others have to follow.

        Returns:
            None if the other side has ended the stream in good order.
        """
        while not self._ahead:
            with suppress(BlockingIOError, TimeoutError):
                self._ahead = self._sock.recv(AHEAD_BYTES)
                if not self._ahead:
                    return None
        return self.rest(size)

    def rest(self, size: int) -> bytes:
        """The next bytes behind a `next_frame`."""
        while len(self._ahead) < size:
            more = self._sock.recv(AHEAD_BYTES)
            if not more:
                raise ConnectionResetError(errno.ECONNRESET, "the other side has ended the stream")
            self._ahead += more
        raw, self._ahead = self._ahead[:size], self._ahead[size:]
        return raw

    def cut(self) -> None:
        """End whatever the stream's own thread waits for, and all that it will."""
        with self._lock, suppress(OSError):
            # Not the method of SSLSocket, behind which the next bytes would go out in the clear.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back."""
        with self._lock:
            self._sock.close()

    def _some(self, left: Sequence[memoryview]) -> int:
        if isinstance(self._sock, ssl.SSLSocket):
            got = self._sock.recv_into(left[0])
        else:
            got = self._sock.recvmsg_into(_call(left), 0, socket.MSG_WAITALL)[0]
        if not got:
            raise ConnectionResetError(errno.ECONNRESET, "the other side has ended the stream")
        return got


def _call(parts: Sequence[_P]) -> list[_P]:
    """The first of these, as many as one call moves."""
    if len(parts) <= IOV_MAX and sum(map(len, parts)) <= CALL_BYTES:
        return list(parts)
    if len(parts[0]) > CALL_BYTES:
        return [parts[0][:CALL_BYTES]]
    some: list[_P] = []
    size = 0
    for part in parts[:IOV_MAX]:
        size += len(part)
        if size > CALL_BYTES and some:
            break
        some.append(part)
    return some


def _after(parts: Sequence[_P], moved: int) -> list[_P]:
    """What is left of these when so many bytes have moved."""
    if moved == sum(map(len, parts)):
        return []
    at = 0
    while at < len(parts) and moved >= len(parts[at]):
        moved -= len(parts[at])
        at += 1
    left = list(parts[at:])
    if moved:
        left[0] = left[0][moved:]
    return left
