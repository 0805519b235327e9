"""The SSD tier of a real service: more blocks than memory, restarts, deaths, full disks."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegaflow.core.errors import UserError
from pegaflow.service.serve import shm_stem
from pegaflow.wire.values import FLUSHER
from perf.fio import need_disk
from perf.machine import ENVIRONMENT
from tests.device.disks import small_disk

from .service import Engine, Service, eventually, keys

POOL = "64MiB"
CHUNK = 64  # blocks of 64 KiB that are saved at a time: 4 MiB
CHUNKS = 64  # 256 MiB: four times the pool
BLOCKS = list(range(CHUNK))


def service_with(folder: Path, *extra: str, ssd: str = "ssd") -> Service:
    (folder / "run").mkdir(mode=0o700, exist_ok=True)
    flags = ("--ssd-cache-path", str(folder / ssd), *extra)
    return Service(folder / "run", pool_size=POOL, extra=flags)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path / "ssd", ignore_errors=True)


def save(engine: Engine, chunk: int) -> None:
    engine.fill(BLOCKS, seed=chunk * CHUNK)
    done = engine.client.save(keys(CHUNK, chunk), BLOCKS)
    assert done.saved == CHUNK, done


def written(service: Service, blocks: int) -> None:
    """Wait until so many blocks are in the log, and the index knows."""
    eventually(f"{blocks} blocks are written", lambda: stored(service) >= blocks, 60)


def recovered(service: Service, blocks: int) -> None:
    """Wait until the flusher has said how it has found its log."""
    eventually("it says so", lambda: service.counter("ssd_blocks_recovered") == blocks)


def stored(service: Service) -> int:
    return service.counter("ssd_stored_blocks")


def loaded(engine: Engine, chunk: int) -> int:
    """Load a chunk, and compare every byte; the blocks that were there."""
    found = engine.client.lookup(keys(CHUNK, chunk), timeout=5.0)
    if found.lease is None:
        return 0
    blocks = BLOCKS[: found.blocks]
    engine.view[:] = 0
    done = engine.client.load(found.lease, blocks)
    assert not done.failed, done
    assert engine.holds(blocks, seed=chunk * CHUNK), f"wrong bytes in chunk {chunk}"
    return found.blocks


def delete_pool(service: Service) -> None:
    """As after a reboot."""
    for path in Path("/dev/shm").glob(f"{shm_stem(service.run_dir)}.*"):
        path.unlink()


def test_four_times_the_pool_is_served_from_ssd_and_again_after_a_reboot(folder: Path) -> None:
    with service_with(folder) as service, Engine(service) as engine:
        for chunk in range(CHUNKS):
            save(engine, chunk)
            written(service, (chunk + 1) * CHUNK if chunk % 8 == 7 else 0)
        written(service, CHUNKS * CHUNK)
        assert sum(loaded(engine, chunk) for chunk in range(CHUNKS)) == CHUNKS * CHUNK
        least = (CHUNKS - 16) * CHUNK
        eventually("ssd hits are counted", lambda: service.counter("blocks_hit_ssd") >= least)
        assert "ssd: writable; 4096 blocks" in service.status_text()
        assert service.stop() == 0
        delete_pool(service)
        service.start()
        eventually("the index knows the log", lambda: stored(service) == CHUNKS * CHUNK)
        eventually("the engine is served", lambda: loaded(engine, 0) == CHUNK)
        chunks = range(0, CHUNKS, 5)
        assert sum(loaded(engine, chunk) for chunk in chunks) == len(chunks) * CHUNK
        recovered(service, CHUNKS * CHUNK)
        assert service.counter("ssd_segments_scanned") == 0, "every segment had its footer"


def test_a_prompt_whose_rest_is_nowhere_costs_no_message(folder: Path) -> None:
    with service_with(folder) as service, Engine(service) as engine:
        save(engine, 0)
        written(service, CHUNK)

        def found_alone() -> int:
            """Blocks of the first chunk, with a new rest behind them; -1: the service is asked."""
            engine.client.poll(0.01)
            found = engine.client.find([*keys(CHUNK, 0), *keys(CHUNK, 1000)])
            if found is not None and found.lease is not None:
                engine.client.release(found.lease)
            return found.blocks if found is not None else -1

        eventually("it is found without a message", lambda: found_alone() == CHUNK)
        for chunk in range(1, 24):
            save(engine, chunk)
            written(service, (chunk + 1) * CHUNK)
        eventually("of what is on the SSD alone the service is asked", lambda: found_alone() == -1)
        seen = engine.client.see(keys(CHUNK, 0))
        assert seen is not None and all(seen.below or [False]) and not all(seen.here)
        assert loaded(engine, 0) == CHUNK
        seen = engine.client.see(keys(CHUNK, 0))
        assert seen is not None and all(seen.below or [False]) and all(seen.here)
        assert found_alone() == CHUNK, "it is in memory again"


def test_a_killed_flusher_costs_nothing_that_was_written(folder: Path) -> None:
    with service_with(folder) as service, Engine(service) as engine:
        for chunk in range(8):
            save(engine, chunk)
        written(service, 8 * CHUNK)
        for chunk in range(8, 14):
            save(engine, chunk)
            if chunk % 2 == 0:
                eventually("a flusher is there", lambda: bool(service.processes(FLUSHER)))
                os.kill(service.processes(FLUSHER)[0].pid, signal.SIGKILL)
                assert loaded(engine, chunk) == CHUNK, "memory goes on meanwhile"
        eventually("a flusher is back", lambda: bool(service.processes(FLUSHER)))
        eventually("it has written the rest", lambda: stored(service) == 14 * CHUNK, 60)
        assert loaded(engine, 0) == CHUNK
        assert service.log().count("child_gone") >= 3
        assert {r.restarts for r in service.processes("index")} == {0}
        service.settled()


def test_a_stopped_flusher_makes_lookups_late_and_never_too_late(folder: Path) -> None:
    with service_with(folder) as service, Engine(service) as engine:
        for chunk in range(24):
            save(engine, chunk)
            written(service, (chunk + 1) * CHUNK if chunk % 8 == 7 else 0)
        save(engine, 24)
        os.kill(service.processes(FLUSHER)[0].pid, signal.SIGSTOP)
        found = engine.client.lookup(keys(CHUNK, 0), timeout=0.5)
        assert found.status.words != "expired", "the index answers for it"
        assert loaded(engine, 24) == CHUNK
        eventually("it is killed and replaced", lambda: "child_silent" in service.log())
        eventually("its log is known again", lambda: loaded(engine, 0) == CHUNK)


def test_a_killed_service_finds_what_was_written(folder: Path) -> None:
    service = service_with(folder).start()
    try:
        with Engine(service) as engine:
            for chunk in range(8):
                save(engine, chunk)
            written(service, 8 * CHUNK)
        service.kill()
        delete_pool(service)
        service.start()
        eventually("the log is read", lambda: stored(service) == 8 * CHUNK)
        recovered(service, 8 * CHUNK)
        assert service.counter("ssd_segments_scanned") == 1, "there was no time for a footer"
        with Engine(service) as engine:
            assert sum(loaded(engine, chunk) for chunk in range(8)) == 8 * CHUNK
    finally:
        service.__exit__(None, None, None)


def test_sigterm_writes_what_is_queued_and_fresh_ssd_removes_it(folder: Path) -> None:
    service = service_with(folder).start()
    try:
        with Engine(service) as engine:
            for chunk in range(12):
                save(engine, chunk)
        assert service.stop() == 0
        delete_pool(service)
        service.start()
        eventually("all of it was written", lambda: stored(service) == 12 * CHUNK)
        assert service.stop() == 0
        fresh = service_with(folder, "--fresh-ssd").start()
        service = fresh
        assert "ssd_removed" in service.log() and stored(service) == 0
    finally:
        service.__exit__(None, None, None)


def test_a_directory_of_another_service_is_left_alone_with_a_line(folder: Path) -> None:
    (folder / "other").mkdir()
    with service_with(folder) as first:
        eventually("it has its directory", lambda: "ssd_ready" in first.log())
        flags = ("--ssd-cache-path", str(folder / "ssd"))
        with Service(folder / "other" / "run", pool_size=POOL, extra=flags) as second:
            eventually("it says so", lambda: "in use by another service" in second.log())
            eventually("and so does status", lambda: "ssd: off" in second.status_text())
            with Engine(second) as engine:
                save(engine, 1)
                assert loaded(engine, 1) == CHUNK, "memory goes on"


def test_a_full_disk_makes_the_tier_smaller_and_nothing_else(folder: Path) -> None:
    flags = ("--ssd-free-floor", "8MiB", "--ssd-cache-capacity", "64MiB")
    with (
        small_disk(folder, 96 << 20) as mount,
        service_with(folder, *flags, ssd="mount/log") as service,
        Engine(service) as engine,
    ):
        save(engine, 0)
        written(service, CHUNK)
        (mount / "other").write_bytes(bytes(40 << 20))
        for chunk in range(1, 24):
            save(engine, chunk)
        eventually("it makes do", lambda: service.counter("ssd_segments_recycled") > 0, 60)
        assert loaded(engine, 23) == CHUNK
        used = sum(path.stat().st_blocks * 512 for path in (mount / "log").iterdir())
        assert used <= 64 << 20
        assert os.statvfs(mount).f_bavail * os.statvfs(mount).f_frsize >= 4 << 20


def test_without_a_flag_there_is_no_ssd_tier(tmp_path: Path) -> None:
    with Service(tmp_path / "run", pool_size=POOL) as service:
        assert not service.processes(FLUSHER) and "ssd" not in service.status_text()


@pytest.mark.parametrize(("table", "sign"), [("ssd", "256 KiB"), ("ssdstart", "10,000")])
def test_its_tables_are_printed(table: str, sign: str, tmp_path: Path) -> None:
    try:
        need_disk(tmp_path)
    except UserError as err:
        pytest.skip(str(err))
    command = [sys.executable, "-m", f"perf.{table}", "--quick", "--dir", str(tmp_path)]
    ran = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=110)
    assert ran.returncode == 0, ran.stderr
    assert sign in ran.stdout and "load" in ran.stdout.splitlines()[-1], ran.stdout
