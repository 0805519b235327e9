"""Whose a pool is: locks on the very files that it consists of.

A lock file beside the pool protects whoever finds the lock file; it can be removed while its owner
lives, and two mount namespaces that share /dev/shm have two of them.  So each process that maps a
file of a pool for writing holds an fcntl lock on that file's inode, taken before it believes a byte
of it.  The kernel keeps these locks per inode: names, directories, mounts and namespaces make no
difference, and it gives a lock up at its holder's death, however that came.

The bytes that are locked have nothing to do with the file's content:

    byte 0        the service, exclusively
    byte s        the children of the service whose supervisor's incarnation is s, shared
    all others    the service, exclusively

Incarnations of one pool only grow (they are stored in its ledger), so a child of an earlier service
that wakes late asks for a byte that the present service holds, and is refused.  `claim` is
adoption: it takes byte 0, or says who has it; kills whoever else still holds a byte (an orphan: its
service is dead, or byte 0 were taken); then takes all of the file.  `share` opens byte s to the
children.

The trap of fcntl locks: closing *any* descriptor of a file gives up all locks that the process has
on it.  So a process opens each of these files once and closes it only to give it up.  Python's
mmap has a descriptor of its own, which it closes with the mapping: the mapping of a file that is
locked stays for as long as the lock.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
from collections.abc import Callable

from pegaflow.core import filelock
from pegaflow.core.errors import UserError
from pegaflow.core.limits import KILL_SECONDS
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.units import Count, Seconds

from .procs import dies

ORPHANS_MAX: Count = 1024
"""Orphans killed one after the other: more processes than one service has."""

QUIET_SECONDS: Seconds = 0.5
"""An orphan's death that takes longer is worth a line: that of one without a GPU takes less."""

Say = Callable[[str], object]
"""Told why something takes long, in a line for people."""


class InUse(Exception):
    """Another service lives in this file; its text says who."""


def hold(fd: int, service: Incarnation) -> None:
    """In a child of the supervisor of this incarnation: be a writer of the file until our end.

    Raises:
        InUse: the file is another service's.
    """
    assert service > 0
    if not _lock(fd, fcntl.F_RDLCK, service, 1):
        raise InUse(owner(fd) or "another service")


def claim(fd: int, patience: float = KILL_SECONDS, say: Say = bool) -> list[int]:
    """Take the whole file for ourselves; the pids of orphans that were killed for it.

    Args:
        patience: with each of them, in seconds.
        say: told of each that takes long to die.

    Raises:
        InUse: a service lives in it.
        UserError: an orphan does not die, or cannot be reached.
    """
    if not _lock(fd, fcntl.F_WRLCK, 0, 1):
        raise InUse(owner(fd) or "another service")
    killed: list[int] = []
    while not take(fd):
        pid = _holder(fd, 1)
        if pid is None:
            continue  # it went away between the two calls
        if pid <= 0:
            raise UserError(
                "a process of an earlier service in another pid namespace still has its pool: end "
                "it, or choose another --run-dir"
            )
        if len(killed) == ORPHANS_MAX:
            raise UserError("processes of an earlier service keep coming up in its pool")
        if _kill(fd, pid, patience, say):
            killed.append(pid)
    return killed


def take(fd: int) -> bool:
    """Lock a whole file, of whatever kind; False if somebody holds it.  Nobody is killed for it."""
    return _lock(fd, fcntl.F_WRLCK, 0, filelock.TO_END)


def share(fd: int, service: Incarnation) -> None:
    """Let the children of a service in.

    Args:
        fd: of a file that `claim` has locked.
        service: incarnation of the supervisor whose children they are.
    """
    _lock(fd, fcntl.F_UNLCK, service, 1)


def owner(fd: int) -> str:
    """The living service of this file, for people; '' without one.  Takes no lock."""
    pid = _holder(fd, 0, 1)
    if pid is None:
        return ""
    return f"pid {pid}" if pid > 0 else "a process of another pid namespace"


def _lock(fd: int, kind: int, start: int, length: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_SETLK, filelock.asked(kind, start, length))
    except OSError as err:
        if err.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _holder(fd: int, start: int, length: int = filelock.TO_END) -> int | None:
    """Somebody who holds a byte: 0 or less if we cannot see its pid, None for nobody."""
    asked = filelock.asked(fcntl.F_WRLCK, start, length)
    kind, pid = filelock.holder(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else pid


def _kill(fd: int, pid: int, patience: float, say: Say) -> bool:
    """Kill an orphan; whether that was needed."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if _holder(fd, 1) != pid:
            return False  # it went by itself, and the pid may be somebody else's
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        if dies(pidfd, min(QUIET_SECONDS, patience)):
            return True
        say(f"waiting for up to {patience:.0f} s until process {pid} of an earlier service is dead")
        if not dies(pidfd, patience):
            raise UserError(
                f"process {pid} of an earlier service does not die: its pool cannot be adopted; "
                "choose another --run-dir, or wait"
            )
    except PermissionError:
        raise UserError(f"process {pid} of an earlier service may not be killed by us") from None
    finally:
        os.close(pidfd)
    return True
