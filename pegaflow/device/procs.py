"""Processes as the kernel knows them: identity, proof of death, dying with the parent."""

import ctypes
import errno
import os
import select
import signal

_PR_SET_PDEATHSIG = 1
_PIDFD_GETFD = 438  # the same on every architecture (Linux, include/uapi/asm-generic/unistd.h)


def start_ticks(pid: int) -> int:
    """Start time of a process in clock ticks since boot; 0 if there is none.

    With the pid it names one process: pids are used again.  Source: field 22 of /proc/PID/stat.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return 0
    return int(stat[stat.rindex(b")") + 2 :].split()[19])


def open_pidfd(pid: int, started_ticks: int) -> int | None:
    """A pidfd of exactly this process, readable once it is dead; None if it is dead already.

    Raises:
        OSError: the kernel has no descriptor for us; that proves no death.
    """
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError):
        return None
    except OSError as err:
        if err.errno == errno.EINVAL:
            return None  # no pid at all
        raise
    if start_ticks(pid) != started_ticks:
        os.close(fd)
        return None
    return fd


def dies(pidfd: int, seconds: float) -> bool:
    """Whether a process is dead within so many seconds; by poll, since descriptors may be many."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def take_fd(pidfd: int, fd: int) -> int:
    """A descriptor of our own for what another process has open; it is not passed on to children.

    Args:
        pidfd: of that process, which is not dead.
        fd: its number there.

    Raises:
        OSError: the kernel, or what guards it, does not let us; or there is no such descriptor.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    taken = int(libc.syscall(ctypes.c_long(_PIDFD_GETFD), pidfd, fd, 0))
    if taken < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return taken


def die_with_parent(parent: int) -> bool:
    """Be killed when the thread that spawned us ends; False if the parent is gone already.

    Args:
        parent: pid of the process that has spawned us.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    return os.getppid() == parent
