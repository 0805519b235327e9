"""Lists of numbers as arrays: how whoever has many pages in hand takes them from a message, and
says them in one, without an object for each.

On the wire a list of numbers is a blob of 64-bit words (wire/values.py), which is an array already.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from pegaflow.wire.values import Packed, PackedU64s

from .fingerprints import U64


def column(numbers: Sequence[int] | U64) -> U64:
    """The numbers of a message, or whatever else is a list of them.

    Returns:
        An array; of a message it is a view, which cannot be written.
    """
    if isinstance(numbers, PackedU64s):
        return np.frombuffer(numbers.blob, np.uint64)
    return np.asarray(numbers, np.uint64)


def said(numbers: U64) -> Packed[Any]:
    """A column as a message says it."""
    return PackedU64s(np.ascontiguousarray(numbers, np.uint64).tobytes())


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
