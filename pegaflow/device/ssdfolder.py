"""One SSD directory: whose it is, who has it, and whether it is still the one that was opened.

Two services must never write, cut, unlink or believe the same file, by whatever names they have
come to it: a path, a symlink, a bind mount, another mount namespace, a hard link, another user's
session.  So every lock is a flock on the inode of what it protects, and the kernel compares:

    the directory    for as long as it is used
    its marker       likewise: it is there even where a file system cannot lock directories, and
                     goes along when somebody links a whole directory file by file
    each segment     from before a byte of it is believed until it is closed (disk.py)

A copy shares no inode with its original; each is a log of its own, and gets a name of its own.

Whose it is, the marker says (core/segments/marker.py).  `Known` remembers which log was at each
path when it was used last, so a directory whose file system is not mounted is found out: it has no
marker and should have one.  Then nothing is written there until the marker is back, or an operator
makes an empty one.  A directory that is used for the first time gets a marker; of a missing path
only the last component is made, and not where a file system should be mounted and is not.

While it is used, `watch` compares where the path leads to with what was locked.  Files are opened,
made and removed below the descriptor that was locked, so what somebody has put in its place is
never written to, not even before that is noticed.
"""

import errno
import json
import os
import re
import stat

from pegaflow.core.segments.marker import (
    MARKER,
    MARKER_BYTES,
    Marker,
    OfLaterFormatError,
    pack,
    unpack,
)
from pegaflow.wire.status import Status
from pegaflow.wire.units import Constant

from .diskops import Ops, said, write_all

NAME = re.compile(r"([0-9a-f]{16})\.segment")
"""What a segment is called."""

STATUS = {
    errno.ENOSPC: Status.NO_SPACE,
    errno.EDQUOT: Status.NO_SPACE,
    errno.EROFS: Status.READ_ONLY,
    errno.EACCES: Status.READ_ONLY,
    errno.EPERM: Status.READ_ONLY,
}
"""What an error that forbids writing means; any other is COPY_FAILED."""

_NEW = f"{MARKER}.new"
_NO_LOCKS = {errno.EBADF, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL}


SEGMENT_FLAGS: Constant = os.O_NOFOLLOW | os.O_NONBLOCK
"""To open what is called a segment: it may be a link to something else, or a pipe."""


class UnusableError(Exception):
    """The directory must not be used now.

    Args:
        status: GONE, IN_USE or READ_ONLY: what the flusher says of the volume.
        why: one line for people.
    """

    def __init__(self, status: Status, why: str) -> None:
        super().__init__(why)
        self.status = status


def lock(ops: Ops, fd: int) -> bool:
    """Lock the inode of this descriptor until it is closed.

    Returns:
        False: somebody else has it.  True also where the file system has no such locks.

    Raises:
        OSError: by the system.
    """
    try:
        ops.lock(fd)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


class Known:
    """Which log was at each path when it was used last.

    Args:
        file: where that is kept for the next life; None: nowhere.
    """

    def __init__(self, file: str | None = None) -> None:
        self._file = file
        self._logs: dict[str, str] = {}
        try:
            with open(file or os.devnull, "rb") as kept:
                found = json.loads(kept.read() or b"{}")
        except (OSError, ValueError, RecursionError):
            return
        if isinstance(found, dict):
            self._logs = {p: log for p, log in found.items() if isinstance(log, str)}

    def get(self, path: str) -> str | None:
        """The log that was there; None: none that we know of."""
        return self._logs.get(path)

    def put(self, path: str, log: str) -> None:
        """Remember that this log is there now; for the next life too, if the file can be written.

        Args:
            path: of the directory.
            log: its name, 32 hex digits.
        """
        if self._logs.get(path) == log:
            return
        self._logs[path] = log
        if self._file is None:
            return
        new = f"{self._file}.new"
        try:
            with open(new, "w", opener=lambda p, f: os.open(p, f | os.O_CLOEXEC, 0o600)) as kept:
                json.dump(self._logs, kept)
            os.replace(new, self._file)
        except OSError:
            pass  # then only this life knows


class Folder:
    """A directory, closed until `open`.

    Args:
        path: the directory; nothing of it is touched before `open`.
        known: judges a directory without a marker.
    """

    def __init__(self, path: str, ops: Ops, known: Known) -> None:
        self.path = path
        self.fd = -1  # of the directory, and its lock
        self._ops = ops
        self._known = known
        self._marker = -1  # of its marker, and the marker's lock; -1: there is none
        self._log = ""  # the name of its log

    def open(self) -> list[str]:
        """Lock it and make sure that it is ours; lines for the log.

        Raises:
            UnusableError: it must not be used now.
            OSError: by the system.
        """
        known = self._known.get(self.path)
        try:
            if known is None:
                self._make()
            data = self.enter()
            notes: list[str] = []
            if self._ops.mode(self.fd) & (stat.S_IWGRP | stat.S_IWOTH):
                notes.append(f"other users may write to {self.path}; chmod 700 it")
            self._log = self._claim(data, known, notes)
            if known is None and self._marker >= 0:
                self._ops.sync_all(self.fd)  # who has written the marker may have died before that
        except (UnusableError, OSError):
            self.close()
            raise
        if self._marker >= 0:
            self._known.put(self.path, self._log)
        return notes

    def enter(self) -> bytes | None:
        """Lock it, and what its marker says; None: there is none.

        Raises:
            UnusableError: another service has it.
            OSError: by the system.
        """
        try:
            self.fd = self._ops.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            if self._known.get(self.path) is None:
                raise
            raise self._absent() from None
        self._lock(self.fd)
        return self._read_marker()

    def close(self) -> None:
        """Give it back."""
        for fd in (self._marker, self.fd):
            if fd >= 0:
                self._ops.close(fd)
        self.fd = self._marker = -1

    def watch(self) -> str:
        """Look whether the path still leads here, and the marker is still there; a line if that was
        mended.

        Raises:
            UnusableError: it is not this directory any more; in the words of the next `open`, which
                tries again, so that one loss is one line.
        """
        ops = self._ops
        try:
            found = ops.find(self.path)
            strayed = found != ops.identity(self.fd) and self._judge_strayed()
        except FileNotFoundError:
            raise self._absent() from None
        except OSError as error:
            raise UnusableError(Status.GONE, said(self.path, error)) from None
        if strayed:
            raise strayed
        if self._marker < 0 or self.leads_to(MARKER, self._marker):
            return ""
        try:
            self._write_marker(self._log)
        except OSError:
            return ""  # what cannot be written here says so by itself
        return f"{self.path}/{MARKER} was removed or replaced, and is written anew"

    def leads_to(self, name: str, fd: int) -> bool:
        """Whether this name here is that file's."""
        try:
            return self._ops.find(name, self.fd) == self._ops.identity(fd)
        except OSError:
            return False

    # opening

    def _make(self) -> None:
        """The last component of the path, if that is all that is missing."""
        try:
            self._ops.find(self.path)
            return
        except FileNotFoundError:
            pass
        parent = os.path.dirname(self.path)
        try:
            self._ops.find(parent)
        except FileNotFoundError:
            why = f"{self.path}: there is no {parent}; mount its file system, or make it"
            raise UnusableError(Status.GONE, why) from None
        self._refuse_unmounted()
        self._ops.make_folder(self.path)
        try:
            above = self._ops.open(parent, os.O_RDONLY | os.O_DIRECTORY)
        except PermissionError:
            return  # then it becomes durable some time later
        try:
            self._ops.sync_all(above)
        finally:
            self._ops.close(above)

    def _refuse_unmounted(self) -> None:
        mount = self._ops.unmounted(self.path)
        if mount:
            why = f"{self.path}: {mount} is not mounted, and /etc/fstab says that it is to be"
            raise UnusableError(Status.GONE, f"{why}; mount it")

    def _judge_strayed(self) -> UnusableError:
        """What is wrong with the directory that the path leads to now."""
        try:
            self._ops.find(os.path.join(self.path, MARKER))
        except FileNotFoundError:
            return self._unmarked()
        why = f"{self.path}: another directory is in the place of the one that was opened"
        return UnusableError(Status.GONE, why)

    def _absent(self) -> UnusableError:
        return self._lost("is not there any more", "make it and ")

    def _unmarked(self) -> UnusableError:
        return self._lost(f"has lost its {MARKER}, so it is another directory now")

    def _lost(self, why: str, first: str = "") -> UnusableError:
        advice = f"mount its file system, or {first}`touch {self.path}/{MARKER}` for a new log"
        return UnusableError(Status.GONE, f"{self.path} {why}; {advice}")

    def _lock(self, fd: int) -> None:
        if not lock(self._ops, fd):
            why = f"{self.path} is in use by another service; give each its own --ssd-cache-path"
            raise UnusableError(Status.IN_USE, why)

    def _claim(self, data: bytes | None, known: str | None, notes: list[str]) -> str:
        """Judge by the marker whose it is, and write one where it has to be; the log's name."""
        try:
            found = unpack(data) if data else None
        except OfLaterFormatError as error:
            why = f"{self.path}/{MARKER} is of format {error}, which this version cannot read"
            raise UnusableError(Status.READ_ONLY, why) from None
        if data is None:
            return self._begin(known, notes)
        if found is None:
            if data:
                notes.append(f"{self.path}/{MARKER} is damaged: it is written anew")
            return self._mark(self._ops.draw(16).hex(), notes)
        here = self._ops.identity(self.fd)
        if here.inode != found.inode:
            notes.append(f"{self.path} is a copy of log {found.log}: it gets a name of its own")
            return self._mark(self._ops.draw(16).hex(), notes)
        if known not in (None, found.log):
            notes.append(f"{self.path} has log {found.log}; before, it had {known}")
        if here.device != found.device:
            of = f"of device number {found.device}; it has {here.device} now"
            notes.append(f"{self.path} was {of}: it has its marker, so it is used")
            return self._mark(found.log, notes)
        return found.log

    def _begin(self, known: str | None, notes: list[str]) -> str:
        """There is no marker: it is new, or from before there were any, or the wrong directory."""
        if known is not None:
            raise self._unmarked()
        if any(map(NAME.fullmatch, self._ops.names(self.fd))):
            notes.append(f"{self.path} has a log from before there were markers: it is ours now")
        else:
            self._refuse_unmounted()
        return self._mark(self._ops.draw(16).hex(), notes)

    def _read_marker(self) -> bytes | None:
        """Open the marker and lock it; what it says, or None if there is none."""
        ops = self._ops
        try:
            self._marker = self._open_marker()
        except FileNotFoundError:
            return None
        self._lock(self._marker)
        space = memoryview(bytearray(MARKER_BYTES))
        return bytes(space[: ops.read(self._marker, [space], 0)])

    def _open_marker(self) -> int:
        """To be locked, for which some file systems want it open for writing."""
        try:
            return self._ops.open(MARKER, os.O_RDWR | SEGMENT_FLAGS, self.fd)
        except OSError as error:
            if error.errno not in STATUS:
                raise
        return self._ops.open(MARKER, os.O_RDONLY | SEGMENT_FLAGS, self.fd)

    def _mark(self, log: str, notes: list[str]) -> str:
        """Write the marker, where that can be done."""
        try:
            self._write_marker(log)
        except OSError as error:
            if error.errno not in STATUS:
                raise
        return log

    def _write_marker(self, log: str) -> None:
        """A new file in the place of the old one, which may have other names elsewhere."""
        ops = self._ops
        try:
            ops.unlink(_NEW, self.fd)
        except FileNotFoundError:
            pass
        fd = ops.open(_NEW, os.O_RDWR | os.O_CREAT | os.O_EXCL, self.fd)
        try:
            lock(ops, fd)
            here = ops.identity(self.fd)
            write_all(ops, fd, [memoryview(pack(Marker(log, *here)))], 0)
            ops.sync_all(fd)
            ops.rename(_NEW, MARKER, self.fd)
            ops.sync_all(self.fd)
        except OSError:
            ops.close(fd)
            raise
        if self._marker >= 0:
            ops.close(self._marker)
        self._marker = fd
