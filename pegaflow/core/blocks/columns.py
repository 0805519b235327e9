"""What the index knows of each page beyond its ledger record: columns, one entry per page id.

No entry is an object of Python's: five million blocks cost what their numbers cost, and nothing is
looked at by a garbage collector.  Memory is there once it is touched, so a pool of large pages,
whose extents leave most of their page ids unused, pays for few of them.
"""

from array import array
from collections import Counter

import numpy as np
import numpy.typing as npt

from pegaflow.core.pool.columns import again, repeats
from pegaflow.core.pool.fingerprints import U64
from pegaflow.wire.identities import PageId
from pegaflow.wire.units import Count

RUN_LEAST: Count = 8
"""Blocks of a chain that lie equally far apart, before it is guessed that more do."""

RUN_MOST: Count = 1024
"""So many more: they are looked at with a few calls, where one by one takes 100 ns each."""

Pages = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Columns:
    """Of resident blocks."""

    def __init__(self) -> None:
        self._head = np.zeros(0, np.uint32)  # first page of the block it belongs to + 1; 0: none
        self._next = np.zeros(0, np.uint32)  # page of the block's next shard + 1; 0: the last
        self._parent = np.zeros(0, np.uint32)  # first page of the block before it + 1; 0: unknown
        self._parent_stamp = np.zeros(0, np.uint32)  # under which that was so: its lower half
        self._born_ns = np.zeros(0, np.int64)  # nanoseconds; 0: in an earlier life, nobody knows

    def reach(self, pages: int) -> None:
        """There are so many page ids at least."""
        if pages <= len(self._head):
            return
        for name, column in list(vars(self).items()):
            grown = np.zeros(max(pages, 2 * len(column)), column.dtype)
            grown[: len(column)] = column
            setattr(self, name, grown)

    # which pages are a block

    def add(self, pages: Pages, born_ns: int) -> None:
        """Blocks that are here now.

        Args:
            pages: a row per block, a column per shard; none of them is another's.
            born_ns: when they were published.
        """
        self.reach(int(pages.max()) + 1)
        first = pages[:, 0]
        assert not np.count_nonzero(self._head[pages]), pages
        self._head[pages] = first[:, None] + 1
        if pages.shape[1] > 1:
            self._next[pages[:, :-1]] = pages[:, 1:] + 1
        self._next[pages[:, -1]] = 0
        self._parent[first] = 0
        self._born_ns[first] = born_ns

    def remove(self, pages: Pages) -> None:
        """Nothing is here any more: all pages of the blocks that go."""
        self._head[pages] = 0

    def heads(self, pages: Pages) -> Pages:
        """The first page of the block that has each of these, -1 where none has it."""
        known = np.minimum(pages, max(len(self._head) - 1, 0))
        if not len(self._head):
            return np.full(len(pages), -1, np.int64)
        found = self._head[known].astype(np.int64) - 1
        found[pages >= len(self._head)] = -1
        return found

    def head(self, page: int) -> PageId | None:
        """The same of one."""
        at = int(self._head[page]) if page < len(self._head) else 0
        return PageId(at - 1) if at else None

    def shards(self, first: int) -> list[PageId]:
        """All pages of the block that begins here."""
        found = [PageId(first)]
        while (at := int(self._next[found[-1]])) != 0:
            found.append(PageId(at - 1))
        return found

    def all_pages(self, first: Pages, shards: Pages) -> tuple[Pages, Pages]:
        """All pages of these blocks, block by block.

        Args:
            first: page of each block.
            shards: pages of each block.

        Returns:
            The pages, and of which block each is: its place in `first`.
        """
        blocks = np.arange(len(first))
        pages, owners = [first], [blocks]
        for shard in range(1, int(shards.max(initial=1))):
            there = shards[owners[-1]] > shard
            owners.append(owners[-1][there])
            pages.append(self._next[pages[-1][there]].astype(np.int64) - 1)
        if len(pages) == 1:
            return first, blocks
        owner = np.concatenate(owners)
        order = np.argsort(owner, kind="stable")
        return np.concatenate(pages)[order], owner[order]

    def every_head(self) -> Pages:
        """The first page of every block."""
        used = np.flatnonzero(self._head)
        heads: Pages = used[self._head[used] == used + 1]
        return heads

    def every_page(self) -> Pages:
        """All pages of all blocks."""
        return np.flatnonzero(self._head)

    # their chains

    def link(self, first: Pages, parents: Pages, stamps: U64) -> None:
        """Blocks go on from others.

        Args:
            first: page of each block.
            parents: first page of the block before it, -1: nobody knows.
            stamps: of `parents`.
        """
        self._parent[first] = parents + 1
        self._parent_stamp[first] = stamps & np.uint64(0xFFFF_FFFF)

    def walk(self, first: PageId, most: int) -> Pages:
        """Where the block before this one was, the one before that, and so on, whatever is there
        by now.

        Args:
            most: blocks, this one among them; each comes once.
        """
        walked = array("q", (first,))
        parent, go = self._parent.data, walked.append
        page, step, alike = int(first), 0, 0
        while len(walked) < most and (after := parent[page] - 1) >= 0:
            go(after)
            alike = alike + 1 if after - page == step else 0
            page, step = after, after - page
            if alike == RUN_LEAST:
                run = self._run(page, step, min(RUN_MOST, most - len(walked)))
                walked.frombytes(run.tobytes())
                page, alike = walked[-1], 0
        found: Pages = np.frombuffer(walked, np.int64)
        if len(found) == most and repeats(found):  # it goes round
            found = found[: int(again(found).argmax())]
        return found

    def _run(self, page: int, step: int, most: int) -> Pages:
        """Where blocks were, as far as each was so many pages from the one behind it.

        Args:
            page: of the last one, which is not among them.
            most: blocks.
        """
        ahead = page + step * np.arange(most + 1)
        ahead = ahead[(ahead >= 0) & (ahead < len(self._parent))]
        goes_on = self._parent[ahead[:-1]] == ahead[1:] + 1
        return ahead[1 : 1 + (len(goes_on) if goes_on.all() else int(goes_on.argmin()))]

    def linked(self, first: Pages, parents: Pages, stamps: U64) -> Mask:
        """Whether blocks go on from those that are there by now.

        Args:
            first: page of each.
            parents: first pages to which their links lead.
            stamps: of what is there now.
        """
        same: Mask = self._parent_stamp[first] == (stamps & np.uint64(0xFFFF_FFFF))
        same &= self._head[parents] == parents + 1
        return same

    def parents(self, first: Pages) -> Pages:
        """Where the block before each of these was, -1: nobody knows."""
        return self._parent[first].astype(np.int64) - 1

    def births(self, first: Pages) -> list[int]:
        """When each of these was published."""
        times: list[int] = self._born_ns[first].tolist()
        return times

    def born_ns(self, first: PageId) -> int:
        """When the block was published."""
        return int(self._born_ns[first])

    def ages(self, first: Pages) -> Counter[int]:
        """How many of these were published when."""
        times, counts = np.unique(self._born_ns[first], return_counts=True)
        return Counter(dict(zip(times.tolist(), counts.tolist(), strict=True)))
