"""The kernel's source, run by the host's own compiler, thread after thread."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pegaflow.device.engine import kernel
from pegaflow.device.engine.strides import Rows

DEVICE = r"""
#define __device__
#define __global__
struct uint4 { unsigned x, y, z, w; };
struct dim { unsigned x; };
static dim gridDim, blockDim, blockIdx, threadIdx;
"""
GRID = r"""
extern "C" void run(const unsigned long long* a, unsigned grid, unsigned threads)
{
    gridDim.x = grid, blockDim.x = threads;
    for (blockIdx.x = 0; blockIdx.x < grid; blockIdx.x++)
        for (threadIdx.x = 0; threadIdx.x < threads; threadIdx.x++)
            pegaflow_move(a[0], a[1], a[2], a[3], a[4]);
}
"""
COMPILER = shutil.which("g++") or shutil.which("c++")

Run = Callable[[list[int], int, int], None]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    if COMPILER is None:
        pytest.skip("no compiler for C++")
    folder: Path = tmp_path_factory.mktemp("kernel")
    (folder / "kernel.cc").write_text(DEVICE + kernel.SOURCE + GRID)
    flags = ["-O1", "-shared", "-fPIC", "-fsanitize=undefined", "-fno-sanitize-recover"]
    made = [COMPILER, *flags, "-o", "kernel.so", "kernel.cc"]
    subprocess.run(made, cwd=folder, check=True, capture_output=True)
    library = ctypes.CDLL(str(folder / "kernel.so"))

    def call(args: list[int], grid: int, threads: int) -> None:
        words = np.array(args, np.uint64)
        library.run(ctypes.c_void_p(words.ctypes.data), grid, threads)

    return call


SHIFTS = [(0, 0), (16, 0), (3, 3), (5, 6), (8, 0)]
WIDTHS = [1, 15, 16, 17, 500, 4096, kernel.CHUNK_BYTES, kernel.CHUNK_BYTES + 1, 20_003]


@pytest.mark.parametrize("inward", [False, True])
@pytest.mark.parametrize(("there_at", "here_at"), SHIFTS)
def test_every_byte_goes_where_the_strides_say(
    run: Run, there_at: int, here_at: int, inward: bool
) -> None:
    """Pieces of all widths, of one row and of several, aligned alike on both sides and not."""
    shapes: list[Rows] = []
    at, end = here_at, there_at
    for width in WIDTHS:
        for rows in (1, 3):
            pitch, page_pitch = width + 16, width + 32
            shapes.append(
                Rows(
                    0,
                    end,
                    300_000,
                    page_at=at,
                    width=width,
                    rows=rows,
                    pitch=pitch,
                    page_pitch=page_pitch,
                )
            )
            at, end = at + rows * page_pitch, end + rows * pitch
    assert end < 300_000
    far = np.random.default_rng(1).integers(0, 256, 3 * 300_000, np.uint8)
    near = np.random.default_rng(2).integers(0, 256, 3 * at, np.uint8)
    blocks, pages = [2, 0], [0, 2 * at]
    meant_far, meant_near = far.copy(), near.copy()
    for block, page in zip(blocks, pages, strict=True):
        for shape in shapes:
            for row in range(shape.rows):
                a = shape.offset + block * shape.block_stride + row * shape.pitch
                b = page + shape.page_at + row * shape.page_pitch
                a_bytes, b_bytes = slice(a, a + shape.width), slice(b, b + shape.width)
                if inward:
                    meant_near[b_bytes] = far[a_bytes]
                else:
                    meant_far[a_bytes] = near[b_bytes]
    placed = [(far.ctypes.data + shape.offset, shape) for shape in shapes]
    words, chunks = kernel.table(placed)
    addresses = [near.ctypes.data + page for page in pages]
    words = np.concatenate([words, kernel.blocks_table(blocks, addresses)])
    run([words.ctypes.data, len(placed), len(blocks), chunks, int(inward)], 2, 64)
    assert (far == meant_far).all() and (near == meant_near).all()
