"""Processes for which a GPU copies are dead before their pool is another's; real ones."""

import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pegaflow.core import limits
from pegaflow.core.errors import UserError
from pegaflow.device import gpuusers, locks
from pegaflow.device.poolfiles import adopt
from pegaflow.device.poolnames import remove
from pegaflow.device.procs import dies, start_ticks

from .test_locks import holder
from .test_poolfiles import AS_IT_IS, made

USES = """
import signal, sys
from pegaflow.device import gpuusers
gpuusers.leave(sys.argv[1])
print("left", flush=True)
signal.pause()
"""
LONG_S = 20.0


@pytest.fixture
def base(tmp_path: Path) -> str:
    return str(tmp_path / "pegaflow-0-abc.1")


@pytest.fixture
def user(base: str) -> Iterator[subprocess.Popen[bytes]]:
    """A session that uses a GPU and, to us, has no lock any more."""
    command = [sys.executable, "-c", USES, f"{base}.session-4"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"left\n"
    child.stdout.close()
    yield child
    child.kill()
    child.wait()


def left(base: str) -> list[str]:
    folder, name = os.path.split(base)
    return sorted(path.name.removeprefix(name) for path in Path(folder).glob(f"{name}.*"))


def test_who_lives_is_waited_for_with_one_line(base: str, user: subprocess.Popen[bytes]) -> None:
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        threading.Timer(0.05, user.kill).start()

    gpuusers.await_deaths(base, LONG_S, say)
    assert user.wait(0) == -signal.SIGKILL, "it is dead, and nobody had waited for it"
    assert said == [f"waiting for up to 20 s until processes that used a GPU are dead: {user.pid}"]
    assert left(base) == []


def test_who_does_not_die_keeps_us_out_for_as_long_as_it_lives(
    base: str, user: subprocess.Popen[bytes]
) -> None:
    for _ in range(2):
        with pytest.raises(UserError, match=f"process {user.pid} of an earlier service"):
            gpuusers.await_deaths(base, 0.01, bool)
    assert left(base) == [".session-4.gpu"]


def test_a_zombie_is_dead(base: str, user: subprocess.Popen[bytes]) -> None:
    said: list[str] = []
    user.kill()
    os.waitid(os.P_PID, user.pid, os.WEXITED | os.WNOWAIT)
    gpuusers.await_deaths(base, 0, said.append)
    assert said == [] == left(base)


@pytest.mark.parametrize("change", ["another start", "another pid namespace", "no such process"])
def test_whom_no_pid_names_any_more_is_not_waited_for(base: str, change: str) -> None:
    gpuusers.leave(f"{base}.session-4")
    path = Path(f"{base}.session-4.gpu")
    pid, started, namespace = path.read_text().split()
    assert (int(pid), int(started)) == (os.getpid(), start_ticks(os.getpid()))
    changed = {
        "another start": f"{pid} {int(started) - 1} {namespace}",
        "another pid namespace": f"{pid} {started} {int(namespace) - 1}",
        "no such process": f"{1 << 22} {started} {namespace}",
    }
    path.write_text(changed[change])
    gpuusers.await_deaths(base, 0, bool)
    assert left(base) == []


def test_a_pool_is_adopted_once_they_are_dead(
    base: str, user: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stem = base.removesuffix(".1")
    old = made(stem)
    assert old.pool.path == f"{base}.pool"
    for file in (old.pool, old.file):
        file.close()
    monkeypatch.setattr(gpuusers, "patience", lambda pool_bytes: 0.01)
    found = adopt(stem, AS_IT_IS)
    assert found.files is None and f"process {user.pid}" in found.refused[0]
    assert left(base) == [".ledger", ".pool", ".session-4.gpu"]
    user.kill()
    user.wait()
    found = adopt(stem, AS_IT_IS)
    assert found.files is not None and left(base) == [".ledger", ".pool"]


def test_a_process_with_many_descriptors_waits_as_well(
    base: str, user: subprocess.Popen[bytes]
) -> None:
    """select(2) knows the first 1,024 of them alone."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft > 1100 or hard > 1100
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1100), hard))
    taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(1024)]
    try:
        with pytest.raises(UserError, match=f"process {user.pid} of an earlier service"):
            gpuusers.await_deaths(base, 0, bool)
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_says_nothing_keeps_us_out(base: str) -> None:
    path = Path(f"{base}.session-4.gpu")
    path.write_text("4711")
    with pytest.raises(UserError, match="session-4.gpu does not say which process"):
        gpuusers.await_deaths(base, 0, bool)
    assert path.exists()


def test_whoever_has_taken_the_name_is_not_written_to(base: str, tmp_path: Path) -> None:
    theirs, path = tmp_path / "theirs", Path(f"{base}.session-4.gpu")
    theirs.write_text("theirs")
    path.symlink_to(theirs)
    gpuusers.leave(f"{base}.session-4")
    assert theirs.read_text() == "theirs"
    assert not path.is_symlink() and path.stat().st_mode & 0o777 == 0o600


def test_patience_grows_with_what_can_be_registered() -> None:
    assert limits.patience(0) == limits.KILL_SECONDS
    assert limits.patience(64 << 30) == limits.KILL_SECONDS + 32
    assert 3 * 26 < limits.patience(243 * 10**9) == limits.patience(1 << 40) < 120


def test_what_is_removed_has_as_much_patience_as_what_is_adopted(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def patience(pool_bytes: int) -> float:
        asked.append(pool_bytes)
        return 1.0

    old = made(base.removesuffix(".1"))
    for file in (old.pool, old.file):
        file.close()
    size = os.stat(f"{base}.pool").st_size
    monkeypatch.setattr(gpuusers, "patience", patience)
    removed, in_use = remove(base.removesuffix(".1"))
    assert removed and not in_use and asked == [size, size]


def test_who_adopts_or_removes_a_pool_says_whose_death_it_waits_for(
    base: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, said = made(base.removesuffix(".1")), list[str]()
    for file in (old.pool, old.file):
        file.close()
    monkeypatch.setattr(locks, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(locks, "dies", lambda fd, seconds: bool(seconds) and dies(fd, seconds))
    with holder(Path(f"{base}.pool"), service=3) as orphan:
        found = adopt(base.removesuffix(".1"), replace(AS_IT_IS, say=said.append))
        assert found.orphans == (orphan.pid,)
    assert found.files is not None and [str(orphan.pid) in line for line in said] == [True]
    for file in (found.files.pool, found.files.file):
        file.close()
    with holder(Path(f"{base}.ledger"), service=3) as orphan:
        assert remove(base.removesuffix(".1"), None, said.append)[0] > 0
    assert [str(orphan.pid) in line for line in said] == [False, True]
