"""The last inputs of an actor that one of our own assertions has killed.

The file holds the kind of actor, its address and its inputs in order, each with the `now` it came
at.  Since an actor is a function of these, feeding them to a fresh object of the same class shows
the same end (`replay`), as long as the file goes back to the start of that life.

msgpack: [version, name, incarnation, supervisor incarnation, complete, inputs], an input being
[now, kind, head, body] as host.py notes them.  Mode 0600: keys are in it, block bytes never.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack

from pegaflow.wire.envelope import unpack
from pegaflow.wire.jobs import Result
from pegaflow.wire.message import decode
from pegaflow.wire.units import Bytes, Constant
from pegaflow.wire.values import Address

from .contract import Actor
from .host import Host, Input
from .member import Member

VERSION: Constant = 2  # 1: all results were of one class

BYTES_MAX: Bytes = 1 << 30
"""Largest file that is read back: INPUTS_MAX of the largest frames."""


def write(host: Host, run_dir: Path) -> Path:
    """Write the inputs of a host; its path.

    Args:
        run_dir: where the file is made; an older one of the same actor and life is replaced.

    Raises:
        OSError: there is no room for it; nothing of it stays.
    """
    actor = host.actor
    of = next((part for part in actor.parts if isinstance(part, Member)), None)
    boss = of.supervisor.incarnation if of is not None else 0
    complete = host.input_count == len(host.inputs)
    path = run_dir / f"blackbox-{actor.address}.msgpack"
    head = [VERSION, *actor.address, boss, complete]
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            msgpack.pack([*head, list(host.inputs)], file)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return path


def read(path: Path) -> tuple[Address, Address, bool, list[Any]]:
    """A black box, as `write` has left it.

    Returns:
        The actor's address, the supervisor's, whether the inputs go back to the actor's start, and
        the inputs.

    Raises:
        ValueError: it is too large, or of another format.
    """
    if path.stat().st_size > BYTES_MAX:
        raise ValueError(f"{path} is too large to be a black box")
    raw = msgpack.unpackb(path.read_bytes(), use_list=True)
    if raw[0] != VERSION:
        raise ValueError(f"{path} has format {raw[0]}, this program reads {VERSION}")
    return Address(raw[1], raw[2]), Address("supervisor", raw[3]), raw[4], raw[5]


def replay(inputs: list[Any], make: Callable[[], Actor]) -> Host:
    """Feed inputs to a fresh actor; whatever killed the first one kills this one too.

    Args:
        inputs: as `read` gives them; of use only if they go back to the start.
        make: a fresh actor, of the address that the box names.

    Raises:
        AssertionError: the one that the box was written for.
    """
    host = Host(make())
    for now, kind, head, body in inputs:
        if kind == Input.START:
            host.start(now)
        elif kind in (Input.FRAME, Input.REMOTE):
            host.deliver(unpack([head, body]), now, remote=kind == Input.REMOTE)
        elif kind == Input.WAKE:
            host.wake(now)
        elif kind == Input.DONE:
            result = decode(int.from_bytes(head[8:], "little"), body)
            assert isinstance(result, Result)
            host.complete(int.from_bytes(head[:8], "little"), result, now)
        else:
            host.inform(decode(int.from_bytes(head, "little"), body), now)
    return host
