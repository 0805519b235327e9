"""Pages of a shared file in the page tables of this process, before anybody needs them there.

Whoever touches a page of a mapping for the first time is interrupted: the kernel looks the page up
and enters it into the page tables of the process.  `enter` has that done in advance, for pages that
are in memory already: it makes none real.  Which are, mincore(2) says (of shared memory: which hold
data); MADV_POPULATE_READ then enters many at once, for writing too, since nobody keeps account of
who has written to shared memory.  Kernels before 5.14 refuse with EINVAL; the first touch enters a
page then, as it always did.
"""

import ctypes
import mmap
import os

from . import hugepages
from .memory import SharedFile

_POPULATE_READ = 22  # MADV_POPULATE_READ
_libc = ctypes.CDLL(None, use_errno=True)
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def enter(file: SharedFile, offset: int, length: int) -> int:
    """Enter pages into the page tables, up to the first that is not in memory.

    Args:
        file: mapped for writing.
        offset: byte at which the first page begins.
        length: bytes, whole pages.

    Returns:
        Bytes entered, from `offset` on.  In hugetlbfs a hole may be made real by it, where nobody
        can tell (hugepages.py): it takes a page that the file was promised.

    Raises:
        OSError: the kernel refuses.
    """
    entered = _there(file, offset, length)
    if entered:
        _check(_libc.madvise(file.address + offset, entered, _POPULATE_READ))
    return entered


def _there(file: SharedFile, offset: int, length: int) -> int:
    """How much of these pages is in memory before the first that is not."""
    if file.huge:
        return max(0, min(length, hugepages.there(file.fd, file.length) - offset))
    resident = ctypes.create_string_buffer(length // mmap.PAGESIZE)
    _check(_libc.mincore(file.address + offset, length, resident))
    absent = resident.raw.find(b"\0")
    return length if absent < 0 else absent * mmap.PAGESIZE


def _check(result: int) -> None:
    if result:
        wrong = ctypes.get_errno()
        raise OSError(wrong, os.strerror(wrong))
