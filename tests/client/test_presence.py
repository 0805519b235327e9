"""One verdict on a front desk, whoever asks: who lives there, and what is in the way."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pegaflow.client import presence
from pegaflow.client.presence import Presence, Verdict
from pegaflow.core.errors import UserError
from pegaflow.service import rundir

OTHER = os.geteuid() + 1234

# Holds the lock, and listens if it is told to.
SERVICE = """
import socket, sys
from pathlib import Path
from pegaflow.service.rundir import ServiceLock, front_desk
lock = ServiceLock.acquire(Path(sys.argv[1]))
if sys.argv[2:]:
    desk = socket.socket(socket.AF_UNIX)
    desk.bind(front_desk(Path(sys.argv[1])))
    desk.listen()
print("there", flush=True)
sys.stdin.read()
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return rundir.prepare(tmp_path / "run")


@contextmanager
def service(home: Path, *how: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that lives in `home`."""
    command = [sys.executable, "-c", SERVICE, str(home), *how]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        yield process
        process.kill()


def look(home: Path, trust: frozenset[int] | None = presence.trusted()) -> Presence:
    return presence.look(rundir.front_desk(home), trust)


def test_nobody_is_there(tmp_path: Path, home: Path) -> None:
    gone = look(tmp_path / "gone")
    assert (gone.verdict, gone.line) == (Verdict.ABSENT, f"there is no {tmp_path}/gone (ENOENT)")
    free = look(home)
    assert free.verdict is Verdict.ABSENT and not free.listens and not free.lives
    assert free.line.startswith(f"no service runs in {home}: its socket ")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(rundir.front_desk(home))
    assert look(home).line.endswith(f"nobody listens at {home}/pegaflow.sock (ECONNREFUSED)")


def test_somebody_is_there(home: Path) -> None:
    with service(home, "listens") as process:
        for trust in (presence.trusted(), None):
            seen = look(home, trust)
            assert (seen.verdict, seen.who) == (Verdict.SERVING, f"pid {process.pid}")
            assert seen.listens and seen.lives and not seen.condition
            assert seen.line == f"pid {process.pid} runs in {home}, but it does not answer"
        link = home.parent / "link.sock"
        link.symlink_to(home / "pegaflow.sock")
        assert presence.look(str(link), presence.trusted()) == look(home)


def test_somebody_is_stopped(home: Path) -> None:
    for how, listens in ((["listens"], True), ([], False)):
        with service(home, *how) as process:
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED)
            seen = look(home)
            assert (seen.verdict, seen.listens) == (Verdict.SILENT, listens)
            assert f"it is stopped (state T): `kill -CONT {process.pid}`" in seen.line
            process.kill()
            process.wait()
        (home / "pegaflow.sock").unlink(missing_ok=True)


def test_somebody_has_lost_the_socket_or_the_lock(home: Path) -> None:
    with service(home, "listens") as process:
        (home / "lock").unlink()
        assert look(home).verdict is Verdict.SERVING
        with pytest.raises(UserError, match=f"already running, pid {process.pid} "):
            rundir.ServiceLock.acquire(home)
    with service(home) as process:
        (home / "pegaflow.sock").unlink()
        seen = look(home)
        assert (seen.verdict, seen.who, seen.listens) == (
            Verdict.SILENT,
            f"pid {process.pid}",
            False,
        )
        assert seen.line.endswith(f"its socket {home}/pegaflow.sock is not there (ENOENT)")


def test_somebody_takes_no_calls(home: Path) -> None:
    with socket.socket(socket.AF_UNIX) as desk:
        desk.bind(rundir.front_desk(home))
        desk.listen(0)
        callers = []
        for _ in range(4):
            callers.append(socket.socket(socket.AF_UNIX))
            callers[-1].setblocking(False)
            if callers[-1].connect_ex(rundir.front_desk(home)):
                break
        assert look(home).verdict is Verdict.SERVING
        for caller in callers:
            caller.close()


def test_whoever_is_not_trusted_is_not_joined(home: Path) -> None:
    with service(home, "listens"):
        me = presence.user(os.geteuid())
        seen = look(home, frozenset({OTHER}))
        assert (seen.verdict, seen.listens, seen.lives) == (Verdict.FOREIGN, False, False)
        assert seen.line == f"{home} belongs to {me}, and we are {me}"


def test_what_others_can_enter_is_not_joined(home: Path) -> None:
    home.chmod(0o711)
    assert look(home).line.endswith(f", and {home} has mode 0711, not 0700")
    with service(home, "listens"):
        seen = look(home)
        assert (seen.verdict, seen.listens) == (Verdict.BARRED, False)
        assert seen.line == f"{home} has mode 0711, not 0700"
        assert look(home, None).verdict is Verdict.SERVING


def test_the_path_is_something_else(home: Path, tmp_path: Path) -> None:
    (home / "pegaflow.sock").mkdir()
    assert look(home).line == f"{home}/pegaflow.sock is a directory, not a socket"
    (tmp_path / "file").touch()
    seen = presence.look(str(tmp_path / "file"), presence.trusted())
    assert (seen.verdict, seen.line) == (
        Verdict.BARRED,
        f"{tmp_path}/file is a regular file, not a socket",
    )
    (tmp_path / "loop").symlink_to("loop")
    assert "ELOOP" in presence.look(str(tmp_path / "loop"), presence.trusted()).line


@needs_root
def test_the_socket_is_another_users(home: Path) -> None:
    """The directory is ours, but whoever listens is not: the kernel names him."""
    with socket.socket(socket.AF_UNIX) as desk:
        desk.bind(rundir.front_desk(home))
        os.seteuid(OTHER)
        try:
            desk.listen()
        finally:
            os.seteuid(0)
        seen = look(home)
        assert (seen.verdict, seen.listens) == (Verdict.FOREIGN, False)
        assert f"pid {os.getpid()} of uid {OTHER} listens at {home}/pegaflow.sock" in seen.line
        assert look(home, presence.trusted(OTHER)).listens


@needs_root
def test_as_another_user() -> None:
    """Who may not look is told so, and whom the service would refuse does not ask."""
    with tempfile.TemporaryDirectory() as above:
        os.chmod(above, 0o711)
        home = rundir.prepare(Path(above, "run"))
        with service(home, "listens"):
            os.chown(home, OTHER, -1)
            (home / "pegaflow.sock").chmod(0o666)
            assert look(home, presence.trusted(OTHER)).listens, "root is let in everywhere"
            os.seteuid(OTHER)
            try:
                refused, unseen = look(home, None), look(home / "below" / "it")
                os.seteuid(0)
                os.seteuid(OTHER + 1)
                foreign = look(home)
            finally:
                os.seteuid(0)
    assert f"lets in uid 0 (root) and root, and we are uid {OTHER}" in refused.line
    assert refused.verdict is foreign.verdict is Verdict.FOREIGN
    assert foreign.line == f"{home} belongs to uid {OTHER}, and we are uid {OTHER + 1}"
    assert unseen.line.startswith(f"there is no {home}/below/it (ENOENT)")


@needs_root
def test_no_way_there() -> None:
    with tempfile.TemporaryDirectory() as above:
        home = rundir.prepare(Path(above, "run"))
        os.seteuid(OTHER)
        try:
            seen = look(home)
        finally:
            os.seteuid(0)
    why = f"no way to {home} for uid {OTHER}: Permission denied (EACCES)"
    assert (seen.verdict, seen.line) == (Verdict.BARRED, why)


@pytest.mark.parametrize(("said", "uid"), [("root", 0), ("0", 0), (4321, 4321), ("4321", 4321)])
def test_a_user_has_a_name_or_a_number(said: str | int, uid: int) -> None:
    assert presence.uid_of(said) == uid


@pytest.mark.parametrize("said", ["no such user", "", "-1", "\ud800", "a\0b", str(1 << 32)])
def test_a_user_who_is_not_there(said: str) -> None:
    with pytest.raises(ValueError, match="there is no user"):
        presence.uid_of(said)
