"""The run directory and the lock that says who lives in it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pegaflow.client import presence
from pegaflow.core.errors import UserError
from pegaflow.service import rundir

HOLDER = """
import sys
from pathlib import Path
from pegaflow.service.rundir import ServiceLock
lock = ServiceLock.acquire(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A short one: the path of a socket has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="rundir-") as folder:
        yield Path(folder)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return rundir.prepare(tmp_path / "run")


@pytest.fixture
def other_service(home: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `home`."""
    with holding(home) as process:
        yield process


@contextmanager
def holding(home: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def lives(run_dir: Path) -> bool:
    return presence.look(rundir.front_desk(run_dir), presence.trusted()).lives


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


def test_where_it_is(tmp_path: Path) -> None:
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    named = runtime | {"PEGAFLOW_RUN_DIR": "/named"}
    assert rundir.resolve("/flag", named, 7, "/tmp") == Path("/flag")
    assert rundir.resolve(None, named, 7, "/tmp") == Path("/named")
    assert rundir.resolve(None, runtime, 7, "/tmp") == tmp_path / "pegaflow"
    assert rundir.resolve(None, {}, 7, "/tmp") == Path("/tmp/pegaflow-7")
    assert rundir.resolve("here", {}, 7, "/tmp") == Path.cwd() / "here"


@pytest.mark.parametrize("runtime", ["relative", "/not/there"])
def test_a_useless_runtime_dir_is_passed_over(runtime: str) -> None:
    assert rundir.resolve(None, {"XDG_RUNTIME_DIR": runtime}, 7, "/t") == Path("/t/pegaflow-7")


def test_prepare_makes_private_folders_once(tmp_path: Path) -> None:
    for _ in range(2):
        made = rundir.prepare(tmp_path / "a" / "b")
        assert [p.stat().st_mode & 0o777 for p in (made, made / "actors")] == [0o700, 0o700]
    assert rundir.front_desk(made) == str(made / "pegaflow.sock")


def test_an_open_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(UserError, match="mode 0755, not 0700"):
        rundir.prepare(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755


def test_a_link_and_a_file_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a symbolic link"):
        rundir.prepare(tmp_path / "link")
    with pytest.raises(UserError, match="not a directory"):
        rundir.prepare(tmp_path / "file")
    with pytest.raises(UserError, match="cannot use run directory"):
        rundir.prepare(tmp_path / "file" / "below")


def test_anothers_directory_is_refused(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: home.stat().st_uid + 1)
    with pytest.raises(UserError, match=r"belongs to uid \d+.*, not to you"):
        rundir.prepare(home)


def test_an_over_long_path_names_one_that_fits(tmp_path: Path) -> None:
    room = presence.SOCKET_PATH_MAX - len(rundir.LONGEST_SOCKET) - 1
    fits = Path("/" + "x" * (room - 1))
    assert len(str(fits / rundir.LONGEST_SOCKET)) == 107
    rundir._check_socket_room(fits)
    with pytest.raises(UserError, match=f"at most {room} bytes, such as --run-dir /"):
        rundir.prepare(Path(str(fits) + "x"))


def test_the_lock_is_the_services_and_leaves_nothing(home: Path) -> None:
    with rundir.ServiceLock.acquire(home) as lock:
        assert (home / "lock").stat().st_mode & 0o777 == 0o600
        ask = (
            "import sys, pegaflow.client.presence as p; print(p.look(sys.argv[1], p.trusted()).who)"
        )
        said = subprocess.run(
            [sys.executable, "-c", ask, rundir.front_desk(home)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout == f"pid {os.getpid()}\n"
    assert not (home / "lock").exists()
    lock.release()
    assert not lives(home)


def test_a_second_service_is_told_the_pid(home: Path, other_service: subprocess.Popen[str]) -> None:
    assert lives(home)
    with pytest.raises(UserError, match=f"already running, pid {other_service.pid} "):
        rundir.ServiceLock.acquire(home)


def test_a_killed_service_leaves_the_lock_free_and_its_sockets_stale(
    home: Path, other_service: subprocess.Popen[str]
) -> None:
    bind(home / "pegaflow.sock")
    bind(home / "actors" / "index.1.sock")
    (home / "actors" / "kept.sock").write_text("not a socket")
    other_service.send_signal(signal.SIGKILL)
    other_service.wait()
    assert (home / "lock").exists()
    assert not lives(home)
    with rundir.ServiceLock.acquire(home) as lock:
        assert lock.remove_stale_sockets() == ["pegaflow.sock", "actors/index.1.sock"]
        assert lock.remove_stale_sockets() == []
    assert sorted(p.name for p in home.rglob("*")) == ["actors", "kept.sock"]


def test_a_lock_file_unlinked_under_us_is_not_trusted(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last owner may unlink the file between our open and our lock: then take the new one."""
    real_open = rundir._open_lock
    opened: list[Path] = []

    def open_then_lose_it(path: Path, flags: int) -> int:
        fd = real_open(path, flags)
        if not opened:
            path.unlink()
        opened.append(path)
        return fd

    monkeypatch.setattr(rundir, "_open_lock", open_then_lose_it)
    with rundir.ServiceLock.acquire(home):
        assert len(opened) == 2
        assert (home / "lock").exists()


def test_the_lock_is_not_inherited(home: Path) -> None:
    """A child left behind by a dead service must not keep the next one out."""
    with rundir.ServiceLock.acquire(home) as lock:
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False) as child:
            assert str(home / "lock") not in [
                os.readlink(f"/proc/{child.pid}/fd/{fd}")
                for fd in os.listdir(f"/proc/{child.pid}/fd")
            ]
            lock.release()
            rundir.ServiceLock.acquire(home).release()


def test_a_lock_that_cannot_be_made_is_one_line(home: Path) -> None:
    (home / "lock").symlink_to(home / "nowhere")
    with pytest.raises(UserError, match="cannot lock .*lock: "):
        rundir.ServiceLock.acquire(home)


def test_the_directory_itself_is_locked_without_any_file_in_it(
    home: Path, other_service: subprocess.Popen[str]
) -> None:
    (home / "lock").unlink()
    assert lives(home)
    with pytest.raises(UserError, match="already running, a process whose pid cannot be seen"):
        rundir.ServiceLock.acquire(home)
    assert not (home / "lock").exists()


def test_a_service_that_looks_mends_what_is_missing(home: Path) -> None:
    with rundir.ServiceLock.acquire(home) as lock:
        assert lock.look() == ""
        (home / "lock").unlink()
        assert lock.look() == "" and (home / "lock").exists()
        (home / "actors").rmdir()
        assert lock.look() == "" and (home / "actors").is_dir()
        shutil.rmtree(home)
        assert lock.look() == "" and sorted(p.name for p in home.iterdir()) == ["actors", "lock"]
        shutil.rmtree(home)
        home.symlink_to("/nowhere")
        assert "a symbolic link" in lock.look()
        home.unlink()
        home.mkdir(mode=0o755)
        assert "has mode 0755" in lock.look()
        home.rmdir()
    assert not home.exists()


def test_a_parent_that_is_gone_is_not_made_again(tmp_path: Path) -> None:
    """It may be a mount point, or a login's directory whose owner has logged out."""
    home = rundir.prepare(tmp_path / "gone" / "run")
    with rundir.ServiceLock.acquire(home) as lock:
        shutil.rmtree(tmp_path / "gone")
        assert f"so was {tmp_path / 'gone'}" in lock.look()
        assert not (tmp_path / "gone").exists()


def test_a_directory_that_another_service_has_taken_is_left_to_it(home: Path) -> None:
    with rundir.ServiceLock.acquire(home) as lock:
        home.rename(home.with_name("elsewhere"))
        rundir.prepare(home)
        with holding(home) as other:
            for _ in range(2):
                assert f"already running, pid {other.pid}" in lock.look()
            bind(home / "actors" / "index.1.sock")
            lock.remove("actors/index.1.sock")
            assert (home / "actors" / "index.1.sock").exists()
        assert lock.look() == ""


def a_file(path: Path) -> None:
    path.write_text("")


def a_folder_with_something_in_it(path: Path) -> None:
    path.mkdir()
    (path / "something").touch()


def a_link(path: Path) -> None:
    path.symlink_to(path.parent)


@pytest.mark.parametrize("put", [a_file, a_folder_with_something_in_it, a_link, os.mkfifo])
@pytest.mark.parametrize("what", ["gone", "gone/run", "gone/run/actors", "gone/run/lock"])
def test_whatever_is_put_in_its_place_a_service_only_says_so(
    tmp_path: Path, what: str, put: Callable[[Path], None]
) -> None:
    home = rundir.prepare(tmp_path / "gone" / "run")
    with rundir.ServiceLock.acquire(home) as lock:
        (tmp_path / what).rename(tmp_path / "away")
        put(tmp_path / what)
        first = lock.look()
        assert "\n" not in first and lock.look() == first
        lock.remove("actors/index.7.sock")
        if first:
            put_away = tmp_path / what
            shutil.rmtree(put_away) if put is a_folder_with_something_in_it else put_away.unlink()
            (tmp_path / "away").rename(tmp_path / what)
            assert lock.look() == ""


def test_only_a_socket_is_one(tmp_path: Path) -> None:
    bind(tmp_path / "one")
    found = (tmp_path / "one").stat()
    assert rundir.socket_at(tmp_path / "one") == (found.st_dev, found.st_ino)
    (tmp_path / "link").symlink_to(tmp_path / "one")
    (tmp_path / "file").touch()
    for name in ("link", "file", "nowhere", "file/below"):
        assert rundir.socket_at(tmp_path / name) is None
