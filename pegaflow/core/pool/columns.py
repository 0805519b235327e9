"""Lists of numbers as arrays: how whoever has many pages in hand takes them from a message, and
says them in one, without an object for each.

On the wire a list of numbers is a blob of 64-bit words (wire/values.py), which is an array already.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pegaflow.wire.identities import Key
from pegaflow.wire.values import Packed, PackedKeys, PackedU64s

from .fingerprints import U64
from .geometry import Geometry, slot_size

Rows = npt.NDArray[np.uint8]
"""Keys of one length: a row of bytes each."""

Places = npt.NDArray[np.int64]
"""Places in a list."""


def column(numbers: Sequence[int] | U64) -> U64:
    """The numbers of a message, or whatever else is a list of them.

    Returns:
        An array; of a message it is a view, which cannot be written.
    """
    if isinstance(numbers, PackedU64s):
        return np.frombuffer(numbers.blob, np.uint64)
    return np.asarray(numbers, np.uint64)


def said(numbers: U64 | Places) -> Packed[Any]:
    """A column as a message says it."""
    return PackedU64s(np.ascontiguousarray(numbers, np.uint64).tobytes())


def places(numbers: Sequence[int] | U64, count: int) -> Places:
    """The numbers of a message that are places in a list of so many, in their order."""
    named = column(numbers)
    found: Places = named[named < np.uint64(count)].astype(np.int64)
    return found


def rows_of(keys: Sequence[Key]) -> Rows:
    """Keys of one length, at least one."""
    joined = keys.blob[1:] if isinstance(keys, PackedKeys) else b"".join(keys)
    return np.frombuffer(joined, np.uint8).reshape(len(keys), -1)


def said_keys(rows: Rows) -> Packed[Key]:
    """Keys as a message says them; at least one."""
    return PackedKeys(bytes((rows.shape[1],)) + rows.tobytes())


def offsets_of(geometry: Geometry, pages: U64, page_size: int) -> U64:
    """Where pages of one size are in the pool."""
    extents, slots = np.divmod(pages, np.uint64(geometry.records_per_extent))
    there = (extents < np.uint64(geometry.extents)).all()
    assert there and (slots < np.uint64(geometry.pages_per_extent(page_size))).all(), pages
    offsets: U64 = extents * np.uint64(geometry.extent_bytes)
    offsets += slots * np.uint64(slot_size(page_size))
    return offsets


def grouped(numbers: U64, size: int) -> Iterator[tuple[int, U64]]:
    """Numbers by which multiple of `size` they lie behind.

    Returns:
        The quotient, and the numbers of it in their order; each quotient once.
    """
    quotients = numbers // np.uint64(size)
    if not len(quotients):
        return
    if (quotients == quotients[0]).all():
        yield int(quotients[0]), numbers
        return
    order = np.argsort(quotients, kind="stable")
    quotients, numbers = quotients[order], numbers[order]
    edges = (np.flatnonzero(quotients[1:] != quotients[:-1]) + 1).tolist()
    for first, end in zip([0, *edges], [*edges, len(numbers)], strict=True):
        yield int(quotients[first]), numbers[first:end]
