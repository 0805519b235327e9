"""What the original's server gets for a GPU's memory: a file of an engine that both have mapped.

The server's own Python imports this by the name that `original.py` has registered its memory under,
and as `torch`, of which it wants no more than a few words about the device.
"""

from __future__ import annotations

import ctypes
import mmap
from types import SimpleNamespace

DEVICE = SimpleNamespace(index=0, type="cuda")


def nothing(*_: object, **__: object) -> None:
    """What a device is told that does not exist."""


cuda = SimpleNamespace(init=nothing, set_device=nothing, synchronize=nothing, empty_cache=nothing)
empty = nothing


class Shared:
    """An engine's memory: what a server maps, and then asks as it asks a tensor."""

    def __init__(self, path: str, size: int) -> None:
        self._path, self._size = path, size

    def to_tensor(self) -> SimpleNamespace:
        """Map it."""
        with open(self._path, "r+b") as file:
            mapped = mmap.mmap(file.fileno(), self._size)
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        storage = SimpleNamespace(nbytes=lambda: self._size)
        return SimpleNamespace(
            mapped=mapped,
            device=DEVICE,
            is_cuda=True,
            data_ptr=lambda: address,
            untyped_storage=lambda: storage,
            storage_offset=lambda: 0,
            element_size=lambda: 1,
        )
