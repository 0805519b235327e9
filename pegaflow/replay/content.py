"""What a replayed block contains, so that any wrong byte is noticed when it comes back.

The bytes of one layer of one block are a stream fixed by (namespace, key, rank, layer). Word `i`
(eight bytes) of the stream is `(table[i] ^ seed) * factor` modulo 2**64. The table is a bijection
of the word's offset and the factor is odd, so within a chunk all words differ and a page shifted by
any number of words is wrong everywhere. Seed and factor come from a hash of namespace, key and
rank, each crossed with a number of the layer's own, so another layer, rank, block or namespace is
wrong everywhere too (but for a chance of 2**-64 per word). The chunk's number moves the seed:
chunks do not repeat.

One short hash per block and two vector operations per word, over all layers of the block at once,
make several GB/s: near enough to a copy that a replay measures the cache and not its own
arithmetic.

`fill` and `mismatch` take an array of uint8 of shape (bytes,) for one layer, or (layers, bytes) for
consecutive layers beginning with `layer`; each row is contiguous, the rows may lie far apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from pegaflow.wire import units

from .splitmix import GOLDEN, Words, mixed

Bytes = NDArray[np.uint8]

WORD: units.Constant = 8  # bytes
CHUNK: units.Bytes = 32 * 1024
"""Bytes per layer and pass: the table and some layers stay in the L2 cache."""

_CHUNK_WORDS = CHUNK // WORD
_MASK = 2**64 - 1


def fill(
    out: Bytes, namespace: bytes, key: bytes, rank: int, *, layer: int = 0, offset: int = 0
) -> None:
    """Write the stream's bytes into every row of `out`.

    Args:
        out: as the module says: one layer, or several consecutive ones.
        layer: of the first row.
        offset: byte of the stream at which each row begins.
    """
    rows = np.atleast_2d(out)
    seeds, factors = _seeds(namespace, key, rank, layer, count=len(rows))
    for at, size, chunk, inside in _pieces(rows.shape[1], offset):
        piece = rows[:, at : at + size]
        if inside % WORD == 0 and size % WORD == 0:
            _words(piece.view(np.uint64), seeds, factors, chunk, first=inside // WORD)
        else:
            piece[:] = _ragged(seeds, factors, chunk, inside, size=size)


def mismatch(
    view: Bytes, namespace: bytes, key: bytes, rank: int, *, layer: int = 0, offset: int = 0
) -> int | None:
    """Compare every row of `view` with the stream; the arguments are those of `fill`.

    Returns:
        The flat index in `view` of the first byte that is not the stream's; None: all are right.
    """
    rows = np.atleast_2d(view)
    seeds, factors = _seeds(namespace, key, rank, layer, count=len(rows))
    length = rows.shape[1]
    first: int | None = None
    for at, size, chunk, inside in _pieces(length, offset):
        piece = rows[:, at : at + size]
        if inside % WORD == 0 and size % WORD == 0:
            wanted = np.empty((len(rows), size // WORD), dtype=np.uint64)
            _words(wanted, seeds, factors, chunk, first=inside // WORD)
            if (piece.view(np.uint64) == wanted).all():
                continue
        row, column = np.nonzero(piece != _ragged(seeds, factors, chunk, inside, size=size))
        if len(row):
            found = int(row[0]) * length + at + int(column[0])
            first = found if first is None else min(first, found)
    return first


_TABLE = mixed(np.arange(1, _CHUNK_WORDS + 1, dtype=np.uint64) * np.uint64(GOLDEN))


@lru_cache(maxsize=64)
def _layer_numbers(layer: int, count: int) -> tuple[Words, Words]:
    """Two numbers per layer as columns, different from the offset table's and from each other."""
    layers = np.arange(layer, layer + count, dtype=np.uint64).reshape(count, 1)
    first = np.uint64(_CHUNK_WORDS + 1)
    even = (np.uint64(2) * layers + first) * np.uint64(GOLDEN)
    return mixed(even), mixed(even + np.uint64(GOLDEN))


def _seeds(
    namespace: bytes, key: bytes, rank: int, layer: int, *, count: int
) -> tuple[Words, Words]:
    names = b"%d %d %d " % (len(namespace), len(key), rank) + namespace + key
    digest = blake2b(names, digest_size=16, person=b"replay content").digest()
    seed, factor = np.frombuffer(digest, dtype="<u8")
    for_seed, for_factor = _layer_numbers(layer, count)
    return for_seed ^ seed, (for_factor ^ factor) | np.uint64(1)


def _pieces(length: int, offset: int) -> Iterator[tuple[int, int, int, int]]:
    """Cut a range of the stream at chunk borders: (index, bytes, chunk number, offset in chunk)."""
    at = 0
    while at < length:
        chunk, inside = divmod(offset + at, CHUNK)
        size = min(length - at, CHUNK - inside)
        yield at, size, chunk, inside
        at += size


def _words(out: Words, seeds: Words, factors: Words, chunk: int, *, first: int) -> None:
    moved = seeds + np.uint64((chunk * GOLDEN) & _MASK)
    np.bitwise_xor(_TABLE[first : first + out.shape[1]], moved, out=out)
    np.multiply(out, factors, out=out)


def _ragged(seeds: Words, factors: Words, chunk: int, inside: int, *, size: int) -> Bytes:
    """A range that does not begin or end with a word: whole words around it, then cut."""
    first, last = inside // WORD, -(-(inside + size) // WORD)
    words = np.empty((len(seeds), last - first), dtype=np.uint64)
    _words(words, seeds, factors, chunk, first=first)
    start = inside - first * WORD
    return words.view(np.uint8)[:, start : start + size]
