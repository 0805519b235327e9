"""One block, and then many, through real processes: saved by one, loaded by another."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pegaflow.client import Client, SaveDone
from pegaflow.wire.status import Status

from .service import PATIENCE_S, Engine, Service, eventually, keys


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the tests that leave it as they found it."""
    with Service(tmp_path_factory.mktemp("run")) as made:
        yield made


def test_bytes_saved_by_one_engine_are_loaded_by_another(service: Service) -> None:
    hashes, blocks = keys(20, seed=1), list(range(20))
    with Engine(service, "writer") as writer, Engine(service, "reader") as reader:
        writer.fill(blocks, seed=100)
        saved = writer.client.save(hashes, blocks)
        assert (saved.status, saved.saved, saved.known) == (Status.OK, 20, 0)
        found = reader.client.lookup([*hashes, *keys(3, seed=99)], timeout=PATIENCE_S)
        assert found.blocks == 20 and found.lease is not None
        targets = [63 - b for b in blocks]
        loaded = reader.client.load(found.lease, targets)
        assert (loaded.status, loaded.failed) == (Status.OK, ())
        assert reader.holds(targets, seed=100)
    service.settled()


def test_a_block_that_is_there_is_not_copied_again(service: Service) -> None:
    hashes = keys(8, seed=2)
    with Engine(service, "first") as first, Engine(service, "second") as second:
        first.fill(list(range(8)), seed=200)
        assert first.client.save(hashes, list(range(8))).saved == 8
        again = second.client.save(hashes, list(range(8)))
        assert (again.status, again.saved, again.known) == (Status.OK, 0, 8)


def test_two_engines_saving_the_same_blocks_at_once_copy_each_byte_once(service: Service) -> None:
    hashes, blocks = keys(32, seed=3), list(range(32))
    with Engine(service, "left") as left, Engine(service, "right") as right:
        left.fill(blocks, seed=300)
        right.fill(blocks, seed=300)
        tickets = [e.client.start_save(hashes, blocks, timeout=PATIENCE_S) for e in (left, right)]
        results: dict[Engine, SaveDone] = {}
        while len(results) < 2:
            for engine, ticket in zip((left, right), tickets, strict=True):
                for done in engine.client.poll(0.005):
                    assert done.ticket == ticket and isinstance(done, SaveDone)
                    results[engine] = done
        assert sum(r.saved for r in results.values()) == 32
        found = left.client.lookup(hashes)
        assert found.blocks == 32 and found.lease is not None
        assert right.client.lookup(hashes).blocks == 32


def test_a_killed_engine_leaves_its_blocks_and_nothing_else(service: Service) -> None:
    hashes = keys(10, seed=4)
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.procs.service import Engine, Service, keys\n"
        "e = Engine(Service(Path(sys.argv[1])), 'victim').attach()\n"
        "e.fill(list(range(10)), seed=400)\n"
        "assert e.client.save(keys(10, seed=4), list(range(10))).saved == 10\n"
        "assert e.client.lookup(keys(10, seed=4)).lease is not None\n"
        "print('saved', flush=True)\n"
        "signal.pause()\n"
    )
    victim = subprocess.Popen(
        [sys.executable, "-c", script, str(service.run_dir)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert victim.stdout is not None and victim.stdout.readline() == b"saved\n"
    session = service.session_of("victim")
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    victim.stdout.close()
    eventually(
        "the victim's session is gone",
        lambda: session.address not in {r.address for r in service.processes()},
    )
    eventually("its leases are gone", lambda: service.counter("session_leases") == 0)
    with Engine(service, "victim") as successor:
        found = successor.client.lookup(hashes)
        assert found.blocks == 10 and found.lease is not None
        assert successor.client.load(found.lease, list(range(10))).status is Status.OK
        assert successor.holds(list(range(10)), seed=400)


IN_ANOTHER = ["unshare", "--map-root-user", "--fork", "--pid", "--mount-proc", "--kill-child"]
"""A command in a pid namespace of its own, as in a container."""


@pytest.mark.skipif(
    shutil.which("unshare") is None or subprocess.run([*IN_ANOTHER, "true"]).returncode != 0,
    reason="this machine makes no pid namespaces for us",
)
def test_an_engine_of_another_pid_namespace_is_served_and_seen_to_die(service: Service) -> None:
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.procs.service import Engine, Service, keys\n"
        "e = Engine(Service(Path(sys.argv[1])), 'contained').attach()\n"
        "e.fill(list(range(10)), seed=600)\n"
        "assert e.client.save(keys(10, seed=6), list(range(10))).saved == 10\n"
        "lease = e.client.lookup(keys(10, seed=6)).lease\n"
        "e.client.load(lease, list(range(20, 30)))\n"
        "assert e.holds(list(range(20, 30)), seed=600)\n"
        "assert e.client.lookup(keys(10, seed=6)).lease is not None\n"
        "print(os.getpid(), *e.client.ways[:2], flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen(
        [*IN_ANOTHER, sys.executable, "-c", script, str(service.run_dir)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    ) as contained:
        try:
            assert contained.stdout is not None
            assert contained.stdout.readline() == b"1 staged staged\n"
            session = service.session_of("contained")
            eventually("its lease is there", lambda: service.counter("session_leases") == 1)
        finally:
            contained.kill()
    eventually(
        "its session is gone",
        lambda: session.address not in {r.address for r in service.processes()},
    )
    eventually("its lease is gone", lambda: service.counter("session_leases") == 0)
    with Engine(service, "contained") as successor:
        assert successor.client.lookup(keys(10, seed=6)).blocks == 10


def test_an_engine_id_in_use_is_refused_in_one_line(service: Service) -> None:
    with Engine(service, "twin"):
        other = Engine(service, "twin", generation=bytes(16))
        other.refused("'twin' is in use by the living process")
        other.client.close()


def test_a_lease_holds_under_eviction_pressure(tmp_path: Path) -> None:
    with Service(tmp_path / "run", pool_size="64MiB") as service:
        with Engine(service, "holder") as holder, Engine(service, "flood") as flood:
            hashes = keys(16, seed=5)
            holder.fill(list(range(16)), seed=500)
            assert holder.client.save(hashes, list(range(16))).saved == 16
            found = holder.client.lookup(hashes)
            assert found.lease is not None
            for wave in range(30):
                wave_keys = keys(64, seed=1000 + wave)
                assert flood.client.save(wave_keys, list(range(64))).status is Status.OK
            eventually("blocks were evicted", lambda: service.counter("blocks_evicted") > 0)
            assert holder.client.load(found.lease, list(range(32, 48))).status is Status.OK
            assert holder.holds(list(range(32, 48)), seed=500)
            assert flood.client.lookup(keys(64, seed=1000)).blocks == 0
            assert flood.client.lookup(keys(64, seed=1029)).blocks == 64
            service.settled()


def test_a_block_larger_than_an_extent_is_refused_and_evicts_nothing(tmp_path: Path) -> None:
    with Service(tmp_path / "run", pool_size="64MiB") as service, Engine(service, "a") as small:
        assert small.client.save(keys(4), list(range(4))).saved == 4
        large = Engine(service, "b", blocks=1, layers=1, bytes_=33 << 20)
        large.refused("--extent-size")
        large.client.close()
        assert small.client.lookup(keys(4)).blocks == 4
        assert service.counter("blocks_evicted") == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_whole_group_and_leaves_nothing(tmp_path: Path, number: int) -> None:
    with Service(tmp_path / "run") as service, Engine(service):
        report = service.report()
        assert service.stop(number) == 0
        assert service.left_over() == []
        assert not Path(report.pool_path).exists() and not Path(report.ledger_path).exists()
        assert sorted(p.name for p in service.run_dir.rglob("*")) == ["actors", "log"]
        stem = report.pool_path.rsplit(".", 2)[0]
        assert list(Path("/dev/shm").glob(Path(stem).name + "*")) == []


def test_a_second_signal_kills_a_group_that_does_not_drain(tmp_path: Path) -> None:
    with Service(tmp_path / "run") as service, Engine(service):
        for address, pid in service.at_rest(engines=1).items():
            if address.name == "session":
                os.kill(pid, signal.SIGSTOP)
        os.kill(service.pid, signal.SIGTERM)
        assert service.stop(signal.SIGTERM) == 0
        assert service.left_over() == []


def test_the_supervisors_death_takes_its_children_along(tmp_path: Path) -> None:
    with Service(tmp_path / "run") as service:
        os.kill(service.pid, signal.SIGKILL)
        eventually("all children are dead", lambda: service.left_over() == [])


def test_a_second_service_names_the_pid_of_the_first(service: Service) -> None:
    command = [sys.executable, "-m", "pegaflow", "serve", "--run-dir", str(service.run_dir)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert second.returncode == 1
    assert f"already running, pid {service.pid}" in second.stderr
    assert len(second.stderr.strip().splitlines()) == 1


def test_a_wrong_flag_exits_2(service: Service) -> None:
    command = [sys.executable, "-m", "pegaflow", "serve", "--pool-sise", "1GiB"]
    assert subprocess.run(command, capture_output=True, timeout=PATIENCE_S).returncode == 2


def test_status_tells_the_state_of_the_group(service: Service) -> None:
    status = service.status()
    report = status["report"]
    names = {row["address"].split(".")[0] for row in report["processes"]}
    assert {"supervisor", "allocator", "index", "session"} <= names
    assert report["pool_bytes"] == 64 << 20
    assert (status["ready"], status["reasons"]) == (True, [])


def test_engines_that_differ_in_their_hash_seed_alone_are_told(service: Service) -> None:
    memory = Engine(service, "unused")
    space, made = b"same model" * 2, []
    for name in ("even", "odd"):
        client = Client(name, space, probe=name.encode(), endpoint=service.endpoint)
        client.register(memory.layout, [memory.memory])
        assert client.connect(PATIENCE_S)
        made.append(client)
    memory.client.close()
    assert made[0].advice == ""
    assert "different hash seeds" in made[1].advice and "PYTHONHASHSEED" in made[1].advice
    assert made[0].save(keys(4, seed=6), [0, 1, 2, 3]).saved == 4
    assert made[1].lookup(keys(4, seed=6)).blocks == 0
    for client in made:
        client.close()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--pool-size", "100TiB"], "does not fit"),
        (["--pool-size", "1MiB"], "pool"),
        (["--run-dir", "/tmp/" + 120 * "long"], "--run-dir"),
        (["--pool-size", "plenty"], "plenty"),
    ],
)
def test_what_cannot_work_is_one_line_and_exit_1(
    tmp_path: Path, flags: list[str], line: str
) -> None:
    command = [sys.executable, "-m", "pegaflow", "serve", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert line in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_a_memlock_limit_is_told_in_one_line(tmp_path: Path) -> None:
    service = Service(tmp_path / "run")
    service._command = ["bash", "-c", 'ulimit -l 64; exec "$0" "$@"', *service._command]
    with service:
        assert service.log().count("only 64 KiB may be locked") == 1


def test_status_without_a_service_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pegaflow", "status", "--run-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 1
    assert done.stderr.startswith(f"pegaflow: no service runs in {tmp_path}: ")
    assert done.stderr.endswith(": start one with `pegaflow serve`\n")


def spare_states(service: Service) -> list[str]:
    return [row.state for row in service.processes("session")]


def test_a_burst_of_engines_beyond_the_spares_is_served(service: Service) -> None:
    engines = [Engine(service, f"burst {n}", blocks=4) for n in range(5)]
    try:
        with ThreadPoolExecutor(len(engines)) as threads:
            list(threads.map(Engine.attach, engines))
        assert {f"burst {n}" for n in range(5)} <= {r.engine for r in service.processes("session")}
    finally:
        for engine in engines:
            engine.client.close()
    eventually("spares are kept", lambda: spare_states(service) == ["spare"] * 2)
