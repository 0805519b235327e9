"""The door for other hosts, and where theirs are: what the settings and the keys make of it."""

from ipaddress import ip_address
from pathlib import Path

from pegaflow.actors.runtime.tcp import Tcp
from pegaflow.core.directory.plan import PeerPlan, Place
from pegaflow.core.errors import UserError
from pegaflow.service.keys import ServerKeys
from pegaflow.wire.units import Constant

PORT_MAX: Constant = (1 << 16) - 2
"""The port behind it is that of the data streams."""


def door_of(plan: PeerPlan) -> tuple[Tcp, tuple[Place, ...]]:
    """Where other hosts are answered, and where they are.

    Raises:
        UserError: the settings would let strangers in, or the keys cannot be used.
    """
    host, port = plan.listen
    if port > PORT_MAX:
        raise UserError(f"--peer-listen {plan.peer_listen}: the port behind it is needed, too")
    if plan.peer_keys is not None and plan.insecure_peers:
        raise UserError("--peer-keys and --insecure-peers exclude each other: leave one out")
    if plan.peer_keys is None:
        _check_open(plan, host)
        open_ = [Place(f"tcp://{said.rpartition('@')[2]}", b"") for said in plan.peers]
        return Tcp(host, port, None), tuple(open_)
    keys = ServerKeys(Path(plan.peer_keys))
    return Tcp(host, port, keys), tuple(_place(keys, one) for one in plan.peers)


def _check_open(plan: PeerPlan, host: str) -> None:
    if not plan.insecure_peers:
        raise UserError(
            f"--peer-listen {plan.peer_listen} needs --peer-keys (make keys with `pegaflow keygen "
            "--hosts DIR NAME...`), or --insecure-peers on a loopback address"
        )
    if not ip_address(host).is_loopback:
        raise UserError(
            f"--insecure-peers lets everybody in who reaches {plan.peer_listen}: use --peer-keys, "
            "or 127.0.0.1"
        )


def _place(keys: ServerKeys, said: str) -> Place:
    name, _, where = said.rpartition("@")
    if not name:
        raise UserError(f"--peers {said}: which host is that? say NAME@{where}")
    key = keys.key_of(name)
    if key is None:
        raise UserError(f"--peers {said}: there is no key of {name} in {keys.folder}/allowed")
    return Place(f"tcp://{where}", key)
