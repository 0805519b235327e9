"""When the flusher writes a part of the time only, and how it ends."""

from dataclasses import replace

import pytest

from pegaflow.actors.flusher.actor import SEAL_ALL_NS
from pegaflow.actors.flusher.writing import REST_NS
from pegaflow.wire.control import Bye, Drain, Gone
from pegaflow.wire.diskjobs import MakeSegment, SealSegment, WriteGroup
from pegaflow.wire.flusher import Flushed, WriteAll, Written
from tests.actors.platters import KEYS, PLAN, Platters, flush
from tests.actors.rig import BOSS, IDX, MS, pick, said


def resting(took: int) -> Platters:
    """A volume that rests after a group that took so long, while another waits."""
    plates = Platters(replace(PLAN, write_inflight=1))
    plates.ready()
    plates.rig.tell(IDX, flush(1, 0, 1, share=10))
    plates.rig.tell(IDX, flush(2, 1, 1, share=10))
    plates.work(MakeSegment)
    plates.rig.wait(took)
    plates.work()
    assert not plates.rig.wanted(WriteGroup)
    return plates


@pytest.mark.parametrize("took, rest", [(10 * MS, 90 * MS), (4000 * MS, REST_NS)])
def test_while_somebody_loads_a_volume_rests_after_each_group(took: int, rest: int) -> None:
    """Nine times as long as it took, but not if the flusher was stopped meanwhile."""
    plates = resting(took)
    plates.rig.wait(rest - 1)
    assert not plates.rig.wanted(WriteGroup)
    plates.rig.wait(1)
    assert len(plates.rig.wanted(WriteGroup)) == 1


# the end


def test_a_drain_writes_what_is_left_then_the_footers() -> None:
    plates = Platters()
    plates.ready()
    sent = plates.rig.tell(BOSS, Drain())
    ask = pick(sent, WriteAll, IDX)[0]
    plates.rig.tell(IDX, flush(1, 0, 2))
    assert said(plates.work(), Flushed).keys == KEYS[:2]
    assert not pick(plates.rig.answer(ask, Written(0)), Bye)
    assert pick(plates.work(), Bye, BOSS) and plates.rig.stop == ""
    assert plates.kinds()[-1] == "SealSegment"


def test_a_drain_does_not_rest() -> None:
    plates = resting(10 * MS)
    plates.rig.tell(BOSS, Drain())
    assert len(plates.rig.wanted(WriteGroup)) == 1


def test_a_drain_ends_in_time() -> None:
    plates = Platters()
    plates.ready()
    plates.rig.tell(IDX, flush(1, 0, 2))
    plates.work()
    plates.rig.tell(BOSS, Drain())
    plates.rig.wait(PLAN.drain_ns)
    assert plates.rig.wanted(SealSegment) and plates.rig.stop is None
    plates.rig.wait(SEAL_ALL_NS)
    assert plates.rig.stop == ""
    assert "ssd_drain_left" in [note.event for note in plates.rig.notes]


def test_a_drain_without_an_index_or_anything_to_seal_is_over_at_once() -> None:
    plates = Platters()
    plates.meet()
    plates.rig.tell(BOSS, Gone(IDX))
    plates.rig.tell(BOSS, Drain())
    assert plates.rig.stop == ""
