"""A spare that is to be ready for engines on GPUs, and a session that says which are in use."""

from dataclasses import replace

from pegaflow.wire.control import BEAT_NS, LogLevel, UsesGpu, Warm, Warmed
from pegaflow.wire.gpujobs import GpuWarmed, MapGpu, PinPages, WarmGpu
from pegaflow.wire.jobs import EnterPages, PagesEntered
from pegaflow.wire.status import Status
from tests.actors.rig import BOSS, CLIENT_7, EXTENT, POOL, pick, said
from tests.actors.sessions import SERVE, serving, spare

from .test_gpu import GPU, ON_GPU


def test_a_spare_makes_a_context_and_registers_the_pool() -> None:
    rig, _ = spare()
    rig.done(EnterPages, PagesEntered(EXTENT))
    assert not rig.wanted(PinPages)
    assert rig.tell(BOSS, Warm("0")) == [] and rig.wanted(WarmGpu) == [WarmGpu("0")]
    sent = rig.done(WarmGpu, GpuWarmed("bus/uuid"))
    assert said(sent, Warmed, BOSS) == Warmed("0", "bus/uuid")
    assert rig.wanted(PinPages) == [PinPages(0, EXTENT)]


def test_one_that_cannot_says_so_in_one_line_and_is_a_spare_as_any_other() -> None:
    rig, _ = spare()
    rig.done(EnterPages, PagesEntered(POOL))
    for gpu in ("0", "1"):
        rig.tell(BOSS, Warm(gpu))
        sent = rig.done(WarmGpu, Status.COPY_FAILED, "no cupy")
        assert said(sent, Warmed, BOSS) == Warmed(gpu, "")
    (line,) = [note for note in rig.notes if note.event == "gpu_not_warm"]
    assert line.level is LogLevel.WARNING and ("why", "no cupy") in line.facts
    rig.wait(BEAT_NS)
    assert not rig.wanted(PinPages) and rig.stop is None


def test_what_was_not_begun_when_an_engine_comes_is_not_done() -> None:
    rig, _ = spare()
    for gpu in ("0", "1", "2"):
        rig.tell(BOSS, Warm(gpu))
    assert rig.wanted(WarmGpu) == [WarmGpu("0")]
    told = [e.message for e in pick(rig.ask(BOSS, SERVE), Warmed, BOSS)]
    assert told == [Warmed("1"), Warmed("2")]
    assert said(rig.done(WarmGpu, GpuWarmed("bus/uuid")), Warmed, BOSS) == Warmed("0", "bus/uuid")
    assert not rig.wanted(WarmGpu)


def test_a_spare_makes_one_context_after_the_other() -> None:
    rig, _ = spare()
    for gpu in ("0", "1"):
        rig.tell(BOSS, Warm(gpu))
    rig.done(WarmGpu, GpuWarmed("bus/uuid"))
    assert rig.wanted(WarmGpu) == [WarmGpu("1")]
    rig.done(WarmGpu, GpuWarmed("bus/other"))
    assert not rig.wanted(WarmGpu)


def test_the_supervisor_hears_once_of_a_gpu_that_an_engine_uses() -> None:
    rig, _ = serving()
    for rank in (0, 1):
        rig.ask(CLIENT_7, replace(ON_GPU, rank=rank, world=2))
        sent = rig.done(MapGpu)
        uses = pick(sent, UsesGpu, BOSS)
        assert [e.message for e in uses] == [UsesGpu(f"{GPU.bus}/")] * (rank == 0)
