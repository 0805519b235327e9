"""A spare that is to be ready for engines on GPUs, and a session that says which are in use."""

from dataclasses import replace

from pegaflow.actors.session.registration import AT_ONCE_SERVING, AT_ONCE_SPARE, PIN_BYTES
from pegaflow.wire.control import BEAT_NS, UsesGpu, Warm, Warmed
from pegaflow.wire.gpujobs import GpuWarmed, MapGpu, PinPages, WarmGpu
from pegaflow.wire.jobs import BounceOpened, EnterPages, OpenBounce, PagesEntered, UnmapEngine
from pegaflow.wire.session import Way
from pegaflow.wire.status import Status
from tests.actors.rig import BOSS, CLIENT_7, EXTENT, POOL, WELCOME, Rig, pick, said
from tests.actors.sessions import ATTACH, SERVE, serving, spare

from .test_gpu import GPU, ON_GPU


def test_a_spare_makes_a_context_and_registers_the_pool() -> None:
    rig, _ = spare()
    rig.done(EnterPages, PagesEntered(EXTENT))
    assert not rig.wanted(PinPages)
    assert rig.tell(BOSS, Warm("0")) == [] and rig.wanted(WarmGpu) == [WarmGpu("0")]
    sent = rig.done(WarmGpu, GpuWarmed("bus/uuid"))
    assert said(sent, Warmed, BOSS) == Warmed("0", "bus/uuid")
    assert rig.wanted(PinPages) == [PinPages(0, EXTENT)]


def test_one_that_cannot_says_why_and_is_a_spare_as_any_other() -> None:
    rig, _ = spare()
    rig.done(EnterPages, PagesEntered(POOL))
    for gpu in ("0", "1"):
        rig.tell(BOSS, Warm(gpu))
        sent = rig.done(WarmGpu, Status.COPY_FAILED, "no cupy")
        assert said(sent, Warmed, BOSS) == Warmed(gpu, why="no cupy")
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


EXTENTS = 32
LARGE = replace(WELCOME, pool_bytes=EXTENTS * PIN_BYTES, extent_bytes=PIN_BYTES)
STAGED = replace(ATTACH, way=Way.STAGED)


def registering() -> Rig:
    """A spare that is busy with a large pool."""
    rig, _ = spare(welcome=LARGE)
    rig.tell(BOSS, Warm("0"))
    rig.done(WarmGpu, GpuWarmed("bus/uuid"))
    while entering := rig.wanted(EnterPages):
        rig.done(EnterPages, PagesEntered(entering[0].length))
    assert len(rig.wanted(PinPages)) == AT_ONCE_SPARE
    return rig


def goes_on(rig: Rig) -> int:
    """Chunks that are registered at once, when those that were begun are done."""
    for _ in rig.wanted(PinPages):
        rig.done(PinPages)
    return len(rig.wanted(PinPages))


def test_once_there_is_an_engine_the_pool_is_registered_by_one_thread() -> None:
    rig = registering()
    rig.ask(BOSS, SERVE)
    assert goes_on(rig) == AT_ONCE_SERVING


def test_an_engine_on_no_gpu_ends_it_and_one_on_a_gpu_begins_it_again() -> None:
    rig = registering()
    rig.ask(BOSS, SERVE)
    rig.ask(CLIENT_7, STAGED)
    rig.done(OpenBounce, BounceOpened("bounce", ()))
    assert goes_on(rig) == 0
    rig.wait(BEAT_NS)
    assert not rig.wanted(PinPages)
    rig.ask(CLIENT_7, ON_GPU)
    rig.done(UnmapEngine)
    rig.done(MapGpu)
    assert len(rig.wanted(PinPages)) == AT_ONCE_SERVING


def test_a_context_that_comes_after_the_engine_begins_nothing_for_one_on_no_gpu() -> None:
    rig, _ = spare(welcome=LARGE)
    rig.tell(BOSS, Warm("0"))
    rig.done(EnterPages, PagesEntered(PIN_BYTES))
    rig.ask(BOSS, SERVE)
    rig.ask(CLIENT_7, STAGED)
    rig.done(OpenBounce, BounceOpened("bounce", ()))
    assert said(rig.done(WarmGpu, GpuWarmed("bus/uuid")), Warmed, BOSS).found
    assert not rig.wanted(PinPages)


def test_one_of_two_ranks_on_a_gpu_is_enough_to_go_on() -> None:
    rig = registering()
    rig.ask(BOSS, SERVE)
    rig.ask(CLIENT_7, replace(ON_GPU, world=2))
    rig.done(MapGpu)
    rig.ask(CLIENT_7, replace(STAGED, rank=1, world=2))
    rig.done(OpenBounce, BounceOpened("bounce", ()))
    assert goes_on(rig) == AT_ONCE_SERVING


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
