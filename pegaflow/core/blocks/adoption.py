"""The index's blocks out of the ledger that an earlier life has left.

The ledger is read chunk by chunk, so that whoever does it can answer to the clock in between.  A
block of one page becomes a *cold* entry of the prefix index (cold.py) until somebody asks for it.
A million of them take half a second; as objects they would take three.  Blocks of several pages are
put together from the records of one seal.

A page that is leaving is sealed again: whoever let it leave has died before it knew whether
somebody uses it.  What means nothing is to be voided: a block that lacks a shard, a record that
does not fit the cut of its extent, and all but one of several blocks with the same key.
"""

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from pegaflow.core.pool.geometry import MIN_PAGE, Geometry, slot_size
from pegaflow.core.pool.ledger import Ledger, Record
from pegaflow.core.pool.scan import Chunk, Sense, by_namespace, scan
from pegaflow.wire.identities import Key, Namespace, PageId
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.units import Count

from .table import Block, PrefixIndex

CHUNK_RECORDS: Count = 32768
"""Records read at a time: some 30 ms, in which nothing else is answered."""


_Column = npt.NDArray[np.int64]


class Adoption:
    """One ledger on its way into a prefix index.

    Args:
        geometry: cut of the pool that the ledger belongs to.
        blocks: gets what is found.
    """

    def __init__(self, ledger: Ledger, geometry: Geometry, blocks: PrefixIndex) -> None:
        self._ledger = ledger
        self._blocks = blocks
        self._sense = Sense(geometry)
        self._next = PageId(0)  # first page that is still to be read
        self._parts: dict[int, list[tuple[PageId, Record]]] = {}  # seal -> pages of larger blocks
        self._cold: list[_Column] = []  # per chunk: pages, page sizes, depths, seals
        self.nonsense: list[PageId] = []  # pages to be voided
        self.quarantined: list[PageId] = []
        self.bytes_ = 0  # of the pool, in the slots of adopted blocks

    def step(self) -> bool:
        """Read one chunk more; False if there is none."""
        count = min(CHUNK_RECORDS, self._ledger.records - self._next)
        if count <= 0:
            return False
        chunk = scan(self._ledger, self._next, count)
        if chunk.leaving:
            self._ledger.stay(chunk.leaving)
            chunk = scan(self._ledger, self._next, count)
        self._next = PageId(self._next + count)
        self.quarantined += chunk.quarantined
        fits, sizes = self._sense.look(chunk)
        self.nonsense += chunk.pages[~fits].tolist()
        single = fits & (chunk.rows["shards"] == 1)
        for page in chunk.pages[fits & ~single].tolist():
            record = self._ledger.read(page)
            if record is not None:
                self._parts.setdefault(record.seal, []).append((page, record))
        self._add_cold(Chunk(chunk.pages[single], chunk.rows[single], []), sizes[single])
        return True

    def finish(self) -> list[Block]:
        """Once all is read: the blocks of several pages, the tails of chains first."""
        for page in self._blocks.settle_cold():
            record = self._ledger.read(page)
            assert record is not None
            self.nonsense.append(page)
            self.bytes_ -= slot_size(-(-record.payload_bytes // PAGE_ALIGN) * PAGE_ALIGN)
        made: dict[tuple[Namespace, Key], Block] = {}
        for parts in self._parts.values():
            block = _block_of(parts)
            if block is None or (block.namespace, block.key) in made:
                self.nonsense += [page for page, _ in parts]
            else:
                made[block.namespace, block.key] = block
        self._parts.clear()
        found = [block for some in _alike(made.values()) for block in self._add(some)]
        found.sort(key=lambda block: (-block.depth, block.seal))
        return found

    def _add(self, blocks: list[Block]) -> list[Block]:
        """Those of these that nobody else is; they are there."""
        namespace = blocks[0].namespace
        known = self._blocks.known(namespace, [block.key for block in blocks]) >= 0
        for at in np.flatnonzero(known).tolist():
            self.nonsense += blocks[at].pages
        new = [
            block for block, is_known in zip(blocks, known.tolist(), strict=True) if not is_known
        ]
        self._blocks.add_blocks(new)
        self.bytes_ += sum(len(block.pages) * slot_size(block.page_size) for block in new)
        return new

    def coldest(self) -> dict[int, Iterator[PageId]]:
        """Cold pages by page size, in the order in which they should go: the tails of chains before
        their heads, and of equals the one that was sealed first."""
        if not self._cold:
            return {}
        pages, sizes, depths, seals = np.concatenate(self._cold, axis=1)
        order = np.lexsort((seals, -depths))
        pages, sizes = pages[order], sizes[order]
        return {int(size): iter(pages[sizes == size].tolist()) for size in np.unique(sizes)}

    def _add_cold(self, chunk: Chunk, sizes: npt.NDArray[np.int64]) -> None:
        rows = chunk.rows
        if not len(rows):
            return
        for namespace, here, hashes in by_namespace(rows):
            self._blocks.add_cold(namespace, hashes, chunk.pages[here])
        depths, seals = rows["depth"].astype(np.int64), rows["seal"].astype(np.int64)
        self._cold.append(np.stack([chunk.pages, sizes, depths, seals]))
        self.bytes_ += int(np.maximum(sizes, MIN_PAGE).sum())


def _block_of(parts: list[tuple[PageId, Record]]) -> Block | None:
    """The block of these pages, which were sealed together; None if one is missing."""
    parts.sort(key=lambda part: part[1].shard)
    first = parts[0][1]
    if [record.shard for _, record in parts] != list(range(first.shards)):
        return None
    same = {(r.namespace, r.key, r.payload_bytes, r.shards, r.depth) for _, r in parts}
    if len(same) > 1:
        return None
    return Block(
        namespace=first.namespace,
        key=first.key,
        page_size=-(-first.payload_bytes // PAGE_ALIGN) * PAGE_ALIGN,
        pages=tuple(page for page, _ in parts),
        stamps=tuple(record.stamp for _, record in parts),
        seal=first.seal,
        depth=first.depth,
        checksums=tuple(record.checksum or 0 for _, record in parts),
    )


def _alike(blocks: Iterable[Block]) -> Iterable[list[Block]]:
    """The blocks of one namespace that are cut alike."""
    kinds: dict[tuple[Namespace, int, int], list[Block]] = {}
    for block in blocks:
        kind = (block.namespace, len(block.pages), block.page_size)
        kinds.setdefault(kind, []).append(block)
    return kinds.values()
