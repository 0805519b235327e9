"""Who may still write the pool: a life lock that every child holds, and the end of orphans.

Each child takes a shared fcntl lock on a file of the run directory before it maps the pool, and
keeps it to its end.  A service that starts takes the same lock exclusively before it adopts a pool:
whoever still holds it is an orphan of an earlier service (stopped, or not to be killed at once) and
is killed first.  The kernel gives the lock up at its holder's death, however that came, and names
the holder's pid.  The one trap of such locks: closing *any* descriptor of the file gives it up, so
nothing but this module opens it.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import struct
from pathlib import Path

from pegaflow.errors import UserError

FILE = "writers"

KILL_SECONDS = 5.0
"""Patience with an orphan that was sent SIGKILL: one that is stuck in the kernel may take longer
than anybody wants to wait."""

ORPHANS_MAX = 1024
"""Orphans killed one after the other: more processes than one service has."""

_FLOCK = struct.Struct("hhqqi0q")  # struct flock of 64-bit Linux: type, whence, start, len, pid


def hold(run_dir: Path) -> None:
    """In a child: be a writer until our end.

    Raises:
        UserError: the file cannot be locked; a service is about to adopt the pool.
    """
    fd = _open(run_dir)
    try:
        fcntl.lockf(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as err:
        os.close(fd)
        raise UserError(f"{run_dir / FILE} is locked: another service starts") from err


def end_orphans(run_dir: Path) -> list[int]:
    """In a service that starts, with the service lock held: kill whoever still holds the pool of an
    earlier one; their pids.

    Raises:
        UserError: one of them does not die, or cannot be reached.
    """
    killed: list[int] = []
    fd = _open(run_dir)
    try:
        for _ in range(ORPHANS_MAX):
            pid = _holder(fd)
            if pid is None:
                return killed
            if pid <= 0:
                raise UserError(
                    "a process of an earlier service in another pid namespace still has the pool "
                    f"of {run_dir}: end it, or choose another --run-dir"
                )
            _kill(fd, pid)
            killed.append(pid)
        raise UserError(f"processes of an earlier service keep coming up in {run_dir}")
    finally:
        os.close(fd)


def _open(run_dir: Path) -> int:
    path = run_dir / FILE
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as err:
        raise UserError(f"cannot open {path}: {err.strerror}") from err


def _holder(fd: int) -> int | None:
    """Somebody who holds the lock: 0 or less if we cannot see its pid, None for nobody."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)


def _kill(fd: int, pid: int) -> None:
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if _holder(fd) != pid:
            return  # it went by itself, and the pid may be somebody else's
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if not select.select([pidfd], [], [], KILL_SECONDS)[0]:
            raise UserError(
                f"process {pid} of an earlier service does not die: its pool cannot be adopted; "
                "choose another --run-dir, or wait"
            )
    except PermissionError:
        raise UserError(f"process {pid} of an earlier service may not be killed by us") from None
    finally:
        os.close(pidfd)
