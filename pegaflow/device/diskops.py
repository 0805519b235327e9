"""What the SSD tier asks of the operating system, in one place, so that tests can have it fail.

A file of a directory is named by that directory's descriptor (`at`) and never by a path, so that
what is opened, made or removed is in the directory that was locked, whatever its path leads to by
now.
"""

import errno
import fcntl
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from pegaflow.core.limits import IOV_MAX

from .mounts import missing_mount

_Mover = Callable[[Sequence[memoryview], int], int]  # some of the parts, at an offset

ADVICE = {
    errno.ENOSPC: "free some space, or set --ssd-cache-capacity",
    errno.EDQUOT: "raise the quota, or set --ssd-cache-capacity",
    errno.EROFS: "mount it for writing",
    errno.EACCES: "give the service's user the right to write there",
    errno.EPERM: "give the service's user the right to write there",
    errno.EIO: "look into the kernel's log: the disk may be failing",
    errno.ENOENT: "make or mount the directory",
    errno.ENOTDIR: "name a directory with --ssd-cache-path",
}
"""What to do about an error."""


class Identity(NamedTuple):
    """What tells one directory or file from every other one of this host."""

    device: int
    inode: int


class Ops:
    """The calls.  Every one raises OSError as the system does."""

    def open(self, path: str, flags: int, at: int | None = None) -> int:
        """A file descriptor.

        Args:
            flags: os.O_*; O_CLOEXEC is added, and a new file has mode 0600.
            at: descriptor of the directory that `path` is a name in; None: it is a path.
        """
        return os.open(path, flags | os.O_CLOEXEC, 0o600, dir_fd=at)

    def close(self, fd: int) -> None:
        """Give it back."""
        os.close(fd)

    def make_folder(self, path: str) -> None:
        """The directory, unless it is there, and nothing above it."""
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass

    def lock(self, fd: int) -> None:
        """Lock what `fd` leads to, by whatever name, for as long as it is open; BlockingIOError if
        somebody else has."""
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def mode(self, fd: int) -> int:
        """What it is, and who may do what with it."""
        return os.fstat(fd).st_mode

    def links(self, fd: int) -> int:
        """Names of a file; 0: somebody has removed it."""
        return os.fstat(fd).st_nlink

    def identity(self, fd: int) -> Identity:
        """Which directory or file it is."""
        found = os.fstat(fd)
        return Identity(found.st_dev, found.st_ino)

    def find(self, path: str, at: int | None = None) -> Identity:
        """Where a path leads to now; of a name in a directory (`at`), without following a link."""
        found = os.stat(path, dir_fd=at, follow_symlinks=at is None)
        return Identity(found.st_dev, found.st_ino)

    def names(self, fd: int) -> list[str]:
        """What is in a directory."""
        return os.listdir(fd)

    def space(self, fd: int) -> tuple[int, int]:
        """Bytes that are free in the file system (for us), and all of them."""
        found = os.fstatvfs(fd)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def size(self, fd: int) -> int:
        """Bytes of a file."""
        return os.fstat(fd).st_size

    def read(self, fd: int, into: Sequence[memoryview], offset: int) -> int:
        """Read from byte `offset` on.

        Args:
            into: filled one after the other.

        Returns:
            Bytes that were read: fewer than there is room for at the end of the file, or for no
            reason.
        """
        return os.preadv(fd, into, offset)

    def write(self, fd: int, parts: Sequence[memoryview], offset: int) -> int:
        """Write from byte `offset` on.

        Args:
            parts: written one after the other.

        Returns:
            Bytes that were written, perhaps fewer.
        """
        return os.pwritev(fd, parts, offset)

    def allocate(self, fd: int, size: int) -> None:
        """Make so many bytes of a new file really there."""
        os.posix_fallocate(fd, 0, size)

    def cut(self, fd: int, size: int) -> None:
        """Cut a file behind so many bytes."""
        os.ftruncate(fd, size)

    def sync(self, fd: int) -> None:
        """What was written is durable."""
        os.fdatasync(fd)

    def sync_all(self, fd: int) -> None:
        """Also length and name of a file, or the names in a directory."""
        os.fsync(fd)

    def unlink(self, name: str, at: int) -> None:
        """Remove a file."""
        os.unlink(name, dir_fd=at)

    def rename(self, name: str, to: str, at: int) -> None:
        """Give a file another name in its directory.

        Args:
            to: the new name; a file that has it loses it.
            at: the directory's descriptor.
        """
        os.rename(name, to, src_dir_fd=at, dst_dir_fd=at)

    def draw(self, size: int) -> bytes:
        """Random bytes that nobody can guess."""
        return os.urandom(size)

    def unmounted(self, path: str) -> str:
        """A mount point at or above this path that should have a file system and has none, or ''"""
        fstab, mountinfo = _text("/etc/fstab"), _text("/proc/self/mountinfo")
        return missing_mount(os.path.realpath(path), fstab, mountinfo)


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="surrogateescape")
    except OSError:
        return ""


def buffer(size: int) -> mmap.mmap:
    """Memory that begins at a page, as O_DIRECT wants it."""
    return mmap.mmap(-1, max(size, mmap.PAGESIZE), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def read_all(ops: Ops, fd: int, into: Sequence[memoryview], offset: int) -> int:
    """Read until all is full or the file ends.

    Args:
        into: any number of pieces, beyond IOV_MAX too.
        offset: byte of the file at which the first piece begins.

    Returns:
        Bytes that were read.
    """
    return _move(into, offset, lambda parts, at: ops.read(fd, parts, at))


def write_all(ops: Ops, fd: int, parts: Sequence[memoryview], offset: int) -> None:
    """Write all of it.

    Raises:
        OSError: by the system, or EIO if it stops taking bytes.
    """
    total = sum(len(part) for part in parts)
    if _move(parts, offset, lambda some, at: ops.write(fd, some, at)) != total:
        raise OSError(errno.EIO, "fewer bytes were written than were given")


def _move(parts: Sequence[memoryview], offset: int, move: _Mover) -> int:
    left = list(parts)
    done = 0
    while left:
        moved = move(left[:IOV_MAX], offset + done)
        if moved <= 0:
            break
        done += moved
        at = 0
        while at < len(left) and moved >= len(left[at]):
            moved -= len(left[at])
            at += 1
        left = left[at:]
        if moved:
            left[0] = left[0][moved:]
    return done


def said(path: str, error: OSError) -> str:
    """An error in one line for people, with what to do about it."""
    why = error.strerror or str(error)
    advice = ADVICE.get(error.errno or 0, "")
    return f"{path}: {why[:1].lower()}{why[1:]}{'; ' + advice if advice else ''}"
