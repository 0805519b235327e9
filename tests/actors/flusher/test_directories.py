"""Directories that are watched while they are used: removed, replaced, taken, and back again."""

from pegaflow.actors.flusher.directories import RETRY_NS
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.wire.control import BEAT_NS, Beat
from pegaflow.wire.diskjobs import MakeSegment, OpenVolume, WatchVolume
from pegaflow.wire.flusher import Fetched, Flushed, Forget, Manifest, Tier
from pegaflow.wire.jobs import Done
from pegaflow.wire.status import Status
from tests.actors.platters import KEYS, PLAN, Platters, broken, fetch, flush, row_of
from tests.actors.rig import BOSS, IDX, pick, said

from .test_flusher_writes import _rows

LOST = "/ssd: another directory is in the place of the one that was opened"


def ready(plan: FlushPlan = PLAN) -> Platters:
    plates = Platters(plan)
    plates.segments = {(0, 1): _rows(0)}
    plates.ready()
    return plates


def test_every_directory_in_use_is_watched_with_each_beat_once_at_a_time() -> None:
    plates = ready(FlushPlan(("/a", "/b")))
    plates.rig.wait(BEAT_NS)
    assert [job.volume for job in plates.rig.wanted(WatchVolume)] == [0, 1]
    plates.rig.wait(BEAT_NS)
    assert len(plates.rig.wanted(WatchVolume)) == 2, "a disk that hangs is not asked again"
    plates.work()
    plates.rig.wait(BEAT_NS)
    assert len(plates.rig.wanted(WatchVolume)) == 2


def test_a_replaced_directory_is_off_within_a_beat_says_so_once_and_comes_back() -> None:
    plates = ready()
    plates.rig.notes.clear()
    plates.faults[WatchVolume] = broken(Status.GONE, LOST)
    plates.rig.wait(BEAT_NS)
    sent = plates.work()
    assert said(sent, Forget).keys == KEYS[:1]
    tier = said(sent, Tier)
    assert not tier.writable and tier.prefetch == 0
    plates.faults[OpenVolume] = broken(Status.GONE, LOST)
    beats = pick(plates.rig.wait(BEAT_NS), Beat, BOSS)
    assert beats and all(e.message.remarks == (LOST,) for e in beats if isinstance(e.message, Beat))
    for rest in (*RETRY_NS, *RETRY_NS[-1:] * 3):
        plates.rig.wait(rest)
        plates.work()
    assert [n.event for n in plates.rig.notes] == ["ssd_off"], "once, however often it is tried"
    assert plates.actor.gauges()["ssd_gone_volumes"] == 1
    assert not plates.rig.wanted(WatchVolume)
    plates.faults.clear()
    plates.rig.wait(RETRY_NS[-1])
    sent = plates.told(plates.work())
    assert pick(sent, Manifest) and pick(sent, Tier)
    assert plates.actor.volumes[0].state == "up" and plates.actor.remarks() == ()
    assert plates.actor.gauges()["ssd_gone_volumes"] == 0


def test_what_was_on_its_way_to_it_goes_to_another_directory() -> None:
    plates = ready(FlushPlan(("/a", "/b")))
    plates.rig.tell(IDX, flush(1, 4, 2))
    plates.work(MakeSegment)
    plates.faults[WatchVolume] = lambda job: (
        Done(Status.GONE, LOST)
        if isinstance(job, WatchVolume) and job.volume == plates.actor.volumes[0].number
        else Done(Status.OK)
    )
    plates.faults[OpenVolume] = broken(Status.GONE, LOST)
    plates.rig.wait(BEAT_NS)
    sent = plates.work(WatchVolume) + plates.work()
    assert said(sent, Flushed).keys == KEYS[4:6]
    assert [v.state for v in plates.actor.volumes] == ["closed", "up"]
    place = plates.actor.shelf.find(row_of(4).namespace, KEYS[4])
    assert place is not None and place[0].volume == 1


def test_a_fetch_from_it_is_a_miss() -> None:
    plates = ready()
    plates.rig.ask(IDX, fetch(1, (0,)))
    plates.faults[WatchVolume] = broken(Status.GONE, LOST)
    plates.faults[OpenVolume] = broken(Status.GONE, LOST)
    plates.rig.wait(BEAT_NS)
    plates.work(WatchVolume)
    sent = plates.rig.ask(IDX, fetch(2, (0,)))
    assert said(sent, Fetched).absent == (0,)


def test_what_was_mended_is_a_line_and_no_fault() -> None:
    plates = ready()
    plates.rig.notes.clear()
    plates.faults[WatchVolume] = lambda job: Done(Status.OK, "the marker is written anew")
    plates.rig.wait(BEAT_NS)
    plates.work()
    assert [n.event for n in plates.rig.notes] == ["ssd_note"]
    assert plates.actor.volumes[0].open_to_writes


def test_a_watch_that_the_system_refuses_is_no_proof() -> None:
    plates = ready()
    plates.faults[WatchVolume] = broken(Status.COPY_FAILED, "too many open files")
    plates.rig.wait(BEAT_NS)
    plates.work()
    assert plates.actor.volumes[0].open_to_writes


def test_a_number_that_is_taken_is_not_used() -> None:
    plates = Platters()
    plates.faults[OpenVolume] = lambda job: Done(Status.OK, "", (1 << 40, 7, 0))
    plates.ready()
    assert not plates.actor.volumes[0].segments
    plates.rig.tell(IDX, flush(1, 0, 1))
    plates.work()
    made = next(job for job in plates.did if isinstance(job, MakeSegment))
    assert made.segment == 8
