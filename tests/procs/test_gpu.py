"""An engine's GPU memory, moved by a session of a real service, on a GPU that is not there.

The driver registers nothing of the pool here, so all goes through the session's ring; elsewhere it
does (tests/procs/test_perf_gpu.py).
"""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegaflow.client import Done, GpuBuffers, LoadDone, export
from pegaflow.client.gpu import Lender
from pegaflow.wire.gpu import NO_GPU, GpuMemory
from pegaflow.wire.status import Status
from tests.fakes import cuda, gpus, vmm
from tests.fakes.driver import Driver
from tests.fakes.gpus import CUDARuntimeError, lives

from .gpu import Copier, GpuEngine, host
from .service import PATIENCE_S, Service, eventually, keys

SHORT_S = 0.05  # in which a session that does not wait has long gone on


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("gpu")
        host(folder, patch)
        patch.setenv("FAKE_CUDA_MEMLOCK", "1")
        with Service(folder / "run") as made:
            yield made


@pytest.fixture
def engine(service: Service, request: pytest.FixtureRequest) -> Iterator[GpuEngine]:
    with GpuEngine(service, request.node.name) as made:
        yield made


@pytest.fixture(scope="module")
def steady(service: Service) -> Iterator[GpuEngine]:
    """One for all tests to which nothing happens."""
    with GpuEngine(service, "steady") as made:
        yield made


def poll(engine: GpuEngine, timeout: float) -> list[Done]:
    return list(engine.client.poll(timeout))


def saved(engine: GpuEngine, seed: int) -> list[bytes]:
    """Three blocks in the cache."""
    names = keys(3, seed)
    engine.fill([1, 2, 3], seed)
    assert engine.client.save(names, [1, 2, 3]).saved == 3
    return names


def loading(engine: GpuEngine, names: list[bytes], blocks: list[int], timeout: float) -> int:
    lease = engine.client.lookup(names).lease
    assert lease is not None
    return engine.client.start_load(lease, blocks, timeout=timeout)


def test_blocks_go_and_come(steady: GpuEngine) -> None:
    engine = steady
    assert engine.client.ways == ("cuda_ipc", "cuda_ipc", "")
    loading(engine, saved(engine, seed=1), [9, 8, 7], PATIENCE_S)
    (done,) = poll(engine, PATIENCE_S)
    assert done.status is Status.OK and engine.holds([9, 8, 7], seed=1)


def test_what_a_kernel_writes_is_saved_when_it_has(steady: GpuEngine) -> None:
    engine, gate = steady, threading.Event()
    cuda.launch(engine.stream, lambda: engine.fill([1, 2, 3], seed=2), gate.is_set)
    engine.record()
    engine.client.start_save(keys(3, 2), [1, 2, 3], timeout=PATIENCE_S)
    assert poll(engine, SHORT_S) == []
    gate.set()
    (done,) = poll(engine, PATIENCE_S)
    assert done.status is Status.OK
    loading(engine, keys(3, 2), [9, 8, 7], PATIENCE_S)
    poll(engine, PATIENCE_S)
    assert engine.holds([9, 8, 7], seed=2)


def test_what_a_kernel_still_reads_is_loaded_when_it_has(steady: GpuEngine) -> None:
    engine = steady
    names, gate, seen = saved(engine, seed=3), threading.Event(), list[bool]()
    engine.fill([9, 8, 7], seed=40)
    cuda.launch(engine.stream, lambda: seen.append(engine.holds([9, 8, 7], 40)), gate.is_set)
    engine.record()
    loading(engine, names, [9, 8, 7], PATIENCE_S)
    assert poll(engine, SHORT_S) == []
    gate.set()
    (done,) = poll(engine, PATIENCE_S)
    assert done.status is Status.OK and seen == [True] and engine.holds([9, 8, 7], seed=3)


def test_a_session_that_dies_in_a_copy_ends_it_and_gives_its_pages_back(
    service: Service, engine: GpuEngine
) -> None:
    names, gate = saved(engine, seed=4), threading.Event()
    row = service.session_of(engine.name)
    session = row.pid
    left = Path(service.report().pool_path).with_suffix(f".{row.address}.gpu")
    assert left.read_text().split()[0] == str(session)
    cuda.launch(engine.stream, lambda: None, gate.is_set)
    engine.record()
    ticket = loading(engine, names, [9, 8, 7], PATIENCE_S)
    engine.client.start_save(keys(3, 5), [1, 2, 3], timeout=PATIENCE_S)
    assert poll(engine, SHORT_S) == []
    os.kill(session, signal.SIGKILL)
    ended: list[Done] = []

    def over() -> bool:
        ended.extend(poll(engine, 0.05))
        return len(ended) == 2

    eventually("both have ended", over)
    assert LoadDone(ticket, Status.PEER_GONE, (9, 8, 7)) in ended
    assert cuda.machine().memory[engine.base].elsewhere() == [], "nobody has it open"
    gate.set()
    engine.record()
    assert engine.client.connect(PATIENCE_S), engine.client.refusal
    loading(engine, names, [9, 8, 7], PATIENCE_S)
    (done,) = poll(engine, PATIENCE_S)
    assert done.status is Status.OK and engine.holds([9, 8, 7], seed=4)
    service.settled()
    assert not left.exists(), "the supervisor has seen it die"


def test_an_error_of_one_context_is_no_other_engines(service: Service, engine: GpuEngine) -> None:
    with GpuEngine(service, "bystander", device=1) as other:
        sessions = [service.session_of(name).pid for name in (engine.name, "bystander")]
        with pytest.raises(CUDARuntimeError, match=f"while .{sessions[0]}. have it open"):
            engine.free()
        engine.record()
        engine.client.start_save(keys(2, 6), [1, 2], timeout=PATIENCE_S)
        (done,) = poll(engine, PATIENCE_S)
        assert done.status is Status.PEER_GONE
        loading(other, saved(other, seed=7), [9, 8, 7], PATIENCE_S)
        poll(other, PATIENCE_S)
        assert other.holds([9, 8, 7], seed=7)
        assert service.session_of("bystander").pid == sessions[1]
        assert "the GPU has failed, the session ends: cudaErrorIllegalAddress" in service.log()


def test_memory_that_hangs_is_given_up_by_the_death_of_its_session(
    service: Service, engine: GpuEngine
) -> None:
    session = service.session_of(engine.name).pid
    cuda.launch(engine.stream, lambda: None, lambda: False)
    engine.record()
    engine.client.start_save(keys(2, 8), [1, 2], timeout=PATIENCE_S)
    assert poll(engine, SHORT_S) == []
    assert engine.client.unregister()
    assert service.session_of("steady").pid != session and not lives(session)
    engine.free()


def test_a_service_that_cannot_open_it_says_why(service: Service, engine: GpuEngine) -> None:
    buffers = export([(engine.base, engine.bytes)], bytes(64), Driver())
    engine.client.register(engine.layout, buffers)
    engine.free()  # nobody has it open any more

    def told() -> bool:
        assert not engine.client.connect(SHORT_S)
        return "is not served: cannot open the engine's memory" in engine.client.refusal

    eventually("the client says why", told)


@pytest.mark.parametrize("named", [False, True])
def test_memory_that_no_session_can_open_is_copied_by_its_client(
    service: Service, named: bool
) -> None:
    """It cannot be named, or its names are worth nothing to the session."""
    engine = GpuEngine(service, f"copies-{named}")
    memory = export([(engine.base, engine.bytes)], bytes(64), Driver()).memory if named else NO_GPU
    buffers = GpuBuffers(memory, (engine.bytes,), Copier(engine))
    engine.client.register(engine.layout, buffers)
    with engine:
        *ways, note = engine.client.ways
        assert ways == ["staged", "staged"] and ("cannot open" in note) is named
        gate, seed = threading.Event(), 10 + named
        cuda.launch(engine.stream, lambda: engine.fill([1, 2, 3], seed), gate.is_set)
        engine.record()
        threading.Timer(SHORT_S, gate.set).start()
        assert engine.client.save(keys(3, seed), [1, 2, 3]).saved == 3
        loading(engine, keys(3, seed), [9, 8, 7], PATIENCE_S)
        (done,) = poll(engine, PATIENCE_S)
        assert done.status is Status.OK and engine.holds([9, 8, 7], seed)


# memory in pieces: of expandable segments, of sleep mode


@pytest.fixture(scope="module")
def in_pieces(service: Service) -> Iterator[GpuEngine]:
    with GpuEngine(service, "pieces", pieces=True) as made:
        yield made
    assert vmm.exported() == []


def users(engine: GpuEngine) -> set[int]:
    assert engine.segment is not None
    return {pid for name in engine.segment.names for pid in gpus.holders(name)} - {os.getpid()}


def loaded(engine: GpuEngine, seed: int) -> None:
    """Three blocks that were saved come back elsewhere."""
    engine.fill([9, 8, 7], seed + 100)
    loading(engine, keys(3, seed), [9, 8, 7], PATIENCE_S)
    (done,) = poll(engine, PATIENCE_S)
    assert done.status is Status.OK and engine.holds([9, 8, 7], seed)


def test_pieces_are_taken_by_each_session_in_its_turn(
    service: Service, in_pieces: GpuEngine
) -> None:
    engine = in_pieces
    assert engine.client.ways == ("cuda_ipc", "cuda_ipc", "")
    assert vmm.exported() == [], "the session has taken them"
    session = service.session_of(engine.name).pid
    assert users(engine) == {session}
    saved(engine, seed=20)
    os.kill(session, signal.SIGKILL)
    eventually(
        "another has them", lambda: not poll(engine, 0.05) and bool(users(engine) - {session})
    )
    assert engine.client.connect(PATIENCE_S), engine.client.refusal
    assert engine.client.ways == ("cuda_ipc", "cuda_ipc", "") and vmm.exported() == []
    loaded(engine, seed=20)


def test_pieces_are_free_when_they_are_given_back_for_sleep(in_pieces: GpuEngine) -> None:
    """And what is mapped after it, other memory at the same addresses, is served."""
    engine = in_pieces
    assert engine.segment is not None
    saved(engine, seed=21)
    names = engine.segment.names
    assert engine.client.unregister()
    assert users(engine) == set()
    engine.segment.sleep()
    assert [gpus.holders(name) for name in names] == [[]] * len(names)
    engine.segment.wake()
    engine.client.register(engine.layout, engine.named())
    assert engine.client.connect(PATIENCE_S), engine.client.refusal
    assert engine.client.ways == ("cuda_ipc", "cuda_ipc", "")
    loaded(engine, seed=21)


def test_pieces_that_cannot_be_taken_are_copied_by_the_client(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    lend = Lender.lend

    def closed(self: Lender, memory: GpuMemory, *, strict: bool = False) -> GpuMemory:
        lent = lend(self, memory, strict=strict)
        self.take_back()
        return lent

    engine = GpuEngine(service, "closed", pieces=True, copier=True)
    monkeypatch.setattr(Lender, "lend", closed)
    with engine:
        *ways, note = engine.client.ways
        assert ways == ["staged", "staged"] and "cannot be had: Bad file descriptor" in note
        assert users(engine) == set()
        saved(engine, seed=22)
        loaded(engine, seed=22)
