"""The pool is entered into the page tables of a session before an engine needs it."""

from dataclasses import replace

from pegaflow.actors.session.pagetables import ADVANCE_MAX, SLICE_BYTES
from pegaflow.wire.control import BEAT_NS, LogLevel
from pegaflow.wire.jobs import EnterPages, PagesEntered
from pegaflow.wire.status import Status
from tests.actors.rig import BOSS, EXTENT, POOL, WELCOME, Rig
from tests.actors.sessions import SERVE, attached, spare

LARGE = replace(WELCOME, pool_bytes=2 * SLICE_BYTES + EXTENT)


def enter(rig: Rig, length: int) -> None:
    """The oldest slice ends with so many bytes; nobody is told."""
    assert rig.done(EnterPages, PagesEntered(length)) == []


def test_a_spare_enters_the_pool_slice_by_slice() -> None:
    rig, _ = spare(welcome=LARGE)
    assert rig.wanted(EnterPages) == [EnterPages(0, SLICE_BYTES)]
    enter(rig, SLICE_BYTES)
    assert rig.wanted(EnterPages) == [EnterPages(SLICE_BYTES, SLICE_BYTES)]
    enter(rig, SLICE_BYTES)
    assert rig.wanted(EnterPages) == [EnterPages(2 * SLICE_BYTES, EXTENT)]
    enter(rig, EXTENT)
    rig.wait(4 * BEAT_NS)
    assert not rig.wanted(EnterPages), "all of it is"


def test_what_is_not_there_yet_is_looked_for_with_each_beat() -> None:
    rig, _ = spare()
    enter(rig, 0)
    assert not rig.wanted(EnterPages)
    rig.wait(BEAT_NS)
    assert rig.wanted(EnterPages) == [EnterPages(0, POOL)]
    enter(rig, EXTENT)
    assert not rig.wanted(EnterPages)
    rig.wait(BEAT_NS)
    assert rig.wanted(EnterPages) == [EnterPages(EXTENT, POOL - EXTENT)]
    enter(rig, POOL - EXTENT)
    rig.wait(2 * BEAT_NS)
    assert not rig.wanted(EnterPages)


def test_one_slice_is_under_way_however_long_it_takes() -> None:
    rig, _ = spare()
    rig.wait(20 * BEAT_NS)
    assert len(rig.wanted(EnterPages)) == 1


def test_a_spare_that_is_taken_goes_on() -> None:
    rig, session = spare(welcome=LARGE)
    assert rig.ask(BOSS, SERVE)
    enter(rig, SLICE_BYTES)
    assert rig.wanted(EnterPages) == [EnterPages(SLICE_BYTES, SLICE_BYTES)]
    assert session.tables.gauges()["session_entered_bytes"] == SLICE_BYTES


def test_a_kernel_that_refuses_is_one_line_and_nothing_else() -> None:
    rig, session, _ = attached()
    enter(rig, EXTENT)
    rig.wait(BEAT_NS)
    sent = rig.done(EnterPages, Status.COPY_FAILED, "Invalid argument")
    assert sent == [] and rig.stop is None
    (line,) = [note for note in rig.notes if note.event == "pages_not_entered"]
    assert line.level is LogLevel.DEBUG
    assert line.facts == (("bytes", EXTENT), ("why", "Invalid argument"))
    rig.wait(4 * BEAT_NS)
    assert not rig.wanted(EnterPages)
    assert session.tables.gauges()["session_entered_bytes"] == EXTENT


def test_of_an_enormous_pool_only_the_low_part_is_entered() -> None:
    rig, session = spare(welcome=replace(WELCOME, pool_bytes=4 * ADVANCE_MAX))
    slices = 0
    while rig.wanted(EnterPages):
        enter(rig, rig.wanted(EnterPages)[0].length)
        slices += 1
    assert slices == ADVANCE_MAX // SLICE_BYTES
    assert session.tables.gauges()["session_entered_bytes"] == ADVANCE_MAX


def test_of_a_pool_that_a_gpu_is_to_reach_all_is_entered() -> None:
    pool = ADVANCE_MAX + 2 * SLICE_BYTES
    rig, session = spare(welcome=replace(WELCOME, pool_bytes=pool))
    assert session.tables.enter_all() == [], "a slice is on its way"
    while rig.wanted(EnterPages):
        enter(rig, rig.wanted(EnterPages)[0].length)
    assert session.tables.gauges()["session_entered_bytes"] == pool


def test_a_kernel_that_refuses_is_asked_for_nothing_more() -> None:
    rig, session = spare()
    rig.done(EnterPages, Status.COPY_FAILED, "Invalid argument")
    assert session.tables.enter_all() == []
