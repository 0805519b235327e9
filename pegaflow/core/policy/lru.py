"""Which blocks go first: the least recently used, and of one chain the tail before the head.

A block is of use only while all blocks before it in its chain are here. So whenever a chain is
used, its blocks become the youngest from the tail to the head: the head last, hence youngest of
all. Chains are always passed head first.

Each use has a tick, and a block, which is named by its first page, has that of its last use in a
column.  The order is what was written down of all uses: pages and ticks, in arrays of CHUNK, the
oldest first.  What is written there with another tick than the column has is a trace of an earlier
use, or of a block that is gone, and is passed over.  So a use costs two stores, of any number of
blocks at once, and nothing is moved.  When the traces are half as many as the blocks, they are
swept out, a few arrays for each one that is filled: 26 bytes a block, and no long pause.

Each page size has its own order, since evicting a block makes room for one of the same size only. A
block under a lease stays in its place, so that a lookup touches no order at all, and is never a
victim: a search that meets one makes it the youngest, which the end of its lease would do anyway.
So one lease costs all searches together one step per block, and no search takes more than LOOK_MAX.
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from pegaflow.core.blocks.columns import Pages
from pegaflow.core.blocks.handles import Block, Handles
from pegaflow.core.pool.columns import among
from pegaflow.wire.units import Count, Share

LOOK_MAX: Count = 65536
"""Blocks one search looks at: some milliseconds.  It may find too few; the next one goes on."""

LOOK_FIRST: Count = 256
"""Blocks that are looked at before others, where some of the first will do."""

CHUNK: Count = 4096
"""Uses of one array: looked through in 30 microseconds."""

TRACES: Share = 1 / 2
"""Of the blocks, so many traces of earlier uses may stay."""

SWEEP: Count = 4
"""Arrays swept for one that is filled: more than as many traces go as come."""

_Ticks = npt.NDArray[np.int64]

_NOTHING: Pages = np.empty(0, np.int64)


class _Chunk:
    """Uses in order: those from `first` to `end` of two arrays."""

    __slots__ = ("end", "first", "pages", "ticks")

    def __init__(self, at: int) -> None:
        self.pages: npt.NDArray[np.uint32] = np.empty(CHUNK, np.uint32)
        self.ticks: _Ticks = np.empty(CHUNK, np.int64)
        self.first = self.end = at

    def __len__(self) -> int:
        return self.end - self.first

    @property
    def is_full(self) -> bool:
        return self.end == len(self.pages)

    def put(self, at: int, pages: Pages, ticks: _Ticks) -> None:
        self.pages[at : at + len(pages)] = pages
        self.ticks[at : at + len(pages)] = ticks

    def uses(self) -> tuple[npt.NDArray[np.uint32], _Ticks]:
        return self.pages[self.first : self.end], self.ticks[self.first : self.end]

    def sweep(self, last: _Ticks) -> None:
        """Only last uses stay."""
        pages, ticks = self.uses()
        valid = last[pages] == ticks
        if np.count_nonzero(valid) == len(pages):
            return
        if self.is_full:
            self.pages, self.ticks = pages[valid].copy(), ticks[valid].copy()
            self.first, self.end = 0, len(self.pages)
        else:
            stay = _wide((pages[valid], ticks[valid]))
            self.put(0, *stay)
            self.first, self.end = 0, len(stay[0])


class _Order:
    """The blocks of one page size, the oldest first."""

    def __init__(self) -> None:
        self.blocks = 0
        self._chunks = [_Chunk(0)]  # the last one has room; the others are never empty
        self._sweep_at = 0

    def young(self, pages: Pages, ticks: _Ticks) -> bool:
        """Write these uses down, the youngest of all; whether that has filled a chunk."""
        done = 0
        while done < len(pages):
            chunk = self._chunks[-1]
            if chunk.is_full:
                chunk = _Chunk(0)
                self._chunks.append(chunk)
            count = min(len(pages) - done, len(chunk.pages) - chunk.end)
            chunk.put(chunk.end, pages[done : done + count], ticks[done : done + count])
            chunk.end += count
            done += count
        return self._chunks[-1].is_full

    def old(self, pages: Pages, ticks: _Ticks) -> None:
        """Write these down before all others."""
        left = len(pages)
        while left:
            chunk = self._chunks[0]
            if chunk.first == 0:
                chunk = _Chunk(CHUNK)
                self._chunks.insert(0, chunk)
            count = min(left, chunk.first)
            chunk.put(chunk.first - count, pages[left - count : left], ticks[left - count : left])
            chunk.first -= count
            left -= count

    def look(self, last: _Ticks, most: int) -> Pages:
        """The oldest blocks, up to about so many; what is looked through is swept."""
        found, count, at = [], 0, 0
        while at < len(self._chunks) and count < most:
            chunk = self._chunks[at]
            chunk.sweep(last)
            if not len(chunk) and at < len(self._chunks) - 1:
                del self._chunks[at]
                continue
            found.append(chunk.uses()[0])
            count += len(chunk)
            at += 1
        return np.concatenate(found).astype(np.int64)[:most] if found else np.empty(0, np.int64)

    def sweep(self, last: _Ticks) -> None:
        """Sweep some chunks, if there are too many traces."""
        uses = sum(map(len, self._chunks))
        if uses <= (1 + TRACES) * self.blocks + 2 * CHUNK:
            return
        for _ in range(SWEEP):
            at = self._sweep_at = self._sweep_at if self._sweep_at < len(self._chunks) - 1 else 0
            chunk = self._chunks[at]
            chunk.sweep(last)
            before = self._chunks[at - 1] if at else None
            if before is not None and len(before) + len(chunk) <= CHUNK:
                merged = _Chunk(0)
                for part in (before, chunk):
                    merged.put(merged.end, *_wide(part.uses()))
                    merged.end += len(part)
                used, ticks = merged.uses()
                merged.pages, merged.ticks = used.copy(), ticks.copy()
                self._chunks[at - 1 : at + 1] = [merged]
            else:
                self._sweep_at += 1

    def uses(self) -> tuple[Pages, _Ticks]:
        """All that is written down."""
        parts = [chunk.uses() for chunk in self._chunks]
        return _wide((np.concatenate([p for p, _ in parts]), np.concatenate([t for _, t in parts])))


class Lru:
    """Knows every resident block exactly once, by its first page.

    Args:
        handles: the blocks of pages.
    """

    def __init__(self, handles: Handles | None = None) -> None:
        self._handles = handles if handles is not None else Handles()
        self._orders: dict[int, _Order] = {}  # by page size; none empty
        self._last: _Ticks = np.zeros(
            0, np.int64
        )  # by first page: tick of the last use; 0: not here
        self._tick = 0  # grows with every use, so that ages compare across page sizes
        self._oldest = 0  # falls with every block that is put before all others

    def reach(self, pages: int) -> None:
        """There are so many page ids at least."""
        if pages > len(self._last):
            grown = np.zeros(max(pages, 2 * len(self._last)), np.int64)
            grown[: len(self._last)] = self._last
            self._last = grown

    # blocks by their first pages, all of one page size

    def make_young(self, page_size: int, pages: Pages) -> None:
        """Makes these blocks the youngest, new ones and known ones alike.

        When blocks are added to a chain that is already here, pass the whole chain as far as it is
        known: alone, the new tail would outlive its head.

        Args:
            pages: in chain order.
        """
        self._enter(page_size, pages[::-1])

    def make_old(self, page_size: int, pages: Pages) -> None:
        """Makes these blocks the oldest of all, new ones and known ones alike.

        Args:
            pages: the first of them is to go first.
        """
        if not len(pages):
            return
        self.reach(int(pages.max()) + 1)
        ticks = np.arange(self._oldest - len(pages), self._oldest)
        self._oldest -= len(pages)
        order = self._orders.setdefault(page_size, _Order())
        order.blocks += len(pages) - int(np.count_nonzero(self._last[pages]))
        self._last[pages] = ticks
        order.old(pages, ticks)

    def coldest(self, page_size: int, count: int) -> Pages:
        """Blocks without a lease, the oldest first. They stay; the caller drops what it evicts.

        Args:
            page_size: of all of them, in bytes.
            count: how many are wanted; fewer if LOOK_MAX were looked at first.
        """
        order = self._orders.get(page_size)
        if order is None or count <= 0:
            return np.empty(0, np.int64)
        looked = min(count, LOOK_MAX)
        while True:
            pages = order.look(self._last, looked)
            leased = self._handles.leased(pages)
            free = np.flatnonzero(~leased)
            if len(free) >= count or len(pages) < looked or looked == LOOK_MAX:
                break
            looked = min(2 * looked, LOOK_MAX)
        end = int(free[count - 1]) + 1 if len(free) >= count else len(pages)
        found = pages[free[:count]]
        self._enter(page_size, pages[:end][leased[:end]])
        return found

    def drop(self, page_size: int, pages: Pages) -> None:
        """These blocks are gone."""
        if not len(pages):
            return
        order = self._orders[page_size]
        assert self._last[pages].all(), pages
        self._last[pages] = 0
        order.blocks -= len(pages)
        if not order.blocks:
            del self._orders[page_size]

    def last_uses(self, pages: Pages) -> _Ticks:
        """The ticks of their last uses: blocks used later have a higher one."""
        return self._last[pages]

    @property
    def tick(self) -> int:
        """Of the newest use."""
        return self._tick

    # blocks as objects

    def insert_chain(self, blocks: Sequence[Block]) -> None:
        """`make_young`, also of several page sizes."""
        for block in reversed(blocks):
            self._handles.note(block)
        self._enter_blocks(blocks)

    def insert_oldest(self, block: Block) -> None:
        """Makes a new block the oldest of all: nobody has used it in this life."""
        self._handles.note(block)
        self.make_old(block.page_size, np.array(block.pages[:1], np.int64))

    def touch(self, blocks: Sequence[Block]) -> None:
        """The chain was used, or a lease on it has ended: its blocks become the youngest. Those
        that are gone are passed over."""
        get, last, known = self._handles.get, self._last, len(self._last)
        firsts = [(block, block.pages[0]) for block in blocks]
        self._enter_blocks([b for b, p in firsts if p < known and last[p] and get(p) is b])

    def victims(self, page_size: int, count: int) -> list[Block]:
        """`coldest`."""
        return list(map(self._handles.of, self.coldest(page_size, count).tolist()))

    def last_use(self, block: Block) -> int:
        """The tick of its last use."""
        return int(self._last[block.pages[0]])

    def remove(self, block: Block) -> None:
        """The block is gone."""
        self.drop(block.page_size, np.array(block.pages[:1], np.int64))

    def coldest_extent(
        self,
        page_size_excluded: int,
        extents_of: Callable[[Pages], tuple[Pages, Pages]],
        avoided: Pages = _NOTHING,
    ) -> int | None:
        """The extent of the oldest block without a lease, to be emptied and reassigned. Other
        blocks in that extent may be leased.

        Args:
            page_size_excluded: blocks of this size are not looked at: it is the one that needs an
                extent.
            extents_of: for first pages of blocks the extents of all their pages, block by block,
                and of which of the blocks each is, by its place.
            avoided: extents that are not to be chosen.

        Returns:
            None if there is no such block.
        """
        oldest: tuple[int, int] | None = None
        for page_size in [size for size in self._orders if size != page_size_excluded]:
            looked = LOOK_FIRST if len(avoided) else 1
            while True:
                first = self.coldest(page_size, looked)
                extents, owners = extents_of(first)
                free = np.ones(len(first), np.bool_)
                free[owners[among(extents, avoided)]] = False
                chosen = np.flatnonzero(free)[:1]
                if len(chosen) or len(first) < looked or not len(avoided) or looked == LOOK_MAX:
                    break
                looked = min(8 * looked, LOOK_MAX)
            for at in chosen.tolist():
                use = int(self._last[first[at]])
                if oldest is None or use < oldest[0]:
                    oldest = (use, int(extents[np.searchsorted(owners, at)]))
        return oldest[1] if oldest else None

    def __len__(self) -> int:
        """All blocks."""
        return sum(order.blocks for order in self._orders.values())

    def _enter_blocks(self, blocks: Sequence[Block]) -> None:
        """Runs of one page size, so that ticks fall along all of them."""
        end = len(blocks)
        while end:
            first, size = end - 1, blocks[end - 1].page_size
            while first and blocks[first - 1].page_size == size:
                first -= 1
            pages = np.array([block.pages[0] for block in blocks[first:end]], np.int64)
            self.make_young(size, pages)
            end = first

    def _enter(self, page_size: int, pages: Pages) -> None:
        """These are used one after the other."""
        if not len(pages):
            return
        self.reach(int(pages.max()) + 1)
        ticks = np.arange(self._tick + 1, self._tick + 1 + len(pages))
        self._tick += len(pages)
        order = self._orders.setdefault(page_size, _Order())
        order.blocks += len(pages) - int(np.count_nonzero(self._last[pages]))
        self._last[pages] = ticks
        if order.young(pages, ticks):
            order.sweep(self._last)

    def check(self) -> None:
        """Orders are sorted and name each block once."""
        there = 0
        for order in self._orders.values():
            assert order.blocks, "an empty order stayed"
            pages, ticks = order.uses()
            assert (ticks[1:] > ticks[:-1]).all() and (not len(ticks) or ticks[-1] <= self._tick)
            here = pages[self._last[pages] == ticks]
            assert len(here) == len(set(here.tolist())) == order.blocks
            there += len(here)
        assert there == np.count_nonzero(self._last)


def _wide(uses: tuple[npt.NDArray[np.uint32], _Ticks]) -> tuple[Pages, _Ticks]:
    return uses[0].astype(np.int64), uses[1]
