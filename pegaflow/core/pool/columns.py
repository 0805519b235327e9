"""Lists of numbers as arrays: how whoever has many pages in hand takes them from a message, and
says them in one, without an object for each.

On the wire a list of numbers is a blob of 64-bit words (wire/values.py), which is an array already.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

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

Mask = npt.NDArray[np.bool_]

_Number = TypeVar("_Number", np.uint64, np.int64, np.uint32, np.uint16)


def column(numbers: Sequence[int] | U64 | Places) -> U64:
    """The numbers of a message, or whatever else is a list of them.

    Returns:
        An array; of a message it is a view, which cannot be written.
    """
    if isinstance(numbers, PackedU64s):
        return np.frombuffer(numbers.blob, np.uint64)
    return np.asarray(numbers, np.uint64)


def signed(numbers: Sequence[int] | U64) -> Places:
    """The same, to choose elements of an array by; a number that is too large for any place becomes
    a negative one."""
    return column(numbers).astype(np.int64)


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


def chained(keys: Sequence[Key], parents: Sequence[Key]) -> bool:
    """Whether each of these keys but the first goes on from the one before it.

    Args:
        parents: what each of them goes on from.
    """
    if isinstance(keys, PackedKeys) and isinstance(parents, PackedKeys):
        size = keys.blob[0]
        return parents.blob[0] == size and parents.blob[1 + size :] == keys.blob[1:-size]
    return tuple(parents[1:]) == tuple(keys[:-1])


def first_of(keys: Sequence[Key]) -> Key:
    """The first of some keys, of which a message has not been taken apart."""
    return Key(keys.blob[1 : 1 + keys.blob[0]]) if isinstance(keys, PackedKeys) else keys[0]


def led_by(first: Key, keys: Sequence[Key]) -> Sequence[Key]:
    """A key, and these behind it."""
    if isinstance(keys, PackedKeys) and len(first) == keys.blob[0]:
        return PackedKeys(b"".join((keys.blob[:1], first, keys.blob[1:])))
    return (first, *keys)


def are_pages(geometry: Geometry, pages: U64, page_size: int) -> bool:
    """Whether there are all of these in extents that are cut into pages of this size."""
    extents, slots = np.divmod(pages, np.uint64(geometry.records_per_extent))
    there = extents < np.uint64(geometry.extents)
    there &= slots < np.uint64(geometry.pages_per_extent(page_size))
    return bool(np.count_nonzero(there) == len(there))


def offsets_of(geometry: Geometry, pages: U64, page_size: int) -> U64:
    """Where pages of one size are in the pool."""
    assert are_pages(geometry, pages, page_size), pages
    extents, slots = np.divmod(pages, np.uint64(geometry.records_per_extent))
    offsets: U64 = extents * np.uint64(geometry.extent_bytes)
    offsets += slots * np.uint64(slot_size(page_size))
    return offsets


def distinct(numbers: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """The different ones among these, ascending.  As np.unique, whose first call takes 40 ms: it
    imports numpy.ma."""
    ordered = np.sort(numbers)
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def repeats(numbers: npt.NDArray[_Number]) -> bool:
    """Whether some number is there twice."""
    ordered = np.sort(numbers)
    return bool(np.count_nonzero(ordered[1:] == ordered[:-1]))


def again(numbers: npt.NDArray[_Number]) -> Mask:
    """Which of these were there before."""
    order = np.argsort(numbers, kind="stable")
    ordered = numbers[order]
    found = np.zeros(len(numbers), np.bool_)
    found[order[1:]] = ordered[1:] == ordered[:-1]
    return found


def among(numbers: npt.NDArray[_Number], others: npt.NDArray[_Number]) -> Mask:
    """Which of these are among those.  As np.isin, which may call np.unique."""
    if not len(others):
        return np.zeros(len(numbers), np.bool_)
    ordered = np.sort(others)
    at = np.minimum(np.searchsorted(ordered, numbers), len(ordered) - 1)
    found: Mask = ordered[at] == numbers
    return found


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
