"""Clients on TCP or of another pid namespace: none of their processes is watched or reached."""

from dataclasses import replace

import pytest

from pegaflow.actors.session.actor import Session
from pegaflow.actors.session.engine import DIAL_NS
from pegaflow.wire.control import Bye, Refused, Serving
from pegaflow.wire.jobs import BounceOpened, DrawProof, OpenBounce, Unreachable, WatchProcess
from pegaflow.wire.session import Attached, Ping, Pong, Way
from pegaflow.wire.status import Status
from tests.actors.rig import BOSS, CLIENT_7, CLIENT_8, MS, Rig, pick, said
from tests.actors.sessions import ATTACH, SERVE, spare

DIRECT = replace(ATTACH, way=Way.PROCESS_VM, bases=(4096,), scratch=8192)


@pytest.fixture(params=[False, True], ids=["TCP", "another pid namespace"])
def foreign(request: pytest.FixtureRequest) -> bool:
    """Whether it is the engine's pid namespace, and its link is one of this host."""
    return bool(request.param)


def far(foreign: bool) -> tuple[Rig, Session]:
    """A session whose engine is not to be watched."""
    rig, actor = spare()
    said(rig.ask(BOSS, replace(SERVE, remote=True, foreign=foreign)), Serving, BOSS)
    return rig, actor


def test_it_is_served_staged_and_no_process_is_watched(foreign: bool) -> None:
    rig, _ = far(foreign)
    assert rig.ask(CLIENT_7, replace(DIRECT, way=Way.AUTO), remote=not foreign) == []
    attached = said(rig.done(OpenBounce, BounceOpened("bounce", ())), Attached, CLIENT_7)
    assert (attached.loads, attached.saves) == (Way.STAGED, Way.STAGED)
    assert not rig.wanted(WatchProcess) and not rig.wanted(DrawProof)


def test_process_vm_is_refused_in_one_line(foreign: bool) -> None:
    rig, _ = far(foreign)
    refused = said(rig.ask(CLIENT_7, DIRECT, remote=not foreign), Refused, CLIENT_7)
    assert refused.status is Status.BAD_REQUEST and "\n" not in refused.why
    assert not rig.wanted(DrawProof) and not rig.wanted(OpenBounce)


def test_who_cannot_be_reached_has_left(foreign: bool) -> None:
    rig, _ = far(foreign)
    for client in (CLIENT_7, CLIENT_8):
        said(rig.ask(client, Ping(), remote=not foreign), Pong, client)
    beat = rig.wait(600 * MS)
    assert {e.receiver for e in beat if isinstance(e.message, Pong)} == {CLIENT_7, CLIENT_8}
    assert not pick(rig.inform(Unreachable(CLIENT_7)), Bye)
    assert not pick(rig.inform(Unreachable(CLIENT_7)), Bye)
    assert pick(rig.inform(Unreachable(CLIENT_8)), Bye) and rig.stop == ""


def test_who_never_comes_is_not_waited_for(foreign: bool) -> None:
    rig, actor = far(foreign)
    while rig.now < actor.engine.served_ns + DIAL_NS:
        assert rig.stop is None
        rig.wait(500 * MS)
    rig.wait(500 * MS)
    assert rig.stop == ""


def test_a_local_engine_may_take_its_time() -> None:
    rig, actor = spare()
    rig.ask(BOSS, SERVE)
    while rig.now < actor.engine.served_ns + 2 * DIAL_NS:
        rig.wait(500 * MS)
    assert rig.stop is None
