"""Lookups that the session answers by itself, from shared memory, with real processes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegaflow.device import membarrier
from pegaflow.wire.status import Status

from .service import Engine, Service, eventually, keys

BLOCKS = list(range(16))
SHM = Path("/dev/shm")

WHY = membarrier.register()
pytestmark = pytest.mark.skipif(bool(WHY), reason=f"lookups go by message here: {WHY}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("run")) as made:
        yield made


@pytest.fixture(params=["staged", "auto"])
def engine(
    service: Service, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """An engine whose blocks are in memory, and whose hazards are noted."""
    eventually("the service has mended itself", service.up)
    with Engine(service, request.node.name, way=request.param) as made:
        monkeypatch.setattr(made.client._finding, "wish", lambda now: [])  # it looks up by message
        made.fill(BLOCKS, seed=7)
        assert made.client.save(hashes_of(made), BLOCKS).saved == 16

        def noted() -> bool:
            found = made.client.lookup(hashes_of(made))
            assert found.blocks == 16 and found.lease is not None
            made.client.release(found.lease)
            session = service.session_of(made.client._machine.me.engine)
            return any(c.name == "lookups_local" and c.value for c in session.counters)

        eventually("it finds what is in memory by itself", noted)
        yield made


def hashes_of(engine: Engine) -> list[bytes]:
    return keys(16, seed=sum(map(ord, engine.client._machine.me.engine)))


def hazard_files(service: Service) -> list[str]:
    report = service.report()
    stem = Path(report.pool_path).stem
    return sorted(path.name for path in SHM.glob(f"{stem}.*.hazards"))


def load(engine: Engine) -> None:
    """Look up and load all of it, into blocks that had nothing."""
    engine.view[:] = 0
    found = engine.client.lookup(hashes_of(engine))
    assert (found.status, found.blocks) == (Status.OK, 16) and found.lease is not None
    assert engine.client.load(found.lease, BLOCKS).status is Status.OK
    assert engine.holds(BLOCKS, seed=7)


def test_hits_and_loads_ask_neither_index_nor_allocator(service: Service, engine: Engine) -> None:
    stopped = [row.pid for name in ("index", "allocator") for row in service.processes(name)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(5):
            load(engine)
    finally:
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)


def test_hits_go_on_while_the_index_is_replaced(service: Service, engine: Engine) -> None:
    (victim,) = service.processes("index")
    os.kill(victim.pid, signal.SIGKILL)
    replaced = False
    while not replaced:
        load(engine)
        replaced = victim.address not in {row.address for row in service.processes("index")}
        replaced = replaced and service.up()
    load(engine)
    service.settled()


def test_a_killed_session_leaves_no_file_behind(service: Service, engine: Engine) -> None:
    found = engine.client.lookup(hashes_of(engine))
    assert found.blocks == 16
    session = service.session_of(engine.client._machine.me.engine)
    (name,) = [name for name in hazard_files(service) if f".{session.address}." in name]
    os.kill(session.pid, signal.SIGKILL)
    eventually("its file is gone", lambda: name not in hazard_files(service))
    eventually(
        "the engine has another one",
        lambda: engine.client.lookup(hashes_of(engine)).status is Status.OK,
    )
    load(engine)
    engine.client.close()
    eventually("a clean end leaves none", lambda: not hazard_files(service))
    eventually("the index has forgotten both", lambda: service.counter("hazard_files") == 0)
