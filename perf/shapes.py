"""What the tables of copies move, blocks of pieces, and the C loop over the same pieces."""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np

from pegaflow.service import sizes
from pegaflow.wire.layout import LayerLayout, Layout
from perf.machine import Bytes, Copy, timed


@dataclass(frozen=True)
class Shape:
    """So many blocks of so many pieces of so many bytes, each layer a plane of its own."""

    blocks: int
    layers: int
    piece: int

    @property
    def total(self) -> int:
        return self.blocks * self.layers * self.piece

    @property
    def layout(self) -> Layout:
        """Twice the blocks: the first half is saved, the second loaded."""
        stride = 2 * self.blocks * self.piece
        layers = [LayerLayout(0, i * stride, self.piece, self.piece) for i in range(self.layers)]
        return Layout(2 * self.blocks, tuple(layers), "uint8")

    def __str__(self) -> str:
        layers = f"{self.layers} layers x " if self.layers > 1 else ""
        return f"{layers}{self.blocks} x {sizes.show(self.piece)}"


SHAPES = (Shape(64, 1, 1 << 20), Shape(256, 1, 256 << 10), Shape(1024, 1, 64 << 10))
REAL = Shape(256, 32, 16 << 10)
QUICK = Shape(8, 2, 16 << 10)
QUICK_BLOCKS = Shape(512, 1, 16 << 10)  # as small as an extent allows


class Memcpy:
    """The C loop over the pieces of a shape: out to a shared mapping, and in again."""

    def __init__(self, copy: Copy, shape: Shape, memory: Bytes) -> None:
        self._copy, self._memory = copy, memory
        self._file = np.frombuffer(mmap.mmap(-1, shape.total), np.uint8)
        self._file[:] = 1
        layer, block = np.meshgrid(np.arange(shape.layers), np.arange(shape.blocks))
        here = (layer * 2 * shape.blocks + block) * shape.piece
        there = (block * shape.layers + layer) * shape.piece
        self._size = shape.piece
        self._out = here.ravel().astype(np.uint64)
        self._in = self._out + np.uint64(shape.blocks * shape.piece)
        self._at = there.ravel().astype(np.uint64)

    def out(self) -> float:
        """Seconds to copy all blocks out of the engine's memory."""
        return timed(lambda: self._copy(self._file, self._memory, self._at, self._out, self._size))[
            0
        ]

    def back(self) -> float:
        """Seconds to copy them in."""
        return timed(lambda: self._copy(self._memory, self._file, self._in, self._at, self._size))[
            0
        ]
