"""Silence: who is killed for it, and who is waited for."""

from dataclasses import replace

import pytest

from pegaflow.actors.supervisor.actor import Supervisor
from pegaflow.actors.supervisor.children import ChildState
from pegaflow.actors.supervisor.ticks import TICK_NS
from pegaflow.actors.supervisor.watchdog import LATE_NS, LOOKS, REMEDY, SERVE_NS, START_NS
from pegaflow.core.limits import patience
from pegaflow.wire.control import (
    SILENT_NS,
    Beat,
    Bye,
    Serve,
    Serving,
    SessionAt,
    UsesGpu,
    Warmed,
)
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.jobs import (
    IncarnationDrawn,
    Kill,
    Look,
    Looked,
    NextIncarnation,
    OpenPool,
    PoolOpened,
    Spawn,
    Spawned,
    ThreadState,
)
from pegaflow.wire.values import ALLOCATOR, INDEX, SESSION, Address
from tests.actors.group import OPEN, OPENED, PLAN, Group
from tests.actors.rig import BOSS, CLIENT_7, CLIENT_8, EXTENT, MS, POOL, Rig, one, pick, said

SLACK_NS = 3 * TICK_NS
"""A silence is looked at every tick."""


class Machine(Group):
    """A group on a machine on which some of the children get no core."""

    def goes_on(self, nanoseconds: int, silent: Address, share: float) -> None:
        """Of the time of a silent child, this share is spent waiting for a core."""
        begun = self.now - self.waited.get(silent, 0) / max(share, 1e-9)
        for _ in range(nanoseconds // TICK_NS):
            self.waited[silent] = int((self.now + TICK_NS - begun) * share)
            self.beats(TICK_NS, silent)

    def lines(self, event: str) -> list[dict[str, str | int]]:
        return [dict(note.facts) for note in self.notes if note.event == event]


@pytest.mark.parametrize("name", [ALLOCATOR, INDEX, SESSION])
def test_a_starved_child_is_waited_for_with_one_line_that_names_the_remedy(name: str) -> None:
    group = Machine()
    starved = group.now_living(name)
    group.goes_on(40 * SILENT_NS, starved, share=1.0)
    assert group.killed == []
    (first, *others) = [note for note in group.notes if note.event == "child_starved"]
    assert others and first.repeats == "starved", "the log thins them out"
    facts = dict(first.facts)
    assert facts["child"] == str(starved) and facts["remedy"] == REMEDY
    assert group.count("starved") == 1, "one silence"
    group.waited.clear()
    group.tell(starved, Beat(()))
    group.beats(2 * SILENT_NS)
    assert group.killed == [] and group.lines("child_silent") == []


def test_it_is_killed_once_it_had_its_patience_of_the_core() -> None:
    group = Machine()
    starved = group.now_living(SESSION)
    group.goes_on(4 * SILENT_NS - SLACK_NS, starved, share=0.75)
    assert group.killed == []
    group.goes_on(2 * SLACK_NS, starved, share=0.75)
    assert group.killed == [starved]
    (line,) = group.lines("child_silent")
    assert line["state"] == "sleeping" and int(line["waited_ms"]) > 2 * SILENT_NS // 10**6


@pytest.mark.parametrize("share", [0.0, 0.2])
def test_a_child_that_has_the_core_and_says_nothing_is_killed(share: float) -> None:
    group = Machine()
    hung = group.now_living(INDEX)
    group.goes_on(int(SILENT_NS / (1 - share)) + SLACK_NS, hung, share)
    assert group.killed == [hung]


def test_only_the_late_are_looked_at() -> None:
    group = Group()
    silent = group.now_living(SESSION)
    for _ in range(SILENT_NS // LOOKS // TICK_NS):
        group.wait(TICK_NS)
        assert not group.wanted(Look), "a look costs time of a machine that is short of it"
        for child in group.living:
            if child != silent:
                group.tell(child, Beat(()))
    group.wait(2 * TICK_NS)
    assert {job.address for job in group.wanted(Look)} == {silent}


def test_what_was_seen_of_an_earlier_silence_is_not_used() -> None:
    group = Group()
    silent = group.now_living(SESSION)
    group.beats(SILENT_NS - TICK_NS, silent)
    group.wait(TICK_NS)
    assert group.wanted(Look)
    group.now += SILENT_NS
    group.tell(silent, Beat(()))
    group.settle()
    assert group.killed == []


def test_what_is_heard_late_of_a_look_was_true_then() -> None:
    group = Group()
    silent = group.now_living(SESSION)
    group.beats(SILENT_NS - 2 * TICK_NS, silent)
    group.wait(TICK_NS)
    (job,) = {job for job in group.wanted(Look) if job.address == silent}
    looked_at, group.now = group.now, group.now + SILENT_NS
    group.done(Look, Looked(0, 0, looked_at, ThreadState.SLEEPING))
    group.settle()
    assert group.killed == [], f"{job} was asked before its time"


def starting() -> Rig:
    """A supervisor whose first child was spawned and says nothing."""
    rig = Rig(Supervisor(BOSS, PLAN))
    rig.start()
    rig.done(OpenPool, PoolOpened("pool", "ledger", POOL, EXTENT, pool_file=(), ledger_file=()))
    rig.done(NextIncarnation, IncarnationDrawn(Incarnation(2)))
    rig.done(Spawn, Spawned(7, 7))
    return rig


def test_a_child_that_never_says_hello_is_killed() -> None:
    rig = starting()
    rig.wait(START_NS + 2 * TICK_NS)
    rig.done(Look, Looked(0, 0, rig.now, ThreadState.SLEEPING))
    assert rig.wanted(Kill) == [Kill(Address(ALLOCATOR, Incarnation(2)))]


def test_a_child_that_gets_no_core_to_start_is_waited_for() -> None:
    rig = starting()
    rig.wait(4 * START_NS)
    rig.done(Look, Looked(3 * START_NS + 2 * TICK_NS, 0, rig.now, ThreadState.SLEEPING))
    assert rig.wanted(Kill) == []


def test_a_spare_that_gets_no_core_keeps_its_engine() -> None:
    group = Machine()
    serve = one(group.open(), Serve)
    spare = serve.receiver
    group.goes_on(5 * SERVE_NS, spare, share=0.9)
    group.open(replace(OPEN, opens=False), CLIENT_8)
    assert group.killed == [] and group.boss.children[spare].state is ChildState.ASSIGNED
    sent = group.answer(serve, Serving()) + group.settle()
    assert {e.receiver for e in pick(sent, SessionAt)} >= {CLIENT_7, CLIENT_8}
    assert {said([e], SessionAt).address for e in pick(sent, SessionAt)} == {spare}
    group.waited.clear()
    group.beats(2 * SILENT_NS)
    assert spare not in group.killed and group.boss.children[spare].state is ChildState.SERVING


def test_a_spare_that_has_the_core_and_does_not_serve_is_killed_and_another_taken() -> None:
    group = Group()
    serve = one(group.open(), Serve)
    deaf = serve.receiver
    sent = group.beats(SERVE_NS + 2 * TICK_NS)
    assert group.killed == [deaf], "though it beats"
    assert not pick(group.answer(serve, Serving()), SessionAt), "too late: it is being killed"
    sent += group.exit(deaf)
    serve = pick(sent, Serve)[-1]
    assert serve.receiver != deaf
    assert said(group.answer(serve, Serving()), SessionAt).address == serve.receiver


def test_a_spare_that_leaves_before_it_serves_owes_nothing_any_more() -> None:
    group = Group()
    spare = one(group.open(), Serve).receiver
    group.tell(spare, Bye())
    group.beats(SILENT_NS - TICK_NS, spare)
    assert group.killed == []
    group.beats(SLACK_NS, spare)
    assert group.killed == [spare]


def test_one_that_gives_a_gpus_memory_back_has_as_long_for_it_as_an_adoption_waits() -> None:
    group = Group(opened=replace(OPENED, pool_bytes=64 << 30))
    dying = group.serve()
    group.tell(dying, UsesGpu("0000:01:00.0"))
    group.tell(dying, Bye())
    within_ns = int(patience(64 << 30)) * 1000 * MS
    group.beats(within_ns - TICK_NS, dying)
    assert group.killed == [] and group.count("silent_killed") == 0
    group.beats(SLACK_NS, dying)
    assert group.killed == [dying], "it may be stuck before its end"


def test_a_session_that_could_not_have_its_gpu_has_no_longer_than_others() -> None:
    group = Group(replace(PLAN, devices=("0",)), replace(OPENED, pool_bytes=64 << 30))
    spare = group.now_living(SESSION)
    group.tell(spare, Warmed("0"))
    group.tell(spare, Bye())
    group.beats(SILENT_NS + SLACK_NS, spare)
    assert group.killed == [spare]


def test_our_own_late_wake_forgives_a_spare_too() -> None:
    group = Group()
    serve = one(group.open(), Serve)
    group.now += LATE_NS + SERVE_NS
    group.wake()
    group.settle()
    assert group.killed == []
    group.beats(SERVE_NS + SLACK_NS)
    assert group.killed == [serve.receiver]
