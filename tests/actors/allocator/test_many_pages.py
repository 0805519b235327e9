"""What the allocator does for a page is done for all pages of a message at once."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from pegaflow.actors.allocator.actor import Allocator
from pegaflow.actors.allocator.adoption import SCAN_RECORDS
from pegaflow.core.pool.columns import column, said
from pegaflow.core.pool.geometry import MIN_PAGE
from pegaflow.wire.allocator import Freed, PagesHeld, Reserve, Reserved, Return
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.jobs import GrowExtent, ReadRecords, RecordsRead, RecordsScanned, ScanRecords
from pegaflow.wire.message import Message
from pegaflow.wire.values import Address, PackedU64s
from tests.actors.rig import ALLOC, BOSS, HELLO, IDX, NOBODY_ELSE, PAGE, SESSION_4, WELCOME, Rig
from tests.actors.rig import said as said_in
from tests.actors.steps import steps

FEW, MANY = 64, 4096


class Counting:
    """An allocator with one large extent, and the steps that it takes."""

    def __init__(self) -> None:
        self.rig = rig = Rig(Allocator(ALLOC, BOSS, HELLO))
        rig.start()
        size = 2 * MANY * PAGE
        rig.tell(BOSS, replace(WELCOME, pool_bytes=size, extent_bytes=size))
        rig.tell(BOSS, NOBODY_ELSE)
        rig.tell(IDX, Freed(()))
        rig.done(ScanRecords, RecordsScanned((), ()))
        rig.done(GrowExtent)

    def reserve(self, count: int) -> Reserved:
        return said_in(self.rig.ask(SESSION_4, Reserve(PAGE, count)), Reserved)

    def told(self, sender: Address, msg: Message, sealed: bool) -> int:
        """Tell it something about pages, all of whose records are sealed, or void."""
        host = self.rig.host

        def act() -> None:
            step = host.deliver(Envelope(sender, ALLOC, msg), self.rig.now)
            ((number, job),) = step.jobs
            assert isinstance(job, ReadRecords)
            host.complete(number, RecordsRead(job.pages if sealed else ()), self.rig.now)

        return steps(act)


def test_a_grant_says_its_pages_as_one_blob() -> None:
    reserved = Counting().reserve(MANY)
    assert isinstance(reserved.pages, PackedU64s) and isinstance(reserved.stamps, PackedU64s)
    assert len(reserved.pages) == len(reserved.stamps) == MANY
    assert len(set(reserved.stamps)) == MANY


@pytest.mark.parametrize("sealed", [True, False])
def test_pages_that_come_back_are_not_looked_at_one_by_one(sealed: bool) -> None:
    took = []
    for count in (FEW, MANY):
        counting = Counting()
        pages = counting.reserve(count).pages
        took.append(counting.told(SESSION_4, Return(pages), sealed))
        if sealed:
            took.append(counting.told(IDX, Freed(pages), False))
    half = len(took) // 2
    assert sum(took[half:]) <= sum(took[:half]) + FEW, took


def test_a_reservation_takes_no_step_for_a_page() -> None:
    took = []
    for count in (FEW, MANY):
        rig, question = Counting().rig, Envelope(SESSION_4, ALLOC, Reserve(PAGE, count), 1)
        took.append(steps(partial(rig.host.deliver, question, rig.now)))
    assert took[1] <= took[0] + FEW, took


def test_a_statement_takes_no_step_for_a_page() -> None:
    took = []
    for count in (FEW, MANY):
        counting = Counting()
        reserved = counting.reserve(2 * count)
        held = said(column(reserved.pages)[::2])
        took.append(counting.told(SESSION_4, PagesHeld(reserved.number, held, PAGE), False))
    assert took[1] <= took[0] + FEW, took


def restart(extents: int) -> list[tuple[int, int]]:
    """An allocator comes up over a pool whose pages are all sealed: of each look at the ledger the
    records, and the steps of Python that they take."""
    rig, per = Rig(Allocator(ALLOC, BOSS, HELLO)), MANY
    rig.start()
    size = per * MIN_PAGE
    rig.tell(BOSS, replace(WELCOME, pool_bytes=extents * size, extent_bytes=size))
    rig.tell(BOSS, NOBODY_ELSE)
    rig.tell(IDX, Freed(()))
    took, jobs = [], rig.jobs
    while jobs and isinstance(job := jobs[0][1], ScanRecords):
        number, _ = jobs.pop()
        pages = said(np.arange(job.first, job.first + job.count))
        lengths = said(np.full(job.count, MIN_PAGE))
        scanned = RecordsScanned(pages, lengths)

        def act(number: int = number, scanned: RecordsScanned = scanned) -> None:
            jobs.extend(rig.host.complete(number, scanned, rig.now).jobs)

        took.append((job.count, steps(act)))
    rig.host.check()
    assert rig.host.actor.gauges()["pool_sealed_bytes"] == extents * size
    return took


def test_a_restart_takes_no_step_for_a_page_and_as_many_for_each_look_at_the_ledger() -> None:
    looks = SCAN_RECORDS // MANY
    few, many = restart(2 * looks), restart(16 * looks)
    assert {count for count, _ in many} == {SCAN_RECORDS} and len(many) == 16
    assert max(taken for _, taken in many[1:-1]) <= few[0][1] + FEW, (few, many)
    assert many[-1][1] < SCAN_RECORDS, "a step for each page"
