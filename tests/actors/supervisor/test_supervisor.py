"""Births, deaths and the front desk."""

from dataclasses import replace

import pytest

from pegaflow.actors.supervisor.actor import Supervisor
from pegaflow.actors.supervisor.shutdown import DRAIN_NS
from pegaflow.actors.supervisor.stage import Stage
from pegaflow.actors.supervisor.ticks import TICK_NS
from pegaflow.wire.control import (
    SILENT_NS,
    Bye,
    Drain,
    Gone,
    Hello,
    Inspect,
    Members,
    Neighbour,
    Refused,
    Report,
    Serve,
    Serving,
    SessionAt,
    Welcome,
)
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import EngineNamespace, Incarnation
from pegaflow.wire.jobs import Exited, OpenPool, Stopping
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, FRONT_DESK, INDEX, SESSION, Address
from tests.actors.group import OPEN, PLAN, Group
from tests.actors.rig import BOSS, CLIENT_7, CLIENT_8, POOL, Rig, one, pick, said
from tests.wire.samples import fields


def test_the_group_starts_in_order_and_hears_of_its_neighbours() -> None:
    group = Group()
    assert [a.name for a in group.living] == [ALLOCATOR, INDEX, SESSION]
    assert len({a.incarnation for a in group.living}) == 3
    assert group.boss.lifecycle.stage is Stage.UP
    spare = Address(SESSION, Incarnation(99))
    assert group.tell(spare, Hello(1, 1, "ipc://ghost")) == [], "a life that we did not start"


def test_a_child_that_comes_up_is_introduced() -> None:
    group = Group()
    spare = group.now_living(SESSION)
    sent = group.exit(spare)
    fresh = group.now_living(SESSION)
    assert said(sent, Welcome, fresh).pool_path == "pool"
    told = [e.message for e in pick(sent, Neighbour, fresh)]
    assert {m.address.name for m in told if isinstance(m, Neighbour)} == {ALLOCATOR, INDEX}


def test_a_silent_child_is_killed_once() -> None:
    group = Group()
    silent = group.now_living(SESSION)
    group.beats(SILENT_NS - TICK_NS, silent)
    assert group.killed == []
    group.beats(4 * TICK_NS, silent)
    assert group.killed == [silent]


def test_our_own_late_wake_restarts_the_clocks() -> None:
    group = Group()
    group.now += 10 * SILENT_NS
    group.wake()
    group.settle()
    assert group.killed == [] and group.count("woke_late") == 1
    group.wait(SILENT_NS + 2 * TICK_NS)
    group.settle()
    assert set(group.killed) == set(group.living)


def test_no_pool_no_service() -> None:
    rig = Rig(Supervisor(BOSS, PLAN))
    rig.start()
    rig.done(OpenPool, Status.NO_SPACE, "/dev/shm is too small")
    assert rig.stop == "/dev/shm is too small"


def test_a_successor_only_after_the_proof_of_death() -> None:
    group = Group()
    old = group.now_living(SESSION)
    group.beats(SILENT_NS + 2 * TICK_NS, old)
    assert group.killed == [old]
    group.beats(4 * TICK_NS, old)
    assert group.living.count(old) == 1 and len(group.living) == 3
    sent = group.exit(old)
    assert {e.receiver.name for e in pick(sent, Gone)} == {ALLOCATOR, INDEX}
    assert group.now_living(SESSION).incarnation > old.incarnation


def test_crashes_in_a_row_back_off() -> None:
    group = Group()
    group.exit(group.now_living(SESSION))
    group.exit(group.now_living(SESSION))
    assert [a.name for a in group.living] == [ALLOCATOR, INDEX]
    group.beats(2 * TICK_NS)
    assert group.now_living(SESSION)


def test_the_death_of_a_core_child_takes_nobody_down() -> None:
    group = Group()
    session = group.serve()
    group.settle()
    others = [a for a in group.living if a.name != INDEX]
    old = group.now_living(INDEX)
    sent = group.exit(old)
    fresh = group.now_living(INDEX)
    assert {e.receiver for e in pick(sent, Gone)} == set(others)
    assert group.killed == [] and fresh.incarnation > max(a.incarnation for a in others)
    assert said(sent, Welcome, fresh).pool_path == "pool"
    sessions = tuple(a for a in others if a.name == SESSION)
    assert session in sessions and said(sent, Members, fresh) == Members(sessions, ())
    told = [e.receiver for e in pick(sent, Neighbour) if fresh in fields(e.message)]
    assert set(told) == set(sessions), "whoever holds something dials it, and states it"
    assert group.report().processes[0].state == "up"


def test_members_names_the_dead_too() -> None:
    group = Group()
    dead = group.serve()
    group.settle()
    group.exit(dead)
    sent = group.exit(group.now_living(ALLOCATOR))
    members = said(sent, Members, group.now_living(ALLOCATOR))
    assert members.dead == (dead,) and dead not in members.living


def test_engines_wait_while_the_core_is_not_complete() -> None:
    group = Group()
    group.exit(group.now_living(INDEX))
    group.living.remove(group.now_living(INDEX))
    group.inform(Exited(Address(INDEX, group.incarnation), 1))
    assert group.report().processes[0].state == "recovering"
    assert not pick(group.open(), Serve)
    group.beats(4 * TICK_NS)
    assert group.report().processes[0].state == "up"


def test_an_engine_gets_a_spare_and_a_new_spare_is_made() -> None:
    group = Group()
    spare = group.now_living(SESSION)
    sent = group.open()
    serve = one(sent, Serve, spare)
    assert serve.message == Serve(
        "engine", bytes(16), 4242, 99, namespace=EngineNamespace(bytes(16))
    )
    at = said(group.answer(serve, Serving()), SessionAt, CLIENT_7)
    assert (at.address, at.endpoint) == (spare, f"ipc://{spare}")
    group.settle()
    assert len([a for a in group.living if a.name == SESSION]) == 2


@pytest.mark.parametrize(
    ("ours", "theirs", "remote", "foreign"),
    [(5, 6, False, True), (5, 5, False, False), (5, 0, False, False), (0, 6, False, False)]
    + [(5, 6, True, False)],
)
def test_an_engine_of_another_pid_namespace_is_told_no_pid_and_its_own_is_not_believed(
    ours: int, theirs: int, remote: bool, foreign: bool
) -> None:
    group = Group(replace(PLAN, pid_namespace=ours))
    engine = replace(OPEN, pid_namespace=theirs)
    serve = one(group.open(engine, remote=remote), Serve)
    asked = serve.message
    assert isinstance(asked, Serve)
    assert (asked.remote, asked.foreign) == (remote or foreign, foreign)
    at = said(group.answer(serve, Serving()), SessionAt, CLIENT_7)
    assert bool(at.pid) is not (remote or foreign)
    joined = said(group.open(engine, CLIENT_8, remote), SessionAt, CLIENT_8)
    assert joined.pid == at.pid


def test_a_rank_in_another_pid_namespace_than_its_engine_is_refused() -> None:
    group = Group(replace(PLAN, pid_namespace=5))
    serve = one(group.open(replace(OPEN, pid_namespace=5)), Serve)
    group.answer(serve, Serving())
    rank = replace(OPEN, pid_namespace=6, opens=False)
    refused = said(group.open(rank, CLIENT_8), Refused, CLIENT_8)
    assert refused.status is Status.DUPLICATE and "another pid namespace" in refused.why


def test_the_same_life_of_an_engine_gets_the_same_session() -> None:
    group = Group()
    session = group.serve()
    assert said(group.open(), SessionAt).address == session
    assert said(group.open(client=CLIENT_8), SessionAt, CLIENT_8).address == session
    assert not pick(group.open(), Serve)


def test_asked_again_before_serving_costs_no_second_spare() -> None:
    group = Group()
    serve = one(group.open(), Serve)
    again = group.open()
    assert not pick(again, Serve) and not pick(again, SessionAt)
    answers = pick(group.answer(serve, Serving()), SessionAt)
    assert [e.message for e in answers] == [answers[0].message] * 2


def test_another_life_while_the_first_lives_is_a_duplicate() -> None:
    group = Group()
    group.serve()
    another = EngineNamespace(b"n" * 16)
    for other in (replace(OPEN, generation=b"x" * 16), replace(OPEN, namespace=another)):
        assert said(group.open(other, CLIENT_8), Refused).status is Status.DUPLICATE


def test_a_newcomer_waits_for_the_old_sessions_proven_death() -> None:
    group = Group()
    session = group.serve()
    group.tell(session, Bye())
    newcomer = replace(OPEN, generation=b"x" * 16)
    waiting = group.open(newcomer, CLIENT_8)
    assert not pick(waiting, SessionAt) and not pick(waiting, Serve)
    serve = one(group.exit(session), Serve)
    assert serve.receiver != session
    assert said(group.answer(serve, Serving()), SessionAt, CLIENT_8).address == serve.receiver


def test_bad_opens() -> None:
    group = Group()
    for bad in (
        replace(OPEN, generation=b"short"),
        replace(OPEN, engine=""),
        replace(OPEN, namespace=EngineNamespace(bytes(15))),
        replace(OPEN, namespace=EngineNamespace(bytes(65))),
    ):
        assert said(group.open(bad), Refused).status is Status.BAD_REQUEST


def told(sent: list[Envelope], kind: type[Message]) -> set[str]:
    return {e.receiver.name for e in pick(sent, kind)}


def test_drain_takes_sessions_first_then_the_core() -> None:
    group = Group()
    group.serve()
    group.settle()
    sent = group.inform(Stopping())
    assert told(sent, Drain) == {SESSION}
    assert said(group.open(client=CLIENT_8), Refused).status is Status.DRAINING
    sessions = [a for a in group.living if a.name == SESSION]
    group.tell(sessions[0], Bye())
    assert told(group.exit(sessions[0]), Drain) == set()
    assert told(group.exit(sessions[1]), Drain) == {ALLOCATOR, INDEX}
    group.exit(group.now_living(INDEX))
    assert not group.stopped
    group.exit(group.now_living(ALLOCATOR))
    assert group.stopped and group.killed == []


def test_waiting_engines_are_refused_by_a_drain() -> None:
    group = Group()
    session = group.serve()
    group.settle()
    group.tell(session, Bye())
    group.open(client=CLIENT_8)
    assert said(group.inform(Stopping()), Refused, CLIENT_8).status is Status.DRAINING


def test_a_drain_that_takes_too_long_is_a_kill() -> None:
    group = Group()
    group.inform(Stopping())
    group.beats(DRAIN_NS - TICK_NS)
    assert group.killed == []
    group.beats(2 * TICK_NS)
    assert set(group.killed) == set(group.living)


def test_a_second_stopping_kills() -> None:
    group = Group()
    group.inform(Stopping())
    group.inform(Stopping())
    group.settle()
    assert set(group.killed) == set(group.living)
    for address in list(group.living):
        group.exit(address)
    assert group.stopped


def test_inspect() -> None:
    group = Group()
    group.serve()
    sent = group.ask(CLIENT_8, Inspect(), to=FRONT_DESK)
    report = said(sent, Report, CLIENT_8)
    assert (report.pool_bytes, report.version) == (POOL, "0.1")
    rows = {(row.address.name, row.state, row.engine) for row in report.processes}
    assert (SESSION, "serving", "engine") in rows and (ALLOCATOR, "up", "") in rows
