"""Where the service is and who we are; and a look at the service without being an engine."""

from __future__ import annotations

import ctypes
import os
import random
import secrets
import tempfile
from collections.abc import Callable
from typing import Any

import zmq

from pegaflow.wire.control import SAME_HOST, Inspect, Report
from pegaflow.wire.envelope import HEADER_BYTES_MAX, Envelope, pack, unpack
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.links import HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS, QUEUE_MAX
from pegaflow.wire.message import BODY_BYTES_MAX
from pegaflow.wire.values import CLIENT, FRONT_DESK, Address

from .curve import ClientKeys, load
from .presence import trusted, uid_of

TCP = "tcp://"
IPC = "ipc://"

_PR_SET_PTRACER = 0x59616D61
_PF_EXITING = 0x4
_libc = ctypes.CDLL(None)

_GENERATION = (os.getpid(), secrets.token_bytes(16))
"""Pid that drew it, and the generation of all clients of this process."""


def default_endpoint() -> str:
    """The front desk: PEGAFLOW_ENDPOINT, or the socket in the default run directory."""
    named = os.environ.get("PEGAFLOW_ENDPOINT")
    if named:
        return named
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = os.environ.get("PEGAFLOW_RUN_DIR")
    if not folder and os.path.isabs(runtime) and os.path.isdir(runtime):
        folder = os.path.join(runtime, "pegaflow")
    if not folder:
        folder = os.path.join(tempfile.gettempdir(), f"pegaflow-{os.getuid()}")
    return os.path.join(folder, "pegaflow.sock")


def client_keys(curve: str | None) -> ClientKeys | None:
    """The keys in this file, or in the one that PEGAFLOW_CURVE names; None without either."""
    path = curve or os.environ.get("PEGAFLOW_CURVE")
    return load(path) if path else None


def generation() -> bytes:
    """The generation of all clients of this process; another after a fork."""
    global _GENERATION
    if _GENERATION[0] != os.getpid():
        _GENERATION = (os.getpid(), secrets.token_bytes(16))
    return _GENERATION[1]


def start_ticks() -> int:
    """Start time of this process in clock ticks since boot: field 22 of its stat."""
    return int(_stat("/proc/self/stat")[19])


def is_ready(pid: int) -> bool:
    """Whether a thread of this process runs, or would if it had a core: "R" in its stat."""
    folder = f"/proc/{pid}/task"
    try:
        for name in os.listdir(folder):
            if _stat(f"{folder}/{name}/stat")[0] == b"R":
                return True
    except OSError:
        return False  # it is ending
    return False


def is_past_running(pid: int) -> bool:
    """Whether a process that was killed can run nothing any more, in the kernel or outside it.

    A process's pidfd tells of its death only when its memory is torn down, which takes some 50 ms
    for each GiB of a pool that it has touched; an engine that waits for the session's last write
    would wait as long.  A thread is past its last system call once it is marked as exiting
    (PF_EXITING in field 9 of its stat, include/linux/sched.h), so all of its copies have ended when
    all threads are.  This holds for bytes that a processor copies, and for none that a device does.

    Args:
        pid: a process that was sent SIGKILL before, so that it starts no thread any more.  Once it
            is reaped its number may be another's: it is dead then, whatever this says.

    Returns:
        False also where /proc does not say.
    """
    try:
        threads = int(_stat(f"/proc/{pid}/stat")[17])  # before the list, which may lack one
        names = os.listdir(f"/proc/{pid}/task")
        flags = [int(_stat(f"/proc/{pid}/task/{name}/stat")[6]) for name in names]
    except (OSError, ValueError, IndexError):
        return False  # a thread ended meanwhile: the next look tells
    return len(names) == threads and all(flag & _PF_EXITING for flag in flags)


def _stat(path: str) -> list[bytes]:
    """The fields of a stat file from the third on."""
    with open(path, "rb") as file:
        stat = file.read()
    return stat[stat.rindex(b")") + 2 :].split()


def pid_namespace() -> int:
    """Which pid namespace our pids are of: its inode, or 0 where /proc does not say."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


def permit_tracer(pid: int) -> None:
    """Let this process, which is no ancestor of ours, read our memory where Yama restricts that."""
    _libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(pid), 0, 0, 0)


def new_address() -> Address:
    """An address that no other client has, in this process or any other."""
    return Address(CLIENT, Incarnation(random.SystemRandom().getrandbits(63) | 1))


def dealer(
    context: zmq.Context[Any],
    endpoint: str,
    me: Address,
    keys: ClientKeys | None = None,
    *,
    before: Callable[[zmq.Socket[bytes]], None] = lambda socket: None,
) -> zmq.Socket[bytes]:
    """A DEALER socket of this client, dialled to an endpoint.

    Args:
        endpoint: a path, or a ZeroMQ URL.
        me: what the service knows us by; the socket's routing id.
        keys: for a TCP endpoint: speak CURVE with these; None: in the clear.
        before: called with the socket before it connects.

    Raises:
        zmq.ZMQError, ValueError: this is no endpoint; the socket is closed.
    """
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a peer that is not there
    socket.setsockopt(zmq.MAXMSGSIZE, BODY_BYTES_MAX + HEADER_BYTES_MAX)
    socket.setsockopt(zmq.SNDHWM, QUEUE_MAX)
    socket.setsockopt(zmq.RCVHWM, QUEUE_MAX)
    socket.setsockopt(zmq.ROUTING_ID, me.routing_id)
    url = as_url(endpoint)
    if url.startswith(TCP):
        socket.setsockopt(zmq.IPV6, 1)
        socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
        if keys is not None:
            socket.curve_secretkey, socket.curve_publickey = keys.secret, keys.public
            socket.curve_serverkey = keys.server
    before(socket)
    try:
        socket.connect(url)
    except (zmq.ZMQError, ValueError):
        socket.close()
        raise
    return socket


def as_url(endpoint: str | None) -> str:
    """A ZeroMQ URL of this path or URL, or of the default front desk."""
    endpoint = endpoint or default_endpoint()
    return endpoint if "://" in endpoint else f"{IPC}{endpoint}"


def ipc_path(url: str) -> str | None:
    """The path of a socket on this host; None for another transport."""
    return url.removeprefix(IPC) if url.startswith(IPC) else None


def is_from(frame: zmq.Frame, trust: frozenset[int]) -> bool:
    """Whether what came over a local socket is of a user whom we trust.

    Args:
        frame: received with copy=False: libzmq says of whom it is, as `localhost:UID:GID:PID`.
        trust: uids.
    """
    *_, uid, _, _ = ["", "", "", *str(frame.get("Peer-Address")).split(":")]
    return uid.isdecimal() and int(uid) in trust


def client_trust(owner: str | int | None) -> frozenset[int]:
    """The users whose service we use; `owner` is one of them, or the one that PEGAFLOW_OWNER names.

    Raises:
        ValueError: there is no such user.
    """
    named = os.environ.get("PEGAFLOW_OWNER") if owner is None else owner
    return trusted(None if named in (None, "") else uid_of(named))


def session_url(desk: str, endpoint: str) -> str:
    """The URL of a session that the front desk has named (SessionAt).

    Args:
        desk: URL of that front desk.
        endpoint: a path or URL, or SAME_HOST and a port: then on the host of the desk.
    """
    if not endpoint.startswith(SAME_HOST):
        return as_url(endpoint)
    host, _, _ = desk.removeprefix(TCP).rpartition(":")
    return f"{TCP}{host}:{endpoint.removeprefix(SAME_HOST)}"


def inspect(
    endpoint: str | None = None, timeout: float = 2.0, curve: str | None = None
) -> Report | None:
    """The state of the group behind a front desk.

    Args:
        endpoint: as for `Client`.
        timeout: seconds, for the connection and for the answer each.
        curve: as for `Client`.

    Returns:
        None if nobody answers in time.

    Raises:
        ValueError: `curve` is no key file.
    """
    me, keys = new_address(), client_keys(curve)
    with zmq.Context() as context, dealer(context, as_url(endpoint), me, keys) as socket:
        if not socket.poll(int(timeout * 1000), zmq.POLLOUT):
            return None
        socket.send_multipart(pack(Envelope(me, FRONT_DESK, Inspect(), 1)))
        if not socket.poll(int(timeout * 1000)):
            return None
        answer = unpack(socket.recv_multipart()).message
        return answer if isinstance(answer, Report) else None
