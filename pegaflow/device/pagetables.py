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
        Bytes entered, from `offset` on.

    Raises:
        OSError: the kernel refuses.
    """
    there = file.address + offset
    resident = ctypes.create_string_buffer(length // mmap.PAGESIZE)
    _check(_libc.mincore(there, length, resident))
    absent = resident.raw.find(b"\0")
    entered = length if absent < 0 else absent * mmap.PAGESIZE
    if entered:
        _check(_libc.madvise(there, entered, _POPULATE_READ))
    return entered


def _check(result: int) -> None:
    if result:
        wrong = ctypes.get_errno()
        raise OSError(wrong, os.strerror(wrong))
