"""The door of an actor: which users' processes are heard on a socket of this host.

The mode of the run directory keeps other users away, as long as nobody changes it.  The door does
not depend on that: libzmq asks us about each connection before a word of it is heard (ZAP, the
ZeroMQ authentication protocol), and names the process at its other end as the kernel knows it,
`localhost:UID:GID:PID`.  Our own user and root, who can do everything anyway, are let in; all
others are refused, counted, and named in the log.

There is one such handler per ZeroMQ context, so the questions about clients on TCP come here too;
they are for the guard there (tcp.py).
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, cast

import zmq

from pegaflow.client.presence import trusted, user
from pegaflow.service.logs import get_logger

if TYPE_CHECKING:
    from .tcp import Guard

DOMAIN = b"pegaflow"
"""Of the sockets that libzmq is to ask about."""

_ENDPOINT = "inproc://zeromq.zap.01"  # where libzmq asks (ZeroMQ RFC 27)
_VERSION = b"1.0"


class Door:
    """Answers libzmq's questions; `answer` is to be called whenever `fd` is readable.

    Args:
        context: the one whose sockets it judges; a context has one door.
        counts: the actor's; refusals are counted there.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], counts: Counter[str]) -> None:
        self._counts = counts  # the actor's
        self._trust = trusted()
        self.guard: Guard | None = None  # of clients with keys, on TCP
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ENDPOINT)
        #: It tells of changes only; a poll of the socket itself would cost each turn of the loop.
        self.fd = cast(int, self.socket.getsockopt(zmq.FD))

    def answer(self) -> None:
        """Answer everything that was asked."""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            _, number, _, address, _, mechanism, *_ = frames
            if self.guard is not None and mechanism == b"CURVE":
                self.guard.answer(frames)
                continue
            code = b"200" if self._may_enter(address.decode(errors="replace")) else b"400"
            self.socket.send_multipart([_VERSION, number, code, b"", b"", b""])

    def close(self) -> None:
        """Answer no more."""
        self.socket.close()

    def _may_enter(self, address: str) -> bool:
        *_, uid, _, pid = ["", "", "", *address.split(":")]
        if uid.isdecimal() and int(uid) in self._trust:
            return True
        who = user(int(uid)) if uid.isdecimal() else f"unknown ({address[:80]!r})"
        self._counts["peers_refused"] += 1
        why = "only the service's own user and root are let in"
        get_logger().warning("peer_refused", user=who, pid=pid, why=why, repeats=uid)
        return False
