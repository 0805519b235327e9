"""The run directory: where one service's sockets, lock and crash records are.

It is `--run-dir`, else PEGAFLOW_RUN_DIR, else `$XDG_RUNTIME_DIR/pegaflow`, else `pegaflow-<uid>`
under the system's temporary directory, so that a service and its engines find each other with no
setting at all.  It must be ours alone (mode 0700, our uid, no symlink): whoever can enter it can
talk to the service.  A directory that is not like that is refused and never repaired, since the
one that was named by mistake may be `/tmp`.

`ServiceLock` says who lives here.  It is an fcntl lock, which belongs to the process and not to a
descriptor: a forked child does not inherit it, the kernel drops it at the owner's death however
that came, and F_GETLK names the owner's pid.  (A flock, in contrast, was seen to be kept alive by
a forked grandchild of its dead owner.)  Its one trap: closing *any* descriptor of the file gives
the lock up, so nothing but this module opens it.  Sockets left behind by a killed service are
removed by the next lock holder and by nobody else.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pegaflow.errors import UserError

FRONT_DESK = "pegaflow.sock"
ACTORS = "actors"
LOCK = "lock"

SOCKET_PATH_MAX = 107
"""The field of sockaddr_un holds 108 bytes with its closing zero."""

# The longest name below the run directory: a five-digit incarnation of the longest actor name.
LONGEST_SOCKET = f"{ACTORS}/allocator.12345.sock"

_FLOCK = struct.Struct("hhqqi0q")  # struct flock of 64-bit Linux: type, whence, start, len, pid


def resolve(flag: str | None, env: Mapping[str, str], uid: int, temporary: str) -> Path:
    """Where the run directory is; touches nothing.  Relative paths are relative to here."""
    if flag:
        return Path(os.path.abspath(flag))
    if named := env.get("PEGAFLOW_RUN_DIR"):
        return Path(os.path.abspath(named))
    runtime = env.get("XDG_RUNTIME_DIR", "")
    # A relative one is to be ignored (XDG), and after `su` it often names a folder that is not
    # there.
    if os.path.isabs(runtime) and os.path.isdir(runtime):
        return Path(runtime, "pegaflow")
    return Path(temporary, f"pegaflow-{uid}")


def front_desk(run_dir: Path) -> str:
    """The path of the socket where engines ask for a session."""
    return str(run_dir / FRONT_DESK)


def prepare(run_dir: Path) -> Path:
    """Makes the run directory with its `actors` folder, or refuses it in one line."""
    _check_socket_room(run_dir)
    try:
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        for folder in (run_dir, run_dir / ACTORS):
            try:
                os.mkdir(folder, 0o700)
            except FileExistsError:
                pass
            _check_ours(folder)
    except OSError as error:
        raise UserError(f"cannot use run directory {run_dir}: {error.strerror}") from error
    return run_dir


def _check_socket_room(run_dir: Path) -> None:
    longest = len(os.fsencode(run_dir / LONGEST_SOCKET))
    if longest <= SOCKET_PATH_MAX:
        return
    room = SOCKET_PATH_MAX - len(LONGEST_SOCKET) - 1
    raise UserError(
        f"run directory {run_dir} is too long for a socket path: choose a --run-dir of at most "
        f"{room} bytes, such as --run-dir /tmp/pegaflow-{os.getuid()}"
    )


def _check_ours(folder: Path) -> None:
    """Looks through a descriptor: what is checked is the folder itself and no link to it."""
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            what = "a symbolic link" if folder.is_symlink() else "not a directory"
            raise UserError(f"{folder} is {what}: choose another --run-dir") from error
        raise
    try:
        found = os.fstat(fd)
    finally:
        os.close(fd)
    mode = stat.S_IMODE(found.st_mode) & 0o777
    if found.st_uid != os.getuid():
        raise UserError(
            f"{folder} belongs to uid {found.st_uid}, not to you: choose another --run-dir"
        )
    if mode != 0o700:
        raise UserError(
            f"{folder} has mode {mode:04o}, not 0700: choose another --run-dir, or chmod it"
        )


class ServiceLock:
    """Held by the one service of a run directory for as long as its process lives."""

    def __init__(self, run_dir: Path, fd: int) -> None:
        #: The directory this lock speaks for; it passed `prepare`.
        self.run_dir = run_dir
        #: The only descriptor of the lock file in this process; -1 after `release`.
        self._fd = fd

    @classmethod
    def acquire(cls, run_dir: Path) -> Self:
        """Takes the lock, or raises `UserError` naming the pid that has it."""
        path = run_dir / LOCK
        while True:
            try:
                fd = _open_lock(path, os.O_RDWR | os.O_CREAT)
            except OSError as error:
                raise UserError(f"cannot lock {path}: {error.strerror}") from error
            try:
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    os.close(fd)
                    raise
                pid = _owner(fd)
                os.close(fd)
                if pid is None:
                    continue  # it went away between the two calls
                who = f"pid {pid}" if pid else "a process of another pid namespace"
                raise UserError(f"already running, {who} (run directory {run_dir})") from error
            if _is_named(fd, path):
                return cls(run_dir, fd)
            os.close(fd)  # its last owner unlinked this file while we were opening it

    def remove_stale_sockets(self) -> list[str]:
        """Unlinks what a killed service left bound; returns names relative to the directory."""
        assert self._fd >= 0, "only the lock's holder knows that a socket is stale"
        removed = []
        for path in [self.run_dir / FRONT_DESK, *sorted((self.run_dir / ACTORS).glob("*.sock"))]:
            if path.is_socket() and not path.is_symlink():
                path.unlink()
                removed.append(str(path.relative_to(self.run_dir)))
        return removed

    def release(self) -> None:
        """Removes the lock file and gives the lock up; a second call does nothing."""
        if self._fd < 0:
            return
        (self.run_dir / LOCK).unlink(missing_ok=True)
        os.close(self._fd)
        self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def running(run_dir: Path) -> int | None:
    """The pid of the service that lives in `run_dir`, 0 if it is in another pid namespace, or None.

    For other processes only: called inside the service itself it would give the lock up.
    """
    try:
        fd = _open_lock(run_dir / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return None
    try:
        return _owner(fd)
    finally:
        os.close(fd)


def _open_lock(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _owner(fd: int) -> int | None:
    """Who holds the lock against us: 0 for an owner whose pid we cannot see, None for nobody."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_GETLK, asked))
    return None if kind == fcntl.F_UNLCK else int(pid)


def _is_named(fd: int, path: Path) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), named)
