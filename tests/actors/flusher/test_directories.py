"""Directories that are watched while they are used: removed, replaced, taken, and back again."""

from dataclasses import replace

from pegaflow.actors.flusher.segments import RETRY_NS
from pegaflow.actors.flusher.volumes import State
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.wire.control import BEAT_NS, Beat
from pegaflow.wire.diskjobs import MakeSegment, OpenVolume, VolumeOpened, VolumeWatched, WatchVolume
from pegaflow.wire.flusher import Fetched, Flushed, Forget, Manifest, Tier
from pegaflow.wire.jobs import Done
from pegaflow.wire.status import Status
from tests.actors.disks import KEYS, PLAN, Disks, broken, fetch, flush, row_of
from tests.actors.rig import BOSS, IDX, pick, said

from .test_write_back import _rows

LOST = "/ssd: another directory is in the place of the one that was opened"


def ready(plan: FlushPlan = PLAN) -> Disks:
    disks = Disks(plan)
    disks.segments = {(0, 1): _rows(0)}
    disks.ready()
    return disks


def test_every_directory_in_use_is_watched_with_each_beat_once_at_a_time() -> None:
    disks = ready(replace(PLAN, paths=("/a", "/b")))
    disks.rig.wait(BEAT_NS)
    assert [job.volume for job in disks.rig.wanted(WatchVolume)] == [0, 1]
    disks.rig.wait(BEAT_NS)
    assert len(disks.rig.wanted(WatchVolume)) == 2, "a disk that hangs is not asked again"
    disks.work()
    disks.rig.wait(BEAT_NS)
    assert len(disks.rig.wanted(WatchVolume)) == 2


def test_a_replaced_directory_is_off_within_a_beat_says_so_once_and_comes_back() -> None:
    disks = ready()
    disks.rig.notes.clear()
    disks.faults[WatchVolume] = broken(Status.GONE, LOST)
    disks.rig.wait(BEAT_NS)
    sent = disks.work()
    assert said(sent, Forget).keys == KEYS[:1]
    tier = said(sent, Tier)
    assert not tier.writable and tier.prefetch == 0
    disks.faults[OpenVolume] = broken(Status.GONE, LOST)
    beats = pick(disks.rig.wait(BEAT_NS), Beat, BOSS)
    assert beats and all(e.message.remarks == (LOST,) for e in beats if isinstance(e.message, Beat))
    for rest in (*RETRY_NS, *RETRY_NS[-1:] * 3):
        disks.rig.wait(rest)
        disks.work()
    assert [n.event for n in disks.rig.notes] == ["ssd_off"], "once, however often it is tried"
    assert disks.actor.gauges()["ssd_gone_volumes"] == 1
    assert not disks.rig.wanted(WatchVolume)
    disks.faults.clear()
    disks.rig.wait(RETRY_NS[-1])
    sent = disks.told(disks.work())
    assert pick(sent, Manifest) and pick(sent, Tier)
    assert disks.actor.volumes.all[0].state is State.UP and disks.actor.remarks() == ()
    assert disks.actor.gauges()["ssd_gone_volumes"] == 0


def test_what_was_on_its_way_to_it_goes_to_another_directory() -> None:
    disks = ready(replace(PLAN, paths=("/a", "/b")))
    disks.rig.tell(IDX, flush(1, 4, 2))
    disks.work(MakeSegment)
    disks.faults[WatchVolume] = lambda job: (
        Done(Status.GONE, LOST)
        if isinstance(job, WatchVolume) and job.volume == disks.actor.volumes.all[0].number
        else VolumeWatched()
    )
    disks.faults[OpenVolume] = broken(Status.GONE, LOST)
    disks.rig.wait(BEAT_NS)
    sent = disks.work(WatchVolume) + disks.work()
    assert said(sent, Flushed).keys == KEYS[4:6]
    assert [v.state for v in disks.actor.volumes] == [State.CLOSED, State.UP]
    place = disks.actor.volumes.catalog.find(row_of(4).namespace, KEYS[4])
    assert place is not None and place[0].volume == 1


def test_a_fetch_from_it_is_a_miss() -> None:
    disks = ready()
    disks.rig.ask(IDX, fetch(1, (0,)))
    disks.faults[WatchVolume] = broken(Status.GONE, LOST)
    disks.faults[OpenVolume] = broken(Status.GONE, LOST)
    disks.rig.wait(BEAT_NS)
    disks.work(WatchVolume)
    sent = disks.rig.ask(IDX, fetch(2, (0,)))
    assert said(sent, Fetched).absent == (0,)


def test_what_was_mended_is_a_line_and_no_fault() -> None:
    disks = ready()
    disks.rig.notes.clear()
    disks.faults[WatchVolume] = lambda job: VolumeWatched("the marker is written anew")
    disks.rig.wait(BEAT_NS)
    disks.work()
    assert [n.event for n in disks.rig.notes] == ["ssd_note"]
    assert disks.actor.volumes.all[0].open_to_writes


def test_a_watch_that_the_system_refuses_is_no_proof() -> None:
    disks = ready()
    disks.faults[WatchVolume] = broken(Status.COPY_FAILED, "too many open files")
    disks.rig.wait(BEAT_NS)
    disks.work()
    assert disks.actor.volumes.all[0].open_to_writes


def test_a_number_that_is_taken_is_not_used() -> None:
    disks = Disks()
    disks.faults[OpenVolume] = lambda job: VolumeOpened(1 << 40, (7,), (0,))
    disks.ready()
    assert not disks.actor.volumes.all[0].segments
    disks.rig.tell(IDX, flush(1, 0, 1))
    disks.work()
    made = next(job for job in disks.did if isinstance(job, MakeSegment))
    assert made.segment == 8


def test_of_a_lost_directory_a_segment_is_forgotten_in_a_turn() -> None:
    disks = Disks()
    disks.segments = {(0, n): _rows(n) for n in range(4)}
    disks.ready()
    disks.faults[WatchVolume] = broken(Status.GONE, LOST)
    disks.rig.wait(BEAT_NS)
    sent = disks.work(WatchVolume)
    assert len(pick(sent, Forget)) == 1 and disks.actor.volumes.catalog.blocks == 3
    catalog = disks.actor.volumes.catalog
    assert not any(catalog.has(row_of(0).namespace, key) for key in KEYS[:4]), "none is found"
    disks.rig.now += RETRY_NS[0]
    assert not disks.rig.wanted(OpenVolume)
    for left in (2, 1, 0):
        assert len(pick(disks.rig.wake(), Forget)) == 1 and catalog.blocks == left
        assert not disks.rig.wanted(OpenVolume) or not left, "not before all of it is"
    disks.rig.wake()
    assert disks.rig.wanted(OpenVolume)
    disks.faults.clear()
    sent = disks.told(disks.work())
    assert len(pick(sent, Manifest)) == 5 and catalog.blocks == 4
