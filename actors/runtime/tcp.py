"""Listening on TCP, and the guard at that door.

With keys (the default) the transport is CURVE: encrypted, the server proven to the client, and a
client without a key that was let in gets nothing, not even an answer.  libzmq asks a ZAP handler
about each client (door.py); those with keys are for pyzmq's Authenticator.
"""

from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import zmq
from zmq.auth.base import Authenticator

from pegaflow.core.errors import UserError
from pegaflow.service.keys import ServerKeys
from pegaflow.service.logs import get_logger
from pegaflow.wire.links import HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS
from pegaflow.wire.units import Milliseconds

HANDSHAKE_MS: Milliseconds = 5000
"""Who has not said who it is by then is disconnected, so that its descriptor comes back."""

RECONNECT_MS: Milliseconds = 100
"""From one try to reach another host to the next, at first,"""

RECONNECT_MOST_MS: Milliseconds = 1000
"""and later: one that comes back is met within a ping or two."""


class Tcp:
    """Where to listen: an IP address and a port (0: any)."""

    def __init__(self, host: str, port: int, keys: ServerKeys | None) -> None:
        self.host = host
        self.port = port
        self.keys = keys  # None: whoever can connect is let in

    def guard(self, socket: "zmq.Socket[bytes]") -> "Guard | None":
        """Who knows the keys, needed before `bind`; None: there are none, and everybody is let in.

        Args:
            socket: the door's (door.py).
        """
        return None if self.keys is None else Guard(socket, self.keys)

    def bind(self, socket: "zmq.Socket[bytes]") -> int:
        """Listen with this socket; the port it got.

        Raises:
            UserError: nobody can listen there.
        """
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.setsockopt(zmq.IPV6, int(":" in self.host))
        if self.keys is not None:
            socket.curve_secretkey, socket.curve_publickey = self.keys.secret, self.keys.public
            socket.curve_server = True
        host = f"[{self.host}]" if ":" in self.host else self.host
        try:
            socket.bind(f"tcp://{host}:{self.port or '*'}")
        except zmq.ZMQError as error:
            raise UserError(f"cannot listen on {host}:{self.port}: {error.strerror}") from error
        got = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        return int(got.rstrip("\0").rpartition(":")[2])

    def dial(self, socket: "zmq.Socket[bytes]", endpoint: str, key: bytes) -> None:
        """Connect this socket to another host, again and again until somebody is there.

        Args:
            key: the other's public key; whoever has another one is not spoken with.
        """
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MOST_MS)
        socket.setsockopt(zmq.IPV6, int("[" in endpoint))
        if self.keys is not None:
            socket.curve_secretkey, socket.curve_publickey = self.keys.secret, self.keys.public
            socket.curve_serverkey = key
        socket.connect(endpoint)


@dataclass(frozen=True, slots=True)
class TcpPlan:
    """Settings of TCP."""

    addr: str | None  # host:port; None: no TCP
    curve_dir: str | None
    insecure_tcp: bool


def tcp_of(plan: TcpPlan) -> Tcp | None:
    """What these settings ask for; None: no TCP.

    Raises:
        UserError: they would let strangers in, or the keys cannot be used.
    """
    addr, curve_dir, insecure = plan.addr, plan.curve_dir, plan.insecure_tcp
    if addr is None:
        return None
    host, _, port = addr.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if curve_dir is not None and insecure:
        raise UserError("--curve-dir and --insecure-tcp exclude each other: leave one out")
    if curve_dir is not None:
        return Tcp(host, int(port), ServerKeys(Path(curve_dir)))
    if not insecure:
        raise UserError(
            f"--addr {addr} needs --curve-dir (make keys with `pegaflow keygen DIR`), or "
            "--insecure-tcp on a loopback address"
        )
    if not ip_address(host).is_loopback:
        raise UserError(
            f"--insecure-tcp lets everybody in who reaches {addr}: use --curve-dir, or 127.0.0.1"
        )
    return Tcp(host, int(port), None)


class Guard:
    """Answers libzmq's question who may come in."""

    def __init__(self, socket: "zmq.Socket[bytes]", keys: ServerKeys) -> None:
        self._keys = keys
        self._authenticator = Authenticator(socket.context)
        self._authenticator.configure_curve_callback(credentials_provider=self)
        self._authenticator.zap_socket = socket

    def answer(self, question: list[bytes]) -> None:
        """Answer a question about a client with a key."""
        handling = self._authenticator.handle_zap_message(question)
        try:
            handling.send(None)
        except StopIteration:
            return
        raise AssertionError("a coroutine that awaits nothing ends at once")

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether a client is let in; the form that zmq.auth wants.

        Args:
            domain: of no meaning here.
            key: the client's public key, in Z85.
        """
        if key in self._keys.allowed():
            return True
        why = "its key is not in the folder of keys that are allowed"
        get_logger().warning("client_kept_out", key=key.decode(), why=why, repeats=key)
        return False
