"""Who has which page of the pool, as columns: a number for whoever fills it, and one for the grant
under which he does; ten bytes for each page that was ever used, where a set and dicts of pages had
a hundred.

A page is free, *left* (nobody fills it: its ledger record is sealed, and it is the index's) or a
holder's.  Every verb takes many pages at once.
"""

from collections import Counter
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pegaflow.wire.identities import GrantId, PageId
from pegaflow.wire.units import Count

from .columns import among, column, distinct
from .fingerprints import U64
from .geometry import Geometry

Mask = npt.NDArray[np.bool_]

_FREE, _LEFT, _NOBODY = 0, 1, (1 << 16) - 1
"""What is said of a page that nobody fills, and of none; holders are numbered from 2 on."""

_LOOK_PAGES: Count = 1 << 17
"""Pages that `left_from` looks at: half a millisecond, however many of them are the index's."""


class Held(NamedTuple):
    """What a holder has: pages, and the number that each was granted under."""

    pages: U64
    numbers: U64


class Owners:
    """All pages of a pool; at first they are free."""

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self._names: list[Hashable] = [None, None]  # holders, by what `_owner` says of them
        self._numbers: dict[Hashable, int] = {}  # the same by holder: those who have a page
        self._idle: list[int] = []  # numbers that nobody has any more
        self._held: dict[Hashable, Counter[int]] = {}  # holder -> extent -> pages; none is empty
        self._owner = np.zeros(geometry.records, np.uint16)  # by page: _FREE, _LEFT, or a holder
        self._grant = np.zeros(geometry.records, np.uint64)  # by page that is granted: its number

    def give(self, holder: Hashable, number: GrantId, extent: int, pages: U64) -> None:
        """Free -> granted.

        Args:
            pages: of this extent.
        """
        code = self._numbers.get(holder)
        if code is None:
            if not self._idle:
                self._idle.append(len(self._names))
                self._names.append(None)
            code = self._numbers[holder] = self._idle.pop()
            self._names[code] = holder
            self._held[holder] = Counter()
        self._owner[pages] = code
        self._grant[pages] = number
        self._held[holder][extent] += len(pages)

    def take_back(self, extent: int, pages: U64, holder: Hashable) -> None:
        """Granted -> free.

        Args:
            pages: of this extent, different ones.
            holder: who has them; anybody else's word is a bug.
        """
        code = self._numbers.get(holder)
        assert code is not None and (self._owner[pages] == code).all(), (pages, holder)
        held = self._held[holder]
        held[extent] -= len(pages)
        if not held[extent]:
            del held[extent]
        if not held:
            del self._held[holder], self._numbers[holder]
            self._names[code] = None
            self._idle.append(code)
        self._owner[pages] = _FREE

    def leave(self, pages: U64) -> None:
        """Free -> left."""
        assert not self._owner[pages].any(), pages
        self._owner[pages] = _LEFT

    def free(self, pages: U64) -> None:
        """Left -> free."""
        assert self.are_left(pages).all(), pages
        self._owner[pages] = _FREE

    def held_by(self, holder: Hashable) -> Held:
        """What the holder has."""
        code, own = self._numbers.get(holder, _NOBODY), self._geometry.records_per_extent
        pages = [column(())]
        for extent in self._held.get(holder, ()):
            first = extent * own
            found = np.flatnonzero(self._owner[first : first + own] == code)
            pages.append(found.astype(np.uint64) + np.uint64(first))
        every = np.concatenate(pages)
        return Held(every, self._grant[every])

    def holders(self) -> set[Hashable]:
        """Everyone who has a page."""
        return set(self._held)

    def known(self, pages: U64) -> U64:
        """Those of these numbers that are pages of the pool, each once, in order."""
        return distinct(pages[pages < np.uint64(len(self._owner))])

    def held_of(self, pages: U64, holder: Hashable) -> Held:
        """Those of these pages that the holder has.

        Args:
            pages: of the pool; any.
        """
        mine = pages[self._owner[pages] == self._numbers.get(holder, _NOBODY)]
        return Held(mine, self._grant[mine])

    def are_granted(self, pages: U64, numbers: U64 | GrantId, holder: Hashable) -> Mask:
        """Which of these pages the holder has, and under these very numbers.

        Args:
            numbers: beside `pages`, or one for all of them.
        """
        mask: Mask = self._owner[pages] == self._numbers.get(holder, _NOBODY)
        mask &= self._grant[pages] == np.uint64(numbers)
        return mask

    def omitted(self, holder: Hashable, upto: GrantId, stated: U64) -> U64:
        """What the holder has given back, and the word was lost: the rule of core/grants.py.

        Args:
            upto: he has heard of all grants up to this number.
            stated: pages that he says he has.
        """
        pages, numbers = self.held_by(holder)
        pages = pages[numbers <= np.uint64(upto)]
        return pages[~among(pages, stated)]

    def are_left(self, pages: U64) -> Mask:
        """Which of these are the index's."""
        mask: Mask = self._owner[pages] == _LEFT
        return mask

    def left_from(self, first: PageId, most: int) -> tuple[U64, PageId]:
        """Pages of the index.

        Args:
            first: the first to look at.
            most: how many are wanted.

        Returns:
            Some, in order, and where to look on: with that the whole book is seen by and by.
        """
        end = min(first + _LOOK_PAGES, len(self._owner))
        found = np.flatnonzero(self._owner[first:end] == _LEFT)[:most].astype(np.uint64)
        found += np.uint64(first)
        if len(found) == most:
            end = int(found[-1]) + 1
        return found, PageId(end if end < len(self._owner) else 0)

    def holder_of(self, page: PageId) -> Hashable | None:
        """Who fills the page; None: nobody."""
        return self._names[int(self._owner[page])]

    def is_granted(self, page: PageId) -> bool:
        """Whether somebody fills it."""
        return bool(self._owner[page] > _LEFT)

    def is_left(self, page: PageId) -> bool:
        """Whether it is the index's."""
        return bool(self._owner[page] == _LEFT)

    def used(self, extent: int) -> tuple[set[int], int]:
        """Places in an extent whose pages are not free, and how many of them somebody fills."""
        own = self._geometry.records_per_extent
        owners = self._owner[extent * own : (extent + 1) * own]
        return set(np.flatnonzero(owners).tolist()), int((owners > _LEFT).sum())

    def check(self) -> None:
        """Every page is in one state, and the holders' counts are right."""
        geometry = self._geometry
        assert {n: code for code, n in enumerate(self._names) if n is not None} == self._numbers
        assert self._numbers.keys() == self._held.keys()
        by_extent = self._owner.reshape(geometry.extents, geometry.records_per_extent)
        for holder, code in self._numbers.items():
            found = (by_extent == code).sum(axis=1).tolist()
            assert {e: n for e, n in enumerate(found) if n} == self._held[holder]
        codes = {_FREE, _LEFT, *self._numbers.values()}
        assert codes.issuperset(distinct(self._owner).tolist()), "a page of nobody who is known"
