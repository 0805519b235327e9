"""The ledger in chunks of many records, as columns: what a restart reads.

A chunk is an array of rows as they lie in the file; the checksums of all its rows are made at once.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pegaflow.wire.identities import PageId
from pegaflow.wire.layout import PAGE_ALIGN

from .geometry import MIN_PAGE, Geometry
from .ledger import FACTORS, MAX_KEY, QUARANTINED, RECORD_BYTES, SEALED, Ledger

U64 = npt.NDArray[np.uint64]

ROW = np.dtype(
    {
        "names": ["seal", "shard", "shards", "length", "namespace", "key_length", "key", "depth"],
        "formats": ["u8", "u2", "u2", "u4", "V16", "u1", "V64", "u4"],
        "offsets": [16, 24, 26, 28, 32, 48, 49, 122],
        "itemsize": RECORD_BYTES,
    }
)
"""The fields of a record that a restart looks at, where ledger.py puts them."""

_FACTORS = np.array(FACTORS, np.uint64)


@dataclass(frozen=True, slots=True)
class Chunk:
    """The sealed records of a chunk, by page, and its quarantined pages."""

    pages: npt.NDArray[np.int64]
    rows: npt.NDArray[Any]  # of ROW, beside `pages`
    quarantined: list[PageId]


def scan(ledger: Ledger, first: PageId, count: int) -> Chunk:
    """The records of `count` pages from `first` on, void and torn ones left out."""
    raw = ledger.chunk(first, count)
    words: U64 = np.frombuffer(raw, np.uint64).reshape(count, RECORD_BYTES // 8)
    state = words[:, 0]
    used = np.flatnonzero(state)
    if len(used) < count:
        words, state = words[used], state[used]
    sums = np.einsum("ij,j->i", words[:, 1:], _FACTORS) >> np.uint64(32)
    sealed = state == (np.uint64(SEALED) | sums)
    bad = state >> np.uint64(32) == np.uint64(QUARANTINED >> 32)
    rows, good = np.frombuffer(raw, ROW), used[sealed]
    if len(good) < count:
        rows = rows[good]
    return Chunk(good + first, rows, (used[bad] + first).tolist())


def occupied(
    ledger: Ledger, first: PageId, count: int
) -> tuple[tuple[PageId, ...], tuple[int, ...]]:
    """What of a chunk is not void, quarantined pages too.

    Args:
        first: page id of the first record.
        count: records.

    Returns:
        Page ids, ascending, and beside them the bytes of payload of each; 0 for a quarantined page.
    """
    chunk = scan(ledger, first, count)
    pages, lengths = chunk.pages, chunk.rows["length"].astype(np.int64)
    if chunk.quarantined:
        pages = np.append(pages, np.array(chunk.quarantined, np.int64))
        order = np.argsort(pages)
        pages = pages[order]
        lengths = np.append(lengths, np.zeros(len(chunk.quarantined), np.int64))[order]
    return tuple(pages.tolist()), tuple(lengths.tolist())


class Sense:
    """Which sealed pages fit the pool, chunk by chunk in the order of pages: an extent is cut for
    one page size, which is that of its first page."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._sizes: dict[int, int] = {}  # extent -> page size

    def look(self, chunk: Chunk) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Which records make sense.

        Args:
            chunk: the next one; chunks come in the order of their pages.

        Returns:
            Beside the chunk's pages: whether the record fits, and the page size in bytes that its
            length asks for.
        """
        g, rows = self._geometry, chunk.rows
        sizes = np.maximum(1, -(-rows["length"].astype(np.int64) // PAGE_ALIGN)) * PAGE_ALIGN
        extents, slots = np.divmod(chunk.pages, g.records_per_extent)
        fits = slots < g.extent_bytes // np.maximum(sizes, MIN_PAGE)
        fits &= (rows["length"] > 0) & (rows["shard"] < rows["shards"])
        fits &= (rows["key_length"] > 0) & (rows["key_length"] <= MAX_KEY)
        there = np.flatnonzero(fits)
        met, at = np.unique(extents[there], return_index=True)
        for extent, size in zip(met.tolist(), sizes[there[at]].tolist(), strict=True):
            self._sizes.setdefault(extent, size)
        cut = np.array([self._sizes[e] for e in met.tolist()], np.int64)
        fits[there] = sizes[there] == cut[np.searchsorted(met, extents[there])]
        return fits, sizes
