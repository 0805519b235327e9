"""Spares, budgets, the gateway's place among the children, sums and the service manager."""

from dataclasses import replace

from pegaflow.actors.supervisor.actor import Supervisor
from pegaflow.actors.supervisor.reporting import NAMES_MAX
from pegaflow.actors.supervisor.restarts import FAILURES_MAX, REST_NS
from pegaflow.actors.supervisor.stage import Stage
from pegaflow.actors.supervisor.ticks import TICK_NS
from pegaflow.core.series import VALUE_MAX
from pegaflow.wire.control import (
    Beat,
    Counter,
    Drain,
    Gone,
    Hello,
    Refused,
    Serve,
    Serving,
    SessionAt,
    Welcome,
)
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.jobs import (
    Announce,
    Exited,
    IncarnationDrawn,
    NextIncarnation,
    OpenPool,
    PoolOpened,
    Spawn,
    Spawned,
    Stopping,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, CLIENT, GATEWAY, INDEX, SESSION, Address
from tests.actors.group import OPEN, OPENED, PLAN, Group
from tests.actors.rig import BOSS, CLIENT_8, EXTENT, MS, POOL, Rig, one, pick, said

HTTP = replace(PLAN, http_addr="127.0.0.1:9091")


def states(group: Group) -> dict[str, str]:
    return {kind.name: kind.state for kind in group.report().kinds}


def test_spares_are_kept_as_many_as_were_asked_for() -> None:
    group = Group(replace(PLAN, spares=3))
    assert group.names() == [ALLOCATOR, INDEX, SESSION, SESSION, SESSION]
    group.serve()
    group.settle()
    assert group.names().count(SESSION) == 4
    (first, *_) = group.boss.children.spares()
    group.exit(first.address)
    assert group.names().count(SESSION) == 4


def test_a_spare_that_nobody_wants_any_more_goes() -> None:
    group = Group()
    serve = one(group.open(), Serve)
    group.open(client=CLIENT_8)
    assert group.names().count(SESSION) == 1 + PLAN.spares + 1, "one that waits, it seems"
    assert len(pick(group.answer(serve, Serving()), SessionAt)) == 2
    told = [e.receiver for e in group.beats(4 * TICK_NS) if isinstance(e.message, Drain)]
    assert len(told) == 1
    group.exit(told[0])
    group.beats(4 * TICK_NS)
    assert group.names().count(SESSION) == 1 + PLAN.spares
    assert not group.boss.restarts.kinds[SESSION].restarts


def test_a_burst_of_engines_is_served() -> None:
    group = Group()
    engines = [replace(OPEN, engine=f"engine {n}") for n in range(20)]
    sent = [
        e
        for n, msg in enumerate(engines)
        for e in group.open(msg, Address(CLIENT, Incarnation(n + 100)))
    ]
    served = []
    while pending := pick(sent, Serve):
        sent = [e for p in pending for e in group.answer(p, Serving()) + group.settle()]
        served += [said([e], SessionAt).address for e in pick(sent, SessionAt)]
    assert len(served) == len(set(served)) == len(engines)
    assert group.names().count(SESSION) == len(engines) + PLAN.spares


def test_no_fork_bomb() -> None:
    group = Group()
    for _ in range(4 * FAILURES_MAX):
        for spare in [a for a in group.living if a.name == SESSION]:
            group.exit(spare)
        group.beats(4 * TICK_NS)
    assert group.incarnation < 2 * FAILURES_MAX
    assert states(group)[SESSION] == "broken"
    assert "child_broken" in [note.event for note in group.notes]
    group.beats(REST_NS)
    group.exit(group.now_living(SESSION))
    born = group.incarnation
    group.beats(REST_NS - 2 * TICK_NS)
    assert group.incarnation == born, "one more failure is another rest"
    group.beats(4 * TICK_NS)
    assert group.now_living(SESSION) and states(group)[SESSION] == "ok"


def test_a_core_child_that_always_dies_rests_too() -> None:
    group = Group()
    for _ in range(3 * FAILURES_MAX):
        for index in [a for a in group.living if a.name == INDEX]:
            group.exit(index)
        group.beats(6 * 1000 * MS)
    assert group.boss.restarts.kinds[INDEX].restarts < 2 * FAILURES_MAX
    assert group.boss.restarts.kinds[ALLOCATOR].restarts == 0 and group.killed == []


def test_an_engine_that_breaks_its_sessions_is_refused_alone() -> None:
    group = Group()
    for _ in range(FAILURES_MAX):
        group.exit(group.serve())
        group.beats(TICK_NS)
    refused = said(group.open(), Refused)
    assert refused.status is Status.BUSY and "failed 10 times within 120 s" in refused.why
    other = one(group.open(replace(OPEN, engine="other"), CLIENT_8), Serve)
    assert said(group.answer(other, Serving()), SessionAt, CLIENT_8)
    group.settle()
    group.beats(REST_NS)
    assert group.serve()


def test_a_clean_end_is_no_failure_even_if_its_bye_is_late() -> None:
    group = Group()
    for _ in range(2 * FAILURES_MAX):
        session = group.serve()
        group.settle()
        group.living.remove(session)
        group.inform(Exited(session, 0))
        group.settle()
    assert group.boss.restarts.kinds[SESSION].restarts == 0 and group.serve()


def test_sums_never_go_backwards() -> None:
    group = Group(replace(PLAN, spares=2))
    first, second = [a for a in group.living if a.name == SESSION]
    group.tell(first, Beat((Counter("blocks", 5),), (Counter("open", 9),)))
    group.tell(second, Beat((Counter("blocks", 7),)))
    assert group.sums(SESSION) == {"blocks": 12}
    group.exit(first)
    assert group.sums(SESSION) == {"blocks": 12}
    newest = group.living[-1]
    group.tell(newest, Beat((Counter("blocks", 1),), (Counter("open", 2),)))
    assert group.sums(SESSION) == {"blocks": 13}
    rows = {r.address: r.counters for r in group.report().processes}
    assert rows[newest] == (Counter("blocks", 1), Counter("open", 2)) and first not in rows


def test_sums_fit_a_message() -> None:
    group = Group(replace(PLAN, spares=2))
    first, second = [a for a in group.living if a.name == SESSION]
    for child in (first, second):
        group.tell(child, Beat((Counter("blocks", (1 << 64) - 2),)))
    assert group.sums(SESSION) == {"blocks": VALUE_MAX}
    group.tell(second, Beat(tuple(Counter(f"counter {n}", 1) for n in range(2 * NAMES_MAX))))
    group.exit(second)
    assert len(group.sums(SESSION)) == NAMES_MAX


def test_the_supervisor_reports_itself() -> None:
    group = Group(replace(PLAN, pid=7), replace(OPENED, page_bytes=4096))
    group.boss.reporting.measured = lambda: {"process_open_fds": 3}
    group.exit(group.now_living(SESSION))
    report = group.report()
    first = report.processes[0]
    assert (report.at, first.address, first.pid) == (group.now, BOSS, 7)
    numbers = {c.name: c.value for c in first.counters}
    assert numbers == {
        "session_restarts": 1,
        "process_open_fds": 3,
        "opens_waiting": 0,
        "pool_page_bytes": 4096,
    }
    sums = group.sums(BOSS.name)
    assert {n: v for n, v in sums.items() if "|" not in n} == {"session_restarts": 1}


def test_the_gateway_knows_no_pool() -> None:
    group = Group(HTTP)
    old = group.now_living(GATEWAY)
    assert pick(group.exit(group.now_living(INDEX)), Gone, old) and old in group.living
    fresh_sent = group.exit(old)
    fresh = group.now_living(GATEWAY)
    assert said(fresh_sent, Welcome, fresh) == Welcome(
        "", "", 0, 0, run_dir="run", http_addr=HTTP.http_addr
    )


def spawned(rig: Rig, address: Address) -> None:
    rig.done(NextIncarnation, IncarnationDrawn(address.incarnation))
    assert rig.wanted(Spawn) == [Spawn(address)]
    rig.done(Spawn, Spawned(1000 + address.incarnation, 1))
    rig.tell(address, Hello(1, 1, f"ipc://{address}"))


def test_a_gateway_that_always_dies_breaks_alone() -> None:
    group = Group(HTTP)
    for _ in range(3 * FAILURES_MAX):
        for gateway in [a for a in group.living if a.name == GATEWAY]:
            group.exit(gateway)
        group.beats(12 * TICK_NS)
    assert group.boss.lifecycle.stage is Stage.UP
    broken = [name for name, state in states(group).items() if state == "broken"]
    assert broken == [GATEWAY] and group.serve()


def test_the_gateway_drains_last() -> None:
    group = Group(HTTP)
    assert drained(group.inform(Stopping())) == {SESSION}
    assert drained(group.exit(group.now_living(SESSION))) == {ALLOCATOR, INDEX}
    assert drained(group.exit(group.now_living(INDEX))) == set()
    assert drained(group.exit(group.now_living(ALLOCATOR))) == {GATEWAY}
    group.exit(group.now_living(GATEWAY))
    assert group.stopped and group.killed == []


def drained(sent: list[Envelope]) -> set[str]:
    return {e.receiver.name for e in pick(sent, Drain)}


def test_without_an_address_there_is_no_gateway() -> None:
    group = Group()
    group.beats(4 * TICK_NS)
    assert GATEWAY not in group.names() and group.report().http_addr == ""


def test_the_service_manager_is_told_ready_once_and_what_changes() -> None:
    group = Group()
    group.beats(4 * TICK_NS)
    assert group.announced == ["READY=1\nSTATUS=up: 0 engines, 1 spare sessions"]
    group.serve()
    group.settle()
    group.beats(4 * TICK_NS)
    assert group.announced[1:] == ["STATUS=up: 1 engines, 1 spare sessions"]
    group.exit(group.now_living(INDEX))
    group.exit(group.now_living(INDEX))
    group.beats(TICK_NS, group.now_living(ALLOCATOR))
    group.beats(4 * TICK_NS)
    assert group.announced[-1].startswith("STATUS=up")
    assert [a for a in group.announced if "READY" in a] == group.announced[:1]
    group.inform(Stopping())
    group.settle()
    assert group.announced[-1] == "STOPPING=1\nSTATUS=draining"


def test_it_is_not_ready_before_an_engine_could_have_a_session() -> None:
    rig = Rig(Supervisor(BOSS, PLAN))
    rig.start()
    rig.done(OpenPool, PoolOpened("pool", "ledger", POOL, EXTENT, pool_file=(), ledger_file=()))
    for incarnation, name in enumerate((ALLOCATOR, INDEX), 2):
        spawned(rig, Address(name, Incarnation(incarnation)))
    session = Address(SESSION, Incarnation(4))
    rig.done(NextIncarnation, IncarnationDrawn(Incarnation(4)))
    rig.done(Spawn, Spawned(1004, 1))
    rig.wait(TICK_NS)
    assert not any("READY" in job.lines for job in rig.wanted(Announce))
    rig.tell(session, Hello(1, 1, f"ipc://{session}"))
    rig.wait(TICK_NS)
    assert "READY=1" in rig.wanted(Announce)[-1].lines
