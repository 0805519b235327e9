"""A kernel that gathers pieces of blocks into pages, and scatters pages into blocks.

A copy by the device's copy engine costs a call, some microseconds, for each piece or row of pieces
(methods.py).  Where pieces are short it is those that a transfer consists of; so a few of the
device's multiprocessors move them: one launch for many pieces of many blocks, which reads and
writes the host's memory by itself, over the bus.

Addresses.  Memory of cudaHostAlloc has one address for host and devices (CUDA driver API, Unified
Addressing).  That of cudaHostRegister, whatever its flags, may have another for a device, unless
the device says canUseHostPointerForRegisteredMem (cudaDeviceProp); cudaHostGetDevicePointer would
tell it, which cupy does not have (14.2, cupy_backends/cuda/api/runtime.pyx).  So a device that does
not say so has no kernel.

What it is told lies in one array of 64-bit words, which a small copy takes to the device before
each launch, in the same stream: of each piece eight words, then of each block two.

    piece: address of block 0's, block_stride, page_at, width, pitch, page_pitch (strides.py),
           number of its first chunk, chunks of a row
    block: the engine's number, address of its page

A *chunk* is what a warp moves at a time: CHUNK_BYTES of a row, or what is left of it.  It goes in
vectors of 16 bytes where both sides are equally aligned, four of a thread under way at a time, and
what is before and after these in bytes.  Warps take chunks in turn, so a launch may have fewer
warps than chunks: its size is fixed.

How it disturbs.  Kernels of two processes do not run at the same time, but in slices of it (unless
MPS runs), so the engine's wait for the launch, however few multiprocessors it uses, and the
stream's priority is one among the streams of its own process.  The copy engines are not a part of
that.  So a launch is short (PART_BYTES of lanes.py), and nothing is moved by the kernel that calls
move as fast.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pegaflow.core.errors import UserError
from pegaflow.wire.units import Bytes, Constant, Count

from . import cuda
from .strides import Placed

NAME = "pegaflow_move"

GRID: Count = 8
"""Thread blocks of a launch, each on a multiprocessor of its own: an estimate.  128 warps that have
2 KiB under way each are 256 KiB, and a bus of 55 GB/s with an answer after 2 us holds 110 KiB."""

THREADS: Count = 512
"""Of a thread block: 16 warps, so that two of them fit a multiprocessor of any kind in use."""

CHUNK_BYTES: Bytes = 8192
"""Of a row, moved by a warp at a time: small enough for all warps to have some of a short copy."""

PIECE_WORDS: Constant = 8
BLOCK_WORDS: Constant = 2

SOURCE = r"""
typedef unsigned long long word;

static __device__ void part(
    char* __restrict__ to, const char* __restrict__ from, word length, unsigned thread)
{
    word done = 0;
    if ((((word)to ^ (word)from) & 15) == 0) {
        word head = (16 - ((word)to & 15)) & 15;
        if (head > length)
            head = length;
        if (thread < head)
            to[thread] = from[thread];
        uint4* target = (uint4*)(to + head);
        const uint4* source = (const uint4*)(from + head);
        word vectors = (length - head) / 16;
        word n = thread;
        for (; n + 96 < vectors; n += 128) {
            uint4 a = source[n], b = source[n + 32], c = source[n + 64], d = source[n + 96];
            target[n] = a, target[n + 32] = b, target[n + 64] = c, target[n + 96] = d;
        }
        for (; n < vectors; n += 32)
            target[n] = source[n];
        done = head + vectors * 16;
    }
    for (word n = done + thread; n < length; n += 32)
        to[n] = from[n];
}

extern "C" __global__ void pegaflow_move(
    word table, word pieces, word blocks, word chunks, word inward)
{
    const word* told = (const word*)table;
    word warps = (word)gridDim.x * (blockDim.x / 32);
    word at = (word)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    for (; at < blocks * chunks; at += warps) {
        const word* block = told + 8 * pieces + 2 * (at / chunks);
        word chunk = at % chunks, low = 0, high = pieces - 1;
        while (low < high) {
            word middle = (low + high + 1) / 2;
            if (told[8 * middle + 6] <= chunk)
                low = middle;
            else
                high = middle - 1;
        }
        const word* piece = told + 8 * low;
        word row = (chunk - piece[6]) / piece[7];
        word begin = (chunk - piece[6]) % piece[7] * CHUNK_BYTES;
        word length = piece[3] - begin;
        if (length > CHUNK_BYTES)
            length = CHUNK_BYTES;
        char* there = (char*)(piece[0] + block[0] * piece[1] + row * piece[4] + begin);
        char* here = (char*)(block[1] + piece[2] + row * piece[5] + begin);
        part(inward ? here : there, inward ? there : here, length, threadIdx.x % 32);
    }
}
""".replace("CHUNK_BYTES", str(CHUNK_BYTES))

Words = npt.NDArray[np.uint64]


class Launch(Protocol):
    """cupy.RawKernel, of 13 and later: what is called `stream` goes on to the launch, which reads
    its `ptr` (cupy/cuda/function.pyx)."""

    def compile(self) -> None:
        """Compile it, or load what was compiled before."""

    def __call__(
        self, grid: tuple[int], block: tuple[int], args: tuple[Any, ...], *, stream: Any
    ) -> None:
        """Run it some time."""


def compiled() -> Launch:
    """A kernel for the calling thread's device, made by NVRTC, or found in cupy's cache of files.

    Raises:
        UserError: it cannot be made; mostly NVRTC is not installed.
    """
    import cupy

    try:
        made: Launch = cupy.RawKernel(SOURCE, NAME)
        made.compile()
    except Exception as error:  # cupy's own, an AssertionError without NVRTC, and more
        how = "NVRTC comes with pip install 'cupy-cuda12x[ctk]' or 'cupy-cuda13x[ctk]'"
        raise UserError(f"no kernel can be compiled: {cuda.first_line(error)} ({how})") from None
    return made


def table(pieces: Sequence[Placed]) -> tuple[Words, int]:
    """What the kernel is told of pieces, and how many chunks a block has."""
    words, chunks = np.zeros((len(pieces), PIECE_WORDS), np.uint64), 0
    for number, (start, rows) in enumerate(pieces):
        each = -(-rows.width // CHUNK_BYTES)
        words[number] = (
            *(start, rows.block_stride, rows.page_at, rows.width, rows.pitch, rows.page_pitch),
            *(chunks, each),
        )
        chunks += rows.rows * each
    return words.ravel(), chunks


def blocks_table(blocks: Sequence[int], pages: Sequence[int]) -> Words:
    """What the kernel is told of blocks.

    Args:
        blocks: the engine's numbers.
        pages: addresses.
    """
    return np.array([blocks, pages], np.uint64).T.ravel()
