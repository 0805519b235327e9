"""The run directory: where one service's sockets, lock and crash records are.

It is `--run-dir`, else PEGAFLOW_RUN_DIR, else `$XDG_RUNTIME_DIR/pegaflow`, else `pegaflow-<uid>`
under the system's temporary directory, so that a service and its engines find each other with no
setting at all.  It must be ours alone (mode 0700, our uid, no symlink): whoever can enter it can
talk to the service.  A directory that is not like that is refused and never repaired, since the
one that was named by mistake may be `/tmp`.

Who lives here, and what may be in the way, is for `presence.look` to say, and for nobody else.

`ServiceLock` is what a service holds.  What decides is a lock of the directory's own inode, which
no cleaner can remove and no second mount point can double.  A directory can only have a flock,
which belongs to a descriptor and would outlive its owner in a forked child; ours are all exec'ed,
and it is closed on exec.  Beside it stands what can be asked without taking anything: a read lock
on the same descriptor, and the file `lock` with an fcntl lock, whose owner F_GETLK names by pid.
The trap of fcntl locks: closing *any* descriptor of the file gives the lock up, so nobody opens it
in the service's own process but this module.  Sockets left behind by a killed service are removed
by the next lock holder and by nobody else.

A directory that is removed, or replaced, under its service is noticed by `ServiceLock.look`, which
makes what is missing anew.  A directory in which another service lives by then is left to it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from pegaflow.client import presence
from pegaflow.client.presence import LOCK, SOCKET_PATH_MAX
from pegaflow.core import filelock
from pegaflow.core.errors import UserError

from .paths import spelled

FRONT_DESK = "pegaflow.sock"
ACTORS = "actors"

# The longest name below the run directory: a five-digit incarnation of the longest actor name.
LONGEST_SOCKET = f"{ACTORS}/allocator.12345.sock"


def resolve(flag: str | None, env: Mapping[str, str], uid: int, temporary: str) -> Path:
    """Where the run directory is; touches nothing.  Relative paths are relative to here.

    Raises:
        UserError: its name cannot be said to everybody (paths.py).
    """
    named = flag or env.get("PEGAFLOW_RUN_DIR")
    runtime = env.get("XDG_RUNTIME_DIR", "")
    if named:
        path = os.path.abspath(named)
    elif os.path.isabs(runtime) and os.path.isdir(runtime):
        # A relative one is to be ignored (XDG), and after `su` it often names a folder that is not
        # there.
        path = os.path.join(runtime, "pegaflow")
    else:
        path = os.path.join(temporary, f"pegaflow-{uid}")
    return Path(spelled(path))


def front_desk(run_dir: Path) -> str:
    """The path of the socket where engines ask for a session."""
    return str(run_dir / FRONT_DESK)


def prepare(run_dir: Path) -> Path:
    """Makes the run directory with its `actors` folder, or refuses it in one line.

    Raises:
        UserError: it is not ours alone, its path is too long, or it cannot be made.
    """
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
    if found.st_uid != os.getuid():
        raise UserError(
            f"{folder} belongs to {presence.user(found.st_uid)}, not to you: choose another "
            "--run-dir"
        )
    why = presence.unfit(str(folder), found)
    if why:
        raise UserError(f"{why}: choose another --run-dir, or chmod it")


class ServiceLock:
    """Held by the one service of a run directory for as long as its process lives."""

    def __init__(self, run_dir: Path, folder: int, fd: int) -> None:
        #: The directory this lock speaks for; it passed `prepare`.
        self.run_dir = run_dir
        #: The directory itself, whatever is at its path by now; what is left is removed through it.
        self.folder = folder
        #: The only descriptor of the lock file in this process; -1 after `release`.
        self._fd = fd

    @classmethod
    def acquire(cls, run_dir: Path) -> Self:
        """Take the lock of a run directory that has passed `prepare`.

        Raises:
            UserError: somebody lives here, who is named, or the directory cannot be locked.
        """
        seen = presence.look(front_desk(run_dir), presence.trusted())
        if seen.lives:
            raise UserError(_already(run_dir, seen.who, seen.condition))
        folder = _lock_folder(run_dir)
        try:
            return cls(run_dir, folder, _lock_file(run_dir))
        except UserError:
            os.close(folder)
            raise

    def look(self) -> str:
        """Why engines cannot find this service any more, in one line; '' if they can.

        A directory or a lock file that is gone is made anew, unless somebody else was faster.
        """
        try:
            if not _is_named(self.folder, self.run_dir):
                self._move()
            elif not _is_folder(self.run_dir / ACTORS):
                prepare(self.run_dir)
            if not _is_named(self._fd, self.run_dir / LOCK):
                fd = _lock_file(self.run_dir)
                os.close(self._fd)
                self._fd = fd
        except (UserError, OSError) as err:
            return str(err)
        return ""

    def _move(self) -> None:
        """Be the service of the directory that is at our path now, or make one."""
        if not self.run_dir.parent.is_dir():
            raise UserError(f"{self.run_dir} was removed, and so was {self.run_dir.parent}")
        prepare(self.run_dir)
        folder = _lock_folder(self.run_dir)
        os.close(self.folder)
        self.folder = folder

    def remove_stale_sockets(self) -> list[str]:
        """Unlinks what a killed service left bound; returns names relative to the directory."""
        assert self._fd >= 0, "only the lock's holder knows that a socket is stale"
        removed = []
        for path in [self.run_dir / FRONT_DESK, *sorted((self.run_dir / ACTORS).glob("*.sock"))]:
            if path.is_socket() and not path.is_symlink():
                path.unlink()
                removed.append(str(path.relative_to(self.run_dir)))
        return removed

    def remove(self, name: str) -> None:
        """Unlinks a name below the directory that is ours, not below another one at its path.  What
        is no file by now, or cannot be removed, stays."""
        with contextlib.suppress(OSError):
            os.unlink(name, dir_fd=self.folder)

    def release(self) -> None:
        """Removes the lock file and gives the lock up; a second call does nothing."""
        if self._fd < 0:
            return
        self.remove(LOCK)
        os.close(self._fd)
        os.close(self.folder)
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


def _lock_folder(run_dir: Path) -> int:
    """A descriptor of the directory that holds its lock."""
    try:
        fd = os.open(run_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(f"cannot use run directory {run_dir}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, filelock.asked(fcntl.F_RDLCK))
    except BlockingIOError as error:
        os.close(fd)
        seen = presence.look(front_desk(run_dir), None)
        raise UserError(_already(run_dir, seen.who or presence.named(0))) from error
    except OSError as error:
        os.close(fd)
        raise UserError(
            f"cannot lock {run_dir}: {error.strerror}; choose a --run-dir on a local file system"
        ) from error
    return fd


def _lock_file(run_dir: Path) -> int:
    """The only descriptor of the lock file, which holds its lock."""
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
            pid = presence.owner_of_lock(fd)
            os.close(fd)
            if pid is None:
                continue  # it went away between the two calls
            raise UserError(_already(run_dir, presence.named(pid))) from error
        if _is_named(fd, path):
            return fd
        os.close(fd)  # its last owner unlinked this file while we were opening it


def _already(run_dir: Path, who: str, condition: str = "") -> str:
    but = f", but {condition}" if condition else ""
    return f"already running, {who} (run directory {run_dir}){but}"


def _open_lock(path: Path, flags: int) -> int:
    return os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _is_named(fd: int, path: Path) -> bool:
    try:
        named = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(os.fstat(fd), named)


def _is_folder(path: Path) -> bool:
    """Whether it is a directory, and no link to one."""
    return path.is_dir() and not path.is_symlink()


def socket_at(path: Path) -> tuple[int, int] | None:
    """Device and inode of the socket at this very path; None if there is none."""
    try:
        found = os.stat(path, follow_symlinks=False)
    except OSError:
        return None
    return (found.st_dev, found.st_ino) if stat.S_ISSOCK(found.st_mode) else None
