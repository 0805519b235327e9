"""Processes stopped and killed at chosen moments, with an engine that is served staged."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pegaflow.client import Client
from pegaflow.client.effects import CopyIn, CopyOut
from pegaflow.wire.status import Status
from pegaflow.wire.values import SESSION, Address

from .service import PATIENCE_S, Engine, Service, eventually, keys

BLOCKS = list(range(16))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service that every test breaks and that has to mend itself."""
    with Service(tmp_path_factory.mktemp("run")) as made:
        yield made


@pytest.fixture
def engine(service: Service, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine of its own for each test."""
    eventually("the service has mended itself", service.up)
    with Engine(service, request.node.name, way="staged") as made:
        yield made


def before_copying_in(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]
) -> None:
    """Do this between Pages and the copy of a load."""
    original = engine.client._copy_in

    def patched(effect: CopyIn) -> None:
        act()
        original(effect)

    monkeypatch.setattr(engine.client, "_copy_in", patched)


def before_copying_out(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None]
) -> None:
    """Do this between CopyBatch and the copy of a save."""
    original = engine.client._copy_out

    def patched(effect: CopyOut) -> None:
        act()
        original(effect)

    monkeypatch.setattr(engine.client, "_copy_out", patched)


def pid_of(service: Service, engine: Engine) -> int:
    """Pid of the engine's session."""
    return service.session_of(engine.client._machine.me.engine).pid


def ours(service: Service, engine: Engine) -> set[Address]:
    """Who lives, but for spares and the sessions of other engines."""
    rows = service.processes()
    return {
        r.address
        for r in rows
        if r.address.name != SESSION or r.engine == engine.client._machine.me.engine
    }


def attached_again(client: Client) -> None:
    """Wait for the client to be served again, all by itself."""
    assert client.connect(PATIENCE_S), client.refusal


def test_a_session_stopped_before_a_load_never_touches_the_engine_again(
    service: Service, engine: Engine
) -> None:
    hashes = keys(16, seed=1)
    engine.fill(BLOCKS, seed=10)
    assert engine.client.save(hashes, BLOCKS).saved == 16
    lease = engine.client.lookup(hashes).lease
    assert lease is not None
    session = pid_of(service, engine)
    os.kill(session, signal.SIGSTOP)
    targets = list(range(32, 48))
    loaded = engine.client.load(lease, targets, timeout=0.2)
    assert (loaded.status, loaded.failed) == (Status.EXPIRED, tuple(targets))
    engine.fill(targets, seed=11)
    os.kill(session, signal.SIGCONT)
    eventually("the client is served", lambda: engine.client.lookup(hashes).blocks == 16)
    assert engine.holds(targets, seed=11)


def test_a_session_stopped_in_the_middle_of_a_load(
    service: Service, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = keys(16, seed=2)
    engine.fill(BLOCKS, seed=20)
    assert engine.client.save(hashes, BLOCKS).saved == 16
    lease = engine.client.lookup(hashes).lease
    assert lease is not None
    session = pid_of(service, engine)
    before_copying_in(engine, monkeypatch, lambda: os.kill(session, signal.SIGSTOP))
    targets = list(range(32, 48))
    loaded = engine.client.load(lease, targets, timeout=0.5)
    assert (loaded.status, loaded.failed) == (Status.EXPIRED, tuple(targets))
    engine.fill(targets, seed=21)
    monkeypatch.undo()
    eventually("the watchdog has killed it", lambda: not Path(f"/proc/{session}/stat").exists())
    eventually("the client is served", lambda: engine.client.lookup(hashes).blocks == 16)
    assert engine.holds(targets, seed=21)


def test_a_session_killed_in_the_middle_of_a_load_fails_that_load_only(
    service: Service, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = keys(16, seed=3)
    engine.fill(BLOCKS, seed=30)
    assert engine.client.save(hashes, BLOCKS).saved == 16
    lease = engine.client.lookup(hashes).lease
    assert lease is not None
    session = pid_of(service, engine)
    before_copying_in(engine, monkeypatch, lambda: os.kill(session, signal.SIGKILL))
    started = time.monotonic()
    loaded = engine.client.load(lease, BLOCKS, timeout=PATIENCE_S)
    assert loaded.status is Status.PEER_GONE and loaded.failed == tuple(BLOCKS)
    assert time.monotonic() - started < PATIENCE_S / 2, "its death is seen, not its silence"
    monkeypatch.undo()
    attached_again(engine.client)
    lease = engine.client.lookup(hashes).lease
    assert lease is not None and engine.client.load(lease, BLOCKS).status is Status.OK
    assert engine.holds(BLOCKS, seed=30)


def test_a_save_that_expires_while_the_session_is_stopped_publishes_nothing(
    service: Service, engine: Engine
) -> None:
    hashes = keys(16, seed=4)
    engine.fill(BLOCKS, seed=40)
    session = pid_of(service, engine)
    os.kill(session, signal.SIGSTOP)
    assert engine.client.save(hashes, BLOCKS, timeout=0.2).status is Status.EXPIRED
    engine.fill(BLOCKS, seed=41)
    os.kill(session, signal.SIGCONT)
    eventually("the client is served", lambda: engine.client.lookup(hashes).status is Status.OK)
    assert engine.client.lookup(hashes).blocks == 0
    assert engine.holds(BLOCKS, seed=41)


def test_blocks_taken_back_during_their_copy_are_not_published(
    service: Service, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = keys(16, seed=5)
    engine.fill(BLOCKS, seed=50)
    still_the_keys = True

    def reuse() -> None:
        nonlocal still_the_keys
        still_the_keys = False
        engine.fill(BLOCKS, seed=51)

    before_copying_out(engine, monkeypatch, reuse)
    client = engine.client
    ticket = client.start_save(hashes, BLOCKS, timeout=5.0, valid=lambda: still_the_keys)
    done = next(d for _ in range(500) for d in client.poll(0.01) if d.ticket == ticket)
    assert done.status is Status.DROPPED
    assert client.lookup(hashes).blocks == 0


def test_a_session_stopped_in_the_middle_of_a_save_publishes_the_right_bytes_or_none(
    service: Service, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashes = keys(16, seed=6)
    engine.fill(BLOCKS, seed=60)
    session = pid_of(service, engine)
    before_copying_out(engine, monkeypatch, lambda: os.kill(session, signal.SIGSTOP))
    assert engine.client.save(hashes, BLOCKS, timeout=0.3).status is Status.EXPIRED
    engine.fill(BLOCKS, seed=61)
    os.kill(session, signal.SIGCONT)
    monkeypatch.undo()
    eventually("the client is served", lambda: engine.client.lookup(hashes).status is Status.OK)
    found = engine.client.lookup(hashes)
    if found.lease is not None:
        targets = list(range(32, 32 + found.blocks))
        assert engine.client.load(found.lease, targets).status is Status.OK
        assert engine.holds(targets, seed=60)
    assert engine.holds(BLOCKS, seed=61)
    service.settled()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("name", ["index", "allocator"])
def test_whoever_of_the_core_dies_or_hangs_is_replaced_alone_and_no_lease_is_lost(
    service: Service, engine: Engine, name: str, number: signal.Signals
) -> None:
    hashes = keys(16, seed=700 + 10 * len(name) + number)
    engine.fill(BLOCKS, seed=70)
    assert engine.client.save(hashes, BLOCKS).saved == 16
    held = engine.client.lookup(hashes)
    assert held.lease is not None
    before = ours(service, engine)
    (victim,) = service.processes(name)
    os.kill(victim.pid, number)
    eventually(
        "there is another one",
        lambda: victim.address not in {r.address for r in service.processes(name)} and service.up(),
    )
    after = ours(service, engine)
    assert before - after == {victim.address} and len(after - before) == 1, "one for one"
    targets = list(range(32, 48))
    assert engine.client.load(held.lease, targets).status is Status.OK, "our lease lives on"
    assert engine.holds(targets, seed=70)
    eventually("old blocks are hits", lambda: engine.client.lookup(hashes).blocks == 16)
    more = keys(16, seed=900 + 10 * len(name) + number)
    eventually(
        "new blocks are taken",
        lambda: engine.client.save(more, BLOCKS, timeout=1.0).status is Status.OK,
    )
    service.settled()


def test_a_client_that_is_older_than_the_service_finds_it(tmp_path: Path) -> None:
    service = Service(tmp_path / "run")
    engine = Engine(service)
    assert not engine.client.connect(0.1)
    assert not engine.client._unsent, "nothing waits for somebody who is not there"
    assert engine.client.refusal == f"there is no {service.run_dir} (ENOENT)"
    assert engine.client.lookup(keys(4), timeout=0.1).status is Status.DISCONNECTED
    with service:
        attached_again(engine.client)
        engine.fill(BLOCKS, seed=80)
        assert engine.client.save(keys(16), BLOCKS).saved == 16
        service.kill()
        assert engine.client.lookup(keys(16), timeout=1.0).blocks == 0
        service.start()
        attached_again(engine.client)
        again = engine.client.save(keys(16), BLOCKS)
        assert (again.status, again.saved, again.known) == (Status.OK, 0, 16)
    engine.client.close()


def test_a_forked_client_is_another_client(service: Service, engine: Engine) -> None:
    engine.fill(BLOCKS, seed=90)
    assert engine.client.save(keys(16, seed=9), BLOCKS).saved == 16
    child = os.fork()
    if child == 0:
        with suppress(AssertionError):
            engine.refused("in use")
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert engine.client.lookup(keys(16, seed=9)).blocks == 16
