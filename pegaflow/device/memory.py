"""Shared memory files: pool, ledger and bounce files.

Plain files in /dev/shm and mmap; never multiprocessing.shared_memory, whose resource tracker
unlinks what another process still uses.  A file gets its full length at once (sparse) and is never
truncated after that; space becomes real by posix_fallocate, extent by extent, and nobody touches an
extent before that: touching a hole of a full tmpfs is a SIGBUS.

Space that is only reserved is not cleared yet: the kernel does that page by page when somebody
touches it first, and a save would pay for it.  When tmpfs is asked to reserve again what it has
reserved, it clears what holds no data yet and leaves the rest alone.  So space is reserved twice,
before anybody is given a page of it.  That takes no mapping, so neither page tables nor faults, and
no memory, so it cannot fail for want of any.  Who is killed in between leaves space that the next
one clears, when he reserves it, or that the first touch does.

The pool may lie in hugetlbfs instead: hugepages.py says what is different then.  Every mapping is
made with MAP_NORESERVE, which means nothing in /dev/shm.

A name in /dev/shm proves nothing: it can be removed, and another file can take it.  So a file is
known by its device and inode (`SharedFile.id`).  A process that is told both opens the name,
compares, and where the name is gone or another file's it opens the very file through the descriptor
that its parent still has.  Whoever writes holds a lock on the inode from before the mapping on
(locks.py).
"""

import ctypes
import errno
import mmap
import os
import stat
from pathlib import Path

from pegaflow.core.errors import UserError
from pegaflow.core.limits import KILL_SECONDS
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.ledger import HEADER_BYTES, RECORD_BYTES
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.layout import MAP_NORESERVE

from . import hugepages, locks

FileId = tuple[int, int]
"""Device and inode: which file it is, whatever it is called."""


class SharedFile:
    """A file of fixed length, mapped whole and shared: see `create`, `open`, `adopt` and `peek`.

    Args:
        length: bytes.
        fd: the only descriptor of the file in this process; owned from now on.
        write: map it for writing too.
    """

    def __init__(self, path: str, length: int, fd: int, write: bool) -> None:
        self.path = path
        self.length = length  # bytes; constant
        self.fd = fd  # the only one of this file in this process: see locks.py
        self.id = _id(os.fstat(fd))
        self.page_bytes = hugepages.page_of(fd)
        self.orphans: list[int] = []  # pids that were killed when it was adopted
        self.map = _mapped(fd, length, write=write)
        self._shorter: list[mmap.mmap] = []  # earlier mappings: see `lengthen`

    @classmethod
    def create(cls, path: str, length: int) -> "SharedFile":
        """A new file of this length, private to the user; its space is not there yet.

        Args:
            length: bytes; made whole pages in hugetlbfs.

        Raises:
            FileExistsError: the name is taken.
            UserError: the file cannot be made.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise
        except OSError as err:
            raise UserError(f"cannot create {path}: {err.strerror}") from None
        length = hugepages.whole(fd, length)
        try:
            os.ftruncate(fd, length)
        except OSError as err:
            os.close(fd)
            os.unlink(path)
            raise UserError(f"cannot make {path} {length} bytes long: {err.strerror}") from None
        return cls(path, length, fd, write=True)

    @classmethod
    def open(
        cls, path: str, known: FileId, service: Incarnation, *, write: bool = True
    ) -> "SharedFile":
        """A file of the service whose child we are, locked as by a writer: whoever only reads is to
        end, too, before another service adopts it.

        Args:
            known: which file it has to be.
            service: the supervisor's incarnation.
            write: map it for writing too.

        Raises:
            OSError: it cannot be opened.
            UserError: another service has it.
        """
        fd = _open_known(path, known)
        try:
            locks.hold(fd, service)
        except locks.InUse as err:
            os.close(fd)
            raise UserError(f"{path} is in use by another service ({err})") from None
        return cls(path, os.fstat(fd).st_size, fd, write=write)

    @classmethod
    def adopt(
        cls, path: str, patience: float = KILL_SECONDS, say: locks.Say = bool
    ) -> "SharedFile":
        """A file that an earlier life has left, claimed for writing.

        Args:
            patience: with an orphan, in seconds.
            say: told of an orphan that takes long to die.

        Raises:
            OSError: it cannot be opened, or is a link.
            InUse: a service lives in it.
            UserError: it is not a regular file that only we may touch, or an orphan holds it.
        """
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            found = os.fstat(fd)
            ours = found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == 0o600
            if not (stat.S_ISREG(found.st_mode) and ours and found.st_nlink == 1 and found.st_size):
                raise UserError(f"{path} is not a regular file of ours with mode 0600 and one name")
            orphans = locks.claim(fd, patience, say)
            if not _names(path, _id(found)):
                raise UserError(f"{path} was removed meanwhile")
        except (OSError, UserError, locks.InUse):
            os.close(fd)
            raise
        file = cls(path, found.st_size, fd, write=True)
        file.orphans = orphans
        return file

    @classmethod
    def peek(cls, path: str) -> "SharedFile":
        """A file of ours to look at; nothing that is read here may be relied upon.

        Raises:
            OSError: it cannot be opened, or is a link.
            UserError: it is no regular file, or empty.
        """
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        found = os.fstat(fd)
        if not (stat.S_ISREG(found.st_mode) and found.st_size):
            os.close(fd)
            raise UserError(f"{path} is not a regular file")
        return cls(path, found.st_size, fd, write=False)

    def read(self, offset: int, length: int) -> bytes:
        """These bytes, without making a hole of the file real."""
        return os.pread(self.fd, length, offset)

    def close(self) -> None:
        """Give the descriptor back, and our part in the mapping: it ends with its last user."""
        os.close(self.fd)
        del self.map, self._shorter

    @property
    def address(self) -> int:
        """Where the file is mapped (writable mappings only)."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def reserve(self, offset: int, length: int) -> str:
        """Make a range of the file really there, and cleared where it holds nothing yet.

        Args:
            offset: byte at which it begins.
            length: bytes.

        Returns:
            Why not, in a few words; '' if it is there.
        """
        try:
            os.posix_fallocate(self.fd, offset, length)
            os.posix_fallocate(self.fd, offset, length)
        except OSError as err:
            return os.strerror(err.errno or errno.EIO)
        return ""

    def lengthen(self, length: int) -> None:
        """Have at least this length; only before anything refers to the mapping.

        The mapping so far is kept: it has a descriptor of its own, and to close this descriptor
        would give up the locks of the file.

        Raises:
            OSError: the file cannot be so long.
        """
        length = hugepages.whole(self.fd, length)
        if length > self.length:
            os.ftruncate(self.fd, length)
            self._shorter.append(self.map)
            self.length = length
            self.map = _mapped(self.fd, length)

    def promise(self, length: int, had: int = 0) -> str:
        """Have the kernel keep huge pages for so much of the file; see hugepages.py."""
        return hugepages.promise(self.fd, self.path, length, had)

    @property
    def huge(self) -> bool:
        """Whether it is made of huge pages that were reserved."""
        return self.page_bytes != mmap.PAGESIZE

    def named(self) -> bool:
        """Whether the name is still this file's."""
        return _names(self.path, self.id)

    def unlink(self) -> None:
        """Remove the name, if it is still this file's; mappings live on."""
        if self.named():
            Path(self.path).unlink(missing_ok=True)


def _mapped(fd: int, length: int, *, write: bool = True) -> mmap.mmap:
    access = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
    return mmap.mmap(fd, length, mmap.MAP_SHARED | MAP_NORESERVE, access)


def _id(found: os.stat_result) -> FileId:
    return found.st_dev, found.st_ino


def _names(path: str, known: FileId) -> bool:
    try:
        return _id(os.stat(path, follow_symlinks=False)) == known
    except OSError:
        return False


def _open_known(path: str, known: FileId) -> int:
    """The file with this identity: by its name, else by a descriptor that our parent has."""
    if _names(path, known):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        if _id(os.fstat(fd)) == known:
            return fd
        os.close(fd)
    for link in Path(f"/proc/{os.getppid()}/fd").iterdir():
        try:
            if _id(link.stat()) == known:
                return os.open(link, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # closed meanwhile
    raise OSError(errno.ESTALE, "it was removed or replaced", path)


class Extents:
    """Makes the extents of a pool, and their part of the ledger, really there."""

    def __init__(self, pool: SharedFile, ledger: SharedFile, geometry: Geometry) -> None:
        self._pool = pool
        self._ledger = ledger
        self._geometry = geometry

    def grow(self, extent: int) -> str:
        """Reserve the space of one extent and of its records, so that no first touch is left.

        Returns:
            Why not, in a few words; '' if it is there.
        """
        g = self._geometry
        records = g.records_per_extent * RECORD_BYTES
        return self._ledger.reserve(HEADER_BYTES + extent * records, records) or self._pool.reserve(
            extent * g.extent_bytes, g.extent_bytes
        )
