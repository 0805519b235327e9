"""Shared memory files: pool, ledger and bounce files.

Plain files in /dev/shm and mmap; never multiprocessing.shared_memory, whose resource tracker
unlinks what another process still uses.  A file gets its full length at once (sparse) and is never
truncated after that; space becomes real by posix_fallocate, extent by extent, and nobody touches an
extent before that: touching a hole of a full tmpfs is a SIGBUS.
"""

import ctypes
import errno
import mmap
import os
import stat
from pathlib import Path

from pegaflow.cache.geometry import Geometry
from pegaflow.cache.ledger import HEADER_BYTES, RECORD_BYTES
from pegaflow.errors import UserError


class SharedFile:
    """A file of fixed length, mapped whole and shared."""

    def __init__(self, path: str, length: int, fd: int, write: bool) -> None:
        self.path = path
        self.length = length  # bytes; constant
        self._fd = fd
        access = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
        self.map = mmap.mmap(fd, length, mmap.MAP_SHARED, access)

    @classmethod
    def create(cls, path: str, length: int) -> "SharedFile":
        """A new file of this length, private to the user; its space is not there yet.

        Raises:
            UserError: the file cannot be made.
        """
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as err:
            raise UserError(f"cannot create {path}: {err.strerror}") from None
        try:
            os.ftruncate(fd, length)
        except OSError as err:
            os.close(fd)
            os.unlink(path)
            raise UserError(f"cannot make {path} {length} bytes long: {err.strerror}") from None
        return cls(path, length, fd, write=True)

    @classmethod
    def open(cls, path: str, write: bool) -> "SharedFile":
        """An existing file."""
        fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC)
        return cls(path, os.fstat(fd).st_size, fd, write)

    @classmethod
    def adopt(cls, path: str) -> "SharedFile":
        """A file that an earlier life has left, for writing.

        Raises:
            OSError: it cannot be opened, or is a link.
            UserError: it is not a regular file that only we may touch.
        """
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        found = os.fstat(fd)
        ours = found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) == 0o600
        if not (stat.S_ISREG(found.st_mode) and ours and found.st_nlink == 1 and found.st_size):
            os.close(fd)
            raise UserError(f"{path} is not a regular file of ours with mode 0600")
        return cls(path, found.st_size, fd, write=True)

    def read(self, offset: int, length: int) -> bytes:
        """These bytes, without making a hole of the file real."""
        return os.pread(self._fd, length, offset)

    def close(self) -> None:
        """Give the descriptor back, and our part in the mapping: it ends with its last user."""
        os.close(self._fd)
        del self.map

    @property
    def address(self) -> int:
        """Where the file is mapped (writable mappings only)."""
        return ctypes.addressof(ctypes.c_char.from_buffer(self.map))

    def reserve(self, offset: int, length: int) -> str:
        """Make this range really there; '' or the reason why not."""
        try:
            os.posix_fallocate(self._fd, offset, length)
        except OSError as err:
            return os.strerror(err.errno or errno.EIO)
        return ""

    def unlink(self) -> None:
        """Remove the name; mappings live on."""
        Path(self.path).unlink(missing_ok=True)


class Extents:
    """Makes the extents of a pool, and their part of the ledger, really there."""

    def __init__(self, pool: SharedFile, ledger: SharedFile, geometry: Geometry) -> None:
        self._pool = pool
        self._ledger = ledger
        self._geometry = geometry

    def grow(self, extent: int) -> str:
        """Reserve the space of one extent; '' or the reason why not."""
        g = self._geometry
        records = g.records_per_extent * RECORD_BYTES
        return self._ledger.reserve(HEADER_BYTES + extent * records, records) or self._pool.reserve(
            extent * g.extent_bytes, g.extent_bytes
        )
