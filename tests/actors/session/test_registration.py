"""The pool is registered with a GPU's driver: which parts of it, when, and until it is refused."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from pegaflow.actors.runtime.contract import Do, Effect, Note
from pegaflow.actors.session.actor import Session
from pegaflow.actors.session.pagetables import ADVANCE_MAX, SLICE_BYTES, PageTables
from pegaflow.actors.session.registration import (
    AT_ONCE_SERVING,
    AT_ONCE_SPARE,
    PIN_BYTES,
    Registration,
)
from pegaflow.core.limits import MIB
from pegaflow.wire.control import BEAT_NS, LogLevel, Warm
from pegaflow.wire.gpujobs import GpuWarmed, MapGpu, PinPages, WarmGpu
from pegaflow.wire.jobs import Done, EnterPages, PagesEntered
from pegaflow.wire.status import Status
from tests.actors.rig import BOSS, CLIENT_7, EXTENT, POOL, WELCOME, Rig
from tests.actors.sessions import serving, spare

from .test_gpu import ON_GPU, attached, reading

UNIT = 32 * MIB
LARGE = replace(WELCOME, pool_bytes=64 * UNIT, extent_bytes=UNIT)


class Driver:
    """A registration, and chunks that its driver has not ended."""

    def __init__(self, entered: int = 0) -> None:
        self.part = Registration(PageTables())
        self.part.up(LARGE, 0)
        self.open: list[Do] = []
        self.notes: list[Note] = []
        self.heard(self.part.entered(entered * UNIT))

    def heard(self, effects: list[Effect]) -> list[tuple[int, int]]:
        """Extents that are asked for: the first, and how many."""
        asked = [e for e in effects if isinstance(e, Do) and isinstance(e.job, PinPages)]
        jobs = [e.job for e in asked if isinstance(e.job, PinPages)]
        self.open += asked
        self.notes += [e for e in effects if isinstance(e, Note)]
        self.part.check()
        return [(job.offset // UNIT, job.length // UNIT) for job in jobs]

    def begin(self, *, serving: bool = False) -> list[tuple[int, int]]:
        return self.heard(self.part.begin(serving=serving))

    def end(self, status: Status = Status.OK, note: str = "") -> list[tuple[int, int]]:
        return self.heard(self.open.pop(0).then(Done(status, note), 0))


def test_nothing_is_before_there_is_a_context() -> None:
    driver = Driver(entered=64)
    driver.part.used((5 * UNIT,))
    assert driver.open == []


def test_a_spare_registers_by_several_threads_from_the_beginning_on() -> None:
    driver = Driver(entered=40)
    count = PIN_BYTES // UNIT
    assert driver.begin() == [(n * count, count) for n in range(AT_ONCE_SPARE)]
    assert driver.end() == [(AT_ONCE_SPARE * count, count)]


def test_a_session_with_an_engine_asks_for_less_at_once() -> None:
    driver = Driver(entered=64)
    assert len(driver.begin(serving=True)) == AT_ONCE_SERVING
    driver = Driver(entered=64)
    driver.begin()
    assert driver.begin(serving=True) == [] == driver.end()


def test_extents_in_which_it_copies_come_first() -> None:
    driver = Driver(entered=64)
    driver.begin(serving=True)
    driver.part.used((50 * UNIT + 4096, 60 * UNIT, 51 * UNIT, 3 * UNIT))
    assert driver.end() == [(50, 8)]
    assert driver.end() == [(60, 4)]
    assert driver.end() == [(8, 8)], "what is asked for already is not asked for again"


def test_what_is_not_entered_waits_though_it_is_used() -> None:
    driver = Driver(entered=10)
    driver.begin(serving=True)
    driver.part.used((20 * UNIT,))
    assert driver.end() == [(8, 2)] and driver.end() == []
    assert driver.heard(driver.part.entered(64 * UNIT)) == [(20, 8)]


def test_a_chunk_ends_where_another_begins() -> None:
    driver = Driver(entered=64)
    driver.begin(serving=True)
    driver.part.used((12 * UNIT,))
    assert driver.end() == [(12, 8)] and driver.end() == [(8, 4)] and driver.end() == [(20, 8)]


def test_what_is_refused_ends_it_with_one_line_that_people_see() -> None:
    driver = Driver(entered=64)
    driver.begin()
    driver.end()
    for _ in range(AT_ONCE_SPARE):
        assert driver.end(Status.COPY_FAILED, "no memory") == []
    (line,) = driver.notes
    assert (line.event, line.level) == ("pool_not_pinned", LogLevel.WARNING)
    assert line.facts == (("bytes", PIN_BYTES), ("why", "no memory"))
    assert driver.begin(serving=True) == [] == driver.heard(driver.part.entered(64 * UNIT))


@given(st.lists(st.integers(0, 63), max_size=20), st.integers(0, 64), st.booleans())
def test_each_extent_is_registered_once(used: list[int], entered: int, serving: bool) -> None:
    driver = Driver(entered=entered)
    chunks = driver.begin(serving=serving)
    driver.part.used(tuple(extent * UNIT for extent in used))
    chunks += driver.heard(driver.part.entered(64 * UNIT))
    while driver.open:
        chunks += driver.end()
    extents = [extent for first, count in chunks for extent in range(first, first + count)]
    assert sorted(extents) == list(range(64))
    assert driver.part.gauges()["session_registered_bytes"] == LARGE.pool_bytes


# in a session


def registered(session: Session) -> int:
    return session.registration.gauges()["session_registered_bytes"]


def test_what_is_there_is_registered_once_a_gpu_is_served() -> None:
    rig, session = serving()
    rig.done(EnterPages, PagesEntered(EXTENT + 4096))
    assert not rig.wanted(PinPages), "no engine is on a GPU"
    rig.ask(CLIENT_7, ON_GPU)
    rig.done(MapGpu)
    assert rig.wanted(PinPages) == [PinPages(0, EXTENT)]
    rig.wait(BEAT_NS)
    rig.done(EnterPages, PagesEntered(POOL - EXTENT - 4096))
    rig.done(PinPages)
    assert rig.wanted(PinPages) == [PinPages(EXTENT, POOL - EXTENT)]
    rig.done(PinPages)
    assert registered(session) == POOL


def warmed(**change: int) -> Rig:
    """A spare that has a context."""
    welcome = replace(WELCOME, **change)  # type: ignore[arg-type]
    rig, _ = spare(welcome=welcome)
    rig.tell(BOSS, Warm("0"))
    rig.done(WarmGpu, GpuWarmed("bus/uuid"))
    return rig


def test_extents_are_registered_whole_however_large_they_are() -> None:
    rig = warmed(extent_bytes=POOL)
    rig.done(EnterPages, PagesEntered(POOL))
    assert rig.wanted(PinPages) == [PinPages(0, POOL)]


def test_of_a_large_pool_all_is_entered_for_it() -> None:
    rig = warmed(pool_bytes=ADVANCE_MAX + SLICE_BYTES, extent_bytes=SLICE_BYTES)
    while entering := rig.wanted(EnterPages):
        upto = entering[0].offset + entering[0].length
        rig.done(EnterPages, PagesEntered(entering[0].length))
    assert upto == ADVANCE_MAX + SLICE_BYTES


def test_a_save_says_where_it_copies() -> None:
    rig, session = attached()
    rig.done(EnterPages, PagesEntered(0))
    job = reading(rig, (4, 5))
    soon = {offset // EXTENT for offset in job.offsets}
    assert set(session.registration._soon) == soon
