"""The records of many pages of the ledger at once, made of columns: what one Seal says.

The blocks of a Seal have their namespace, their number of pages and the length of these in common;
the rest is a column each.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from pegaflow.wire.identities import Key, Namespace, Stamp
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.values import PackedKeys

from .fingerprints import U64
from .ledger import FACTORS, MAX_KEY, NAMESPACE_BYTES, RECORD_BYTES


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

_SHARDS_AT = 26
_NAMESPACE_AT = 32  # bytes into a record; the length of the key is behind it, and then the key


def bodies_of(
    namespace: Namespace,
    payload_bytes: int,
    shards: int,
    *,
    stamps: Sequence[Stamp] | U64,
    checksums: Sequence[int] | U64,
    seals: Sequence[int] | U64,
    keys: Sequence[Key],
    depths: Sequence[int] | npt.NDArray[np.int64],
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
    assert len(namespace) == NAMESPACE_BYTES
    named = _named(keys)
    width = named.itemsize
    alike = bytearray(_alike(namespace, payload_bytes, shards, width) * (len(keys) * shards))
    rows = np.frombuffer(alike, BODY)
    numbers, places = np.asarray(seals, np.uint64), np.asarray(depths, np.uint32)
    sums = np.asarray(checksums, np.uint64)
    rows["stamp"] = np.asarray(stamps, np.uint64)
    if shards > 1:
        rows["shard"] = np.tile(np.arange(shards, dtype=np.uint16), len(keys))
        named, numbers = np.repeat(named, shards), np.repeat(numbers, shards)
        places = np.repeat(places, shards)
    rows["seal"], rows["key"], rows["depth"] = numbers, named, places
    if sums.any():
        rows["checksum"], rows["has_checksum"] = sums, sums != 0
    return rows.view(np.uint64).reshape(len(rows), len(FACTORS))


def _named(keys: Sequence[Key]) -> npt.NDArray[Any]:
    """Keys of one length, as an array has them."""
    if isinstance(keys, PackedKeys):
        return np.frombuffer(keys.blob, f"S{keys.blob[0]}", offset=1)
    (width,) = {*map(len, keys)}
    return np.frombuffer(b"".join(keys), f"S{width}")


@lru_cache(maxsize=256)
def _alike(namespace: Namespace, payload_bytes: int, shards: int, key_bytes: int) -> bytes:
    """What records have in common."""
    row = np.zeros(1, BODY)
    row["shards"], row["payload_bytes"], row["namespace"] = shards, payload_bytes, namespace
    row["key_length"] = key_bytes
    return row.tobytes()


def body_of(namespace: Namespace, key: Key, payload_bytes: int, stamp: Stamp) -> U64:
    """The record of a block of one page that is the first of its chain, without its state word, as
    words."""
    bodies = bodies_of(
        namespace,
        payload_bytes,
        1,
        stamps=(stamp,),
        checksums=(0,),
        seals=(0,),
        keys=(key,),
        depths=(0,),
    )
    body: U64 = bodies[0]
    return body


def are_of(records: U64, namespace: Namespace, keys: Sequence[Key]) -> npt.NDArray[np.bool_]:
    """Which records say this namespace and the key beside them, whatever their state words say.

    Args:
        records: rows of words, the state word first.
    """
    count = len(keys)
    longest = keys.blob[0] if isinstance(keys, PackedKeys) else max(map(len, keys), default=0)
    prefix = namespace + bytes([longest])
    width = len(prefix) + longest
    expected = prefix + prefix.join(keys)
    if len(expected) != width * count:
        said = [namespace + bytes([len(key)]) + key.ljust(longest, b"\0") for key in keys]
        expected = b"".join(said)
    part = records.view(np.uint8)[:, _NAMESPACE_AT : _NAMESPACE_AT + width]
    if part.tobytes() == expected:
        return np.ones(count, np.bool_)
    described = np.frombuffer(expected, np.uint8).reshape(count, width)
    same: npt.NDArray[np.bool_] = (part == described).all(axis=1)
    return same


def shards_of(records: U64, pages: npt.NDArray[np.int64]) -> npt.NDArray[np.uint16]:
    """How many pages the block of each page has.

    Args:
        records: of all pages, rows of words, the state word first.
    """
    found: npt.NDArray[np.uint16] = records.view(np.uint16)[pages, _SHARDS_AT // 2]
    return found


def page_sizes(rows: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Bytes of the pages that records are of.

    Args:
        rows: of ROW.
    """
    sizes: npt.NDArray[np.int64] = rows["payload_bytes"].astype(np.int64)
    return -(-sizes // PAGE_ALIGN) * PAGE_ALIGN


def keys_of(rows: npt.NDArray[Any]) -> list[Key]:
    """The keys that records say.

    Args:
        rows: of ROW.
    """
    raw = np.ascontiguousarray(rows["key"]).tobytes()
    if not len(rows):
        return []
    width = int(rows["key_length"][0])
    if width and (rows["key_length"] == width).all():
        named = np.frombuffer(raw, np.uint8).reshape(-1, MAX_KEY)[:, :width]
        found: list[Key] = np.ascontiguousarray(named).view(f"V{width}")[:, 0].tolist()
        return found
    lengths = rows["key_length"].tolist()
    return [Key(raw[at * MAX_KEY : at * MAX_KEY + n]) for at, n in enumerate(lengths)]
