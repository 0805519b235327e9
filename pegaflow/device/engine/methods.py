"""The methods by which a device moves pieces of blocks, and which piece is moved by which.

    loop      an asynchronous copy for each row of a piece
    strided   one for each piece: cudaMemcpy2DAsync, which takes rows at equal distances
    kernel    a launch for all pieces of many blocks (kernel.py)

The first two are done by the device's copy engines, which take nothing from the engine's kernels.
What a copy costs is the call, whatever its length, so short pieces leave the bus idle.  Rows of one
copy may lie PITCH_MAX apart: layers or segments 2 GiB apart or more, of one allocation, are copied
row by row, as `loop` does.  To the kernel no distance is too long.

`plan` says which pieces of a layout go by which: by their length, as TABLE has it, or, for a rank
that wishes so (Backend, wire/gpu.py), all by copies or all by the kernel.

Layouts that nest twice could be copied by cudaMemcpy3DAsync; vLLM's do not nest so (strides.py).
"""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Protocol

import numpy as np

from pegaflow.wire.gpu import Backend
from pegaflow.wire.units import Bytes, Count

from . import cuda, kernel
from .cuda import Runtime
from .ring import Ring, pinned_ring
from .strides import Placed

DESCRIPTOR_BYTES: Bytes = 1 << 20
"""Of what launches that have not ended were told, in each lane: a launch has 4 KiB for 256 blocks,
and 4 KiB for 64 pieces; the most layers that a layout can have take a quarter of it."""


PITCH_MAX: Bytes = (1 << 31) - 1
"""Farthest that rows of one copy may lie apart: cudaDeviceProp.memPitch of all devices in use."""


PIECES_MAX: Count = 8192
"""Of a layout that the kernel moves: what it is told of them is half of that."""


class Name(enum.StrEnum):
    """Of a method."""

    LOOP = "loop"
    STRIDED = "strided"
    KERNEL = "kernel"


@dataclass(frozen=True, slots=True)
class Choice:
    """The method for pieces whose rows have at least so many bytes."""

    width: Bytes
    method: Name
    why: str


TABLE = (
    Choice(
        0,
        Name.KERNEL,
        "An estimate, to be measured: the original moved pieces of 4 KiB at 1.5 GB/s by copies and"
        " at 11 to 23 by its kernel (its pull request 310), so a call takes 2.7 us and copies of"
        " less than 32 KiB stay below 12 GB/s.",
    ),
    Choice(
        32 << 10,
        Name.STRIDED,
        "An estimate, to be measured: two rows or more a call are 24 GB/s and more by the same"
        " figure, and the original's kernel made the slowest decode steps half as long again (its"
        " issue 408).",
    ),
    Choice(
        1 << 20,
        Name.LOOP,
        "An estimate, to be measured: a call takes less than a tenth of the time in which the bus"
        " moves a MiB, and a copy engine is at its best with what is in one piece.",
    ),
)
"""What Backend.AUTO chooses, by ascending width."""

Plan = tuple[tuple[Name, tuple[Placed, ...]], ...]
"""The pieces of a layout by the method that moves them."""


class Method(Protocol):
    """A way to have the lane's device move pieces."""

    def move(
        self, pieces: Sequence[Placed], blocks: Sequence[int], pages: Sequence[int]
    ) -> Callable[[], None] | None:
        """Move these pieces of blocks, some time, in the order of the lane's stream.

        Args:
            blocks: the engine's numbers.
            pages: address of each one's page, which the device reads and writes by itself, unless
                the method is one of copies.

        Returns:
            What is to be called once the device has done it, oldest first.
        """


def plan(pieces: Sequence[Placed], backend: Backend, *, with_kernel: bool) -> Plan:
    """Which pieces are moved by which method, in the order of the page.

    Args:
        with_kernel: whether there is one.
    """
    found: dict[Name, list[Placed]] = {}
    with_kernel = with_kernel and len(pieces) <= PIECES_MAX
    for piece in pieces:
        found.setdefault(_method(piece[1].width, backend, with_kernel), []).append(piece)
    return tuple((name, tuple(mine)) for name, mine in found.items())


def _method(width: int, backend: Backend, with_kernel: bool) -> Name:
    if backend is Backend.KERNEL and with_kernel:
        return Name.KERNEL
    chosen = next(one.method for one in reversed(TABLE) if width >= one.width)
    copied = backend is not Backend.AUTO or not with_kernel
    return Name.STRIDED if copied and chosen is Name.KERNEL else chosen


class Copies:
    """Moves by copies.

    Args:
        kind: of memcpy.
        strided: a call for each piece, and not for each row.
    """

    def __init__(self, runtime: Runtime, stream: int, kind: int, *, strided: bool) -> None:
        self._runtime, self._stream, self._kind = runtime, stream, kind
        self._strided = strided

    def move(
        self, pieces: Sequence[Placed], blocks: Sequence[int], pages: Sequence[int]
    ) -> Callable[[], None] | None:
        """See Method."""
        runtime, kind, stream = self._runtime, self._kind, self._stream
        inward = kind == cuda.DEVICE_TO_HOST
        for block, page in zip(blocks, pages, strict=True):
            for start, rows in pieces:
                there, here = start + block * rows.block_stride, page + rows.page_at
                near_enough = max(rows.pitch, rows.page_pitch) <= PITCH_MAX
                if self._strided and rows.rows > 1 and near_enough:
                    to, source = (here, there) if inward else (there, here)
                    pitches = (rows.page_pitch, rows.pitch)
                    pitches = pitches if inward else pitches[::-1]
                    runtime.memcpy2DAsync(
                        to, pitches[0], source, pitches[1], rows.width, rows.rows, kind, stream
                    )
                    continue
                for row in range(rows.rows):
                    far, near = there + row * rows.pitch, here + row * rows.page_pitch
                    to, source = (near, far) if inward else (far, near)
                    runtime.memcpyAsync(to, source, rows.width, kind, stream)
        return None


class Gather:
    """Moves by the kernel.

    Args:
        launch: of the device.
    """

    def __init__(self, runtime: Runtime, stream: int, kind: int, *, launch: kernel.Launch) -> None:
        self._runtime, self._stream = runtime, stream
        self._inward, self._launch = kind == cuda.DEVICE_TO_HOST, launch
        self._told: Ring = pinned_ring(runtime, DESCRIPTOR_BYTES)
        self._table = runtime.malloc(DESCRIPTOR_BYTES)
        self._known: tuple[Sequence[Placed], kernel.Words, int] = ((), *kernel.table(()))

    def move(
        self, pieces: Sequence[Placed], blocks: Sequence[int], pages: Sequence[int]
    ) -> Callable[[], None] | None:
        """See Method."""
        if self._known[0] is not pieces:  # those of a plan are the same for all of its parts
            self._known = pieces, *kernel.table(pieces)
        _, words, chunks = self._known
        words = np.concatenate([words, kernel.blocks_table(blocks, pages)])
        at = self._told.take(words.nbytes)
        self._told.write(at, words)
        there = self._table + at
        self._runtime.memcpyAsync(
            there, self._told.address + at, words.nbytes, cuda.HOST_TO_DEVICE, self._stream
        )
        said = (there, len(pieces), len(blocks), chunks, int(self._inward))
        self._launch(
            (kernel.GRID,),
            (kernel.THREADS,),
            tuple(np.uint64(word) for word in said),
            stream=SimpleNamespace(ptr=self._stream),
        )
        return self._told.give
