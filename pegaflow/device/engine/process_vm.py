"""An engine's memory, read and written from the session's process by process_vm_readv/writev.

A layout becomes a table of runs (address of block 0, stride from block to block, length), so that
the pieces of any list of blocks, and the iovecs of all calls, are a few numpy operations: what they
take is taken from all threads, for it holds the interpreter lock.  Copies go in chunks of at most
CHUNK_BYTES and IOV_MAX pieces; before each one the pidfd of the engine's process is polled, so that
no byte moves to or from a stranger who got the pid of a dead engine, and the deadline is looked at.
The kernel counts bytes: a short count (a hole, a cut file, a process that is ending) is a failure.
"""

import ctypes
import os
import select
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pegaflow.core.errors import UserError
from pegaflow.core.limits import IOV_MAX
from pegaflow.device.procs import open_pidfd
from pegaflow.wire.layout import Layout
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Constant

CHUNK_BYTES: Bytes = 4 << 20
"""Bytes of one call, about a millisecond: the longest copy that goes on after a death."""

IOVEC_BYTES: Constant = 16
"""Of a struct iovec: address and length."""

_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("process_vm_readv", "process_vm_writev"):
    _call = getattr(_libc, _name)
    _call.restype = ctypes.c_ssize_t
    _call.argtypes = [ctypes.c_int, *[ctypes.c_void_p, ctypes.c_ulong] * 2, ctypes.c_ulong]

Words = npt.NDArray[np.uint64]


class ForeignMemory:
    """The registered regions of one rank.

    Args:
        pid: of the engine's process.
        started_ticks: as `procs.start_ticks` has it: with the pid it names one process.
        bases: address of each registered region in that process.
        layout: where the blocks lie in the regions.
        scratch: an address in that process at which `proof` is to be read.
        proof: bytes that the engine has written there at our word.

    Raises:
        UserError: the process is not there, is not the one that was named, or may not be read.
    """

    def __init__(
        self,
        *,
        pid: int,
        started_ticks: int,
        bases: tuple[int, ...],
        layout: Layout,
        scratch: int,
        proof: bytes,
    ) -> None:
        fd = open_pidfd(pid, started_ticks)
        if fd is None:
            raise UserError(f"process {pid} is not to be seen from the session")
        self.pid = pid
        self._pidfd = fd
        self.closed = False  # set once, by any thread: copies stop at their next chunk
        layers = layout.layers
        runs = [
            (bases[la.region] + la.offset + s * la.segment_stride, la.block_stride)
            for la in layers
            for s in range(la.segments)
        ]
        self._starts = np.array([start for start, _ in runs], dtype=np.uint64)
        self._strides = np.array([stride for _, stride in runs], dtype=np.uint64)
        lengths = [la.segment_bytes for la in layers for _ in range(la.segments)]
        self._lengths = np.array(lengths, dtype=np.uint64)
        ends = np.cumsum(self._lengths)
        self._places = ends - self._lengths  # of each run in the page
        self.payload_bytes = int(ends[-1])
        self._prove(scratch, proof)

    def __del__(self) -> None:
        if hasattr(self, "_pidfd"):
            os.close(self._pidfd)

    def _prove(self, scratch: int, proof: bytes) -> None:
        got = np.zeros(len(proof), dtype=np.uint8)
        here = np.array([[got.ctypes.data, len(proof)]], dtype=np.uint64)
        there = np.array([[scratch, len(proof)]], dtype=np.uint64)
        moved = _libc.process_vm_readv(self.pid, here.ctypes.data, 1, there.ctypes.data, 1, 0)
        if moved != len(proof):
            why = _short(moved, len(proof))
            raise UserError(f"cannot read the engine's memory (process {self.pid}): {why}")
        if got.tobytes() != proof:
            raise UserError(f"process {self.pid} is not the engine's: another pid namespace?")

    def read(self, pool: int, blocks: Words, offsets: Words, deadline: int) -> tuple[Status, str]:
        """Copy blocks of the engine into the pool.

        Args:
            pool: address at which the pool is mapped here.
            blocks: the engine's numbers.
            offsets: byte of the pool at which the page of each block begins.
            deadline: CLOCK_MONOTONIC, in nanoseconds; looked at before each chunk.

        Returns:
            OK, or what stopped the copy, of which a part may be done; and why, for a log.
        """
        return self._copy(_libc.process_vm_readv, pool, blocks, offsets, deadline=deadline)

    def write(self, pool: int, blocks: Words, offsets: Words, deadline: int) -> tuple[Status, str]:
        """Copy pages of the pool into blocks of the engine; arguments and result are those of
        `read`.
        """
        return self._copy(_libc.process_vm_writev, pool, blocks, offsets, deadline=deadline)

    def _copy(
        self,
        call: "ctypes._NamedFuncPointer",
        pool: int,
        blocks: Words,
        offsets: Words,
        *,
        deadline: int,
    ) -> tuple[Status, str]:
        ids = np.asarray(blocks, np.uint64)[:, None]
        pages = np.asarray(offsets, np.uint64)[:, None] + np.uint64(pool)
        lengths = np.tile(self._lengths, len(blocks))
        ends = np.cumsum(lengths)
        edges = _calls(ends)
        here = _vector((pages + self._places).ravel(), lengths, edges)
        there = _vector((self._starts + ids * self._strides).ravel(), lengths, edges)
        dead = select.poll()  # one per thread: a poll object serves one caller at a time
        dead.register(self._pidfd, select.POLLIN)
        done = 0
        for number, last in enumerate(edges[1:]):
            if self.closed or dead.poll(0):
                return Status.COPY_FAILED, "the engine has gone"
            if time.monotonic_ns() >= deadline:
                return Status.EXPIRED, "the deadline has passed"
            got = call(self.pid, *here.of(number), *there.of(number), 0)
            wanted, done = int(ends[last - 1]) - done, int(ends[last - 1])
            if got != wanted:
                return Status.COPY_FAILED, _short(got, wanted)
        return Status.OK, ""


class _Vector(NamedTuple):
    """The iovecs of all calls."""

    pairs: Words  # (address, length) each
    address: int  # of `pairs`
    cuts: list[int]  # first one of each call, and how many there are

    def of(self, call: int) -> tuple[int, int]:
        """Address and number of those of one call."""
        first, last = self.cuts[call : call + 2]
        return self.address + first * IOVEC_BYTES, last - first


def _calls(ends: Words) -> list[int]:
    """First piece of each call, and how many pieces there are; a piece larger than a chunk goes
    alone.

    Args:
        ends: bytes of all pieces up to each.
    """
    edges = [0]
    while edges[-1] < len(ends):
        first = edges[-1]
        most = (int(ends[first - 1]) if first else 0) + CHUNK_BYTES
        last = int(ends.searchsorted(np.uint64(most), side="right"))
        edges.append(min(max(last, first + 1), first + IOV_MAX))
    return edges


def _vector(starts: Words, lengths: Words, edges: list[int]) -> _Vector:
    """Pieces as iovecs, those of one call that touch made one.

    Args:
        starts: addresses.
        edges: of the calls, as `_calls` has them.
    """
    begins = np.ones(len(starts), np.bool_)
    np.not_equal(starts[1:], starts[:-1] + lengths[:-1], out=begins[1:])
    begins[edges[:-1]] = True
    firsts = np.flatnonzero(begins)
    pairs = np.empty((len(firsts), 2), np.uint64)
    pairs[:, 0] = starts[firsts]
    pairs[:, 1] = np.add.reduceat(lengths, firsts)
    return _Vector(pairs, pairs.ctypes.data, firsts.searchsorted(edges).tolist())


def _short(got: int, wanted: int) -> str:
    """Why a call has not moved what it should."""
    return os.strerror(ctypes.get_errno()) if got < 0 else f"{got} of {wanted} bytes"
