"""From Fetch to Fetched: runs, turns, checksums, seals, pages, who dies."""

from dataclasses import replace

import pytest

from pegaflow.actors.flusher import reading
from pegaflow.actors.flusher.reading import (
    FETCHES_MAX,
    READ_FAULTS,
    RUN_BYTES,
    SEAL_NS,
    STALL_NS,
)
from pegaflow.actors.flusher.volumes import State
from pegaflow.actors.roles.pages import RESERVE_NS
from pegaflow.core.segments.codec import joined
from pegaflow.wire.allocator import PagesHeld, Reserve, Reserved, Return
from pegaflow.wire.control import BEAT_NS, Drain, Gone, Neighbour
from pegaflow.wire.diskjobs import DropSegment, ReadRun, RunRead
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.flusher import Fetch, Fetched, Forget, Tier
from pegaflow.wire.identities import NO_GRANT, GrantId, Incarnation, Stamp
from pegaflow.wire.index import Seal, Sealed
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, INDEX, Address
from tests.actors.disks import (
    KEYS,
    PLAN,
    ROOT,
    SUM,
    Disks,
    broken,
    fetch,
    flush,
    question,
    row_of,
)
from tests.actors.rig import ALLOC, BOSS, IDX, MS, PAGE, pick, said
from tests.naming import as_pages, as_stamps

PATIENCE = 5000 * MS
INDEX_8 = Address(INDEX, Incarnation(8))
ALLOC_9 = Address(ALLOCATOR, Incarnation(9))


def reader(*places: int, inflight: int = 16) -> Disks:
    """A flusher with these of KEYS in one segment, one behind the other."""
    disks = Disks(replace(PLAN, prefetch_inflight=inflight))
    disks.segments = {(0, 1): joined([row_of(at) for at in places or tuple(range(8))])}
    disks.ready()
    return disks


def asks(disks: Disks, msg: Fetch, patience: int = PATIENCE) -> list[Envelope]:
    return disks.rig.ask(IDX, msg, disks.rig.now + patience)


def granted(disks: Disks, sent: list[Envelope], number: int, first: int = 0) -> list[Envelope]:
    """The allocator grants what was asked for last."""
    ask = question(sent, Reserve)
    assert isinstance(ask.message, Reserve)
    pages = tuple(range(first, first + ask.message.count))
    answer = Reserved(
        Status.OK, GrantId(number), as_pages(*pages), tuple(Stamp(100 + page) for page in pages)
    )
    return disks.rig.answer(ask, answer)


def sealed(disks: Disks, sent: list[Envelope], *positions: int) -> list[Envelope]:
    """The index publishes these."""
    return disks.rig.answer(question(sent, Seal), Sealed(Status.OK, positions))


def test_a_fetch_is_reserved_read_compared_sealed_and_answered() -> None:
    disks = reader()
    sent = asks(disks, fetch(9, (0, 1, 2)))
    assert said(sent, Reserve, ALLOC) == Reserve(PAGE, 3)
    assert granted(disks, sent, 1) == []
    (job,) = disks.rig.wanted(ReadRun)
    assert (job.segment, job.offset, job.payload_bytes) == (1, row_of(0).offset, PAGE)
    assert job.stretches == (3,) and len(job.pages) == 3
    sent = disks.work()
    seal = said(sent, Seal, IDX)
    assert (seal.claim, seal.keys, seal.parents) == (9, KEYS[:3], (ROOT, *KEYS[:2]))
    assert (seal.pages, seal.stamps, seal.depths) == ((0, 1, 2), (100, 101, 102), (0, 1, 2))
    assert not pick(sent, Return), "not while the index has not answered"
    sent = sealed(disks, sent, 0, 1, 2)
    assert said(sent, Return, ALLOC) == Return(as_pages(0, 1, 2))
    assert said(sent, Fetched, IDX) == Fetched(Status.OK, ())
    assert disks.rig.count("ssd_prefetch_success") == 3 and not disks.actor.pages.held()


def test_blocks_apart_from_each_other_are_several_runs() -> None:
    disks = reader()
    sent = asks(disks, fetch(1, (0, 1, 4, 5)))
    assert [e.message for e in pick(sent, Reserve)] == [Reserve(PAGE, 2), Reserve(PAGE, 2)]


def test_a_run_goes_on_behind_the_rows_of_the_next_group_in_any_order_of_their_ends() -> None:
    later = [row_of(at, segment_offset=8192 + PAGE_ALIGN) for at in (2, 3)]
    disks = Disks()
    disks.segments = {(0, 1): joined([*later, row_of(0), row_of(1)])}
    disks.ready()
    sent = asks(disks, fetch(1, (0, 1, 2, 3)))
    assert said(sent, Reserve) == Reserve(PAGE, 4)
    granted(disks, sent, 1)
    (job,) = disks.rig.wanted(ReadRun)
    assert (job.offset, job.stretches, len(job.pages)) == (row_of(0).offset, (2, 2), 4)


def test_an_idle_disk_gets_a_fetch_in_parts_and_a_busy_one_in_one_piece(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "RUN_LEAST", PAGE)
    disks = reader()
    counts = [
        e.message.count
        for e in pick(asks(disks, fetch(1, tuple(range(8)))), Reserve)
        if isinstance(e.message, Reserve)
    ]
    assert counts == [2, 2, 4]


def test_a_run_is_not_longer_than_a_disk_needs() -> None:
    large = [
        row_of(at)._replace(payload_bytes=RUN_BYTES, offset=8192 + at * RUN_BYTES) for at in (0, 1)
    ]
    disks = Disks()
    disks.segments = {(0, 1): joined(large)}
    disks.ready()
    assert len(pick(asks(disks, fetch(1, (0, 1))), Reserve)) == 2


def test_what_is_not_in_the_log_is_absent() -> None:
    disks = reader(0, 1)
    assert said(asks(disks, fetch(1, (5, 6))), Fetched) == Fetched(Status.OK, (0, 1), (0, 1))


def test_a_block_with_another_checksum_is_never_sealed_nor_found_again() -> None:
    disks = reader()
    disks.faults[ReadRun] = lambda job: RunRead((SUM, SUM + 1, SUM))
    sent = asks(disks, fetch(1, (0, 1, 2)))
    granted(disks, sent, 1)
    sent = disks.work()
    seal = said(sent, Seal)
    assert (seal.keys, seal.pages) == ((KEYS[0], KEYS[2]), (0, 2))
    sent = sealed(disks, sent, 0, 1)
    assert said(sent, Fetched) == Fetched(Status.OK, (1,), (1,))
    assert said(sent, Return).pages == (0, 1, 2)
    assert disks.rig.count("ssd_blocks_corrupt") == 1
    assert said(asks(disks, fetch(2, (1,))), Fetched).absent == (0,)


def test_what_the_index_refuses_has_failed_and_its_pages_go_back() -> None:
    disks = reader()
    sent = asks(disks, fetch(1, (0, 1)))
    granted(disks, sent, 1)
    sent = disks.rig.answer(question(disks.work(), Seal), Sealed(Status.STALE_CLAIM, (1,)))
    assert said(sent, Fetched) == Fetched(Status.OK, (0,))
    assert said(sent, Return).pages == (0, 1)


def test_engines_are_served_in_turn() -> None:
    disks = reader(*range(0, 16, 2), inflight=1)
    first = asks(disks, fetch(1, (0, 2, 4), engine=4))
    asks(disks, fetch(2, (6, 8), engine=5))
    order: list[bytes] = []
    sent = first
    for number in range(1, 6):
        granted(disks, sent, number, first=number % 4)
        sent = disks.work()
        order += said(sent, Seal).keys
        sent = sealed(disks, sent, 0)
    assert order == [KEYS[at] for at in (0, 2, 6, 4, 8)]


def test_no_more_runs_than_the_plan_says() -> None:
    disks = reader(*range(0, 16, 2), inflight=2)
    assert len(pick(asks(disks, fetch(1, tuple(range(0, 16, 2)))), Reserve)) == 2
    assert disks.actor.reading.running == 2


def test_no_more_bytes_at_a_time_than_others_may_have_to_wait_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reading, "WINDOW_BYTES", 2 * PAGE)
    disks = reader(0, 2, 4, 6)
    assert len(pick(sent := asks(disks, fetch(1, (0, 2, 4, 6))), Reserve)) == 2
    disks.rig.answer(question(sent, Reserve), Reserved(Status.NO_SPACE, NO_GRANT, (), ()))
    assert disks.rig.host.actor is disks.actor and disks.actor.reading.running == 2, "the next one"


def test_a_volume_that_reads_all_that_it_may_keeps_nobody_from_another() -> None:
    disks = Disks(replace(PLAN, paths=("/one", "/two"), prefetch_inflight=1))
    disks.segments = {(0, 1): joined([row_of(0), row_of(4)]), (1, 1): joined([row_of(2)])}
    disks.ready()
    assert len(pick(asks(disks, fetch(1, (0, 4), engine=4)), Reserve)) == 1
    assert not pick(asks(disks, fetch(2, (4,), engine=5)), Reserve), "its volume is busy"
    assert len(pick(asks(disks, fetch(3, (2,), engine=6)), Reserve)) == 1


def test_without_pages_a_fetch_fails() -> None:
    disks = reader()
    sent = asks(disks, fetch(1, (0, 1)))
    refused = Reserved(Status.NO_SPACE, NO_GRANT, (), ())
    assert said(disks.rig.answer(question(sent, Reserve), refused), Fetched).positions == (0, 1)
    asks(disks, fetch(2, (2,)))
    assert said(disks.rig.wait(RESERVE_NS), Fetched).positions == (0,)


def test_a_grant_that_comes_too_late_goes_back() -> None:
    disks = reader()
    sent = asks(disks, fetch(1, (0,)))
    disks.rig.wait(RESERVE_NS)
    late = Reserved(Status.OK, GrantId(1), as_pages(3), as_stamps(9))
    assert said(disks.rig.answer(question(sent, Reserve), late), Return).pages == (3,)
    assert disks.rig.answer(question(sent, Reserve), late) == [], "we had it"
    assert said(
        disks.rig.tell(ALLOC, Reserved(Status.OK, GrantId(2), as_pages(4), as_stamps(9))), Return
    ).pages == (4,)


def test_a_fetch_is_not_begun_after_its_deadline() -> None:
    disks = reader(*range(0, 16, 2), inflight=1)
    first = asks(disks, fetch(1, (0,)))
    asks(disks, fetch(2, (2, 4)), patience=10 * MS)
    disks.rig.wait(20 * MS)
    granted(disks, first, 1)
    sent = disks.work()
    sent += sealed(disks, sent, 0)
    assert {said_.positions for said_ in _fetched(sent)} == {(), (0, 1)}


def _fetched(sent: list[Envelope]) -> list[Fetched]:
    return [e.message for e in sent if isinstance(e.message, Fetched)]


def test_a_failed_read_is_a_miss_and_several_in_a_row_close_the_volume() -> None:
    disks = reader()
    disks.faults[ReadRun] = broken(Status.COPY_FAILED, "input/output error")
    for number in range(1, READ_FAULTS + 1):
        sent = asks(disks, fetch(number, (number,)))
        granted(disks, sent, number)
        sent = disks.work(ReadRun)
        assert said(sent, Fetched) == Fetched(Status.OK, (0,))
        assert said(sent, Return).pages == (0,)
    assert said(sent, Forget).keys == KEYS[:8]
    assert not said(sent, Tier).prefetch and disks.actor.volumes.all[0].state is State.CLOSED
    assert "ssd_off" in [note.event for note in disks.rig.notes]
    disks.faults.clear()
    disks.rig.wait(2 * BEAT_NS)
    disks.told(disks.work())
    assert disks.actor.volumes.catalog.blocks == 8


def test_a_good_read_between_bad_ones_keeps_the_volume_open() -> None:
    disks = reader()
    for number in range(1, 2 * READ_FAULTS):
        disks.faults.clear()
        if number % 2:
            disks.faults[ReadRun] = broken(Status.COPY_FAILED)
        sent = asks(disks, fetch(number, (0,)))
        granted(disks, sent, number)
        sent = disks.work(ReadRun)
        if pick(sent, Seal):
            sealed(disks, sent, 0)
    assert disks.actor.volumes.all[0].readable


def test_a_stalled_disk_gets_nothing_else_to_do() -> None:
    disks = reader(*range(0, 16, 2))
    granted(disks, asks(disks, fetch(1, (0,))), 1)
    disks.rig.wait(STALL_NS)
    assert pick(asks(disks, fetch(2, (2,))), Reserve), "not yet"
    disks.rig.wait(1)
    assert said(asks(disks, fetch(3, (4,))), Fetched).positions == (0,)
    sent = disks.work(ReadRun)
    assert pick(sent, Seal)
    assert pick(asks(disks, fetch(4, (6,))), Reserve), "it moves again"


def test_a_segment_that_is_being_read_is_removed_afterwards() -> None:
    disks = reader()
    granted(disks, asks(disks, fetch(1, (0, 1))), 1)
    log, now = disks.actor.segments, disks.rig.now
    segment = disks.actor.volumes.all[0].segments[1]
    segment.going, log._logs[0].recycling = True, segment
    assert log._retire(segment, now)
    assert not segment.leaving
    sent = disks.work(ReadRun)
    sealed(disks, sent, 0, 1)
    assert disks.rig.wanted(DropSegment) and disks.rig.count("ssd_prefetch_success") == 2


def test_pages_of_an_unanswered_seal_are_neither_used_nor_returned() -> None:
    disks = reader()
    granted(disks, asks(disks, fetch(1, (0,))), 1)
    first = question(disks.work(), Seal)
    again = disks.rig.wait(SEAL_NS)
    assert said(again, Seal) == first.message and not pick(again, Return)
    disks.rig.tell(BOSS, Gone(IDX))
    assert disks.actor.pages.held() == {0: PAGE}
    sent = disks.rig.tell(BOSS, Neighbour(INDEX_8, "ipc://j", 2))
    assert said(sent, Seal, INDEX_8) == first.message
    refused = disks.rig.answer(question(sent, Seal), Sealed(Status.STALE_CLAIM, ()))
    assert said(refused, Return).pages == (0,)


def test_a_new_allocator_is_told_what_we_hold() -> None:
    disks = reader()
    granted(disks, asks(disks, fetch(1, (0, 1))), 7)
    disks.rig.tell(BOSS, Gone(ALLOC))
    sent = disks.rig.tell(BOSS, Neighbour(ALLOC_9, "ipc://b", 2))
    assert said(sent, PagesHeld, ALLOC_9) == PagesHeld(GrantId(7), as_pages(0, 1), 0, (PAGE, PAGE))
    assert said(disks.rig.wait(BEAT_NS), PagesHeld, ALLOC_9).upto == 7


def test_without_an_allocator_a_fetch_fails() -> None:
    disks = reader()
    disks.rig.tell(BOSS, Gone(ALLOC))
    assert said(asks(disks, fetch(1, (0, 4))), Fetched).positions == (0, 1)
    assert disks.actor.reading.running == 0


def test_too_many_fetches_are_refused_and_so_is_one_that_comes_while_we_drain() -> None:
    disks = reader(*range(8), inflight=1)
    for number in range(1, FETCHES_MAX + 1):
        asks(disks, fetch(number, (0,)))
    assert said(asks(disks, fetch(9999, (0,))), Fetched).status is Status.BUSY
    other = reader()
    other.rig.tell(IDX, flush(1, 20, 1))
    other.rig.tell(BOSS, Drain())
    assert said(asks(other, fetch(1, (0,))), Fetched).status is Status.BUSY
