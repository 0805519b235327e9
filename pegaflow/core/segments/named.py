"""Which blocks many rows of a segment are of: columns, where codec.py has a row at a time."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pegaflow.core.pool.ledger import MAX_KEY, NAMESPACE_BYTES
from pegaflow.wire.identities import Key, Namespace

from .codec import ROW_BYTES

_SIZE_AT, _NAMESPACE_AT, _KEY_AT = 34, 36, 52  # bytes into a row: length of the key, and so on


class Named(NamedTuple):
    """Rows of one namespace whose keys have one length."""

    namespace: Namespace
    places: npt.NDArray[np.int64]  # of the rows, ascending
    keys: list[Key]  # beside `places`


def named(rows: bytes | bytearray) -> Iterator[Named]:
    """Take rows apart by namespaces and lengths of keys, of which there are few.

    Args:
        rows: one behind the other; those without a key are left out.
    """
    table = np.frombuffer(bytes(rows), np.uint8).reshape(-1, ROW_BYTES)
    spaces = table[:, _NAMESPACE_AT : _NAMESPACE_AT + NAMESPACE_BYTES]
    sizes = np.minimum(table[:, _SIZE_AT], MAX_KEY)
    left = np.flatnonzero(sizes)
    while len(left):
        space, size = spaces[left[0]], int(sizes[left[0]])
        here = (spaces[left] == space).all(axis=1) & (sizes[left] == size)
        places, left = left[here], left[~here]
        keys = np.ascontiguousarray(table[places, _KEY_AT : _KEY_AT + size])
        yield Named(Namespace(space.tobytes()), places, keys.view(f"V{size}")[:, 0].tolist())
