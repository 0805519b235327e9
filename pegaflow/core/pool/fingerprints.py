"""64-bit hashes of block keys, for as many keys at once as there are.

A hash is a sum of products, modulo 2^64, of the key's 8-byte words, whose upper halves are mixed
into the lower ones first. So numpy makes the hashes of a whole list at once, and bytes that are not
there, which are 0, change nothing.

A fingerprint is the sum of the hashes of a key and of its namespace: equal keys of two models have
two of them.  Two different keys may still have one, so whoever finds it compares the key that the
ledger has.
"""

from collections.abc import Sequence
from functools import lru_cache
from struct import Struct

import numpy as np
import numpy.typing as npt

from pegaflow.wire.identities import Key, Namespace
from pegaflow.wire.values import PackedKeys

from .ledger import MAX_KEY

U64 = npt.NDArray[np.uint64]

_WORDS = [Struct(f"={n}Q") for n in range(MAX_KEY // 8 + 1)]
_MASK = (1 << 64) - 1
_FACTORS = tuple(pow(0xD6E8_FEB8_6659_FD93, n + 1, 1 << 64) for n in range(MAX_KEY // 8))
_COLUMN = np.array(_FACTORS, np.uint64)
_32, _NOT_0_OR_1 = np.uint64(32), np.uint64(2)


def hash_of(key: Key | Namespace) -> int:
    """The hash of one key."""
    count, total = -(-len(key) // 8), 0
    words = _WORDS[count].unpack(key.ljust(8 * count, b"\0"))
    for word, factor in zip(words, _FACTORS, strict=False):
        total += (word ^ word >> 32) * factor
    return total & _MASK


def hashes_of(keys: npt.NDArray[np.uint8]) -> U64:
    """The hashes of many keys, one per row, filled up with zeros to a multiple of 8 bytes."""
    return _hashes(np.ascontiguousarray(keys).view(np.uint64))


def fold(namespace: Namespace, hashes: U64) -> U64:
    """Make fingerprints of hashes.

    Args:
        namespace: of all of them.
        hashes: of their keys, from `hashes_of`.

    Returns:
        Fingerprints, beside `hashes`; never 0 or 1.
    """
    folded = hashes + _seed(namespace)
    folded |= _NOT_0_OR_1
    return folded


def fingerprints(namespace: Namespace, keys: Sequence[Key], longest: int | None = None) -> U64:
    """The fingerprints of these keys.

    Args:
        longest: bytes of the longest, at most MAX_KEY, if that is known already.
    """
    return fold(namespace, key_hashes(keys, longest))


def key_hashes(keys: Sequence[Key], longest: int | None = None) -> U64:
    """The hashes of these keys; `longest` as for `fingerprints`."""
    if isinstance(keys, PackedKeys) and keys.blob[0] % 8 == 0:
        aligned = keys.blob[1:]
        return _hashes(np.frombuffer(aligned, np.uint64).reshape(-1, keys.blob[0] // 8))
    if longest is None:
        longest = max(map(len, keys), default=0)
    width = max(8, -(-longest // 8) * 8)
    joined = b"".join(keys)
    if width > longest or len(joined) < longest * len(keys):
        joined = b"".join([key.ljust(width, b"\0") for key in keys])
    return _hashes(np.frombuffer(joined, np.uint64).reshape(len(keys), width // 8))


def _hashes(words: U64) -> U64:
    mixed = words >> _32
    mixed ^= words
    found: U64 = mixed @ _COLUMN[: words.shape[1]]
    return found


@lru_cache(maxsize=256)
def _seed(namespace: Namespace) -> np.uint64:
    return np.uint64(hash_of(namespace))
