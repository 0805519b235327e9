"""The kernel's copy between two processes with nothing around it: the limit of process_vm.

A process beside us has memory of the size of an engine's, touched, and waits; `process_vm_readv`
and `process_vm_writev` move scattered pieces between it and memory of ours that is shared, as the
pool is, by one thread and as many pieces a call as the kernel takes.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt

from pegaflow.core.errors import UserError
from pegaflow.service import signals
from perf.machine import timed

PIECES = 1024  # of one call: the kernel's IOV_MAX

HOLD = """
import ctypes, mmap, sys
held = mmap.mmap(-1, int(sys.argv[1]), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
ctypes.memset(address := ctypes.addressof(ctypes.c_char.from_buffer(held)), 1, len(held))
print(address, flush=True)
sys.stdin.read()
"""

Vectors = npt.NDArray[np.uint64]
"""Rows of address and length."""


class Across:
    """Pieces here and in the other process."""

    def __init__(self, pid: int, start: int, piece: int, count: int) -> None:
        self._pid = pid
        self._file = np.frombuffer(mmap.mmap(-1, piece * count), np.uint8)
        self._file[:] = 1
        self._here = vectors(self._file.ctypes.data, piece, count)
        self._there = vectors(start, piece, count)
        libc = ctypes.CDLL(None, use_errno=True)
        self._read, self._write = libc.process_vm_readv, libc.process_vm_writev
        for call in (self._read, self._write):
            address, number = ctypes.c_void_p, ctypes.c_ulong
            call.argtypes = [ctypes.c_int, address, number, address, number, number]
            call.restype = ctypes.c_ssize_t

    def out(self) -> float:
        """Seconds to read all of it, as a save does."""
        return timed(lambda: self._move(self._read))[0]

    def back(self) -> float:
        """Seconds to write it, as a load does."""
        return timed(lambda: self._move(self._write))[0]

    def _move(self, call: ctypes._NamedFuncPointer) -> None:
        for first in range(0, len(self._here), PIECES):
            here, there = (rows[first : first + PIECES] for rows in (self._here, self._there))
            wanted = int(here[:, 1].sum())
            pair = (here.ctypes.data, len(here), there.ctypes.data, len(there))
            if call(self._pid, *pair, 0) != wanted:
                raise UserError(f"process_vm: {os.strerror(ctypes.get_errno())}")


def vectors(address: int, piece: int, count: int) -> Vectors:
    """So many pieces, one behind the other."""
    found = np.full((count, 2), piece, np.uint64)
    found[:, 0] = address + np.arange(count, dtype=np.uint64) * np.uint64(piece)
    return found


@contextmanager
def across(piece: int, count: int) -> Iterator[Across]:
    """Start the other process."""
    process: subprocess.Popen[str] | None = None
    try:
        with signals.held():
            process = subprocess.Popen(
                [sys.executable, "-c", HOLD, str(piece * count)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        assert process.stdout is not None
        yield Across(process.pid, int(process.stdout.readline()), piece, count)
    finally:
        if process is not None:
            process.kill()
            process.communicate()
