"""Which GPUs spares are told to be ready for, and until when."""

import pytest

from pegaflow.actors.supervisor.plan import Plan
from pegaflow.actors.supervisor.ticks import TICK_NS
from pegaflow.actors.supervisor.warmth import LINGER_NS, WARM_FALLS_MAX, WARM_NS
from pegaflow.wire.control import Bye, Drain, Serve, UsesGpu, Warm, Warmed
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.jobs import Exited
from pegaflow.wire.values import SESSION, Address
from tests.actors.group import Group
from tests.actors.rig import one, pick, said

GPU, OTHER = "0000:65:00.0/07", "0000:b3:00.0/10"


def warm(sent: list[Envelope]) -> list[tuple[Address, str]]:
    """Who is told to be ready for what."""
    return [(e.receiver, e.message.gpu) for e in sent if isinstance(e.message, Warm)]


def spares(group: Group) -> list[Address]:
    return [child.address for child in group.boss.children.spares()]


def named(*devices: str) -> tuple[Group, list[tuple[Address, str]]]:
    """A service with --devices, and what its first spare was told."""
    group = Group(Plan(1, "run", "0.1", devices=devices))
    (first,) = spares(group)
    sent = group.exit(first)
    return group, warm(sent)


def end(group: Group, spare: Address) -> list[Envelope]:
    """A spare that was told to drain does."""
    group.tell(spare, Bye())
    group.living.remove(spare)
    return group.inform(Exited(spare, 0)) + group.settle()


def test_without_an_engine_on_a_gpu_nobody_is_told_anything() -> None:
    group = Group()
    first = group.serve()
    (spare,) = spares(group)
    assert warm(group.exit(first)) == warm(group.exit(spare)) == []


def test_each_spare_is_told_of_the_devices_that_are_named() -> None:
    group, told = named("0", "3")
    (spare,) = spares(group)
    assert told == [(spare, "0"), (spare, "3")]


def test_one_that_an_engine_waits_for_is_told_of_none() -> None:
    group = Group(Plan(0, "run", "0.1", devices=("0",)))
    sent = group.open()
    assert one(sent, Serve).receiver.name == SESSION and warm(sent) == []


def test_a_device_that_an_engine_uses_is_for_the_spares_that_are_there_and_for_the_next() -> None:
    group = Group()
    session = group.serve()
    (spare,) = spares(group)
    assert warm(group.tell(session, UsesGpu(GPU))) == [(spare, GPU)]
    assert warm(group.tell(session, UsesGpu(GPU))) == []
    assert [gpu for _, gpu in warm(group.exit(spare))] == [GPU]


def test_a_named_device_that_an_engine_uses_is_said_once() -> None:
    group, _ = named("0")
    (spare,) = spares(group)
    group.tell(spare, Warmed("0", GPU))
    session = group.serve()
    (spare,) = spares(group)
    assert warm(group.tell(session, UsesGpu(GPU))) == []
    assert warm(group.tell(session, UsesGpu(OTHER))) == [(spare, OTHER)]


def test_a_spare_that_is_warm_for_nobody_goes_a_while_after_the_last_engine() -> None:
    group = Group()
    session = group.serve()
    group.tell(session, UsesGpu(GPU))
    (spare,) = spares(group)
    group.tell(spare, Warmed(GPU, GPU))
    group.exit(session)
    assert not pick(group.beats(LINGER_NS - TICK_NS), Drain)
    drained = [e.receiver for e in pick(group.beats(2 * TICK_NS), Drain)]
    assert drained == [spare]
    assert warm(end(group, spare)) == []
    assert len(spares(group)) == 1 and spares(group) != [spare]


def test_an_engine_that_comes_back_in_time_keeps_it() -> None:
    group = Group()
    session = group.serve()
    group.tell(session, UsesGpu(GPU))
    (spare,) = spares(group)
    group.tell(spare, Warmed(GPU, GPU))
    group.exit(session)
    assert group.serve() == spare
    group.tell(spare, UsesGpu(GPU))
    (next_one,) = spares(group)
    group.tell(next_one, Warmed(GPU, GPU))
    assert not pick(group.beats(2 * LINGER_NS), Drain)


def test_a_spare_stays_if_the_device_is_named_too() -> None:
    group, _ = named("0")
    (spare,) = spares(group)
    group.tell(spare, Warmed("0", GPU))
    session = group.serve()
    (spare,) = spares(group)
    group.tell(spare, Warmed("0", GPU))
    group.tell(session, UsesGpu(GPU))
    group.exit(session)
    assert not pick(group.beats(2 * LINGER_NS), Drain)


def complaints(group: Group) -> list[dict[str, str | int]]:
    return [dict(note.facts) for note in group.notes if note.event == "gpu_not_warm"]


def test_why_spares_cannot_be_ready_is_said_once_however_many_there_are() -> None:
    group, _ = named("0", "3")
    for _ in range(3):
        (spare,) = spares(group)
        group.tell(spare, Warmed("0", why="no cupy"))
        group.tell(spare, Warmed("3", why="no cupy"))
        group.exit(spare)
        group.beats(10 * TICK_NS)
    assert complaints(group) == [{"gpu": "0", "why": "no cupy", "then": "spares without it"}]
    (spare,) = spares(group)
    group.tell(spare, Warmed("3", why="no memory"))
    assert complaints(group)[1:] == [{"gpu": "3", "why": "no memory", "then": "spares without it"}]


def test_what_cannot_be_again_after_it_could_is_said_again() -> None:
    group, _ = named("0")
    for answer in (Warmed("0", why="no memory"), Warmed("0", GPU), Warmed("0", why="no memory")):
        (spare,) = spares(group)
        group.tell(spare, answer)
        group.exit(spare)
        group.beats(10 * TICK_NS)
    assert len(complaints(group)) == 2


def test_what_was_not_begun_is_no_complaint() -> None:
    group, _ = named("0")
    (spare,) = spares(group)
    group.tell(spare, Warmed("0"))
    assert complaints(group) == []


def test_spares_that_die_of_it_one_after_the_other_end_it_until_an_engine_is_served_there() -> None:
    group = Group(Plan(1, "run", "0.1", devices=("0",)))
    group.tell(spares(group)[0], Warmed("0", GPU))
    group.exit(spares(group)[0])
    for _ in range(WARM_FALLS_MAX):
        group.exit(spares(group)[0])
        group.beats(TICK_NS)
    assert [n.event for n in group.notes].count("gpus_not_warm") == 1
    group.beats(10 * TICK_NS)
    session = group.serve()
    (spare,) = spares(group)
    assert warm(group.exit(spare)) == []
    group.beats(10 * TICK_NS)
    assert [gpu for _, gpu in warm(group.tell(session, UsesGpu(OTHER)))] == [OTHER]
    assert [gpu for _, gpu in warm(group.tell(session, UsesGpu(GPU)))] == ["0"]


def test_a_spare_that_never_says_how_it_ended_is_killed_and_its_gpu_left_out() -> None:
    group = Group(Plan(1, "run", "0.1", devices=("0", "3")))
    for fall in range(WARM_FALLS_MAX):
        group.beats(2 * TICK_NS)
        (spare,) = spares(group)
        group.beats(WARM_NS // 2)
        group.tell(spare, Warmed("0", GPU))
        group.beats(WARM_NS - 2 * TICK_NS)
        assert len(group.killed) == fall, "for each GPU it has the whole time"
        group.beats(4 * TICK_NS)
        assert group.killed[fall:] == [spare]
        told = warm(group.exit(spare) + group.beats(10 * TICK_NS))
    assert [gpu for _, gpu in told] == ["0"]
    facts = [dict(n.facts) for n in group.notes if n.event == "spare_hangs"]
    assert [(line["gpu"], line["child"]) for line in facts][1:] == [("3", str(spare))]


def test_one_that_has_an_engine_or_is_to_go_is_not_killed_for_it() -> None:
    group, _ = named("0")
    session = group.serve()
    (spare,) = spares(group)
    group.tell(spare, Warmed("0", GPU))
    group.beats(2 * WARM_NS)
    assert group.killed == [] and session in group.living


@pytest.mark.parametrize("name", ["3", "0000:65:00.0"])
def test_a_name_of_which_spares_died_is_good_again_once_its_device_is(name: str) -> None:
    """No spare had found out which device the name means, so an engine there says nothing of it."""
    group = Group(Plan(1, "run", "0.1", devices=(name, "8")))
    for _ in range(WARM_FALLS_MAX):
        group.exit(spares(group)[0])
        group.beats(10 * TICK_NS)
    session = group.serve()
    (spare,) = spares(group)
    assert warm(group.tell(session, UsesGpu(GPU))) == [(spare, GPU)], "by no other name"
    group.tell(spare, Warmed(GPU, GPU, number=4))
    told = warm(group.exit(spare) + group.beats(10 * TICK_NS))
    assert [gpu for _, gpu in told] == [name, "8"], "each device once"
    group.exit(session)
    group.tell(spares(group)[0], Warmed(name, GPU, number=4))
    assert not pick(group.beats(2 * LINGER_NS), Drain)


def test_a_sound_device_does_not_hide_one_of_which_spares_die() -> None:
    """Nor is it left out with it."""
    group = Group(Plan(1, "run", "0.1", devices=("0", "3")))
    for _ in range(WARM_FALLS_MAX):
        (spare,) = spares(group)
        group.tell(spare, Warmed("0", GPU))
        told = warm(group.exit(spare) + group.beats(10 * TICK_NS))
    assert [gpu for _, gpu in told] == ["0"]
    notes = [dict(n.facts) for n in group.notes if n.event == "gpus_not_warm"]
    assert notes == [{"gpu": "3", "died": WARM_FALLS_MAX, "then": "spares without it"}]


def test_a_device_is_not_left_out_for_one_that_was_to_come_before_it() -> None:
    group = Group(Plan(1, "run", "0.1", devices=("0", "3")))
    for _ in range(WARM_FALLS_MAX):
        (spare,) = spares(group)
        told = warm(group.exit(spare) + group.beats(10 * TICK_NS))
    assert [gpu for _, gpu in told] == ["3"]


def test_a_spare_that_was_done_ends_the_row() -> None:
    group = Group(Plan(1, "run", "0.1", devices=("0",)))
    for done in (False, True, False):
        (spare,) = spares(group)
        if done:
            group.tell(spare, Warmed("0", GPU))
        told = warm(group.exit(spare) + group.beats(10 * TICK_NS))
        assert [gpu for _, gpu in told] == ["0"]


def test_a_spare_that_has_not_begun_since_it_was_given_an_engine_does_not_end_the_row() -> None:
    group = Group(Plan(1, "run", "0.1", devices=("0",)))
    group.exit(spares(group)[0])
    group.beats(10 * TICK_NS)
    group.tell(group.serve(), Warmed("0", ""))
    (spare,) = spares(group)
    assert warm(group.exit(spare) + group.beats(10 * TICK_NS)) == []


def test_one_that_was_done_did_not_die_of_it() -> None:
    group = Group(Plan(1, "run", "0.1", devices=("0",)))
    for _ in range(WARM_FALLS_MAX + 1):
        (spare,) = spares(group)
        group.tell(spare, Warmed("0", GPU))
        told = warm(group.exit(spare) + group.beats(10 * TICK_NS))
        assert [gpu for _, gpu in told] == ["0"]


def test_a_spare_that_is_at_it_is_given_to_an_engine_last() -> None:
    group = Group(Plan(2, "run", "0.1", devices=("0",)))
    busy, idle = spares(group)
    group.tell(idle, Warmed("0", ""))
    assert group.serve() == idle
    assert said(group.tell(idle, UsesGpu(GPU)), Warm, busy).gpu == GPU


def test_sessions_are_counted_and_nobody_else() -> None:
    """A word of a process that is dead, or was never told, changes nothing."""
    group = Group()
    (spare,) = spares(group)
    group.exit(spare)
    assert warm(group.tell(spare, UsesGpu(GPU))) == []
    (spare,) = spares(group)
    group.tell(spare, Warmed(GPU, GPU))
    assert not pick(group.beats(2 * TICK_NS), Drain)
    assert spare.name == SESSION
