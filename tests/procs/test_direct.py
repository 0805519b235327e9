"""Copies by process_vm: a session stopped or killed in the middle, memory that is not ours."""

import ctypes
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pegaflow.client import LoadDone
from pegaflow.wire.status import Status

from .service import Engine, Service, eventually, keys

EXITING = 4  # of a thread's flags: PF_EXITING
COUNT, BYTES = 64, 1 << 20  # a load of 64 MiB takes long enough to be hit in its middle


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("run"), pool_size="160MiB") as made:
        yield made


@pytest.fixture
def engine(service: Service, request: pytest.FixtureRequest) -> Iterator[Engine]:
    eventually("the service has mended itself", service.up)
    name = request.node.name
    with Engine(service, name, blocks=2 * COUNT, layers=1, bytes_=BYTES, way="process_vm") as made:
        yield made


def loading(engine: Engine) -> tuple[int, list[LoadDone]]:
    """A load that has begun to write: its ticket, and its end if that has come already."""
    engine.fill(list(range(COUNT)), seed=1)
    hashes = keys(COUNT, seed=1)
    assert engine.client.save(hashes, list(range(COUNT))).status is Status.OK
    lease = engine.client.lookup(hashes).lease
    assert lease is not None
    ticket = engine.client.start_load(lease, list(range(COUNT, 2 * COUNT)), timeout=1.0)
    first, done = engine.view[0, COUNT], list[LoadDone]()

    def begun() -> bool:
        done.extend(ended(engine, 0))
        return bool(done) or bool(first.any())

    eventually("the first block changes", begun)
    return ticket, done


def ended(engine: Engine, timeout: float) -> list[LoadDone]:
    """Loads that have ended meanwhile."""
    return [done for done in engine.client.poll(timeout) if isinstance(done, LoadDone)]


def untouched(engine: Engine, service: Service) -> None:
    """Nothing writes into the engine's memory any more, while its client is served again."""
    engine.memory[:] = 7
    assert engine.client.connect(20.0), engine.client.refusal
    assert engine.client.lookup(keys(COUNT, seed=1)).blocks == COUNT
    assert np.all(engine.memory == 7)


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_load_ends_with_the_death_of_its_session(
    service: Service, engine: Engine, number: int
) -> None:
    session = service.session_of(engine.client._machine.me.engine).pid
    ticket, done = loading(engine)
    os.kill(session, number)

    def over() -> bool:
        done.extend(ended(engine, 0.1))
        return bool(done) or ticket not in engine.client._machine.operations.open

    eventually("the load has ended", over)
    if done and done[0].status is Status.OK:
        assert engine.holds(list(range(COUNT, 2 * COUNT)), seed=1)
    else:
        assert not lives(session), "the load was called over while its session lived"
    untouched(engine, service)


def lives(pid: int) -> bool:
    """Whether any thread of it may still run code of its own: to tear down its memory takes longer,
    and writes nothing."""
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            words = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if words[0] not in "ZX" and not int(words[6]) & EXITING:
            return True
    return False


def test_memory_that_was_given_up_is_not_written(service: Service, engine: Engine) -> None:
    loading(engine)
    layout, memory = engine.layout, engine.memory
    assert engine.client.unregister()
    memory[:] = 7
    engine.client.register(layout, [memory])
    untouched(engine, service)


def test_memory_that_is_not_ours_is_found_at_once(service: Service) -> None:
    """A client whose proof comes to lie elsewhere: as with another pid namespace."""
    for way, served in (("auto", True), ("process_vm", False)):
        engine = Engine(service, f"astray-{way}", way=way)
        engine.client._scratch = (ctypes.c_char * 32)()
        if served:
            engine.attach()
            assert engine.client.ways[:2] == ("staged", "staged")
            note = engine.client.ways[2]
            engine.fill([0], seed=5)
            assert engine.client.save(keys(1, seed=5), [0]).saved == 1
        else:
            note = engine.refused("another pid namespace")
        assert "another pid namespace" in note and "\n" not in note
        engine.client.close()
