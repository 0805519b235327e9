"""The records of many pages of the ledger at once, made of columns: what one Seal says.

The blocks of a Seal have their namespace, their number of pages and the length of these in common;
the rest is a column each.
"""

from collections.abc import Sequence

import numpy as np

from pegaflow.wire.identities import Key, Namespace, Stamp

from .fingerprints import U64
from .ledger import FACTORS, NAMESPACE_BYTES, RECORD_BYTES


def _fields(at: int, size: int) -> np.dtype[np.void]:
    """A record field by field, from this byte on, where ledger.py puts them."""
    return np.dtype(
        {
            "names": [
                *("stamp", "seal", "shard", "shards", "payload_bytes", "namespace", "key_length"),
                *("key", "has_checksum", "checksum", "depth"),
            ],
            "formats": ["u8", "u8", "u2", "u2", "u4", "S16", "u1", "S64", "u1", "u8", "u4"],
            "offsets": [at + n for n in (0, 8, 16, 18, 20, 24, 40, 41, 105, 106, 114)],
            "itemsize": size,
        }
    )


BODY = _fields(0, 8 * len(FACTORS))
"""A record without its state word."""

ROW = _fields(8, RECORD_BYTES)
"""A record."""


def bodies_of(
    namespace: Namespace,
    payload_bytes: int,
    shards: int,
    *,
    stamps: Sequence[Stamp],
    checksums: Sequence[int],
    seals: Sequence[int],
    keys: Sequence[Key],
    depths: Sequence[int],
) -> U64:
    """Make records without their state words.

    Args:
        namespace: of all blocks.
        payload_bytes: of each page, what means something.
        shards: pages of each block.
        stamps: one for each page, block by block.
        checksums: the same; 0: never computed.
        seals: one for each block, as the lists below.
        keys: of one length.
        depths: places in their chains.

    Returns:
        A row of words for each page.
    """
    assert len(namespace) == NAMESPACE_BYTES and len({*map(len, keys)}) == 1
    rows = np.zeros(len(keys) * shards, BODY)
    rows["stamp"] = np.array(stamps, np.uint64)
    rows["seal"] = np.repeat(np.array(seals, np.uint64), shards)
    rows["shard"] = np.tile(np.arange(shards, dtype=np.uint16), len(keys))
    rows["shards"], rows["payload_bytes"], rows["namespace"] = shards, payload_bytes, namespace
    rows["key_length"] = len(keys[0])
    rows["key"] = np.repeat(np.array(keys, "S64"), shards)
    rows["checksum"] = sums = np.array(checksums, np.uint64)
    rows["has_checksum"] = sums != 0
    rows["depth"] = np.repeat(np.array(depths, np.uint32), shards)
    return rows.view(np.uint64).reshape(len(rows), len(FACTORS))
