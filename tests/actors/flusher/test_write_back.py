"""From Flush to Flushed: batches, volumes, faults, recycling."""

from dataclasses import replace

import pytest

from pegaflow.actors.flusher import volumes, write_back
from pegaflow.actors.flusher.inventory import NOTED_NS
from pegaflow.actors.flusher.segments import RETRY_NS
from pegaflow.actors.flusher.volumes import SEGMENT_SMALLEST, State
from pegaflow.core.limits import MIB
from pegaflow.core.segments.codec import joined
from pegaflow.wire.control import BEAT_NS, Gone, Neighbour
from pegaflow.wire.diskjobs import (
    CarryGroup,
    DropSegment,
    LoadSegment,
    MakeSegment,
    OpenVolume,
    SegmentLoaded,
    SyncSegment,
    WriteFooter,
    WriteGroup,
)
from pegaflow.wire.flusher import Flushed, Forget, Manifest, Noted, Tier
from pegaflow.wire.identities import NO_CLAIM, NO_NAMESPACE, Incarnation, LeaseId
from pegaflow.wire.index import Corrupt, Held, LeasesHeld, LeasesLost
from pegaflow.wire.jobs import Done, PagesDiffer
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import INDEX, Address
from tests.actors.disks import KEYS, NS, PLAN, Disks, broken, flush, orderly, row_of
from tests.actors.rig import BOSS, IDX, PAGE, pick, said
from tests.naming import as_leases, as_pages

INDEX_8 = Address(INDEX, Incarnation(8))
FULL = broken(Status.NO_SPACE, "no space left")
BROKEN = broken(Status.COPY_FAILED, "input/output error")
SMALL = replace(PLAN, capacity_bytes=3 * SEGMENT_SMALLEST)


def small(segments: int = 3) -> Disks:
    """A log of so many of the smallest segments, each with room for one group of 31 pages."""
    disks = Disks(SMALL)
    disks.actor.volumes.capacity_bytes = segments * 31 * (PAGE + 4096)
    disks.actor.volumes.segment_bytes = 31 * PAGE + 5 * 4096
    return disks


def test_a_flush_ends_when_its_blocks_are_durable() -> None:
    disks = Disks()
    disks.ready()
    assert disks.rig.tell(IDX, flush(1, 0, 3)) == []
    assert not pick(disks.work(MakeSegment, WriteGroup), Flushed), "not before it is synced"
    done = said(disks.work(SyncSegment), Flushed, IDX)
    assert (done.number, done.keys, done.payload_bytes, done.shards) == (1, KEYS[:3], PAGE, 1)
    assert disks.actor.volumes.catalog.blocks == 3 and not disks.actor.write_back.flushes


def test_groups_lie_behind_each_other_and_are_written_side_by_side() -> None:
    disks = Disks()
    disks.ready()
    for number, first in ((1, 0), (2, 3), (3, 5)):
        disks.rig.tell(IDX, flush(number, first, 2))
    disks.work(MakeSegment)
    one, two, _ = disks.rig.wanted(WriteGroup)
    assert (one.index, one.offset) == (0, 4096)
    assert (two.index, two.offset) == (1, 4096 + 4096 + 2 * PAGE)
    assert len(pick(disks.work(), Flushed)) == 3


def test_blocks_that_are_in_the_log_are_not_written_again() -> None:
    disks = Disks()
    disks.ready()
    disks.rig.tell(IDX, flush(1, 0, 3))
    disks.work()
    assert said(disks.rig.tell(IDX, flush(2, 0, 3)), Flushed).keys == KEYS[:3]
    disks.rig.tell(IDX, flush(3, 2, 2))
    assert said(disks.work(), Flushed).keys == KEYS[2:4]
    (written,) = [job.keys for job in disks.did if isinstance(job, WriteGroup)][1:]
    assert written == KEYS[3:4]


def test_a_flush_that_we_had_is_ignored() -> None:
    disks = Disks()
    disks.ready()
    disks.rig.tell(IDX, flush(2, 0, 1))
    disks.rig.tell(IDX, flush(2, 0, 1))
    disks.rig.tell(IDX, flush(1, 5, 1))
    assert len(pick(disks.work(), Flushed)) == 1


def test_pages_that_are_not_what_was_sealed_are_corrupt_and_the_others_are_written() -> None:
    disks = Disks()
    disks.ready()
    disks.faults[WriteGroup] = lambda job: PagesDiffer(
        (job.pages[1],) if isinstance(job, WriteGroup) else ()
    )
    disks.rig.tell(IDX, flush(1, 0, 3))
    sent = disks.work(MakeSegment) + disks.end(disks.rig.wanted(WriteGroup)[0])
    assert said(sent, Corrupt, IDX) == Corrupt(as_pages(1))
    disks.faults.clear()
    assert said(disks.work(), Flushed).keys == (KEYS[0], KEYS[2])


def test_several_volumes_share_the_work_and_what_is_saved_together_stays_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(write_back, "STRIPE_BYTES", 4 * PAGE)
    disks = Disks(replace(PLAN, paths=("/one", "/two")))
    disks.ready()
    for number in range(1, 7):
        disks.rig.tell(IDX, flush(number, 2 * number, 2))
    disks.work()
    by_key = {j.keys[0]: j.volume for j in disks.did if isinstance(j, WriteGroup)}
    assert [by_key[KEYS[2 * number]] for number in range(1, 7)] == [0, 0, 1, 1, 0, 0]


def test_a_failed_write_goes_to_another_volume() -> None:
    disks = Disks(replace(PLAN, paths=("/one", "/two")))
    disks.ready()
    disks.faults[WriteGroup] = lambda job: (
        BROKEN(job) if isinstance(job, WriteGroup) and job.volume == 0 else orderly(job, {})
    )
    disks.rig.tell(IDX, flush(1, 0, 2))
    sent = disks.work()
    assert said(sent, Flushed).keys == KEYS[:2]
    assert [v.writable for v in disks.actor.volumes] == [False, True]
    assert not pick(sent, Tier), "the tier as a whole takes blocks"


def test_a_disk_that_fails_makes_the_tier_read_only_and_it_comes_back_by_itself() -> None:
    disks = Disks()
    disks.ready()
    disks.faults[WriteGroup] = BROKEN
    disks.rig.tell(IDX, flush(1, 0, 2))
    sent = disks.work()
    assert said(sent, Flushed).keys == () and not said(sent, Tier).writable
    assert [note.event for note in disks.rig.notes].count("ssd_read_only") == 1
    assert disks.rig.count("ssd_write_failures") == 2
    disks.faults = {MakeSegment: BROKEN}
    disks.rig.wait(RETRY_NS[0])
    assert disks.rig.wanted(MakeSegment) and not pick(disks.work(), Tier)
    disks.faults.clear()
    disks.rig.wait(RETRY_NS[1] - 1)
    assert not disks.rig.wanted(MakeSegment), "the rest grows"
    disks.rig.wait(1)
    assert said(disks.work(), Tier).writable
    assert [note.event for note in disks.rig.notes][-1] == "ssd_back"
    disks.rig.tell(IDX, flush(2, 0, 2))
    assert said(disks.work(), Flushed).keys == KEYS[:2]


def test_a_failed_sync_loses_the_group() -> None:
    disks = Disks()
    disks.ready()
    disks.faults[SyncSegment] = BROKEN
    disks.rig.tell(IDX, flush(1, 0, 2))
    assert said(disks.work(), Flushed).keys == ()
    assert disks.actor.volumes.catalog.blocks == 0 and not disks.actor.segments.writers


def test_a_segment_that_failed_gets_no_footer() -> None:
    disks = Disks()
    disks.ready()
    disks.rig.tell(IDX, flush(1, 0, 2))
    disks.work()
    disks.faults[WriteGroup] = BROKEN
    disks.rig.tell(IDX, flush(2, 4, 2))
    disks.work()
    assert "WriteFooter" not in disks.kinds()
    assert disks.actor.volumes.catalog.blocks == 2, "what was durable still is"


def test_a_full_segment_gets_its_footer_and_the_next_is_made() -> None:
    disks = small()
    disks.ready()
    for number in (1, 2):
        disks.rig.tell(IDX, flush(number, 0 if number == 1 else 31, 31 if number == 1 else 1))
    disks.work()
    kinds = disks.kinds()
    assert kinds.count("MakeSegment") == 2 and kinds.count("WriteFooter") == 1
    seal = next(job for job in disks.did if isinstance(job, WriteFooter))
    assert seal.offset == 4096 + 4096 + 31 * PAGE and len(seal.rows) == 31 * 128


def rounds(disks: Disks, first: int, last: int) -> list[Message]:
    """Fill one segment after the other with a block each."""
    said_: list[Message] = []
    for number in range(first, last + 1):
        at = number - 1
        disks.rig.tell(IDX, flush(number, at, 1))
        said_ += [envelope.message for envelope in disks.work()]
        volume, log = disks.actor.volumes.all[0], disks.actor.segments
        log.close_segment(volume, disks.rig.now)
        assert log.writer(volume) is None
        for segment in volume.segments.values():
            segment.closed = True
        disks.actor.segments.writers.clear()
    return said_


def test_the_oldest_segment_goes_when_the_log_is_full() -> None:
    disks = small()
    disks.ready()
    heard = rounds(disks, 1, 4)
    forgotten = [key for msg in heard if isinstance(msg, Forget) for key in msg.keys]
    assert forgotten == [KEYS[0], KEYS[1]] and not disks.actor.volumes.catalog.has(NS, KEYS[0])
    dropped = [job.segment for job in disks.did if isinstance(job, DropSegment)]
    assert dropped == [1, 2]
    volume = disks.actor.volumes.all[0]
    assert volume.bytes_ <= (disks.actor.volumes.capacity_bytes or 0)


def test_what_was_read_is_carried_over() -> None:
    disks = small()
    disks.ready()
    rounds(disks, 1, 2)
    place = disks.actor.volumes.catalog.find(NS, KEYS[0])
    assert place is not None
    disks.actor.volumes.catalog.were_read(place[0], place[1:])
    heard = rounds(disks, 3, 4)
    forgotten = [key for msg in heard if isinstance(msg, Forget) for key in msg.keys]
    assert KEYS[0] not in forgotten and disks.actor.volumes.catalog.has(NS, KEYS[0])
    assert disks.rig.count("ssd_blocks_carried") == 1
    assert disks.rig.count("ssd_carried_bytes") == PAGE


def test_a_carry_that_fails_forgets_its_blocks() -> None:
    disks = small()
    disks.ready()
    rounds(disks, 1, 2)
    place = disks.actor.volumes.catalog.find(NS, KEYS[0])
    assert place is not None
    disks.actor.volumes.catalog.were_read(place[0], place[1:])
    disks.faults[CarryGroup] = BROKEN
    heard = rounds(disks, 3, 3)
    forgotten = [key for msg in heard if isinstance(msg, Forget) for key in msg.keys]
    assert forgotten == [KEYS[0]]


def test_when_others_fill_the_disk_the_oldest_segment_goes() -> None:
    disks = Disks()
    disks.ready()
    rounds(disks, 1, 2)
    disks.faults[MakeSegment] = FULL
    disks.rig.tell(IDX, flush(3, 2, 1))
    assert [type(job) for _, job in disks.rig.jobs] == [MakeSegment]
    sent = disks.end(disks.rig.wanted(MakeSegment)[0])
    assert said(sent, Forget).keys == KEYS[:1]
    disks.faults.clear()
    assert said(disks.work(), Flushed).keys == KEYS[2:3]
    assert disks.rig.count("ssd_squeezed") == 1


def test_a_disk_without_room_for_one_segment_is_read_only() -> None:
    disks = Disks()
    disks.faults[MakeSegment] = FULL
    disks.ready()
    disks.rig.tell(IDX, flush(1, 0, 1))
    sent = disks.work()
    assert said(sent, Flushed).keys == () and not said(sent, Tier).writable


# opening


def test_the_inventory_is_told_from_the_newest_segment_on_and_then_that_it_was_all() -> None:
    disks = Disks()
    disks.segments = {
        (0, 1): bytes(0),
        (0, 2): _rows(0, 1),
        (0, 3): _rows(1, 2),
    }
    sent = disks.told(disks.meet() + disks.work())
    parts = [e.message for e in pick(sent, Manifest)]
    keys = [part.keys for part in parts if isinstance(part, Manifest)]
    assert keys == [KEYS[1:3], KEYS[:1], ()]
    assert parts[-1] == Manifest(NO_NAMESPACE, 0, 0, (), last=True)
    loads = [job.segment for job in disks.did if isinstance(job, LoadSegment)]
    assert loads == [3, 2, 1]
    assert [job.segment for job in disks.did if isinstance(job, DropSegment)] == [1]
    assert disks.rig.count("ssd_blocks_recovered") == 3


def _rows(*places: int) -> bytes:
    return joined([row_of(at) for at in places])


def test_one_part_of_the_inventory_at_a_time_and_again_if_it_was_lost() -> None:
    disks = Disks()
    disks.segments = {(0, 1): _rows(0), (0, 2): _rows(1)}
    sent = disks.meet() + disks.work()
    (first,) = pick(sent, Manifest)
    again = disks.rig.wait(NOTED_NS)
    (second,) = pick(again, Manifest)
    assert second.message == first.message
    assert said(disks.rig.answer(second, Noted()), Manifest).keys == KEYS[:1]


def test_a_segment_that_cannot_be_read_is_left_alone() -> None:
    disks = Disks()
    disks.segments = {(0, 1): _rows(0), (0, 2): _rows(1)}
    disks.faults[LoadSegment] = lambda job: (
        Done(Status.CORRUPT, "version 9")
        if isinstance(job, LoadSegment) and job.segment == 2
        else SegmentLoaded(_rows(0), 1 << 20, scanned=True)
    )
    sent = disks.told(disks.meet() + disks.work())
    keys = [e.message.keys for e in pick(sent, Manifest) if isinstance(e.message, Manifest)]
    assert keys == [KEYS[:1], ()] and "DropSegment" not in disks.kinds()
    assert "ssd_segment_left" in [note.event for note in disks.rig.notes]


def test_writing_begins_while_the_inventory_is_still_being_read() -> None:
    disks = Disks()
    disks.segments = {(0, 1): _rows(5)}
    disks.meet()
    sent = disks.work(OpenVolume)
    assert said(sent, Tier).writable
    disks.rig.tell(IDX, flush(1, 0, 1))
    assert said(disks.work(MakeSegment, WriteGroup, SyncSegment), Flushed).keys == KEYS[:1]
    made = next(job for job in disks.did if isinstance(job, MakeSegment))
    assert made.segment == 2


def test_a_directory_that_cannot_be_used_is_tried_again() -> None:
    disks = Disks()
    disks.faults[OpenVolume] = broken(Status.COPY_FAILED, "permission denied")
    sent = disks.meet() + disks.work()
    tier = pick(sent, Tier)[-1].message
    assert isinstance(tier, Tier) and not tier.writable and tier.prefetch == 0
    disks.faults.clear()
    disks.rig.wait(RETRY_NS[0])
    sent = disks.work()
    assert pick(sent, Tier) and disks.actor.volumes.all[0].state is State.UP


# who dies


def test_a_new_index_is_told_what_we_hold_and_all_that_is_in_the_log() -> None:
    disks = Disks()
    disks.ready()
    disks.rig.tell(IDX, flush(1, 0, 2))
    disks.work()
    disks.rig.tell(IDX, flush(2, 4, 2))
    disks.rig.tell(BOSS, Gone(IDX))
    sent = disks.rig.tell(BOSS, Neighbour(INDEX_8, "ipc://j", 2))
    kinds = [type(e.message) for e in sent if e.receiver == INDEX_8]
    assert kinds == [Held, LeasesHeld, Tier, Manifest]
    assert said(sent, Held).pages == (4, 5) and said(sent, LeasesHeld).leases == (2,)
    assert said(sent, Manifest).keys == KEYS[:2]
    assert said(disks.work(), Flushed, INDEX_8).number == 2


def test_leases_that_the_index_cannot_honour_end_unless_they_are_being_written() -> None:
    disks = Disks(replace(PLAN, write_inflight=1))
    disks.ready()
    for number in (1, 2):
        disks.rig.tell(IDX, flush(number, 2 * number, 2, share=0.1))
    disks.work(MakeSegment)
    assert said(disks.rig.tell(IDX, LeasesLost(as_leases(1, 2))), Flushed).number == 2
    assert said(disks.work(), Flushed).number == 1


def test_what_we_hold_is_stated_with_each_beat() -> None:
    disks = Disks()
    disks.ready()
    disks.rig.tell(IDX, flush(3, 0, 2))
    sent = disks.rig.wait(BEAT_NS)
    assert said(sent, LeasesHeld, IDX) == LeasesHeld(LeaseId(3), as_leases(3), NO_CLAIM, ())
    assert said(sent, Tier, IDX) == disks.actor.tier.told


def test_the_smallest_log_is_cut_into_segments_that_hold_a_batch() -> None:
    disks = Disks(replace(PLAN, capacity_bytes=64 * MIB))
    assert disks.actor.volumes.segment_bytes == volumes.SEGMENT_SMALLEST
    assert Disks().actor.volumes.segment_bytes == volumes.SEGMENT_BYTES
