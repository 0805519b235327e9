"""What an operator's signals make of a supervisor and its children."""

from dataclasses import replace

import pytest

from pegaflow.actors.gateway.actor import Gateway
from pegaflow.actors.supervisor.actor import Supervisor
from pegaflow.actors.supervisor.ticks import TICK_NS
from pegaflow.wire.control import Bye, LogTo, Refused
from pegaflow.wire.jobs import Relogging, SetLog, Showing, Stopping
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, INDEX
from tests.actors.group import PLAN, Group
from tests.actors.rig import BOSS, CLIENT_8, HELLO, SESSION_4, WELCOME, Rig, pick, said


def test_to_stop_at_once_is_to_kill_everybody_and_to_refuse_who_waits() -> None:
    group = Group()
    session = group.serve()
    group.settle()
    group.tell(session, Bye())
    group.open(client=CLIENT_8)
    sent = group.inform(Stopping(at_once=True))
    group.settle()
    assert said(sent, Refused, CLIENT_8).status is Status.DRAINING
    assert set(group.killed) == set(group.living)
    assert group.announced[-1] == "STOPPING=1\nSTATUS=draining"
    for address in list(group.living):
        group.exit(address)
    assert group.stopped


def test_a_drain_that_is_under_way_can_still_be_cut_short() -> None:
    group = Group()
    group.inform(Stopping())
    group.inform(Stopping(at_once=True))
    group.settle()
    assert set(group.killed) == set(group.living)


def test_everybody_is_told_how_to_log_and_who_comes_later_too() -> None:
    group = Group()
    sent = group.inform(Relogging("debug", "/var/log/it"))
    told = pick(sent, LogTo)
    assert {e.receiver for e in told} == set(group.living)
    assert {e.message for e in told} == {LogTo("debug", "/var/log/it")}
    sent = group.inform(Relogging("info"))
    assert {e.message for e in pick(sent, LogTo)} == {LogTo("info")}, "the file is as it is"
    sent = group.exit(group.now_living(INDEX))
    late = group.now_living(INDEX)
    assert said(sent, LogTo, late) == LogTo("info", "/var/log/it"), "it began with the old one"


def test_a_service_whose_log_nobody_changed_tells_nobody() -> None:
    group = Group()
    sent = group.exit(group.now_living(ALLOCATOR))
    assert pick(sent, LogTo) == []


def test_a_child_says_if_it_cannot_have_the_file() -> None:
    rig = Rig(Gateway(SESSION_4, BOSS, HELLO))
    rig.start()
    rig.tell(BOSS, WELCOME)
    rig.tell(BOSS, LogTo("debug", "/gone/log"))
    assert rig.wanted(SetLog) == [SetLog("debug", "/gone/log")]
    rig.done(SetLog)
    assert rig.notes == []
    rig.tell(BOSS, LogTo("debug", "/gone/log"))
    rig.done(SetLog, Status.NO_SPACE, "No such file or directory")
    (note,) = rig.notes
    assert note.event == "log_not_reopened" and note.level == "warning"
    assert dict(note.facts) == {"file": "/gone/log", "why": "No such file or directory"}


def test_the_state_is_a_line_for_the_service_and_one_for_each_child() -> None:
    group = Group()
    session = group.serve()
    group.settle()
    group.notes.clear()
    assert group.inform(Showing()) == []
    whole, *rows = group.notes
    facts = dict(whole.facts)
    assert (whole.event, facts["state"], facts["pool"]) == ("service_state", "up", "pool")
    assert facts["children"] == len(group.living) == len(rows)
    shown = {row["child"]: row for row in (dict(note.facts) for note in rows)}
    assert shown[str(session)]["engine"] == "engine"
    assert shown[str(session)]["state"] == "serving" and "silent_ms" in shown[str(session)]


@pytest.mark.parametrize("state", ["starting", "draining"])
def test_the_state_can_be_asked_for_at_any_time(state: str) -> None:
    rig = Group() if state == "draining" else Rig(Supervisor(BOSS, PLAN))
    if state == "draining":
        rig.inform(Stopping())
    else:
        rig.start()
    rig.notes.clear()
    rig.inform(Showing())
    assert dict(rig.notes[0].facts)["state"] == state


def pings(group: Group) -> int:
    return group.announced.count("WATCHDOG=1")


PING_NS = TICK_NS * 3 // 2


def test_a_manager_that_wants_a_sign_of_life_gets_it_in_time() -> None:
    group = Group(replace(PLAN, ping_ns=PING_NS))
    for _ in range(8):
        group.wait(PING_NS)
        group.settle()
    assert 7 <= pings(group) <= 9
    before = pings(group)
    group.inform(Stopping())
    group.wait(PING_NS)
    group.settle()
    assert pings(group) > before, "a drain may take a while"


def test_whoever_wants_no_sign_of_life_gets_none() -> None:
    group = Group()
    group.beats(20 * TICK_NS)
    assert pings(group) == 0


def test_a_sign_of_life_is_no_look_at_the_children() -> None:
    group = Group(replace(PLAN, ping_ns=TICK_NS // 10))
    index = group.now_living(INDEX)
    group.beats(40 * TICK_NS, silent=index)
    assert group.killed == [index], "it is killed in time, and once"
    assert group.count("woke_late") == 0
