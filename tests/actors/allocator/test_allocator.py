"""Who may fill which page: grants, statements, and what becomes of a page that is left."""

import pytest

from pegaflow.actors.allocator import reservations
from pegaflow.actors.allocator.actor import Allocator
from pegaflow.wire.allocator import Freed, PagesHeld, Pressure, Reserve, Reserved, Return
from pegaflow.wire.control import BEAT_NS, Fenced, Gone, Hello, Welcome
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import NO_GRANT, GrantId
from pegaflow.wire.jobs import GrowExtent, ReadRecords, RecordsRead, RecordsScanned, ScanRecords
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address
from tests.actors.rig import (
    ALLOC,
    BOSS,
    EXTENT,
    HELLO,
    IDX,
    MS,
    NOBODY_ELSE,
    PAGE,
    POOL,
    SESSION_4,
    SESSION_5,
    WELCOME,
    Rig,
    one,
    pick,
    said,
)
from tests.naming import as_pages

ALL = POOL // PAGE


def allocator(extents: int = POOL // EXTENT, welcome: Welcome = WELCOME) -> tuple[Rig, Allocator]:
    """An allocator whose index has dialled it and whose first extents are there."""
    actor = Allocator(ALLOC, BOSS, HELLO)
    rig = Rig(actor)
    assert said(rig.start(), Hello, BOSS) == HELLO
    rig.tell(BOSS, welcome)
    rig.tell(BOSS, NOBODY_ELSE)
    rig.tell(IDX, Freed(()))
    rig.done(ScanRecords, RecordsScanned((), ()))
    for _ in range(extents):
        rig.done(GrowExtent)
    return rig, actor


def granted(sent: list[Envelope], holder: Address = SESSION_4) -> Reserved:
    reserved = said(sent, Reserved, holder)
    assert reserved.status is Status.OK
    return reserved


def free_bytes(actor: Allocator) -> int:
    return actor.gauges()["pool_free_bytes"]


def test_a_ledger_that_cannot_be_read_is_not_taken_for_an_empty_one() -> None:
    rig = Rig(Allocator(ALLOC, BOSS, HELLO))
    rig.start()
    rig.tell(BOSS, WELCOME)
    rig.tell(BOSS, NOBODY_ELSE)
    rig.tell(IDX, Freed(()))
    assert rig.done(ScanRecords, Status.COPY_FAILED, "too many open files") == []
    assert rig.stop == "the ledger cannot be read: too many open files"
    assert not rig.wanted(GrowExtent)


def test_a_grant() -> None:
    rig, actor = allocator()
    first = granted(rig.ask(SESSION_4, Reserve(PAGE, 3)))
    second = granted(rig.ask(SESSION_4, Reserve(PAGE, 2)))
    other = granted(rig.ask(SESSION_5, Reserve(PAGE, 1)), SESSION_5)
    assert (first.number, second.number, other.number) == (1, 2, 1)
    pages = (*first.pages, *second.pages, *other.pages)
    stamps = (*first.stamps, *second.stamps, *other.stamps)
    assert len(set(pages)) == len(set(stamps)) == 6
    assert {stamp >> 40 for stamp in stamps} == {ALLOC.incarnation}
    assert actor.gauges()["pool_held_bytes"] == 6 * PAGE


def test_what_can_never_fit_is_refused_and_presses_nobody() -> None:
    rig, _ = allocator()
    granted(rig.ask(SESSION_4, Reserve(PAGE, ALL)))
    for ask in (Reserve(PAGE, ALL + 1), Reserve(2 * EXTENT, 1)):
        sent = rig.ask(SESSION_5, ask)
        assert said(sent, Reserved) == Reserved(Status.TOO_LARGE, NO_GRANT, (), ())
        assert not pick(sent, Pressure)


def test_impossible_requests() -> None:
    rig, _ = allocator()
    for ask in (Reserve(0, 1), Reserve(PAGE + 1, 1), Reserve(PAGE, 0)):
        assert said(rig.ask(SESSION_4, ask), Reserved).status is Status.BAD_REQUEST


def test_a_reservation_waits_for_an_extent_that_still_grows() -> None:
    rig, _ = allocator(extents=1)
    assert rig.ask(SESSION_4, Reserve(PAGE, ALL)) == []
    granted(rig.done(GrowExtent))


def test_a_note_of_an_extent_is_one_line() -> None:
    rig, _ = allocator(extents=0)
    granted_nothing = rig.done(GrowExtent, Status.OK, "mbind to node 1: refused")
    assert granted_nothing == [] and rig.wanted(GrowExtent), "it grows as ever"
    (line,) = [note for note in rig.notes if note.event == "pool_not_placed"]
    assert ("why", "mbind to node 1: refused") in line.facts


def test_an_extent_that_cannot_be_had() -> None:
    rig, _ = allocator(extents=1)
    assert rig.ask(SESSION_4, Reserve(PAGE, ALL)) == []
    pressure = one(rig.done(GrowExtent, Status.NO_SPACE), Pressure, IDX)
    sent = rig.answer(pressure, Freed(()))
    assert said(sent, Reserved).status is Status.NO_SPACE
    assert rig.count("extents_not_grown") == 1


def test_a_full_pool_presses_the_index_once() -> None:
    rig, actor = allocator()
    pages = granted(rig.ask(SESSION_4, Reserve(PAGE, ALL))).pages
    rig.tell(SESSION_4, Return(pages))
    rig.done(ReadRecords, RecordsRead(pages))
    assert actor.gauges()["pool_sealed_bytes"] == POOL
    pressure = one(rig.ask(SESSION_5, Reserve(PAGE, 2)), Pressure, IDX)
    assert pressure.message == Pressure(PAGE, 2, False)
    assert rig.ask(SESSION_4, Reserve(PAGE, 1)) == []
    assert rig.answer(pressure, Freed(pages[:3])) == []
    sent = rig.done(ReadRecords, RecordsRead(()))
    assert set(granted(sent, SESSION_5).pages) < set(pages[:3])
    assert set(granted(sent, SESSION_4).pages) < set(pages[:3])


def test_who_together_want_more_than_the_pool_has_are_served_one_after_the_other() -> None:
    """To ask for an extent of another page size, where there is none, frees nothing."""
    rig, _ = allocator()
    pages = granted(rig.ask(SESSION_4, Reserve(PAGE, ALL))).pages
    rig.tell(SESSION_4, Return(pages))
    rig.done(ReadRecords, RecordsRead(pages))
    pressure = one(rig.ask(SESSION_4, Reserve(PAGE, 3)), Pressure, IDX)
    assert rig.ask(SESSION_5, Reserve(PAGE, ALL)) == []
    rig.answer(pressure, Freed(pages[:1]))
    pressure = one(rig.done(ReadRecords, RecordsRead(())), Pressure, IDX)
    assert pressure.message == Pressure(PAGE, 2, False)
    rig.answer(pressure, Freed(pages[1:3]))
    sent = rig.done(ReadRecords, RecordsRead(()))
    granted(sent, SESSION_4)
    assert one(sent, Pressure, IDX).message == Pressure(PAGE, ALL, False)


def test_what_is_missing_is_pressed_for_in_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "PRESSURE_PAGES", 2)
    rig, _ = allocator()
    pages = granted(rig.ask(SESSION_4, Reserve(PAGE, ALL))).pages
    rig.tell(SESSION_4, Return(pages))
    rig.done(ReadRecords, RecordsRead(pages))
    sent = rig.ask(SESSION_5, Reserve(PAGE, 5))
    for first, count in ((0, 2), (2, 2), (4, 1)):
        pressure = one(sent, Pressure, IDX)
        assert pressure.message == Pressure(PAGE, count, False)
        assert rig.answer(pressure, Freed(pages[first : first + count])) == []
        sent = rig.done(ReadRecords, RecordsRead(()))
    assert set(granted(sent, SESSION_5).pages) == set(pages[:5])


def test_another_page_size_presses_for_an_extent_to_be_reassigned() -> None:
    rig, _ = allocator()
    pages = granted(rig.ask(SESSION_4, Reserve(PAGE, ALL))).pages
    rig.tell(SESSION_4, Return(pages))
    rig.done(ReadRecords, RecordsRead(pages))
    pressure = one(rig.ask(SESSION_5, Reserve(EXTENT, 1)), Pressure)
    assert pressure.message == Pressure(EXTENT, 1, True)
    rig.answer(pressure, Freed(pages[: EXTENT // PAGE]))
    assert granted(rig.done(ReadRecords, RecordsRead(())), SESSION_5).pages == (pages[0],)


def test_an_index_that_frees_nothing_or_is_silent_means_no_space() -> None:
    rig, _ = allocator()
    granted(rig.ask(SESSION_4, Reserve(PAGE, ALL)))
    pressure = one(rig.ask(SESSION_5, Reserve(PAGE, 1)), Pressure)
    assert said(rig.answer(pressure, Freed(())), Reserved).status is Status.NO_SPACE
    one(rig.ask(SESSION_5, Reserve(PAGE, 1)), Pressure)
    assert said(rig.wait(600 * MS), Reserved).status is Status.NO_SPACE


def test_an_index_that_frees_what_is_no_page_has_freed_nothing() -> None:
    rig, _ = allocator()
    granted(rig.ask(SESSION_4, Reserve(PAGE, ALL)))
    for _ in range(2):
        pressure = one(rig.ask(SESSION_5, Reserve(PAGE, 1)), Pressure)
        sent = rig.answer(pressure, Freed(as_pages(1 << 40)))
        assert said(sent, Reserved).status is Status.NO_SPACE


def test_a_reservation_past_its_deadline_takes_nothing() -> None:
    rig, actor = allocator(extents=0)
    rig.ask(SESSION_4, Reserve(PAGE, 1), deadline=rig.now + MS)
    rig.wait(2 * MS)
    assert not pick(rig.done(GrowExtent), Reserved)
    assert (rig.count("reserve_expired"), free_bytes(actor)) == (1, EXTENT)


def test_returned_pages_are_free_if_void_and_the_indexs_if_sealed() -> None:
    rig, actor = allocator()
    void, sealed = granted(rig.ask(SESSION_4, Reserve(PAGE, 2))).pages
    rig.tell(SESSION_4, Return((void, sealed)))
    assert free_bytes(actor) == POOL - 2 * PAGE, "nothing is free before the ledger is read"
    rig.done(ReadRecords, RecordsRead((sealed,)))
    assert free_bytes(actor) == POOL - PAGE
    assert actor.gauges()["pool_sealed_bytes"] == PAGE


def test_freed_is_believed_only_if_the_record_is_void() -> None:
    rig, actor = allocator()
    pages = granted(rig.ask(SESSION_4, Reserve(PAGE, 2))).pages
    rig.tell(SESSION_4, Return(pages))
    rig.done(ReadRecords, RecordsRead(pages))
    rig.tell(IDX, Freed(pages))
    rig.done(ReadRecords, RecordsRead(pages[:1]))
    assert actor.gauges()["pool_sealed_bytes"] == PAGE
    assert free_bytes(actor) == POOL - PAGE


def test_freed_does_not_take_a_page_from_its_holder() -> None:
    rig, actor = allocator()
    pages = granted(rig.ask(SESSION_4, Reserve(PAGE, 1))).pages
    rig.tell(IDX, Freed(pages))
    rig.done(ReadRecords, RecordsRead(()))
    assert actor.gauges()["pool_held_bytes"] == PAGE


def test_a_lost_freed_is_mended_by_the_scan() -> None:
    rig, actor = allocator()
    pages = granted(rig.ask(SESSION_4, Reserve(PAGE, 2))).pages
    rig.tell(SESSION_4, Return(pages))
    rig.done(ReadRecords, RecordsRead(pages))
    rig.wait(BEAT_NS)
    assert {p for job in rig.wanted(ReadRecords) for p in job.pages} == set(pages)
    rig.done(ReadRecords, RecordsRead(pages[1:]))
    assert (free_bytes(actor), actor.gauges()["pool_sealed_bytes"]) == (POOL - PAGE, PAGE)


def test_a_stranger_cannot_return_pages() -> None:
    rig, actor = allocator()
    pages = granted(rig.ask(SESSION_4, Reserve(PAGE, 1))).pages
    rig.tell(SESSION_5, Return(pages))
    assert not rig.wanted(ReadRecords)
    assert actor.gauges()["pool_held_bytes"] == PAGE
    assert rig.count("pages_not_held") == 1


def test_pages_that_a_holder_omits_come_back() -> None:
    rig, actor = allocator()
    first = granted(rig.ask(SESSION_4, Reserve(PAGE, 3)))
    kept, void, sealed = first.pages
    assert rig.tell(SESSION_4, PagesHeld(GrantId(1), (kept,))) == []
    rig.done(ReadRecords, RecordsRead((sealed,)))
    gauges = actor.gauges()
    assert (gauges["pool_held_bytes"], gauges["pool_sealed_bytes"]) == (PAGE, PAGE)
    assert void not in (kept, sealed)


def test_grants_later_than_the_statement_are_sent_again_and_kept() -> None:
    rig, actor = allocator()
    first = granted(rig.ask(SESSION_4, Reserve(PAGE, 1)))
    second = granted(rig.ask(SESSION_4, Reserve(PAGE, 1)))
    again = one(rig.tell(SESSION_4, PagesHeld(GrantId(1), first.pages)), Reserved, SESSION_4)
    assert (again.message, again.answer) == (second, 0)
    assert not rig.wanted(ReadRecords)
    assert rig.tell(SESSION_4, PagesHeld(GrantId(2), (*first.pages, *second.pages))) == []
    assert rig.tell(SESSION_4, PagesHeld(GrantId(1), first.pages)) == [], (
        "stated once, never sent again"
    )
    assert actor.gauges()["pool_held_bytes"] == 2 * PAGE


def test_fenced_brings_back_all_of_the_dead() -> None:
    rig, actor = allocator()
    void, sealed = granted(rig.ask(SESSION_4, Reserve(PAGE, 2))).pages
    other = granted(rig.ask(SESSION_5, Reserve(PAGE, 1)), SESSION_5)
    rig.tell(IDX, Fenced(SESSION_4))
    rig.done(ReadRecords, RecordsRead((sealed,)))
    gauges = actor.gauges()
    assert (gauges["pool_held_bytes"], gauges["pool_sealed_bytes"]) == (PAGE, PAGE)
    assert free_bytes(actor) == POOL - 2 * PAGE
    assert not set(other.pages) & {void, sealed}


def test_a_reservation_of_the_dead_is_not_served() -> None:
    rig, _ = allocator(extents=0)
    assert rig.ask(SESSION_4, Reserve(PAGE, 1)) == []
    rig.tell(IDX, Fenced(SESSION_4))
    assert rig.done(GrowExtent) == []


def test_a_page_given_back_twice_is_freed_once() -> None:
    """Return and a PagesHeld that omits it: the second reading must not free the next grant."""
    rig, _ = allocator()
    pages = granted(rig.ask(SESSION_4, Reserve(PAGE, ALL))).pages
    rig.tell(SESSION_4, Return(pages[:1]))
    rig.tell(SESSION_4, PagesHeld(GrantId(1), pages[1:]))
    rig.done(ReadRecords, RecordsRead(()))
    assert granted(rig.ask(SESSION_4, Reserve(PAGE, 1))).pages == pages[:1]
    rig.done(ReadRecords, RecordsRead(()))
    assert not pick(rig.ask(SESSION_5, Reserve(PAGE, 1)), Reserved)


def test_what_the_fenced_had_queued_is_not_granted() -> None:
    rig, actor = allocator()
    rig.tell(IDX, Fenced(SESSION_4))
    rig.ask(SESSION_4, Reserve(PAGE, 1))
    rig.tell(BOSS, Gone(SESSION_4))
    assert actor.gauges()["pool_held_bytes"] == 0
