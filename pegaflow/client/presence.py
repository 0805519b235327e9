"""Who is behind a front desk, seen from outside: one verdict for `serve`, `purge`, `status`,
`replay` and every engine.

A look changes nothing and waits for nobody.  It goes from the outside in and ends where something
is in the way:

1. The run directory, links followed: is it there, can we get to it, whose is it, who may enter?
2. The socket in it: is it one, does anybody listen?  A plain connection, closed at once, tells, and
   the kernel names the process that listens and its user (SO_PEERCRED).
3. The lock: who lives here, also where nobody listens.
4. That process: does it run, or was it stopped?

Whom to trust: a service can read the blocks of its engines, and they compute with what it gives
them.  So an engine has to do with a service of its own user, of root, who can do everything anyway,
or of the one user that it was told to trust, and with nobody else, whoever was the first to make
the directory where it looks.  The service does the same at its end (actors/runtime/door.py): it
lets in its own user and root.

Nobody calls `look` in the process of the service itself: closing the lock file, by any descriptor,
gives the lock up.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import pwd
import socket
import stat
import struct
from dataclasses import dataclass, replace

from pegaflow.core import filelock
from pegaflow.wire.units import Bytes

LOCK = "lock"
"""Name of the lock file in a run directory."""

SOCKET_PATH_MAX: Bytes = 107
"""The field of sockaddr_un holds 108 bytes with its closing zero."""

_ROOT = 0

_UCRED = struct.Struct("iII")  # struct ucred: pid, uid, gid


class Stopped(enum.StrEnum):
    """The letters by which the kernel calls a process that was stopped."""

    BY_SIGNAL = "T"
    BY_DEBUGGER = "t"


class Verdict(enum.Enum):
    """What a look has found."""

    ABSENT = "nobody lives there"
    BARRED = "something is in the way"
    FOREIGN = "it is of a user whom we do not trust, or who would not let us in"
    SILENT = "somebody lives there who will not answer"
    SERVING = "somebody listens there"


@dataclass(frozen=True, slots=True)
class Presence:
    """What was seen at one front desk."""

    verdict: Verdict
    line: str  # why nobody answers, or, if somebody may, what to say when nobody does
    path: str  # the socket's, without links
    who: str = ""  # "pid 17", of whoever lives there
    condition: str = ""  # what keeps that process from answering
    listens: bool = False  # so it is worth asking

    @property
    def advice(self) -> str:
        """The line, and what to do about it."""
        absent = self.verdict is Verdict.ABSENT
        return self.line + (": start one with `pegaflow serve`" if absent else "")

    @property
    def lives(self) -> bool:
        """Whether a service of ours is there, in whatever state."""
        return self.verdict in (Verdict.SERVING, Verdict.SILENT)


def trusted(owner: int | None = None) -> frozenset[int]:
    """The users whose service we use: our own, root, and the one that was named."""
    return frozenset({os.geteuid(), _ROOT} | (set() if owner is None else {owner}))


def uid_of(name: str | int) -> int:
    """The uid of a user given by name or number.

    Raises:
        ValueError: there is no such user.
    """
    text = str(name)
    if text.isascii() and text.isdecimal() and int(text) < 1 << 32:
        return int(text)
    try:
        return pwd.getpwnam(text).pw_uid
    except (KeyError, ValueError, UnicodeError):
        raise ValueError(f"there is no user {text!r}") from None


def user(uid: int) -> str:
    """A user in a line for people."""
    try:
        return f"uid {uid} ({pwd.getpwuid(uid).pw_name})"
    except (KeyError, OverflowError):
        return f"uid {uid}"


def look(desk: str, trust: frozenset[int] | None) -> Presence:
    """Look at a front desk.

    Args:
        desk: path of its socket.
        trust: uids whose service may be there; None: anybody's.
    """
    nothing = Presence(Verdict.BARRED, "", desk)
    try:
        path = os.path.realpath(desk)
        if os.fsencode(path) != path.encode():
            return replace(nothing, line=f"{desk!a} is no UTF-8 in this locale: set LC_ALL=C.UTF-8")
        at = _found(path)
    except ValueError as err:  # a zero in it, or what no path can hold
        return replace(nothing, line=f"{desk!a} is no path: {err}")
    nothing, folder = replace(nothing, path=path), os.path.dirname(path)
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        line = f"{path} is longer than the {SOCKET_PATH_MAX} bytes of a socket's path"
        return replace(nothing, line=line)
    if at is not None and not stat.S_ISSOCK(at.st_mode):
        return replace(nothing, line=f"{path} is {_kind(at)}, not a socket")
    try:
        found = os.stat(folder)
    except OSError as err:
        return _unreachable(nothing, folder, err)
    if trust is not None and found.st_uid not in trust:
        line = f"{folder} belongs to {user(found.st_uid)}, and we are {user(os.geteuid())}"
        return replace(nothing, verdict=Verdict.FOREIGN, line=line)
    why = unfit(folder, found) if trust is not None else ""
    seen = _at_socket(nothing, folder, found.st_uid, trust)
    if why and seen.listens:
        return replace(nothing, line=why)
    return replace(seen, line=f"{seen.line}, and {why}") if why else seen


def unfit(folder: str, found: os.stat_result) -> str:
    """Why a folder, whoever owns it, is no run directory; '' if it may be one.

    Args:
        folder: for the line.
        found: `os.stat` of it.
    """
    if not stat.S_ISDIR(found.st_mode):
        return f"{folder} is {_kind(found)}, not a directory"
    mode = stat.S_IMODE(found.st_mode) & 0o777
    return "" if mode == 0o700 else f"{folder} has mode {mode:04o}, not 0700"


def owner_of_lock(fd: int) -> int | None:
    """Who holds an fcntl lock of this file against us: 0 for an owner whose pid we cannot see,
    None for nobody."""
    asked = filelock.asked(fcntl.F_WRLCK)
    kind, pid = filelock.holder(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else max(pid, 0)


def named(pid: int) -> str:
    """A process in a line for people; one whose pid we cannot see has none."""
    return f"pid {pid}" if pid > 0 else "a process whose pid cannot be seen from here"


def condition(pid: int) -> str:
    """Why this process cannot answer, as far as the kernel knows; '' if it may."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state = file.read().rpartition(b") ")[2][:1].decode("ascii", "replace")
    except OSError:
        return ""
    if state == Stopped.BY_SIGNAL:
        return f"it is stopped (state {state}): `kill -CONT {pid}`"
    return f"it is stopped by a debugger (state {state})" if state == Stopped.BY_DEBUGGER else ""


def _unreachable(seen: Presence, path: str, err: OSError) -> Presence:
    """The system does not let us see this path."""
    code = errno.errorcode.get(err.errno or 0, "?")
    if err.errno == errno.ENOENT:
        line = f"there is no {path} ({code})"
        return replace(seen, verdict=Verdict.ABSENT, line=line)
    who = f" for {user(os.geteuid())}" if err.errno == errno.EACCES else ""
    return replace(seen, line=f"no way to {path}{who}: {err.strerror} ({code})")


def _at_socket(seen: Presence, folder: str, owner: int, trust: frozenset[int] | None) -> Presence:
    """The directory may be a service's: who is in it?"""
    path = seen.path
    holder = _holder(folder)
    try:
        pid, uid = _listener(path)
    except BlockingIOError:  # nobody has taken the last hundred callers
        pid, uid = holder or 0, owner
    except FileNotFoundError:
        return _unheard(seen, folder, holder, f"its socket {path} is not there (ENOENT)")
    except ConnectionRefusedError:
        return _unheard(seen, folder, holder, f"nobody listens at {path} (ECONNREFUSED)")
    except OSError as err:
        return _unreachable(seen, path, err)
    me = os.geteuid()
    foreign = ""
    if trust is not None and uid not in trust:
        foreign = f"{named(pid)} of {user(uid)} listens at {path}, and we are {user(me)}"
    elif me not in (uid, _ROOT):
        foreign = f"the service at {path} lets in {user(uid)} and root, and we are {user(me)}"
    if foreign:
        return replace(seen, verdict=Verdict.FOREIGN, line=foreign)
    who, why = named(pid), condition(pid)
    line = f"{who} runs in {folder}, but {why or 'it does not answer'}"
    verdict = Verdict.SILENT if why else Verdict.SERVING
    return Presence(verdict, line, path, who, condition=why, listens=True)


def _unheard(seen: Presence, folder: str, holder: int | None, why: str) -> Presence:
    """Nobody listens; but perhaps somebody lives there."""
    if holder is None:
        line = f"no service runs in {folder}: {why}"
        return replace(seen, verdict=Verdict.ABSENT, line=line)
    who, why = named(holder), condition(holder) or why
    line = f"{who} runs in {folder}, but {why}"
    return Presence(Verdict.SILENT, line, seen.path, who, condition=why)


def _found(path: str) -> os.stat_result | None:
    """What is at this path; None if nothing is, or if we may not look."""
    try:
        return os.stat(path)
    except OSError:
        return None


def _listener(path: str) -> tuple[int, int]:
    """Pid (0: of another pid namespace) and uid of the process that listens at a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as ours:
        ours.setblocking(False)
        ours.connect(path)
        raw = ours.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _ = _UCRED.unpack(raw)
    return pid, uid


def _holder(folder: str) -> int | None:
    """Who holds the locks of a run directory, as `owner_of_lock` says it; None also if we cannot
    see them.  While the lock file is gone (its service makes another one within a beat), the lock
    of the directory itself still tells that there is somebody."""
    for path in (os.path.join(folder, LOCK), folder):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            continue
        try:
            pid = owner_of_lock(fd)
        finally:
            os.close(fd)
        if pid is not None:
            return pid
    return None


def _kind(found: os.stat_result) -> str:
    """What a file is, in two words."""
    kinds = {
        stat.S_IFDIR: "a directory",
        stat.S_IFREG: "a regular file",
        stat.S_IFIFO: "a pipe",
        stat.S_IFSOCK: "a socket",
    }
    return kinds.get(stat.S_IFMT(found.st_mode), "a device")
