"""The supervisor with a flusher: who starts when, who is told what, who stops in which order."""

from dataclasses import replace

from pegaflow.actors.supervisor.shutdown import DRAIN_NS
from pegaflow.actors.supervisor.ticks import TICK_NS
from pegaflow.core.limits import patience
from pegaflow.wire.control import (
    SILENT_NS,
    Bye,
    Drain,
    Gone,
    Hello,
    Members,
    Neighbour,
    UsesGpu,
    Welcome,
)
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.jobs import Exited, IncarnationDrawn, NextIncarnation, Spawn, Spawned, Stopping
from pegaflow.wire.message import Message
from pegaflow.wire.values import ALLOCATOR, FLUSHER, GATEWAY, INDEX, SESSION, Address
from tests.actors.group import OPENED, PLAN, Group
from tests.actors.rig import MS, pick, said

FLUSH_NS = 10_000 * MS
SSD = replace(PLAN, ssd=True, drain_timeout_s=FLUSH_NS / 1e9, http_addr="127.0.0.1:0")


def told(sent: list[Envelope], kind: type[Message]) -> set[str]:
    return {e.receiver.name for e in pick(sent, kind)}


def test_without_an_ssd_there_is_no_flusher_and_nobody_expects_one() -> None:
    group = Group()
    assert FLUSHER not in group.names()
    fresh = group.exit(group.now_living(INDEX))
    assert not said(fresh, Welcome, group.now_living(INDEX)).ssd
    assert FLUSHER in {kind.name for kind in group.report().kinds}, "it is shown, with nothing"


def test_the_flusher_comes_before_sessions_and_knows_the_core() -> None:
    group = Group(SSD)
    assert group.names() == [ALLOCATOR, INDEX, FLUSHER, SESSION, GATEWAY]
    sent = group.exit(group.now_living(FLUSHER))
    fresh = group.now_living(FLUSHER)
    welcome = said(sent, Welcome, fresh)
    assert welcome.ssd and welcome.pool_path == "pool"
    known = {
        m.address.name
        for e in pick(sent, Neighbour, fresh)
        if isinstance(m := e.message, Neighbour)
    }
    assert known == {ALLOCATOR, INDEX}
    assert not pick(sent, Members, fresh), "it keeps no books of holders"


def test_its_death_takes_nobody_down_and_its_proof_reaches_the_core() -> None:
    group = Group(SSD)
    session = group.serve()
    group.settle()
    dead = group.now_living(FLUSHER)
    others = [a for a in group.living if a != dead]
    sent = group.exit(dead)
    assert group.killed == [] and group.report().processes[0].state == "up"
    assert set(others) < set(group.living)
    assert {ALLOCATOR, INDEX} <= told(sent, Gone)
    fresh = group.now_living(FLUSHER)
    assert fresh.incarnation > dead.incarnation
    members = said(group.exit(group.now_living(INDEX)), Members, group.now_living(INDEX))
    assert dead in members.dead and {fresh, session} <= set(members.living)


def test_engines_are_served_while_the_flusher_fails_again_and_again() -> None:
    group = Group(SSD)
    group.exit(group.now_living(FLUSHER))
    group.exit(group.now_living(FLUSHER))
    assert FLUSHER not in group.names(), "it waits for its back-off"
    assert group.serve().name == SESSION
    assert group.report().processes[0].state == "up"


def test_a_drain_lets_the_flusher_write_between_sessions_and_core() -> None:
    group = Group(SSD)
    assert told(group.inform(Stopping()), Drain) == {SESSION}
    assert told(group.exit(group.now_living(SESSION)), Drain) == {FLUSHER}
    flusher = group.now_living(FLUSHER)
    group.beats(SILENT_NS + FLUSH_NS // 2)
    assert group.killed == [], "it beats, and has the time that it was given"
    group.tell(flusher, Bye())
    assert told(group.exit(flusher), Drain) == {ALLOCATOR, INDEX}
    group.exit(group.now_living(INDEX))
    assert told(group.exit(group.now_living(ALLOCATOR)), Drain) == {GATEWAY}
    group.exit(group.now_living(GATEWAY))
    assert group.stopped and group.killed == []


def test_a_session_that_dies_slowly_costs_the_flusher_none_of_its_time() -> None:
    group = Group(SSD)
    session = group.now_living(SESSION)
    group.inform(Stopping())
    assert not pick(group.wait(TICK_NS), Drain)
    group.tell(session, Bye())
    assert told(group.wait(TICK_NS) + group.settle(), Drain) == {FLUSHER}
    flusher = group.now_living(FLUSHER)
    group.tell(flusher, Bye())
    assert not pick(group.exit(flusher) + group.wait(TICK_NS), Drain), "it may hold pages still"
    assert told(group.exit(session), Drain) == {ALLOCATOR, INDEX}


def test_a_session_that_was_killed_just_before_costs_the_flusher_none_of_its_time() -> None:
    group = Group(SSD)
    session = group.now_living(SESSION)
    group.beats(SILENT_NS + 2 * TICK_NS, silent=session)
    assert group.killed == [session]
    assert told(group.inform(Stopping()), Drain) == {FLUSHER}
    flusher = group.now_living(FLUSHER)
    assert not pick(group.exit(flusher) + group.wait(TICK_NS), Drain), "it may write to pages still"
    assert told(group.exit(session), Drain) == {ALLOCATOR, INDEX}


def test_the_core_waits_for_a_session_that_gives_its_gpus_pool_back() -> None:
    group = Group(SSD, replace(OPENED, pool_bytes=64 << 30))
    dying, deaf = group.serve(), group.now_living(FLUSHER)
    group.settle()
    group.tell(dying, UsesGpu("0000:01:00.0"))
    (spare,) = [a for a in group.living if a.name == SESSION and a != dying]
    group.inform(Stopping())
    group.exit(spare)
    group.tell(dying, Bye())
    group.beats(DRAIN_NS + FLUSH_NS + 2 * TICK_NS, silent=dying)
    assert group.killed == [deaf], "its time is over, and the session's is not"
    group.exit(deaf)
    group.beats(2 * DRAIN_NS, silent=dying)
    assert told(group.exit(dying), Drain) == {ALLOCATOR, INDEX}
    group.beats(DRAIN_NS - 2 * TICK_NS)
    assert group.killed == [deaf], "they have the time that they always have"
    group.beats(3 * TICK_NS)
    assert set(group.killed) == {deaf, *group.living}


def test_the_core_waits_for_no_session_that_is_stuck_on_its_way_to_its_end() -> None:
    group = Group(opened=replace(OPENED, pool_bytes=64 << 30))
    stuck = group.now_living(SESSION)
    group.tell(stuck, UsesGpu("0000:01:00.0"))
    group.inform(Stopping())
    group.tell(stuck, Bye())
    group.beats(int(patience(64 << 30)) * 1000 * MS + 3 * TICK_NS, silent=stuck)
    assert group.killed == [stuck]
    group.beats(DRAIN_NS + TICK_NS, silent=stuck)
    assert set(group.killed) == set(group.living)


def test_a_flusher_that_falls_silent_in_a_drain_is_killed() -> None:
    group = Group(SSD)
    group.inform(Stopping())
    group.exit(group.now_living(SESSION))
    flusher = group.now_living(FLUSHER)
    group.beats(SILENT_NS + 2 * TICK_NS, silent=flusher)
    assert group.killed == [flusher]
    assert told(group.exit(flusher), Drain) == {ALLOCATOR, INDEX}


def test_a_flusher_that_does_not_end_is_killed_after_its_time() -> None:
    group = Group(SSD)
    group.inform(Stopping())
    group.exit(group.now_living(SESSION))
    group.beats(DRAIN_NS + FLUSH_NS - TICK_NS)
    assert group.killed == []
    group.beats(2 * TICK_NS)
    assert group.now_living(FLUSHER) in group.killed


def test_a_flusher_that_comes_up_in_a_drain_is_told_to_end() -> None:
    group = Group(SSD)
    dead = group.now_living(FLUSHER)
    group.living.remove(dead)
    group.inform(Exited(dead, 9))
    late = Address(FLUSHER, Incarnation(group.incarnation + 1))
    group.done(NextIncarnation, IncarnationDrawn(late.incarnation))
    group.inform(Stopping())
    group.done(Spawn, Spawned(4711, 1))
    assert late in {e.receiver for e in pick(group.tell(late, Hello(1, 1, "ipc://late")), Drain)}
