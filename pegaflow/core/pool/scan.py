"""The ledger in chunks of many records, as columns: what a restart reads.

A chunk is an array of rows as they lie in the file; the checksums of all its rows are made at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from pegaflow.wire.identities import Namespace, PageId
from pegaflow.wire.layout import PAGE_ALIGN

from .cuts import Cuts
from .fingerprints import U64, hashes_of
from .geometry import MIN_PAGE, Geometry
from .ledger import LEAVING, MAX_KEY, QUARANTINED, RECORD_BYTES, SEALED, VOID, Ledger, tags_of
from .records import ROW

Pages = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The sealed records of a chunk, by page, and its quarantined and leaving pages."""

    pages: Pages
    rows: npt.NDArray[Any]  # of ROW, beside `pages`
    quarantined: list[PageId]
    leaving: list[PageId] = field(default_factory=list)


def scan(ledger: Ledger, first: PageId, count: int) -> Chunk:
    """The records of `count` pages from `first` on, void and torn ones left out."""
    raw, used, tags = _read(ledger, first, count)
    rows, good = np.frombuffer(raw, ROW), used[tags == SEALED]
    if len(good) < count:
        rows = rows[good]
    quarantined, leaving = used[tags == QUARANTINED] + first, used[tags == LEAVING] + first
    return Chunk(good + first, rows, quarantined.tolist(), leaving.tolist())


def occupied(ledger: Ledger, first: PageId, count: int) -> tuple[Pages, Pages]:
    """What of a chunk is not void, leaving and quarantined pages too.

    Args:
        first: page id of the first record.
        count: records.

    Returns:
        Page ids, ascending, and beside them the bytes of payload of each; 0 for a quarantined page.
    """
    raw, used, tags = _read(ledger, first, count)
    there = tags != VOID
    used = used[there]
    lengths = np.frombuffer(raw, ROW)["payload_bytes"][used].astype(np.int64)
    lengths[tags[there] == QUARANTINED] = 0
    return used + first, lengths


def _read(ledger: Ledger, first: PageId, count: int) -> tuple[bytes, Pages, U64]:
    """The raw records, those whose state word is not 0, and what each of these is: SEALED, LEAVING,
    QUARANTINED, or VOID if it is torn."""
    raw = ledger.chunk(first, count)
    words: U64 = np.frombuffer(raw, np.uint64).reshape(count, RECORD_BYTES // 8)
    state = words[:, 0]
    used = np.flatnonzero(state)
    if len(used) < count:
        words, state = words[used], state[used]
    return raw, used, tags_of(state, words[:, 1:])


def by_namespace(rows: npt.NDArray[Any]) -> Iterator[tuple[Namespace, npt.NDArray[np.bool_], U64]]:
    """Take rows apart by namespaces, of which there are few.

    Args:
        rows: of ROW.

    Yields:
        A namespace, which of the rows are of it, and the hashes of their keys.
    """
    if not len(rows):
        return
    spaces = np.ascontiguousarray(rows["namespace"]).view(np.uint64).reshape(-1, 2)
    keys = np.ascontiguousarray(rows["key"]).view(np.uint8).reshape(-1, MAX_KEY)
    hashes = hashes_of(keys[:, : -(-int(rows["key_length"].max()) // 8) * 8])
    left = np.arange(len(rows))
    while len(left):
        space = spaces[left[0]]
        here = (spaces == space).all(axis=1)
        yield Namespace(space.tobytes()), here, hashes[here]
        left = left[~here[left]]


def slot_bytes(ledger: Ledger, pages: Pages) -> int:
    """How much of the pool blocks take.

    Args:
        pages: one of each block; what is not sealed, or no page of the pool, takes nothing.

    Returns:
        Bytes in the slots of all of their pages.
    """
    words = ledger.rows()[pages[pages < ledger.records]]
    tags = tags_of(words[:, 0], words[:, 1:])
    rows = words[tags == SEALED].view(ROW)[:, 0]
    sizes = -(-rows["payload_bytes"].astype(np.int64) // PAGE_ALIGN) * PAGE_ALIGN
    return int((np.maximum(sizes, MIN_PAGE) * rows["shards"]).sum())


class Sense:
    """Which sealed pages fit the pool, chunk by chunk in the order of pages: an extent is cut for
    one page size, which is that of its first page."""

    def __init__(self, geometry: Geometry) -> None:
        self._cuts = Cuts(geometry)

    def look(self, chunk: Chunk) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """Which records make sense.

        Args:
            chunk: the next one; chunks come in the order of their pages.

        Returns:
            Beside the chunk's pages: whether the record fits, and the page size in bytes that its
            length asks for.
        """
        rows = chunk.rows
        sizes = np.maximum(1, -(-rows["payload_bytes"].astype(np.int64) // PAGE_ALIGN)) * PAGE_ALIGN
        fits = (rows["payload_bytes"] > 0) & (rows["shard"] < rows["shards"])
        fits &= (rows["key_length"] > 0) & (rows["key_length"] <= MAX_KEY)
        fits[fits] = self._cuts.fit(chunk.pages[fits], sizes[fits])
        return fits, sizes
