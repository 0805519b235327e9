"""cupy.RawKernel without a compiler: what our one kernel does, said in Python.

It is as strict as a device: what it reads and writes is memory of its own device, or of the host
and pinned, or the error stays with the context.  That the source does the same, the host's compiler
shows (tests/device/engine/test_kernel.py).
"""

import ctypes
import os
from typing import Any

import numpy as np

from pegaflow.device.engine import kernel

from . import cuda
from .gpus import ILLEGAL_ADDRESS, INVALID_HANDLE, CUDARuntimeError


class RawKernel:
    def __init__(self, code: str, name: str) -> None:
        assert (code, name) == (kernel.SOURCE, kernel.NAME)
        self._compiled = False

    def compile(self) -> None:
        if os.environ.get("FAKE_CUDA_NVRTC") == "missing":
            raise AssertionError("\n*** The requested function is not supported")
        self._compiled = True

    def __call__(
        self, grid: tuple[int], block: tuple[int], args: tuple[np.uint64, ...], *, stream: Any
    ) -> None:
        assert self._compiled and all(isinstance(arg, np.uint64) for arg in args)
        m = cuda.machine()
        m.calls.append("launch")
        device = m.stream(stream.ptr).device
        if m.check() != device:
            raise CUDARuntimeError(INVALID_HANDLE, "launched on a stream of another device")
        cuda.launch(stream.ptr, lambda: _move(device, *map(int, args)))


def _move(device: int, table: int, pieces: int, blocks: int, chunks: int, inward: int) -> None:
    m, size = cuda.machine(), 8 * (8 * pieces + 2 * blocks)
    m.touch(device, table, size)
    words = cuda.memory(table, size).view(np.uint64).tolist()
    rows = [words[8 * n : 8 * n + 8] for n in range(pieces)]
    ends = [*(row[6] for row in rows[1:]), chunks]
    for block, page in zip(words[8 * pieces :: 2], words[8 * pieces + 1 :: 2], strict=True):
        for (start, stride, at, width, pitch, page_pitch, first, each), end in zip(
            rows, ends, strict=True
        ):
            for row in range((end - first) // each):
                there = start + block * stride + row * pitch
                here = page + at + row * page_pitch
                m.touch(device, there, width)
                if not m.is_pinned(device, here, width, mapped=True):
                    raise CUDARuntimeError(ILLEGAL_ADDRESS, "memory of the host, not pinned")
                to, source = (here, there) if inward else (there, here)
                ctypes.memmove(to, source, width)
