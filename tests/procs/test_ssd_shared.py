"""SSD directories that two real services can reach, and ones that are removed or replaced under a
service: no byte is lost or wrong, and nobody writes where he should not."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from pegaflow.core.segments.marker import MARKER
from pegaflow.wire.values import FLUSHER

from .service import Engine, Service, eventually
from .test_ssd import CHUNK, POOL, delete_pool, loaded, save, stored, written

CHUNKS = 6


class Wrapped(Service):
    """A service whose command runs below another one."""

    def under(self, *command: str) -> "Wrapped":
        self._command = [*command, *self._command]
        return self


def service_at(folder: Path, name: str, ssd: Path, *extra: str, http: str = "none") -> Wrapped:
    """The service of this name, with this directory."""
    (folder / name).mkdir(mode=0o700, exist_ok=True)
    flags = ("--ssd-cache-path", str(ssd), *extra)
    return Wrapped(folder / name, pool_size=POOL, http_addr=http, extra=flags)


@pytest.fixture
def ssd(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "ssd"
    shutil.rmtree(tmp_path / "ssd", ignore_errors=True)


def root_only() -> None:
    if os.getuid() != 0:
        pytest.skip("only root may mount")


def by_symlink(folder: Path, ssd: Path) -> Wrapped:
    (folder / "alias").symlink_to(ssd)
    return service_at(folder, "second", folder / "alias")


def by_mount_namespace(folder: Path, ssd: Path) -> Wrapped:
    root_only()
    (folder / "alias").mkdir()
    script = f'mount --bind "{ssd}" "{folder}/alias" && exec "$@"'
    if subprocess.run(["unshare", "-m", "sh", "-c", script, "sh", "true"]).returncode:
        pytest.skip("no right to make a mount namespace here")
    second = service_at(folder, "second", folder / "alias")
    return second.under("unshare", "-m", "sh", "-c", script, "sh")


def by_hard_links(folder: Path, ssd: Path) -> Wrapped:
    shutil.copytree(ssd, folder / "alias", copy_function=os.link)
    return service_at(folder, "second", folder / "alias")


@pytest.mark.parametrize("alias", [by_symlink, by_mount_namespace, by_hard_links])
def test_a_directory_under_another_name_is_left_alone(
    tmp_path: Path, ssd: Path, alias: Callable[[Path, Path], Wrapped]
) -> None:
    with service_at(tmp_path, "first", ssd) as first, Engine(first) as engine:
        for chunk in range(CHUNKS):
            save(engine, chunk)
        written(first, CHUNKS * CHUNK)
        with alias(tmp_path, ssd) as second, Engine(second) as other:
            eventually("it says so", lambda: "in use by another service" in second.log())
            eventually("and so does status", lambda: "ssd: off" in second.status_text())
            for chunk in range(50, 53):
                save(other, chunk)
                save(engine, chunk - 50 + CHUNKS)
                assert loaded(other, chunk) == CHUNK, "memory goes on"
            written(first, (CHUNKS + 3) * CHUNK)
        check_from_disk(first, engine, range(CHUNKS + 3))


def check_from_disk(service: Service, engine: Engine, chunks: range) -> None:
    """After a restart without its pool, each of these chunks comes from its log as it was."""
    assert service.stop() == 0
    delete_pool(service)
    service.start()
    eventually("the log is known", lambda: stored(service) >= len(chunks) * CHUNK, 60)
    eventually("the engine is served", lambda: loaded(engine, chunks[0]) == CHUNK)
    assert all(loaded(engine, chunk) == CHUNK for chunk in chunks)


def test_a_segment_that_two_directories_share_has_one_owner(tmp_path: Path, ssd: Path) -> None:
    with service_at(tmp_path, "first", ssd) as first, Engine(first) as engine:
        for chunk in range(CHUNKS):
            save(engine, chunk)
        written(first, CHUNKS * CHUNK)
        shared = tmp_path / "shared"
        shared.mkdir(mode=0o700)
        for segment in ssd.glob("*.segment"):
            (shared / segment.name).hardlink_to(segment)
        before = {path.name: path.stat().st_ino for path in ssd.glob("*.segment")}
        with service_at(tmp_path, "second", shared) as second, Engine(second) as other:
            eventually("it says so", lambda: "another service has it" in second.log())
            assert stored(second) == 0, "what may change at any moment is not believed"
            for chunk in range(50, 50 + CHUNKS):
                save(other, chunk)
            written(second, CHUNKS * CHUNK)
            for chunk in range(CHUNKS, 2 * CHUNKS):
                save(engine, chunk)
            written(first, 2 * CHUNKS * CHUNK)
            check_from_disk(second, other, range(50, 50 + CHUNKS))
            check_from_disk(first, engine, range(2 * CHUNKS))
        assert before.items() <= {p.name: p.stat().st_ino for p in ssd.glob("*.segment")}.items()


def get(service: Service, path: str) -> str:
    connection = HTTPConnection("127.0.0.1", service.counter("http_port"), timeout=20)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def test_a_directory_replaced_under_load_is_off_until_it_is_back(tmp_path: Path, ssd: Path) -> None:
    with (
        service_at(tmp_path, "run", ssd, http="127.0.0.1:0") as service,
        Engine(service) as engine,
    ):
        for chunk in range(CHUNKS):
            save(engine, chunk)
        written(service, CHUNKS * CHUNK)
        away = ssd.rename(tmp_path / "away")
        ssd.mkdir(mode=0o700)
        for chunk in range(CHUNKS, 2 * CHUNKS):
            save(engine, chunk)
            assert loaded(engine, chunk) == CHUNK
        why = f"touch {ssd}/{MARKER}"
        eventually("it says so, with what to do", lambda: why in service.log())
        eventually("status too", lambda: why in service.status_text())
        assert "ssd: off" in service.status_text()
        eventually("and readyz", lambda: why in get(service, "/readyz"))
        assert 'pegaflow_ssd_directories{state="gone"} 1.0' in get(service, "/metrics")
        os.kill(service.processes(FLUSHER)[0].pid, signal.SIGKILL)
        eventually("the next one knows it too", lambda: service.log().count(why) >= 2)
        assert not list(ssd.iterdir()), "nothing was written to what is there instead"
        assert [n for n in range(2 * CHUNKS) if loaded(engine, n) != CHUNK] == []
        away.rename(ssd)  # over the empty one: the path never leads nowhere
        eventually("it is back", lambda: stored(service) == 2 * CHUNKS * CHUNK, 90)
        assert "ssd: writable" in service.status_text()
        check_from_disk(service, engine, range(2 * CHUNKS))


def test_removed_segments_cost_no_byte(tmp_path: Path, ssd: Path) -> None:
    with service_at(tmp_path, "run", ssd) as service, Engine(service) as engine:
        for chunk in range(CHUNKS):
            save(engine, chunk)
        written(service, CHUNKS * CHUNK)
        for segment in ssd.glob("*.segment"):
            segment.unlink()
        eventually("it says so", lambda: "somebody has removed" in service.log())
        eventually("they are forgotten", lambda: stored(service) == 0)
        eventually("it is open again", lambda: service.log().count('"ssd_ready"') == 2)
        for chunk in range(CHUNKS, 2 * CHUNKS):
            save(engine, chunk)
        assert all(loaded(engine, chunk) == CHUNK for chunk in range(2 * CHUNKS))
        # What was in the removed segments stays in memory; some of it may be written again.
        eventually("so much is written", lambda: stored(service) >= CHUNKS * CHUNK, 60)
        check_from_disk(service, engine, range(CHUNKS, 2 * CHUNKS))


def test_a_missing_mount_point_is_not_made(tmp_path: Path) -> None:
    ssd = tmp_path / "missing" / "kv"
    with service_at(tmp_path, "run", ssd) as service, Engine(service) as engine:
        line = f"there is no {tmp_path}/missing; mount its file system, or make it"
        eventually("it says so", lambda: line in service.log())
        eventually("and so does status", lambda: line in service.status_text())
        save(engine, 0)
        assert loaded(engine, 0) == CHUNK, "memory goes on"
        assert not ssd.parent.exists()
        ssd.parent.mkdir()
        written(service, CHUNK)


def test_fresh_ssd_does_not_wipe_what_is_not_ours(tmp_path: Path, ssd: Path) -> None:
    ssd.mkdir(mode=0o700)
    theirs = ssd / f"{1:016x}.segment"
    theirs.write_text("theirs")
    command = [sys.executable, "-m", "pegaflow", "serve", "--run-dir", str(tmp_path / "run")]
    flags = ["--pool-size", POOL, "--ssd-cache-path", str(ssd), "--fresh-ssd"]
    ran = subprocess.run([*command, *flags], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 1 and f"has no {MARKER}" in ran.stderr
    assert theirs.read_text() == "theirs"
