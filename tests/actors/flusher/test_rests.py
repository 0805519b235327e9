"""When the flusher writes a part of the time only, and how it ends."""

from dataclasses import replace

import pytest

from pegaflow.actors.flusher.shutdown import FOOTERS_NS
from pegaflow.actors.flusher.write_back import REST_NS
from pegaflow.wire.control import Bye, Drain, Gone
from pegaflow.wire.diskjobs import MakeSegment, WriteFooter, WriteGroup
from pegaflow.wire.flusher import Flushed, WriteAll, Written
from tests.actors.disks import KEYS, PLAN, Disks, flush
from tests.actors.rig import BOSS, IDX, MS, pick, said


def resting(took: int, share: float = 0.1) -> Disks:
    """A volume that rests after a group that took so long, while another waits."""
    disks = Disks(replace(PLAN, write_inflight=1))
    disks.ready()
    disks.rig.tell(IDX, flush(1, 0, 1, share=share))
    disks.rig.tell(IDX, flush(2, 1, 1, share=share))
    disks.work(MakeSegment)
    disks.rig.wait(took)
    disks.work()
    assert not disks.rig.wanted(WriteGroup)
    return disks


@pytest.mark.parametrize(
    "share, took, rest",
    [
        (0.1, 10 * MS, 90 * MS),
        (0.5, 10 * MS, 10 * MS),
        (0.3, 7, 16),
        (0.0, MS, 99 * MS),
        (0.1, 4000 * MS, REST_NS),
    ],
)
def test_while_somebody_loads_a_volume_rests_after_each_group(
    share: float, took: int, rest: int
) -> None:
    """As long as its share of the time demands, but not if the flusher was stopped meanwhile."""
    disks = resting(took, share)
    disks.rig.wait(rest - 1)
    assert not disks.rig.wanted(WriteGroup)
    disks.rig.wait(1)
    assert len(disks.rig.wanted(WriteGroup)) == 1


# the end


def test_a_drain_writes_what_is_left_then_the_footers() -> None:
    disks = Disks()
    disks.ready()
    sent = disks.rig.tell(BOSS, Drain())
    ask = pick(sent, WriteAll, IDX)[0]
    disks.rig.tell(IDX, flush(1, 0, 2))
    assert said(disks.work(), Flushed).keys == KEYS[:2]
    assert not pick(disks.rig.answer(ask, Written(0)), Bye)
    assert pick(disks.work(), Bye, BOSS) and disks.rig.stop == ""
    assert disks.kinds()[-1] == "WriteFooter"


def test_a_drain_does_not_rest() -> None:
    disks = resting(10 * MS)
    disks.rig.tell(BOSS, Drain())
    assert len(disks.rig.wanted(WriteGroup)) == 1


def test_a_drain_ends_in_time() -> None:
    disks = Disks()
    disks.ready()
    disks.rig.tell(IDX, flush(1, 0, 2))
    disks.work()
    disks.rig.tell(BOSS, Drain())
    disks.rig.wait(PLAN.drain_ns)
    assert disks.rig.wanted(WriteFooter) and disks.rig.stop is None
    disks.rig.wait(FOOTERS_NS)
    assert disks.rig.stop == ""
    assert "ssd_drain_left" in [note.event for note in disks.rig.notes]


def test_a_drain_without_an_index_or_anything_to_seal_is_over_at_once() -> None:
    disks = Disks()
    disks.meet()
    disks.rig.tell(BOSS, Gone(IDX))
    disks.rig.tell(BOSS, Drain())
    assert disks.rig.stop == ""
