"""Which block comes before which, as far as both are here.

Of each block a column says where the one before it was when it was published, and under which
stamp; if another block is there by now, nobody knows it any more.  A chain is saved in pieces that
are sealed in any order, so a piece may be here before the one that it goes on from: the fingerprint
of that one is kept, and looked for when somebody walks the chain.  Only the order in which blocks
go hangs on any of this.
"""

from collections.abc import Callable

import numpy as np

from pegaflow.core.pool.columns import again, repeats
from pegaflow.core.pool.fingerprints import U64, fingerprints
from pegaflow.wire.identities import Key, Namespace, PageId
from pegaflow.wire.units import Count

from .columns import Columns, Pages
from .keymap import KeyMap

ORPHANS_MAX: Count = 65536
"""Blocks whose forerunner may still come: chains being saved, each with a few pieces under way."""


class Chains:
    """Links between the blocks of a prefix index.

    Args:
        columns: where the links are.
        map_: from fingerprints to first pages.
        stamps: under which pages are filled, as the ledger says.
    """

    def __init__(self, columns: Columns, map_: KeyMap, stamps: Callable[[Pages], U64]) -> None:
        self._columns, self._map, self._stamps = columns, map_, stamps
        self._orphans: dict[PageId, int] = {}  # first page -> fingerprint of the block before it

    def link(self, first: PageId, before: PageId) -> None:
        """The block at one page goes on from that at another."""
        parents = np.array([before], np.int64)
        self._columns.link(np.array([first]), parents, self._stamps(parents))
        self._orphans.pop(first, None)

    def await_parent(self, first: PageId, namespace: Namespace, parent: Key) -> None:
        """The block before this one may still come."""
        if any(parent) and len(self._orphans) < ORPHANS_MAX:
            self._orphans[first] = int(fingerprints(namespace, (parent,))[0])

    def forget(self, first: Pages) -> None:
        """These blocks are gone."""
        if self._orphans:
            for page in first.tolist():
                self._orphans.pop(page, None)

    def chain(self, last: PageId, most: int) -> Pages:
        """The resident chain that ends in this block.

        Args:
            last: its first page.
            most: blocks, at most.

        Returns:
            First pages, that of the head first.
        """
        found = self._linked(last, most)
        while self._orphans and len(found) < most and self._adopt(PageId(int(found[-1]))):
            before = PageId(int(self._columns.parents(found[-1:])[0]))
            found = np.concatenate([found, self._linked(before, most - len(found))])
            if repeats(found):  # it goes round
                found = found[: int(again(found).argmax())]
        return found[::-1]

    def _linked(self, last: PageId, most: int) -> Pages:
        """The chain as far as its links are known, that of the head last."""
        found = self._columns.walk(last, most)
        if len(found) == 1:
            return found
        stamps = self._stamps(found[1:])
        broken = np.flatnonzero(~self._columns.linked(found[:-1], found[1:], stamps))
        return found[: broken[0] + 1 if len(broken) else len(found)]

    def before(self, first: Pages) -> Pages:
        """First page of the block before each of these, -1: it is not here."""
        for page in first.tolist() if self._orphans else ():
            self._adopt(PageId(page))
        found = self._columns.parents(first)
        at = (found >= 0).nonzero()[0]
        parents = found[at]
        there = self._columns.linked(first[at], parents, self._stamps(parents))
        found[at[~there]] = -1
        return found

    def heads_first(self, first: Pages) -> Pages:
        """The same blocks, each behind those of them that come before it in its chain.

        Args:
            first: their first pages, each once, ascending.
        """
        before = self.before(first)
        at = np.minimum(np.searchsorted(first, before), max(len(first) - 1, 0))
        up = np.where((before >= 0) & (first[at] == before), at, -1)
        depths = (up >= 0).astype(np.int64)  # of each below the one that `up` leads to
        for _ in range(len(first).bit_length()):
            on = (up >= 0).nonzero()[0]
            depths[on] += depths[up[on]]
            up[on] = up[up[on]]
        return first[np.argsort(depths, kind="stable")]

    def _adopt(self, first: PageId) -> bool:
        """Whether the block before this one has come."""
        name = self._orphans.get(first)
        before = -1 if name is None else int(self._map.find(np.array([name], np.uint64))[0])
        if before < 0:
            return False
        self.link(first, PageId(before))
        return True
