"""Actors as processes: how each kind of child starts, and what carries out its jobs.

A child is spawned by exec from the supervisor's main thread (PDEATHSIG fires when that *thread*
ends), asks to die with it and is deaf to signals from its first instruction
(pegaflow/service/signals.py): it waits for the supervisor's Drain.  It learns by command line only
who it is and where the supervisor listens; the rest comes in Welcome.

When an assertion kills an actor, its last inputs are written to the run directory (blackbox.py).

The index has no object for a block that it merely knows (core/blocks/columns.py), but one for each
that is leased, or waits to be written to a slow disk, which may be all of them; and Python's
garbage collector looks at all objects whenever their number has grown by a quarter: 1.8 s at 5
million blocks, longer than its neighbours wait.  So its process collects young objects only.  What
a full collection would find there are cycles that lived long; the index makes none
(tests/actors/index/test_garbage.py).  The other actors' collectors are left as Python has them.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from pegaflow.core.directory.plan import PeerPlan
from pegaflow.core.errors import UserError
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.device.procs import die_with_parent, start_ticks
from pegaflow.service import logs, signals
from pegaflow.wire.control import Hello, LogLevel
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.jobs import Done, Result, SetLog
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count
from pegaflow.wire.values import (
    ALLOCATOR,
    FLUSHER,
    GATEWAY,
    INDEX,
    PEER,
    SESSION,
    SUPERVISOR,
    Address,
)

from . import blackbox
from .contract import Actor
from .host import Host
from .loop import Loop
from .member import member_of
from .vitals import Vitals

if TYPE_CHECKING:
    from pegaflow.service.settings import Settings

    from .tcp import Tcp


NO_FULL_COLLECTION: Count = 1_000_000_000
"""Collections of the middle generation before a full one: more than a process makes in a year."""


class Device(Protocol):
    """Carries out the jobs of one actor."""

    def attach(self, loop: Loop) -> None:
        """Deliver completions into this loop."""

    def work(self, number: int, job: Message) -> Result | None:
        """Carry a job out.

        Args:
            number: what the loop knows the job by.

        Returns:
            The result, if it is there at once; None: `Loop.complete` is called with the number
            later, exactly once.
        """

    def close(self) -> None:
        """Remove what only this process used."""


class Birth(NamedTuple):
    """What a child is told by command line, and what it says of itself."""

    address: Address
    supervisor: Address
    hello: Hello
    plan: dict[str, Any]  # the fields of `Kind.plan`, as JSON has them


def _allocator(birth: Birth) -> tuple[Actor, Device]:
    from pegaflow.actors.allocator.actor import Allocator
    from pegaflow.actors.allocator.device import AllocatorDevice

    actor = Allocator(birth.address, birth.supervisor, birth.hello)
    return actor, AllocatorDevice(member_of(actor))


def _index(birth: Birth) -> tuple[Actor, Device]:
    from pegaflow.actors.index.actor import Index
    from pegaflow.actors.index.device import IndexDevice, IndexMemory

    memory = IndexMemory(birth.supervisor)
    return Index(birth.address, birth.supervisor, birth.hello, memory), IndexDevice()


def _flusher(birth: Birth) -> tuple[Actor, Device]:
    from pegaflow.actors.flusher.actor import Flusher
    from pegaflow.actors.flusher.device import FlushDevice

    plan = FlushPlan(**{**birth.plan, "paths": tuple(birth.plan["paths"])})
    actor = Flusher(birth.address, birth.supervisor, birth.hello, plan)
    return actor, FlushDevice(member_of(actor), plan)


def _peer(birth: Birth) -> tuple[Actor, Device]:
    import secrets
    import socket

    from pegaflow.actors.peer.actor import PeerActor
    from pegaflow.actors.peer.device import PeerDevice
    from pegaflow.actors.peer.door import door_of

    plan = PeerPlan(**{**birth.plan, "peers": tuple(birth.plan["peers"])})
    door, places = door_of(plan)
    actor = PeerActor(
        birth.address,
        birth.supervisor,
        birth.hello,
        life=Incarnation(secrets.randbits(62) | 1),
        name=socket.gethostname(),
        places=places,
    )
    return actor, PeerDevice(member_of(actor), door)


def _session(birth: Birth) -> tuple[Actor, Device]:
    from pegaflow.actors.session.actor import Session
    from pegaflow.actors.session.device import Reader, SessionDevice

    reader = Reader(birth.address, birth.supervisor)
    actor = Session(
        birth.address,
        birth.supervisor,
        birth.hello,
        open_hazards=reader.open_hazards,
        open_finder=reader.open_finder,
    )
    return actor, SessionDevice(member_of(actor), reader)


def _gateway(birth: Birth) -> tuple[Actor, Device]:
    from pegaflow.actors.gateway.actor import Gateway
    from pegaflow.actors.gateway.device import HttpDevice

    return Gateway(birth.address, birth.supervisor, birth.hello), HttpDevice()


class Kind(NamedTuple):
    """How the process of a kind of child begins."""

    born: Callable[[Birth], tuple[Actor, Device]]  # imports what that kind needs, and makes it
    plan: type | None = None  # which settings its command line tells it: the fields of this
    on_tcp: bool = False  # clients dial it: it listens on TCP where the front desk does
    many_objects: bool = False  # too many for a garbage collector to look at all of them


KINDS = {
    ALLOCATOR: Kind(_allocator),
    INDEX: Kind(_index, many_objects=True),
    FLUSHER: Kind(_flusher, plan=FlushPlan),
    PEER: Kind(_peer, plan=PeerPlan),
    SESSION: Kind(_session, on_tcp=True),
    GATEWAY: Kind(_gateway),
}
"""By the name in roster.py.  A process imports the actor and the device of its own kind, and them
at once: no engine waits for the imports of a session that it is given."""


def run_child(
    name: str,
    incarnation: Incarnation,
    run_dir: Path,
    *,
    supervisor: Incarnation,
    parent: int,
    tcp: Tcp | None,
    plan: dict[str, Any],
) -> int:
    """The main function of `pegaflow.actors`.

    Args:
        name: which kind of child; a key of KINDS.
        incarnation: of this life.
        supervisor: the supervisor's incarnation.
        parent: pid of the supervisor: with its death we die.
        tcp: where a session is heard by clients besides; None: nowhere.
        plan: what its kind is told of the settings.

    Returns:
        The exit status.
    """
    address = Address(name, incarnation)
    level = os.environ.get("PEGAFLOW_LOG_LEVEL", LogLevel.INFO)
    form = os.environ.get("PEGAFLOW_LOG_FORMAT", logs.LogFormat.AUTO)
    logs.configure(level, form, actor=name, incarnation=incarnation)
    logs.take_over()
    logs.enable_faulthandler()
    signals.deaf()
    if not die_with_parent(parent):
        return 1
    endpoint = str(run_dir / "actors" / f"{address}.sock")
    boss = Address(SUPERVISOR, supervisor)
    hello = Hello(os.getpid(), start_ticks(os.getpid()), endpoint)
    kind = KINDS[name]
    actor, device = kind.born(Birth(address, boss, hello, plan))
    member = member_of(actor)
    host = Host(actor)

    def work(number: int, job: Message) -> Result | None:
        return _set_log(job) if isinstance(job, SetLog) else device.work(number, job)

    loop = Loop(host, work)
    member.measured = Vitals(loop)
    log = logs.get_logger()
    try:
        loop.bind(endpoint)
        device.attach(loop)
        if tcp is not None:
            member.hello = dataclasses.replace(member.hello, port=loop.bind_tcp(tcp))
        loop.dial(boss, str(run_dir / "pegaflow.sock"))
        log.debug("actor_started")
        if kind.many_objects:
            collect_young_only()
        reason = loop.run()
    except UserError as err:
        reason = str(err)
    except AssertionError:
        log.exception("actor_broken", inputs=_last_words(host, run_dir))
        return 1
    finally:
        device.close()
        loop.unlink()
    if reason:
        log.error("actor_stopped", why=reason)
    return 1 if reason else 0


def collect_young_only() -> None:
    """Never again look for cycles among all of this process's objects, only among new ones.

    Python 3.14 has no full collections of its own accord, and passes the last threshold over.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, NO_FULL_COLLECTION)


def _set_log(job: SetLog) -> Done:
    logs.set_level(job.level)
    why = logs.reopen(job.file) if job.file else ""
    return Done(Status.NO_SPACE, why) if why else Done(Status.OK)


def _last_words(host: Host, run_dir: Path) -> str:
    """Where the inputs of a broken actor are, or why they are nowhere."""
    try:
        return str(blackbox.write(host, run_dir))
    except OSError as err:
        return f"not written: {err.strerror}"


def child_command(address: Address, settings: Settings, supervisor: Incarnation) -> list[str]:
    """The command line of a child.

    Args:
        address: of the life that is to be started.
        supervisor: our own incarnation.
    """
    command = [
        sys.executable,
        "-m",
        "pegaflow.actors",
        address.name,
        "--incarnation",
        str(address.incarnation),
        "--supervisor",
        str(supervisor),
        "--parent",
        str(os.getpid()),
        "--run-dir",
        str(settings.run_dir),
    ]
    kind = KINDS[address.name]
    if kind.on_tcp and settings.addr is not None:
        from .tcp import TcpPlan  # and all that guards that door: few services have one

        anywhere = {"addr": settings.addr.rpartition(":")[0] + ":0"}
        command += ["--tcp", json.dumps({**settings.told(TcpPlan), **anywhere})]
    if kind.plan is not None:
        command += ["--plan", json.dumps(settings.told(kind.plan))]
    return command
