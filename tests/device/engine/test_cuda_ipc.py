"""GPU memory of an engine, opened and moved: what CUDA asks of us, by a runtime as strict as it."""

import ctypes
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from pegaflow.core.errors import UserError
from pegaflow.device.engine import cuda as seam
from pegaflow.device.engine import cuda_ipc, lanes
from pegaflow.device.engine.cuda_ipc import Opened
from pegaflow.wire.gpu import Backend, GpuMemory, GpuRegion, spelled
from pegaflow.wire.jobs import Done, PagesDiffer
from pegaflow.wire.status import Status
from tests.fakes import cuda, gpus
from tests.fakes.engines import Foreign, fresh

from .session import BLOCKS, IDS, LAYOUT, PAGE, PLANE, RUN, Session, blocks


@pytest.mark.parametrize("pinned", [False, True])
def test_blocks_go_and_come(session: Session, engine: Foreign, pinned: bool) -> None:
    opened = session.open(engine)
    if pinned:
        session.pin()
    session.read(opened)
    assert session.ended() == Done(Status.OK)
    there = blocks(engine)
    assert session.pages() == there
    engine.bytes[:] = 0
    session.write(opened)
    assert session.ended() == Done(Status.OK)
    assert blocks(engine) == there
    assert int(np.count_nonzero(engine.bytes.reshape(4, BLOCKS, RUN)[:, 1])) == 0


def test_a_block_takes_as_many_calls_as_its_layout_has_rows(
    session: Session, engine: Foreign
) -> None:
    session.read(session.open(engine))
    session.ended()
    assert cuda.machine().calls == ["memcpy2DAsync"] * len(IDS)


@pytest.mark.parametrize("pinned", [False, True])
def test_a_copy_waits_for_the_kernels_before_it(
    session: Session, engine: Foreign, pinned: bool
) -> None:
    opened = session.open(engine)
    if pinned:
        session.pin()
    engine.launch()
    session.read(opened)
    with pytest.raises(queue.Empty):
        session.ends.get(timeout=0.05)
    engine.bytes[:] = 77  # what the kernels do
    engine.finish()
    assert session.ended() == Done(Status.OK)
    assert session.pages() == [bytes([77]) * (4 * RUN)] * 3


def test_a_save_that_waits_holds_no_load_of_another_engine_up(
    session: Session, engine: Foreign
) -> None:
    other = Foreign(4 * PLANE)
    slow, quick = session.open(engine), session.open(other)
    engine.launch()
    session.read(slow)
    session.write(quick)
    assert session.ended() == Done(Status.OK), "that of the load"
    engine.finish()
    assert session.ended() == Done(Status.OK)


def test_requests_of_a_step_end_one_by_one(session: Session, engine: Foreign) -> None:
    """Of copies in one submission the first is over while the last waits for its kernels."""
    other = Foreign(4 * PLANE)
    first, last = session.open(other), session.open(engine)
    engine.launch()
    session.write(first)
    session.write(last)
    assert session.ended() == Done(Status.OK)
    with pytest.raises(queue.Empty):
        session.ends.get(timeout=0.02)
    engine.finish()
    assert session.ended() == Done(Status.OK)


def test_a_deadline_that_has_passed_and_pages_that_differ(
    session: Session, engine: Foreign
) -> None:
    opened, before = session.open(engine), engine.bytes.tobytes()
    session.write(opened, deadline=time.monotonic_ns())
    assert session.ended() == Done(Status.EXPIRED, "the deadline has passed")
    session.write(opened, differ=PagesDiffer((0,)))
    assert session.ended() == PagesDiffer((0,))
    assert engine.bytes.tobytes() == before


def test_an_allocation_is_opened_once_and_closed_by_its_last_user(
    session: Session, engine: Foreign
) -> None:
    both = session.gpus.open(engine.named(0, 128), LAYOUT)
    other = session.open(engine)
    (name,) = cuda.handles()
    assert cuda.machine().memory[engine_address(name)].users == 1
    closed: queue.SimpleQueue[int] = queue.SimpleQueue()
    both.close(lambda: closed.put(1))
    assert closed.get(timeout=20) and list(engine.users) == [str(os.getpid())]
    session.read(other)
    assert session.ended() == Done(Status.OK)
    other.close(lambda: closed.put(len(list(engine.users))))
    assert closed.get(timeout=20) == 0, "who is told that it is closed may free it"
    assert not cuda.machine().events_open()


def test_each_thread_that_calls_is_on_the_device_of_what_it_calls_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And so no device gets a context that nobody uses."""
    fresh(tmp_path, monkeypatch)
    session, engine = Session(), Foreign(4 * PLANE, device=1)
    opened: queue.SimpleQueue[Opened] = queue.SimpleQueue()
    closed: queue.SimpleQueue[bool] = queue.SimpleQueue()
    calls: list[Callable[[], None]] = [
        lambda: opened.put(session.open(engine)),
        lambda: opened.put(session.open(engine)),
        session.pin,
        lambda: opened.get().close(lambda: closed.put(True)),
        lambda: opened.get().close(lambda: closed.put(True)),
    ]
    for call in calls:
        thread = threading.Thread(target=call)
        thread.start()
        thread.join()
    assert closed.get(timeout=20) and closed.get(timeout=20) and list(engine.users) == []
    assert (gpus.contexts(0), gpus.contexts(1)) == ([], [os.getpid()])


def test_memory_of_this_very_process_is_one_line(session: Session) -> None:
    cuda.setDevice(0)
    memory = cuda.ipcGetMemHandle(cuda.malloc(4 * PLANE))
    event = cuda.ipcGetEventHandle(cuda.eventCreateWithFlags(2))
    regions = (GpuRegion(memory, 0),)
    named = GpuMemory(gpus.BUSES[0].lower(), gpus.UUIDS[0], regions, event)
    with pytest.raises(UserError, match="made by this process"):
        session.gpus.open(named, LAYOUT)
    assert list(cuda.handles()) == []


def test_all_devices_and_their_kernels_reach_the_pool_and_the_rings(
    session: Session, engine: Foreign
) -> None:
    other = Foreign(4 * PLANE, device=1)
    for pinned in (False, True):
        if pinned:
            session.pin()
        for one in (engine, other):
            session.read(session.open(one, backend=Backend.KERNEL))
            assert session.ended() == Done(Status.OK)
            assert session.pages() == blocks(one)
            assert not cuda.machine().unpinned


def engine_address(name: str) -> int:
    return next(s.address for s in cuda.machine().memory.values() if s.name == name)


def test_memory_is_closed_only_when_its_last_copy_is_over(
    session: Session, engine: Foreign
) -> None:
    opened = session.open(engine)
    closed: queue.SimpleQueue[int] = queue.SimpleQueue()
    engine.launch()
    session.read(opened)
    with pytest.raises(queue.Empty):
        session.ends.get(timeout=0.02)
    session.read(opened)
    opened.close(lambda: closed.put(1))
    assert list(engine.users) and closed.empty()
    engine.finish()
    assert closed.get(timeout=20) and list(engine.users) == []


def test_the_device_is_found_whatever_it_is_called_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh(tmp_path, monkeypatch, CUDA_VISIBLE_DEVICES="1")
    runtime = seam.load()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ, "or the engine's GPU would not be seen"
    assert [seam.number_of(runtime, Foreign(8, n).named(0)) for n in (0, 1)] == [0, 1]
    session, engine = Session(), Foreign(4 * PLANE, device=1)
    session.read(session.open(engine))
    assert session.ended() == Done(Status.OK) and not cuda.machine().errors


def test_devices_that_share_a_bus_are_told_apart_by_their_uuid(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts of one GPU; cupy cuts the second's UUID off at its zero."""
    monkeypatch.setattr(gpus, "BUSES", (gpus.BUSES[0],) * 2)
    runtime = seam.load()
    assert [seam.number_of(runtime, Foreign(8, n).named(0)) for n in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"bus": "0000:01:00.0"}, "does not see the engine's GPU 0000:01:00.0, but 2 GPUs"),
        ({"uuid": bytes(range(1, 17))}, "a process sees one part"),
        ({"event": bytes(64)}, "cannot open the engine's memory"),
        ({"regions": ()}, "cannot open the engine's memory"),
    ],
)
def test_what_cannot_be_opened_is_one_line_and_leaves_nothing_open(
    session: Session, engine: Foreign, change: dict[str, object], why: str
) -> None:
    named: GpuMemory = replace(engine.named(0), **change)  # type: ignore[arg-type]
    if not named.regions:
        engine.free()
        named = engine.named(0)
    with pytest.raises(UserError, match=why) as error:
        session.gpus.open(named, LAYOUT)
    assert "\n" not in str(error.value)
    assert list(cuda.handles()) == []


def test_what_takes_long_is_done_without_the_interpreters_lock(
    session: Session, engine: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the session would be silent for as long, and be killed for it."""
    asked: list[tuple[str, int]] = []

    class Libcuda:
        def cuInit(self, flags: int) -> int:
            asked.append(("cuInit", flags))
            return 0

        def cuDeviceGet(self, device: Any, ordinal: int) -> int:
            assert not cuda.machine().streams, "the runtime was asked for something before"
            device._obj.value = 7 + ordinal
            return 0

        def cuDevicePrimaryCtxSetFlags_v2(self, device: Any, flags: int) -> int:
            asked.append(("CU_CTX_SCHED_BLOCKING_SYNC", flags))
            return 0

        def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
            asked.append(("cuDevicePrimaryCtxRetain", device.value))
            return 0

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Libcuda())
    session.open(engine)
    session.open(engine)
    assert asked[0] == ("cuInit", 0)
    assert asked[1:] == [("CU_CTX_SCHED_BLOCKING_SYNC", 4), ("cuDevicePrimaryCtxRetain", 7)]


ONE, TWO = (spelled(bus.lower(), uuid) for bus, uuid in zip(gpus.BUSES, gpus.UUIDS, strict=True))


@pytest.mark.parametrize(
    ("name", "found", "at"),
    [
        ("0", ONE, 0),
        ("1", TWO, 1),
        ("0000:b3:00.0", TWO, 1),
        (f"GPU-{UUID(bytes=gpus.UUIDS[0])}", ONE, 0),
        (f"GPU-{UUID(bytes=gpus.UUIDS[1])}", TWO, 1),
        (TWO, TWO, 1),
    ],
)
def test_a_context_is_made_ahead_on_the_device_that_is_named_and_on_no_other(
    session: Session, name: str, found: str, at: int
) -> None:
    assert session.gpus.warm(name)[0] == found
    session.gpus.pin(0, 16 * PAGE)
    assert gpus.contexts(at) == [os.getpid()] and gpus.contexts(1 - at) == []


def test_a_kernel_is_made_ahead_too(
    session: Session, engine: Foreign, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.gpus.warm("0")
    monkeypatch.setenv("FAKE_CUDA_NVRTC", "missing")
    session.read(session.open(engine, backend=Backend.KERNEL))
    assert session.ended() == Done(Status.OK) and "launch" in cuda.machine().calls


@pytest.mark.parametrize("name", ["2", f"GPU-{UUID(int=5)}", "0000:65:00.1"])
def test_a_device_that_is_not_there_is_one_line_and_no_context(session: Session, name: str) -> None:
    with pytest.raises(UserError, match=f"there is no GPU {name}, but 2 GPUs"):
        session.gpus.warm(name)
    assert gpus.contexts(0) == gpus.contexts(1) == []


def test_numbers_are_those_of_nvidia_smi_whatever_the_service_was_shown(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "FASTEST_FIRST")
    assert session.gpus.warm("1") == (TWO, 2)
    assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


@pytest.mark.parametrize("call", ["setDevice", "streamCreateWithPriority"])
def test_a_device_without_room_for_a_context_is_one_line(
    session: Session, engine: Foreign, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """It is tried anew for the next engine, and nothing of this process ends."""

    def full(*_: int) -> int:
        raise gpus.CUDARuntimeError(2, "out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(cuda, call, full)
        with pytest.raises(UserError, match="no context on GPU 0: .*out of memory"):
            session.open(engine)
    session.read(session.open(engine))
    assert session.ended() == Done(Status.OK)


def test_without_cupy_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    with pytest.raises(UserError, match=r"pip install 'pegaflow\[gpu\]'"):
        seam.load()


def test_memory_that_does_not_reach_as_far_as_said_is_one_line(
    session: Session, engine: Foreign
) -> None:
    """Its last byte is looked at before anything is copied, and the error stays with nothing."""
    longer = replace(LAYOUT, blocks=BLOCKS + 1)
    with pytest.raises(UserError, match="cannot open the engine's memory"):
        session.open(engine, longer)
    assert list(cuda.handles()) == [] and not cuda.machine().events_open()
    session.read(session.open(engine))
    assert session.ended() == Done(Status.OK)


def test_an_error_of_the_proof_that_stays_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh(tmp_path, monkeypatch)
    session, engine = Session(), Foreign(4 * PLANE)

    def give_up(error: BaseException) -> None:
        raise SystemExit(str(error))

    opens = cuda.ipcOpenEventHandle

    def freed_meanwhile(handle: bytes) -> int:
        engine.free()
        return opens(handle)

    monkeypatch.setattr(cuda_ipc, "give_up", give_up)
    monkeypatch.setattr(cuda, "ipcOpenEventHandle", freed_meanwhile)
    with pytest.raises(SystemExit, match="an earlier error of this context"):
        session.open(engine)


@pytest.mark.parametrize("lacks", ["NVRTC", "addresses"])
def test_without_a_kernel_all_is_copied_and_one_line_says_so(
    session: Session,
    engine: Foreign,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    lacks: str,
) -> None:
    if lacks == "NVRTC":
        monkeypatch.setenv("FAKE_CUDA_NVRTC", "missing")
    else:
        told = cuda.getDeviceProperties(0) | {"canUseHostPointerForRegisteredMem": 0}
        monkeypatch.setattr(cuda, "getDeviceProperties", lambda device: told)
    for backend in (Backend.DIRECT, Backend.KERNEL, Backend.AUTO):
        there = blocks(engine)
        session.read(session.open(engine, backend=backend))
        assert session.ended() == Done(Status.OK) and session.pages() == there
        assert set(cuda.machine().calls) == {"memcpy2DAsync"}
    line = "GPU 0 moves all by copies: "
    said = [text for text in capfd.readouterr().err.splitlines() if line in text]
    assert len(said) == 1
    assert ("pip install" in said[0]) is (lacks == "NVRTC"), said


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        (8 << 20, r"lock 8 MiB here \(RLIMIT_MEMLOCK, ulimit -l\): set memlock to unlimited"),
        (resource.RLIM_INFINITY, "RLIMIT_MEMLOCK is unlimited: leave more memory free"),
    ],
)
def test_a_driver_that_registers_nothing_says_why(
    session: Session, engine: Foreign, monkeypatch: pytest.MonkeyPatch, limit: int, says: str
) -> None:
    monkeypatch.setenv("FAKE_CUDA_MEMLOCK", "1")
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    opened = session.open(engine)
    with pytest.raises(UserError, match=f"cudaErrorMemoryAllocation.*; .*{says}"):
        session.gpus.pin(0, PAGE)
    session.read(opened)
    assert session.ended() == Done(Status.OK)


def test_an_error_of_a_copy_ends_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For it stays with the context; what comes after it must not look done."""
    fresh(tmp_path, monkeypatch)
    session, engine = Session(), Foreign(4 * PLANE)
    died: queue.SimpleQueue[str] = queue.SimpleQueue()

    def give_up(error: BaseException) -> None:
        died.put(str(error))
        threading.Event().wait()  # this thread ends, in place of the process

    monkeypatch.setattr(lanes, "give_up", give_up)
    opened = session.open(engine)
    session.pin()
    engine.free()
    session.read(opened)
    assert "cudaErrorIllegalAddress" in died.get(timeout=20)
    with pytest.raises(queue.Empty):
        session.ends.get(timeout=0.02)
    session.read(opened)
    with pytest.raises(queue.Empty):
        session.ends.get(timeout=0.02)
