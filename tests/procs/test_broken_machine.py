"""A machine that is full, stopped, forked or tampered with: one clear line, and nothing hangs."""

import gc
import os
import select
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegaflow.wire.control import SILENT_NS
from pegaflow.wire.status import Status

from .cramped import SCENARIOS, can, inside
from .service import Engine, Service, eventually, keys

BLOCKS = list(range(16))

namespaces = pytest.mark.skipif(not can(), reason="no mount namespace for a user here")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for all tests that leave it whole."""
    with Service(tmp_path_factory.mktemp("run")) as made:
        yield made


@namespaces
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_no_room(scenario: str, tmp_path: Path) -> None:
    done = inside(scenario, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_pool_file_deleted_under_a_running_service(tmp_path: Path) -> None:
    with Service(tmp_path / "run") as service, Engine(service, "old") as old:
        old.fill(BLOCKS, seed=1)
        assert old.client.save(keys(16), BLOCKS).saved == 16
        report = service.report()
        Path(report.pool_path).unlink()
        Path(report.ledger_path).unlink()
        old.fill(BLOCKS, seed=2)
        assert old.client.save(keys(16, seed=2), BLOCKS).saved == 16
        found = old.client.lookup(keys(16))
        assert found.lease is not None
        assert old.client.load(found.lease, BLOCKS).status is Status.OK
        assert old.holds(BLOCKS, seed=1)
        new = Engine(service, "new", way="staged")
        assert "\n" not in new.refused(report.pool_path)
        assert new.client.lookup(keys(16), timeout=0.5).status is Status.DISCONNECTED
        new.client.close()
        assert old.client.lookup(keys(16, seed=2)).blocks == 16
        lost = {report.pool_path, report.ledger_path}
        eventually("both are said", lambda: {f.split()[0] for f in service.report().faults} == lost)
        assert service.log().count("files_lost") == 2, "each is said once"
        # What starts later has them through its supervisor.
        os.kill(service.processes("index")[0].pid, signal.SIGKILL)
        with Engine(service, "later", way="process_vm") as later:
            eventually("a new index finds all", lambda: later.client.lookup(keys(16)).blocks == 16)
            found = later.client.lookup(keys(16))
            assert found.lease is not None
            assert later.client.load(found.lease, BLOCKS).status is Status.OK
            assert later.holds(BLOCKS, seed=1)
        assert "Traceback" not in service.log() and "Fatal" not in service.log()
        assert service.stop() == 0


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path: Path) -> None:
    service = Service(tmp_path / "run")
    service._command = ["bash", "-c", 'exec "$0" "$@" 2>/dev/full', *service._command]
    with service, Engine(service) as engine:
        engine.fill(BLOCKS, seed=3)
        assert engine.client.save(keys(16), BLOCKS).saved == 16
        os.kill(service.session_of("engine").pid, signal.SIGKILL)
        eventually("it is served again", lambda: engine.client.lookup(keys(16)).blocks == 16)
        assert service.stop() == 0


def stopped_for(pids: list[int], nanoseconds: int) -> None:
    """Stop these processes for so long, by a clock that does not jump."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    select.select([], [], [], nanoseconds / 1e9)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)


def test_a_supervisor_that_was_stopped_kills_nobody_when_it_wakes(service: Service) -> None:
    with Engine(service, "awake") as engine:
        before = service.at_rest(engines=1)
        stopped_for([service.pid], SILENT_NS * 4 // 3)
        eventually("it noticed", lambda: service.counter("woke_late") > 0)
        assert before.items() <= {r.address: r.pid for r in service.processes()}.items()
        assert engine.client.lookup(keys(4, seed=8)).status is Status.OK


def test_a_machine_that_slept_goes_on(service: Service) -> None:
    with Engine(service, "slept") as engine:
        engine.fill(BLOCKS, seed=4)
        assert engine.client.save(keys(16, seed=4), BLOCKS).saved == 16
        before = service.at_rest(engines=1)
        stopped_for(list(before.values()), SILENT_NS * 4 // 3)
        assert service.report(), "it answers"
        found = engine.client.lookup(keys(16, seed=4))
        assert found.lease is not None and found.blocks == 16
        assert engine.client.load(found.lease, BLOCKS).status is Status.OK
        assert before.items() <= {r.address: r.pid for r in service.processes()}.items()


def test_a_forked_child_that_closes_or_forgets_its_client_disturbs_nobody(
    service: Service,
) -> None:
    with Engine(service, "parent") as engine:
        engine.fill(BLOCKS, seed=5)
        assert engine.client.save(keys(16, seed=5), BLOCKS).saved == 16
        found = engine.client.lookup(keys(16, seed=5))
        assert found.lease is not None
        for _ in range(3):
            child = os.fork()
            if child == 0:
                try:
                    engine.client.close()
                    engine.client.__dict__.clear()
                    gc.collect()
                    os._exit(0)
                finally:
                    os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        engine.memory[:] = 0
        assert engine.client.load(found.lease, BLOCKS).status is Status.OK
        assert engine.holds(BLOCKS, seed=5)


def test_an_engine_in_a_forked_child_has_a_session_of_its_own(service: Service) -> None:
    parent = Engine(service, "forks").attach()
    parent.fill(BLOCKS, seed=6)
    assert parent.client.save(keys(16, seed=6), BLOCKS).saved == 16
    child = os.fork()
    if child == 0:
        try:
            own = Engine(service, "forked").attach()
            lease = own.client.lookup(keys(16, seed=6)).lease
            ok = lease is not None and own.client.load(lease, BLOCKS).status is Status.OK
            own.client.close()
            os._exit(0 if ok and own.holds(BLOCKS, seed=6) else 1)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert parent.client.lookup(keys(16, seed=6)).blocks == 16
    parent.client.close()
