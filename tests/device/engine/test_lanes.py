"""Lanes: what goes through the ring, what waits, and what is refused."""

import queue
import threading
import time
from collections.abc import Sequence

import pytest

from pegaflow.device.engine import kernel, lanes, methods
from pegaflow.device.engine.strides import Placed
from pegaflow.wire.gpu import Backend
from pegaflow.wire.jobs import Done
from pegaflow.wire.status import Status
from tests.fakes import cuda, gpus
from tests.fakes.engines import Foreign

from .session import IDS, OFFSETS, PAGE, PLANE, RUN, Session, blocks

BACKENDS = pytest.mark.parametrize("backend", list(Backend))
OK = Done(Status.OK)


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ring of two pages, parts of one, and room for what one launch is told."""
    monkeypatch.setattr(methods, "DESCRIPTOR_BYTES", 8 * (8 + 2) + 8)
    monkeypatch.setattr(lanes, "RING_BYTES", 2 * PAGE)
    monkeypatch.setattr(lanes, "PART_BYTES", PAGE)


@BACKENDS
@pytest.mark.parametrize("registered", [0, 1, 3])
@pytest.mark.usefixtures("narrow")
def test_pages_that_the_device_does_not_reach_go_through_the_ring(
    session: Session, engine: Foreign, backend: Backend, registered: int
) -> None:
    """Of three pages some are registered, and the ring has room for two."""
    opened = session.open(engine, backend=backend)
    for page in range(registered):
        session.gpus.pin(page * PAGE, PAGE)
    there = blocks(engine)
    session.read(opened)
    session.read(opened)
    assert [session.ended(), session.ended()] == [OK, OK] and session.pages() == there
    engine.bytes[:] = 0
    session.write(opened)
    session.write(opened)
    assert [session.ended(), session.ended()] == [OK, OK] and blocks(engine) == there
    assert cuda.machine().unpinned == 0
    assert (len(cuda.machine().host) > 0) is (registered < 3 or backend is not Backend.DIRECT)


@BACKENDS
@pytest.mark.usefixtures("narrow")
def test_a_page_is_filled_by_the_time_its_save_is_over_and_not_by_the_ring_before(
    session: Session, engine: Foreign, backend: Backend
) -> None:
    opened = session.open(engine, backend=backend)
    engine.launch()
    session.read(opened)
    with pytest.raises(queue.Empty):
        session.ends.get(timeout=0.02)
    engine.bytes[:] = 77
    engine.finish()
    assert session.ended() == OK and session.pages() == [bytes([77]) * (4 * RUN)] * 3


@pytest.mark.usefixtures("narrow")
def test_a_load_through_the_ring_has_the_pages_as_they_were_when_it_was_checked(
    session: Session, engine: Foreign
) -> None:
    opened = session.open(engine)
    for at in OFFSETS[:2].tolist():
        session.pool[at : at + PAGE] = 5
    engine.launch()
    opened.write(IDS[:2], OFFSETS[:2], 1 << 62, session.ends.put, check=lambda: None)
    with pytest.raises(queue.Empty):
        session.ends.get(timeout=0.02)
    engine.finish()
    assert session.ended() == OK
    assert blocks(engine)[:2] == [bytes([5]) * (4 * RUN)] * 2


@BACKENDS
def test_a_host_that_refuses_a_ring_is_served_by_the_drivers_buffers(
    session: Session,
    engine: Foreign,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    backend: Backend,
) -> None:
    monkeypatch.setenv("FAKE_CUDA_HOST_ALLOC", "refused")
    opened, there = session.open(engine, backend=backend), blocks(engine)
    session.read(opened)
    session.read(opened)
    assert [session.ended(), session.ended()] == [OK, OK] and session.pages() == there
    assert cuda.machine().unpinned == 2 * len(IDS)
    said = [line for line in capfd.readouterr().err.splitlines() if "no pinned memory" in line]
    assert len(said) == 1 and "cudaErrorMemoryAllocation" in said[0]


def test_a_block_larger_than_the_ring_goes_through_the_drivers_buffers(
    session: Session, engine: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "RING_BYTES", PAGE - 1)
    opened, there = session.open(engine, backend=Backend.KERNEL), blocks(engine)
    session.read(opened)
    assert session.ended() == OK and session.pages() == there and cuda.machine().unpinned


@BACKENDS
def test_each_request_ends_by_itself_and_nothing_is_queued_behind_kernels(
    session: Session, engine: Foreign, backend: Backend
) -> None:
    """Of copies in one submission the first is over while the last waits for its kernels."""
    session.open(engine)
    session.pin()
    first, last = session.open(Foreign(4 * PLANE), backend=backend), session.open(engine)
    engine.launch()
    session.write(first)
    session.write(last)
    assert session.ended() == OK
    with pytest.raises(queue.Empty):
        session.ends.get(timeout=0.02)
    calls = {Backend.DIRECT: ["memcpy2DAsync"] * 3}.get(backend, ["memcpyAsync", "launch"])
    assert cuda.machine().calls == calls
    engine.finish()
    assert session.ended() == OK
    assert cuda.machine().calls == calls + ["memcpy2DAsync"] * 3


def test_a_lane_refuses_what_is_too_much_for_it_and_drops_what_is_too_late(
    session: Session, engine: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lanes, "BEGUN_MAX", 1)
    monkeypatch.setattr(lanes, "LANE_MAX", 2)
    waits, done = threading.Event(), threading.Event()

    def wait(lane: lanes.Lane, memory: lanes.Memory) -> None:
        waits.set()
        assert done.wait(20)

    monkeypatch.setattr(lanes.Lane, "_await_engine", wait)
    opened = session.open(engine)
    session.pin()
    session.read(opened)
    assert waits.wait(20), "the first is taken"
    session.read(opened)
    session.read(opened, deadline=time.monotonic_ns())
    session.read(opened)
    assert session.ended() == Done(Status.EXPIRED, "the deadline has passed")
    session.read(opened)
    assert session.ended() == Done(Status.BUSY, "2 copies wait for the GPU")
    done.set()
    assert [session.ended() for _ in range(3)] == [OK] * 3


def test_streams_have_the_lowest_priority(
    session: Session, engine: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "PRIORITIES", (-2, 3))
    session.open(engine)
    assert {stream.priority for stream in cuda.machine().streams.values()} == {3}


def test_what_the_kernel_is_told_of_a_plan_is_written_down_once(
    session: Session, engine: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = session.open(engine, backend=Backend.KERNEL)
    written: list[int] = []
    table = kernel.table

    def counted(pieces: Sequence[Placed]) -> tuple[kernel.Words, int]:
        written.append(len(pieces))
        return table(pieces)

    monkeypatch.setattr(kernel, "table", counted)
    for _ in range(3):
        session.read(opened)
        assert session.ended() == OK and session.pages() == blocks(engine)
    assert len(written) == 1
