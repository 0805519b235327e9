"""The engine's memory, and the copies between it and the service's files.

Each layer becomes one strided numpy view per region, shape (blocks, segments, segment_bytes), so
that a block's layer is one assignment; numpy releases the GIL while it copies.
"""

import errno
import mmap
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pegaflow.wire.gpu import NO_GPU
from pegaflow.wire.layout import MAP_NORESERVE, Layout, fault, page_bytes
from pegaflow.wire.values import U64s

Bytes = npt.NDArray[np.uint8]


class FileView:
    """A shared file mapped whole.

    Args:
        known: device and inode of the file that is meant; empty: whatever is there.
        write: map it for writing too; the pool never is.

    Raises:
        OSError: it cannot be opened, or another file is there (ESTALE).
        ValueError: it is empty.
    """

    def __init__(self, path: str, write: bool, known: U64s) -> None:
        fd = os.open(path, (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            found = os.fstat(fd)
            if known and (found.st_dev, found.st_ino) != known:
                raise OSError(errno.ESTALE, "another file is there", path)
            access = mmap.PROT_READ | (mmap.PROT_WRITE if write else 0)
            self._map = mmap.mmap(fd, 0, mmap.MAP_SHARED | MAP_NORESERVE, access)
        finally:
            os.close(fd)
        self._path = path
        self._known = known
        self.bytes: Bytes = np.frombuffer(self._map, dtype=np.uint8)

    def shows(self, path: str, known: U64s, size: int) -> bool:
        """Whether this is a view of that file that reaches so far: a pool may have grown.

        Args:
            known: device and inode of the file that is meant.
            size: bytes that the mapping must have at least.
        """
        return (self._path, self._known) == (path, known) and len(self.bytes) >= size


def copy(
    step: Callable[[Bytes, int], None],
    page_bytes: int,
    file: Bytes | None,
    offsets: Sequence[int],
    *,
    blocks: Sequence[int],
    deadline: int,
) -> bool:
    """Copy between a file and the engine's blocks, one block after the other.

    Args:
        step: moves one page and the block of this number.
        page_bytes: of each page, that mean something.
        file: all of the mapped file; None: its session was lost with an effect before this one.
        offsets: byte of the file at which the page of each block begins.
        blocks: the engine's numbers, one for each offset.
        deadline: CLOCK_MONOTONIC, in nanoseconds; looked at before each block.

    Returns:
        False if the deadline came first, or if a place lies outside of the file, or there is none;
        in the first case some blocks are copied.
    """
    if file is None or any(offset + page_bytes > file.size for offset in offsets):
        return False
    for offset, block in zip(offsets, blocks, strict=True):
        if time.monotonic_ns() >= deadline:
            return False
        step(file[offset : offset + page_bytes], block)
    return time.monotonic_ns() < deadline


class EngineMemory:
    """Registered regions, cut by their layout.

    Args:
        buffers: region i of the layout, C-contiguous; the views keep them referenced.

    Raises:
        ValueError: the layout does not fit the buffers.
    """

    def __init__(
        self, layout: Layout, buffers: Sequence[npt.NDArray[Any] | memoryview | bytearray]
    ) -> None:
        regions = [np.frombuffer(b, dtype=np.uint8) for b in buffers]
        self.region_bytes = tuple(int(r.nbytes) for r in regions)
        self.addresses = tuple(int(r.ctypes.data) for r in regions)
        why = fault(layout, self.region_bytes)
        if why:
            raise ValueError(why)
        self.layout = layout
        self.gpu, self.staged = NO_GPU, True
        self.payload_bytes = page_bytes(layout)
        self._layers = [
            self._view(regions[la.region], layout, i) for i, la in enumerate(layout.layers)
        ]
        self.writable = all(r.flags.writeable for r in regions)

    @staticmethod
    def _view(region: Bytes, layout: Layout, at: int) -> Bytes:
        la = layout.layers[at]
        shape = (layout.blocks, la.segments, la.segment_bytes)
        strides = (la.block_stride, la.segment_stride or la.segment_bytes, 1)
        return np.lib.stride_tricks.as_strided(region[la.offset :], shape, strides)

    def load(self, page: Bytes, block: int) -> None:
        """Write a page's payload into a block.

        Args:
            page: at least `payload_bytes`: the layers behind each other, in the layout's order.
            block: the engine's number of the block.
        """
        at = 0
        for view in self._layers:
            target = view[block]
            end = at + target.size
            target[:] = page[at:end].reshape(target.shape)
            at = end

    def save(self, page: Bytes, block: int) -> None:
        """Write a block into a page.

        Args:
            page: as in `load`; writable.
            block: the engine's number of the block.
        """
        at = 0
        for view in self._layers:
            source = view[block]
            end = at + source.size
            page[at:end].reshape(source.shape)[:] = source
            at = end

    def wait(self, deadline: int) -> bool:
        """True: what the engine has computed is in its memory already."""
        return True
