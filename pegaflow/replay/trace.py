"""Traces of requests, as `read` gives them to a replay: the ends of paths in a tree of blocks.

Only full blocks count: no cache can share a part of one. reading says how files become this. The
tree is given to the engines of a replay in two files that they map, so its size counts once.
"""

from __future__ import annotations

import mmap
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Literal

from pegaflow.wire.units import Bytes

from .tree import Tree, path

BUNDLED = Path(__file__).parent / "data" / "conversation.jsonl.gz"  # data/README.md says what it is
_PARENTS, _KEYS = "parents", "keys"
KEY_BYTES: Bytes = 32
"""As long as an engine's SHA-256 block hash."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request of a trace."""

    index: int  # position in the trace, from 0
    blocks: tuple[int, ...]  # numbers of the full blocks, head of the prompt first


class Trace:
    """The requests of a trace, in order."""

    def __init__(self, tree: Tree, ends: array[int], depths: array[int], about: str) -> None:
        self.parents = tree.parents  # of each block; NONE at the head of a prompt
        self.keys = tree.keys  # of each block, 64 bits; see `block_key`
        self.ends = ends  # the last full block of each request, or NONE
        self.depths = depths  # full blocks of each request
        self.about = about  # how it was read, in words

    def __len__(self) -> int:
        return len(self.ends)

    def __iter__(self) -> Iterator[Request]:
        for index in range(len(self)):
            yield Request(index, self.blocks(index))

    def blocks(self, index: int) -> tuple[int, ...]:
        """The blocks of a request, head of the prompt first."""
        return tuple(path(self.parents, self.ends[index]))

    def save(self, folder: Path) -> None:
        """Write what `Saved` reads."""
        (folder / _PARENTS).write_bytes(self.parents)
        (folder / _KEYS).write_bytes(self.keys)


class Saved:
    """The tree of a trace in another process."""

    def __init__(self, folder: Path) -> None:
        self._parents: Sequence[int] = _mapped(folder / _PARENTS, "i")
        self._keys: Sequence[int] = _mapped(folder / _KEYS, "Q")

    def block_keys(self, end: int) -> list[bytes]:
        """The cache keys of the request that ends with this block."""
        return [block_key(self._keys[block]) for block in path(self._parents, end)]


def _mapped(file: Path, kind: Literal["i", "Q"]) -> memoryview[int]:
    with file.open("rb") as opened:
        return memoryview(mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ)).cast(kind)


def block_key(key: int) -> bytes:
    """The cache key of a block, from its 64 bits in `Trace.keys`."""
    return blake2b(
        key.to_bytes(8, "little"), digest_size=KEY_BYTES, person=b"replay block"
    ).digest()
