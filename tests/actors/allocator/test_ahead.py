"""Pages that are freed ahead of need: for whom the index is pressed while nobody waits."""

from dataclasses import replace
from typing import NamedTuple

import pytest

from pegaflow.actors.allocator.actor import Allocator
from pegaflow.actors.allocator.ahead import BATCH_PAGES, EMPTY_PAGES, EMPTY_SHARE, REST_NS, Ahead
from pegaflow.actors.allocator.pages import Pages
from pegaflow.core.pool.geometry import MIN_PAGE, Geometry
from pegaflow.core.pool.slab import Slab
from pegaflow.wire.allocator import Freed, Pressure, Reserve, Return
from pegaflow.wire.control import BEAT_NS, Gone
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import GrantId, Incarnation, PageId
from pegaflow.wire.jobs import GrowExtent, ReadRecords, RecordsRead
from pegaflow.wire.status import Status
from pegaflow.wire.values import INDEX, Address
from tests.actors.rig import (
    BOSS,
    IDX,
    MS,
    PAGE,
    SESSION_4,
    SESSION_5,
    WELCOME,
    Rig,
    one,
    pick,
)

from . import test_allocator
from .test_allocator import granted

SLOTS = 32
ALL = 2 * SLOTS
UPPER = int(ALL * EMPTY_SHARE)  # of the marks; the lower one is half of it
ROOMY = replace(WELCOME, pool_bytes=ALL * PAGE, extent_bytes=SLOTS * PAGE)
LATER_INDEX = Address(INDEX, Incarnation(9))


def allocator(extents: int = 2) -> tuple[Rig, Allocator]:
    """An allocator of a pool of two extents; so many are there."""
    return test_allocator.allocator(extents, ROOMY)


class Filled(NamedTuple):
    """Pages that hold blocks, and what the index was asked for as they were granted."""

    pages: tuple[PageId, ...]
    pressed: list[Envelope]


def filled(rig: Rig, count: int, page_size: int = PAGE) -> Filled:
    """Fill so many pages."""
    sent = rig.ask(SESSION_4, Reserve(page_size, count))
    pages = tuple(granted(sent).pages)
    rig.tell(SESSION_4, Return(pages))
    rig.done(ReadRecords, RecordsRead(pages))
    return Filled(pages, pick(sent, Pressure))


def free(actor: Allocator) -> int:
    return actor.gauges()["pool_free_bytes"] // PAGE


def test_a_grant_that_leaves_few_free_pages_has_some_evicted_for_the_next() -> None:
    rig, actor = allocator()
    pages, _ = filled(rig, ALL - UPPER)
    pressure = one(rig.ask(SESSION_4, Reserve(PAGE, 3)), Pressure, IDX)
    assert pressure.message == Pressure(PAGE, 3, False, ahead=True)
    rig.answer(pressure, Freed(pages[:3]))
    assert not pick(rig.done(ReadRecords, RecordsRead(())), Pressure)
    assert free(actor) == UPPER
    assert rig.count("pressed_ahead") == 1
    granted(rig.ask(SESSION_5, Reserve(PAGE, UPPER)), SESSION_5)
    assert (rig.count("reserve_at_once"), rig.count("reserve_waited")) == (3, 0)


def test_nothing_is_evicted_ahead_before_the_lower_mark() -> None:
    rig, _ = allocator()
    filled(rig, ALL - UPPER)
    assert not pick(rig.ask(SESSION_4, Reserve(PAGE, UPPER // 2)), Pressure)
    assert pick(rig.ask(SESSION_4, Reserve(PAGE, 1)), Pressure)


def test_an_idle_pool_keeps_what_it_has() -> None:
    """What is short of the mark is asked for once: nothing but a grant has more evicted."""
    rig, _ = allocator()
    pages, (pressure,) = filled(rig, ALL - 1)
    sent = rig.answer(pressure, Freed(pages[:1]))
    sent += rig.done(ReadRecords, RecordsRead(pages[:1]))  # somebody has it still: it is not free
    for _ in range(5):
        sent += rig.wait(BEAT_NS)
        sent += rig.done(ReadRecords, RecordsRead(pages))
    assert not pick(sent, Pressure)


def test_a_pool_that_grows_is_not_pressed_and_is_once_it_is_grown() -> None:
    rig, _ = allocator(extents=1)
    sent = rig.ask(SESSION_4, Reserve(PAGE, SLOTS))
    granted(sent)
    assert not pick(sent, Pressure)
    assert not pick(rig.done(GrowExtent), Pressure), "there are free pages now"

    rig, _ = allocator(extents=1)
    granted(rig.ask(SESSION_4, Reserve(PAGE, SLOTS)))
    pressure = one(rig.done(GrowExtent, Status.NO_SPACE), Pressure, IDX)
    assert pressure.message == Pressure(PAGE, int(SLOTS * EMPTY_SHARE), False, ahead=True)


def test_who_waits_is_served_by_what_was_evicted_ahead_and_presses_for_the_rest() -> None:
    rig, _ = allocator()
    pages, (ahead,) = filled(rig, ALL - 1)
    assert rig.ask(SESSION_5, Reserve(PAGE, UPPER + 2)) == [], "one Pressure at a time"
    rig.answer(ahead, Freed(pages[: UPPER - 1]))
    pressure = one(rig.done(ReadRecords, RecordsRead(())), Pressure, IDX)
    assert pressure.message == Pressure(PAGE, 2, False)
    rig.answer(pressure, Freed(pages[UPPER : UPPER + 2]))
    granted(rig.done(ReadRecords, RecordsRead(())), SESSION_5)
    assert rig.count("reserve_waited") == 1


@pytest.mark.parametrize("silent", [False, True])
def test_nothing_freed_ahead_refuses_nobody_and_is_not_tried_again_at_once(silent: bool) -> None:
    rig, _ = allocator()
    filled(rig, ALL - 4)
    (ahead,) = pick(rig.ask(SESSION_4, Reserve(PAGE, 3)), Pressure)
    assert rig.ask(SESSION_5, Reserve(PAGE, 2)) == []
    sent = rig.wait(510 * MS) if silent else rig.answer(ahead, Freed(()))
    pressure = one(sent, Pressure, IDX)
    assert pressure.message == Pressure(PAGE, 1, False), "whoever waits presses for himself"
    rig.answer(pressure, Freed(()))
    assert not pick(rig.ask(SESSION_4, Reserve(PAGE, 1)), Pressure)


def test_after_a_moment_it_is_tried_again() -> None:
    rig, _ = allocator()
    filled(rig, ALL - 4)
    (ahead,) = pick(rig.ask(SESSION_4, Reserve(PAGE, 3)), Pressure)
    rig.answer(ahead, Freed(()))
    rig.wait(REST_NS)
    assert pick(rig.ask(SESSION_4, Reserve(PAGE, 1)), Pressure)


def test_the_death_of_the_index_ends_it_and_the_next_is_asked_by_the_next_grant() -> None:
    rig, _ = allocator()
    filled(rig, ALL - 4)
    assert pick(rig.ask(SESSION_4, Reserve(PAGE, 3)), Pressure)
    assert not pick(rig.tell(BOSS, Gone(IDX)), Pressure)
    assert not pick(rig.tell(LATER_INDEX, Freed(())), Pressure)
    rig.wait(REST_NS)
    one(rig.ask(SESSION_4, Reserve(PAGE, 1)), Pressure, LATER_INDEX)


def test_each_page_size_has_its_own_share_of_its_own_extents() -> None:
    rig, _ = allocator()
    assert not filled(rig, SLOTS // 2, 2 * PAGE).pressed, "there is an extent that nobody has"
    _, (pressure,) = filled(rig, SLOTS)  # and one of those: both are full
    assert pressure.message == Pressure(PAGE, int(SLOTS * EMPTY_SHARE), False, ahead=True)
    sent = rig.answer(pressure, Freed(()))
    assert not pick(sent + rig.wait(REST_NS), Pressure), "nobody has taken a large one since"


def book(extents: int, slots: int, taken: int) -> Ahead:
    """Of a pool of which so many pages of MIN_PAGE were granted."""
    extent = slots * MIN_PAGE
    pages = Pages()
    pages.slab = Slab(Geometry(extents * extent, extent))
    for number in range(extents):
        pages.slab.grow(number)
    assert pages.slab.take(MIN_PAGE, taken, SESSION_4, GrantId(1)) is not None
    ahead = Ahead(pages)
    ahead.took(MIN_PAGE)
    return ahead


def asked(ahead: Ahead) -> list[int]:
    said = [ahead.pressure(0) for _ in range(2 * EMPTY_PAGES)]
    return [pressure.count for pressure in said if pressure is not None]


def test_batches_are_short_and_a_large_pool_has_no_more_ready_than_two_reserves_take() -> None:
    counts = asked(book(extents=16, slots=8192, taken=16 * 8192))
    assert sum(counts) == EMPTY_PAGES and max(counts) == BATCH_PAGES


def test_a_size_of_few_pages_has_none_ready() -> None:
    assert asked(book(extents=1, slots=15, taken=15)) == []
    assert asked(book(extents=1, slots=16, taken=16)) == [1]
