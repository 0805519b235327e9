"""Engines on TCP: their pids are not ours, so their connection is their life."""

from dataclasses import replace

from pegaflow.actors.afar import JOIN_NS
from pegaflow.wire.control import BEAT_NS, SAME_HOST, Serve, Serving, SessionAt
from pegaflow.wire.jobs import OpenBounce, Unreachable, WatchProcess
from pegaflow.wire.session import Attached, Leave, Ping, Pong
from pegaflow.wire.values import SESSION, SUPERVISOR, Address

from .group import OPEN, Group
from .rig import BOSS, CLIENT_7, CLIENT_8, Rig, one, said
from .sessions import ATTACH, SERVE, spare

FAR = replace(SERVE, remote=True)


def attached_afar() -> Rig:
    """A session whose engine came over TCP and attached."""
    rig, _ = spare()
    rig.ask(BOSS, FAR)
    rig.ask(CLIENT_7, ATTACH, remote=True)
    said(rig.done(OpenBounce, note="bounce"), Attached, CLIENT_7)
    return rig


def test_no_pid_of_it_is_watched_but_a_word_is_said_to_it() -> None:
    rig = attached_afar()
    assert rig.wanted(WatchProcess) == []
    assert [e.receiver for e in rig.wait(BEAT_NS) if isinstance(e.message, Pong)] == [CLIENT_7]


def test_who_is_out_of_reach_ends_the_session() -> None:
    rig = attached_afar()
    rig.inform(Unreachable(CLIENT_8))
    assert rig.stop is None
    rig.inform(Unreachable(CLIENT_7))
    assert rig.stop == "" and [n.event for n in rig.notes][-1] == "engine_died"


def test_who_left_or_is_on_this_host_is_not_looked_for() -> None:
    rig = attached_afar()
    rig.ask(CLIENT_8, Ping())
    rig.inform(Unreachable(CLIENT_8))
    rig.tell(CLIENT_7, Leave())
    rig.inform(Unreachable(CLIENT_7))
    assert rig.stop is None
    assert not any(isinstance(e.message, Pong) for e in rig.wait(BEAT_NS))


def test_an_engine_that_never_comes_is_not_waited_for() -> None:
    rig, _ = spare()
    rig.ask(BOSS, FAR)
    rig.wait(JOIN_NS - BEAT_NS)
    assert rig.stop is None
    rig.wait(2 * BEAT_NS)
    assert rig.stop == ""


def test_one_that_came_is_not_expected_any_more() -> None:
    rig, _ = spare()
    rig.ask(BOSS, FAR)
    rig.ask(CLIENT_7, Ping(), remote=True)
    rig.wait(JOIN_NS + BEAT_NS)
    assert rig.stop is None


def test_the_front_desk_names_the_port_and_no_pid() -> None:
    group = Group()
    for kid in group.boss.kids.values():
        kid.port = 7000 if kid.address.name == SESSION else 0
    asked = one(group.ask(CLIENT_7, OPEN, to=Address(SUPERVISOR, 0), remote=True), Serve)
    assert isinstance(asked.message, Serve) and asked.message.remote
    far = said(group.answer(asked, Serving()), SessionAt, CLIENT_7)
    assert (far.endpoint, far.pid) == (f"{SAME_HOST}7000", 0)
    near = said(group.ask(CLIENT_8, OPEN, to=Address(SUPERVISOR, 0)), SessionAt, CLIENT_8)
    assert near.address == far.address and near.pid and SAME_HOST not in near.endpoint
