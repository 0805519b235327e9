"""A pool in huge pages: where its file lies, and why it always has the pages that it needs.

/dev/shm has no pages that were reserved; hugetlbfs has nothing else.  So with --use-hugepages the
pool's file, and it alone, lies in a mounted hugetlbfs, under the name that it would have in
/dev/shm.  The ledger and everything small stay there.  Whoever has a ledger looks for the pool of
the same number beside it and then in every such mount (poolnames.py); the trailer says whether the
two belong together, as ever.

Whoever touches a page of hugetlbfs that is not in the file while none is free dies of SIGBUS.
Nobody does, for three reasons:

1. The supervisor has the kernel promise all pages of the file before it serves, whether it makes
   the pool or adopts it (`promise`): a shared mapping without MAP_NORESERVE, which is refused with
   ENOMEM at once where too few are free.  The promise is kept with the inode: it outlasts that
   mapping and its process, and ends with the file, or where a hole is made of a page that is there.
2. An extent is given to somebody once fallocate(2) has made it real and cleared it, as in /dev/shm.
   What the promise does not cover (a cgroup's limit, a cpuset) is met there, and is the line
   `pool_short`, not a signal.
3. All other mappings are made with MAP_NORESERVE (memory.py): they count no page again, not even
   those behind the end of a pool that has shrunk, which were given back.

Who is killed leaves this:

* the supervisor, before the promise: a file without pages and a ledger that was never finished; the
  next start removes both;
* after it: the same, with pages promised, which come back when the file is removed;
* the supervisor, while a pool is made to fit: resize.py says it.  A pool that grows is promised its
  pages before anything of it changes, so one for which there are too few stays as it was;
* the allocator, while it grows the pool: an extent that is partly there; the next one completes it.
* everybody: the file, with its pages and its promise, for the next life; `pegaflow purge` and
  --fresh remove it, and give the pages back to the kernel's reserve as soon as nobody has it mapped
  (an engine that is served staged may, until it is served again).

What else is different there.  A file's length and holes are whole pages, so the trailer has a page
of its own; a hole is made of the whole pages within it.  write(2) is refused; read(2) works, of a
hole too; fallocate(2) from Linux 4.3 on.  O_DIRECT and process_vm_readv take this memory like any
other.  mincore(2) tells of the page tables of whoever asks, lseek(2) finds no holes, cachestat(2)
is refused: `there` tells what is in memory from the number of blocks.  mbind(2) does not stay with
the file: see numa.py.  The pages are in no process's resident memory, and in no cgroup's but as
`hugetlb`.  A mount's `size=` is in statfs(2), which says 0 blocks where there is none.
"""

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pegaflow.core.errors import UserError
from pegaflow.wire.units import Constant

from .mounts import plain

MAGIC: Constant = 0x958458F6  # HUGETLBFS_MAGIC of linux/magic.h
_STATFS_BYTES: Constant = 256  # more than struct statfs has anywhere
_BLOCK: Constant = 512  # of st_blocks

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fstatfs.argtypes = [ctypes.c_int, ctypes.c_char_p]
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_int64]
_libc.mmap.restype = ctypes.c_void_p
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_FAILED = ctypes.c_void_p(-1).value  # MAP_FAILED


@dataclass(frozen=True, slots=True)
class HugePages:
    """A mounted hugetlbfs, and the pages of its size that the host has."""

    folder: str
    page_bytes: int
    total: int  # that are reserved in the kernel, for whomever
    free: int
    promised: int  # of the free ones, to files that have not used them yet
    room: int | None = None  # pages that the mount still takes (its option size=); None: all
    writable: bool = True  # we may make files there

    @property
    def available(self) -> int:
        """Pages that a new file can have, as far as is known."""
        free = max(0, self.free - self.promised)
        return free if self.room is None else min(free, self.room)

    @property
    def size(self) -> str:
        """Of a page, as the kernel writes it."""
        return f"{self.page_bytes >> 10} kB"

    def pages(self, length: int) -> int:
        """Of so many bytes."""
        return -(-length // self.page_bytes)

    def reserving(self, count: int) -> str:
        """The command after which so many pages are reserved.

        Args:
            count: all of this size that the host is to have.
        """
        if self.page_bytes == default_bytes():
            return f"sysctl -w vm.nr_hugepages={count}"
        return f"echo {count} > /{_numbers(self.page_bytes)}/nr_hugepages"

    def shortage(self, needed: int) -> str:
        """Why a file does not get its pages, in a line for people, and what to do.

        Args:
            needed: pages, beyond those that it has.
        """
        what = f"the pool needs {needed} huge pages of {self.size} in {self.folder}"
        state = f"{self.total} are reserved and {max(0, self.free - self.promised)} of them free"
        if self.room is not None and self.room < needed:
            return f"{what}, which takes {self.room} more (its mount option size=): remount it"
        if self.available >= needed:
            limit = "a limit of the cgroup (hugetlb.*.rsvd.max) or cpuset is in the way"
            return f"{what}, {state}, but the kernel gives fewer: {limit}"
        more = self.total + needed - self.available
        return f"{what}, {state}: {self.reserving(more)}, or name a smaller --pool-size"


def default_bytes(root: Path = Path("/")) -> int:
    """Of a huge page, where nobody says otherwise; 0 if there are none."""
    with suppress(OSError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "Hugepagesize":
                return int(value.split()[0]) * 1024
    return 0


def folders(root: Path = Path("/")) -> list[str]:
    """Every hugetlbfs that is mounted here, once."""
    found: dict[tuple[int, int], str] = {}
    with suppress(OSError):
        for line in (root / "proc/self/mounts").read_text().splitlines():
            _, where, kind, *_ = line.split()
            with suppress(OSError):
                if kind == "hugetlbfs":
                    there = os.stat(folder := plain(where))
                    found.setdefault((there.st_dev, there.st_ino), folder)
    return list(found.values())


def look(
    root: Path = Path("/"), stat: Callable[[str], os.statvfs_result] = os.statvfs
) -> list[HugePages]:
    """All of them, and what they have.

    Args:
        root: another tree for /proc and /sys, in tests.
        stat: likewise.
    """
    return [place for folder in folders(root) for place in _place(folder, root, stat)]


def _place(
    folder: str, root: Path, stat: Callable[[str], os.statvfs_result]
) -> Iterator[HugePages]:
    with suppress(OSError):
        there = stat(folder)
        size = there.f_bsize
        numbers = root / _numbers(size)
        yield HugePages(
            folder,
            size,
            total=_number(numbers / "nr_hugepages"),
            free=_number(numbers / "free_hugepages"),
            promised=_number(numbers / "resv_hugepages"),
            room=there.f_bavail if there.f_blocks else None,
            writable=os.access(folder, os.W_OK | os.X_OK),
        )


def _numbers(page_bytes: int) -> str:
    """The folder in which the kernel says what it has of pages of a size."""
    return f"sys/kernel/mm/hugepages/hugepages-{page_bytes >> 10}kB"


def _number(path: Path) -> int:
    with suppress(OSError, ValueError):
        return int(path.read_text())
    return 0


def best(places: Sequence[HugePages]) -> HugePages:
    """Where a new pool is to lie: where most of it fits, of all where we may make files.

    Raises:
        UserError: nowhere.
    """
    ours = [place for place in places if place.writable]
    if ours:
        return max(ours, key=lambda place: place.available * place.page_bytes)
    do = f"mount -t hugetlbfs -o uid={os.getuid()},mode=0700 none /mnt/huge (after mkdir)"
    if not places:
        raise UserError(f"--use-hugepages: no hugetlbfs is mounted here: {do}")
    named = ", ".join(place.folder for place in places)
    raise UserError(f"--use-hugepages: we may make no file in {named}: {do}")


def page_of(fd: int) -> int:
    """Bytes of a page of the file system that this file is on: of a huge page in hugetlbfs, else of
    one of the machine."""
    found = ctypes.create_string_buffer(_STATFS_BYTES)
    if _libc.fstatfs(fd, found) == 0:
        kind, size = struct.unpack_from("=qq", found.raw)
        if kind == MAGIC:
            return int(size)
    return mmap.PAGESIZE


def promise(fd: int, path: str, length: int, had: int = 0) -> str:
    """Have the kernel keep the pages of a file for it; of no other file but one in hugetlbfs.

    Not by Python's mmap, which has a descriptor of its own: see locks.py.

    Args:
        length: bytes from the file's beginning.
        had: bytes of these that were promised before, for the line.

    Returns:
        Why not, in a line for people; '' if they are its own now.
    """
    page = page_of(fd)
    if page == mmap.PAGESIZE:
        return ""
    length = whole(fd, length)
    where = _libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
    if where != _FAILED:
        _libc.munmap(where, length)
        return ""
    wrong = ctypes.get_errno()
    if wrong == errno.ENOMEM:
        for place in _place(os.path.dirname(path), Path("/"), os.statvfs):
            return place.shortage(place.pages(length) - place.pages(had))
    return f"cannot map {path}: {os.strerror(wrong)}"


def whole(fd: int, length: int) -> int:
    """The length that a file has to have for so many bytes: of whole pages in hugetlbfs."""
    page = page_of(fd)
    return length if page == mmap.PAGESIZE else -(-length // page) * page


def there(fd: int, length: int) -> int:
    """Of a pool in hugetlbfs, how much is in memory from its beginning on, as far as one can tell.

    Extents become real from the first on, the trailer's page before them all, so the number of
    blocks says it.  In a pool that has shrunk before it was all there, some of that may be a hole
    until the allocator has filled it.

    Args:
        length: of the pool's file, in bytes.
    """
    found = os.fstat(fd)
    blocks = found.st_blocks * _BLOCK
    return length if blocks >= length else max(0, blocks - page_of(fd))
