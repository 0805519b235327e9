"""Whose a pool is: locks of its files' inodes, seen from other processes and by other names."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pegaflow.core.errors import UserError
from pegaflow.device import locks
from pegaflow.wire.identities import Incarnation

HOLD = """
import os, signal, sys
from pegaflow.device import locks
fd = os.open(sys.argv[1], os.O_RDWR)
if sys.argv[3] == "service":
    locks.claim(fd)
    locks.share(fd, int(sys.argv[2]))
else:
    locks.hold(fd, int(sys.argv[2]))
print("held", flush=True)
signal.pause()
"""


def started(path: Path, service: int, role: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", HOLD, str(path), str(service), role]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"held\n"
    child.stdout.close()
    return child


@contextmanager
def holder(path: Path, service: int) -> Iterator[subprocess.Popen[bytes]]:
    """A child of the service of this incarnation that has the file."""
    child = started(path, service, "child")
    try:
        yield child
    finally:
        child.kill()
        child.wait()


@contextmanager
def living(path: str, service: int) -> Iterator[int]:
    """A service of this incarnation in the file; its pid."""
    child = started(Path(path), service, "service")
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "pool"
    path.write_bytes(bytes(4096))
    return path


@pytest.fixture
def fd(file: Path) -> Iterator[int]:
    opened = os.open(file, os.O_RDWR)
    yield opened
    os.close(opened)


def test_a_living_service_is_never_robbed(file: Path, fd: int) -> None:
    with living(str(file), 5) as pid, holder(file, 5) as child:
        with pytest.raises(locks.InUse, match=f"pid {pid}"):
            locks.claim(fd)
        assert locks.owner(fd) == f"pid {pid}"
        assert not locks.take(fd) and child.poll() is None
    assert locks.owner(fd) == ""
    assert locks.claim(fd) == []


def test_a_lock_is_the_files_whatever_its_name(file: Path) -> None:
    other = file.with_name("other")
    other.hardlink_to(file)
    with living(str(file), 5):
        file.unlink()
        fd = os.open(other, os.O_RDWR)
        with pytest.raises(locks.InUse):
            locks.claim(fd)
        os.close(fd)


def test_a_child_of_another_incarnation_is_refused(file: Path, fd: int) -> None:
    with living(str(file), 5) as pid:
        for late in (1, 4, 6):
            with pytest.raises(locks.InUse, match=f"pid {pid}"):
                locks.hold(fd, Incarnation(late))
        locks.hold(fd, Incarnation(5))


def test_every_orphan_is_killed_even_a_stopped_one(file: Path, fd: int) -> None:
    with holder(file, 3) as one, holder(file, 3) as two, holder(file, 4) as three:
        one.send_signal(signal.SIGSTOP)
        assert sorted(locks.claim(fd)) == sorted(c.pid for c in (one, two, three))
        assert [c.wait(10) for c in (one, two, three)] == [-signal.SIGKILL] * 3
        assert locks.claim(fd) == []


def test_one_line_says_that_an_orphan_takes_long_to_die(
    file: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, waited, said = [False, True], [], list[str]()

    def dies(pidfd: int, seconds: float) -> bool:
        waited.append(seconds)
        return answers.pop(0)

    monkeypatch.setattr(locks, "dies", dies)
    with holder(file, 3) as child:
        monkeypatch.setattr(locks, "take", lambda fd: bool(waited))
        assert locks.claim(fd, 90.0, said.append) == [child.pid]
    assert waited == [locks.QUIET_SECONDS, 90.0]
    assert said == [
        f"waiting for up to 90 s until process {child.pid} of an earlier service is dead"
    ]


def test_an_orphan_that_we_cannot_see_keeps_us_out(
    file: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holder(file, 3):
        monkeypatch.setattr(locks, "_holder", lambda *asked: 0)
        with pytest.raises(UserError, match="another pid namespace"):
            locks.claim(fd)


def test_a_pid_that_is_somebody_elses_by_now_is_not_killed(
    file: Path, fd: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holder(file, 3) as child:
        answers = [os.getpid(), child.pid, child.pid, child.pid]
        monkeypatch.setattr(locks, "_holder", lambda *asked: answers.pop(0))
        assert locks.claim(fd) == [child.pid], "we are still here to say so"
