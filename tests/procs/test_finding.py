"""Lookups that a client answers by itself, from shared memory, with real processes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegaflow.client import Client, Lease, LookupDone, Seen
from pegaflow.wire.status import Status

from .service import PATIENCE_S, Engine, Service, eventually, keys

COUNT = 16
BLOCKS = list(range(COUNT))
SHM = Path("/dev/shm")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("run")) as made:
        yield made


@pytest.fixture(params=["staged", "auto"])
def engine(service: Service, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine whose blocks are in memory, and that finds them by itself."""
    eventually("the service has mended itself", service.up)
    with Engine(service, request.node.name, way=request.param) as made:
        made.fill(BLOCKS, seed=7)
        assert made.client.save(names(made), BLOCKS).saved == COUNT
        by_itself(made)
        yield made


def names(engine: Engine) -> list[bytes]:
    return keys(COUNT, seed=sum(map(ord, engine.client._machine.me.engine)))


def find(engine: Engine) -> Lease:
    """All of it, without a message."""
    found = engine.client.find(names(engine))
    assert found is not None and (found.status, found.blocks) == (Status.OK, COUNT)
    assert found.lease is not None
    return found.lease


def by_itself(engine: Engine) -> None:
    """Wait until it need not ask."""

    def finds() -> bool:
        found = engine.client.find(names(engine))
        if found is None:
            engine.client.poll(0.01)
        elif found.lease is not None:
            engine.client.release(found.lease)
        return found is not None and found.blocks == COUNT

    eventually(f"it looks up by itself: {engine.client.by_message}", finds)
    assert engine.client.by_message == ""


def load(engine: Engine, lease: Lease) -> None:
    """Into blocks that had nothing."""
    engine.view[:] = 0
    assert engine.client.load(lease, BLOCKS).status is Status.OK
    assert engine.holds(BLOCKS, seed=7)


def test_lookups_go_on_while_all_others_are_stopped(service: Service, engine: Engine) -> None:
    everybody = list(service.at_rest(engines=1).values())
    kept = find(engine)
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(1000):
            engine.client.release(find(engine))
        for _ in range(5 if engine.client.ways[0] == "staged" else 0):
            load(engine, find(engine))
    finally:
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)
    load(engine, kept)
    load(engine, find(engine))


def test_what_is_there_is_seen_without_a_lease(engine: Engine) -> None:
    seen = engine.client.see([*keys(2, seed=99_999), *names(engine)[::-1]])
    assert seen == Seen((False, False, *[True] * COUNT), (False,) * (COUNT + 2))


def test_hits_go_on_while_the_index_is_replaced(service: Service, engine: Engine) -> None:
    (victim,) = service.processes("index")
    os.kill(victim.pid, signal.SIGKILL)
    replaced = False
    while not replaced:
        load(engine, find(engine))
        replaced = victim.address not in {row.address for row in service.processes("index")}
        replaced = replaced and service.up()
    load(engine, find(engine))
    service.settled()


def test_what_is_kept_is_not_evicted(service: Service, engine: Engine) -> None:
    kept = find(engine)
    with Engine(service, "greedy") as other:
        for seed in range(100, 160):
            other.client.save(keys(len(BLOCKS) * 4, seed), list(range(64)))
        eventually("hazards are honoured", lambda: service.counter("evictions_turned_back") > 0)
    load(engine, kept)


def test_a_lease_is_loaded_by_another_client(service: Service, engine: Engine) -> None:
    """The scheduler's client has no memory, and the rank that loads has not looked up."""
    machine = engine.client._machine.me
    scheduler = Client(
        machine.engine + "'",
        b"tests" * 4,
        endpoint=service.endpoint,
        generation=b"of both".ljust(16),
    )
    rank = Client(
        machine.engine + "'",
        b"tests" * 4,
        endpoint=service.endpoint,
        generation=b"of both".ljust(16),
        opens=False,
    )
    try:
        rank.register(engine.layout, [engine.memory])
        assert scheduler.connect(PATIENCE_S)
        assert rank.connect(PATIENCE_S), rank.refusal
        shared: list[LookupDone] = []

        def finds() -> bool:
            found = scheduler.find(names(engine))
            if found is None:
                scheduler.poll(0.01)
            else:
                shared.append(found)
            return found is not None

        eventually("the scheduler finds", finds)
        lease = shared[0].lease
        assert lease is not None and lease.blocks == COUNT
        scheduler.share(lease)
        engine.view[:] = 0
        assert rank.load(lease, BLOCKS).status is Status.OK
        assert engine.holds(BLOCKS, seed=7)
        assert rank.load(lease, BLOCKS).status is Status.NO_SUCH_LEASE, "it is used up"
        assert rank.find(names(engine)) is None, "one client at a time"
    finally:
        rank.close()
        scheduler.close()


def test_a_killed_session_ends_what_was_found(service: Service, engine: Engine) -> None:
    lost = find(engine)
    session = service.session_of(engine.client._machine.me.engine)
    os.kill(session.pid, signal.SIGKILL)
    eventually("it is known", lambda: engine.client.find(names(engine)) is None)
    assert engine.client.load(lost, BLOCKS).status is not Status.OK
    by_itself(engine)
    load(engine, find(engine))


def test_a_killed_client_keeps_nothing(service: Service) -> None:
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            made = Engine(service, "killed").attach()
            made.client.save(names(made), BLOCKS)
            by_itself(made)
            find(made)
            os.write(writing, b"!")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    assert os.read(reading, 1) == b"!"
    before = service.counter("hazard_files")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reading)
    eventually("its file is forgotten", lambda: service.counter("hazard_files") < max(1, before))


def test_what_was_found_is_counted(service: Service, engine: Engine) -> None:
    for _ in range(10):
        engine.client.release(find(engine))

    def counted() -> bool:
        engine.client.poll(0.01)
        session = service.session_of(engine.client._machine.me.engine)
        return {c.name: c.value for c in session.counters}.get("lookups_client", 0) > 10

    eventually("lookups are counted", counted)
