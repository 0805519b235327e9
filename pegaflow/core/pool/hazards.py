"""Hazards: what a reader uses now, said in memory that the index reads before it frees anything.

One file per reader, written by that reader alone.

    0       words: magic and version; rows that there are; rows that are in use at most (mark)
    64      rows: page + 1 (0: the row is free), stamp

A reader that has found a page writes the stamp, then the page, and only then reads the page's
ledger record once more: is it sealed under this stamp, the page is the reader's until it clears the
row, which is one store of 0.  The index lets the record *leave*, has every processor settle its
stores (membarrier), and reads all rows: whoever's hazard it does not see there reads the record
after that, and finds it leaving.

Correctness does not rest on it: stamps are never reused, so whoever has copied a page and finds the
same stamp afterwards has the right bytes.  Hazards see to it that this does not fail.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pegaflow.wire.identities import PageId, Stamp
from pegaflow.wire.units import Count

from .fingerprints import U64
from .ledger import WritableBuffer

ROWS_MOST: Count = 1 << 16
"""Of one reader: what LIST_MAX of one lookup and many smaller ones need; 1 MiB, which the index
reads in a few hundred microseconds at the worst."""

Pages = npt.NDArray[np.int64]
Rows = npt.NDArray[np.int64]

_MAGIC = int.from_bytes(b"PEGAHAZ\1", "big")
_HEAD = 64
_ROW = 16
_ROWS_WORD, _MARK_WORD = 1, 2


def hazard_bytes(rows: int) -> int:
    """Size of a file with so many rows; all of it is to be made real."""
    return _HEAD + rows * _ROW


class Hazards:
    """The reader's own, in a new and zeroed file."""

    def __init__(self, buffer: WritableBuffer) -> None:
        raw = memoryview(buffer).cast("B")
        self.most = (len(raw) - _HEAD) // _ROW
        self._words = raw[:_HEAD].cast("Q")
        rows: U64 = np.ndarray((self.most, 2), np.uint64, raw, _HEAD)
        self._pages, self._stamps = rows[:, 0], rows[:, 1]
        self._free = np.arange(self.most)[::-1].copy()  # a stack of rows, the lowest on top
        self._left = self.most  # rows on it
        self._mark = 0
        self._words[_ROWS_WORD] = self.most
        self._words[_MARK_WORD] = 0
        self._words[0] = _MAGIC

    def __len__(self) -> int:
        return self.most - self._left

    def publish(self, pages: Pages, stamps: U64) -> Rows:
        """Say that these pages are used.

        Args:
            pages: first pages of blocks.
            stamps: what each of them was found under.

        Returns:
            The rows that name them, for `clear`; fewer than pages if there are not as many left.
        """
        count = min(len(pages), self._left)
        left = self._left - count
        rows: Rows = self._free[left : self._left].copy()
        self._left = left
        if self.most - left > self._mark:  # free rows below the mark are higher on the stack
            self._mark = self._words[_MARK_WORD] = self.most - left
        self._stamps[rows] = stamps[:count]
        self._pages[rows] = pages[:count] + 1
        return rows

    def clear(self, rows: Rows) -> None:
        """These are not used any more; each row once."""
        self._pages[rows] = 0
        self._free[self._left : self._left + len(rows)] = rows
        self._left += len(rows)

    def check(self) -> None:
        """Each row is free, or names a page below the mark."""
        free = self._free[: self._left].tolist()
        used = np.flatnonzero(self._pages).tolist()
        assert sorted(free + used) == list(range(self.most))
        assert self._words[_MARK_WORD] == self._mark > max(used, default=-1)


class HazardReader:
    """The index's view of a reader's file."""

    def __init__(self, buffer: WritableBuffer) -> None:
        raw = memoryview(buffer).cast("B")
        self._words = raw[:_HEAD].cast("Q")
        self._rows: U64 = np.ndarray((self._words[_ROWS_WORD], 2), np.uint64, raw, _HEAD)

    @staticmethod
    def fault(buffer: WritableBuffer) -> str:
        """Why this is no file of hazards, in one line; '' if it is one."""
        raw = memoryview(buffer).cast("B")
        if len(raw) < _HEAD or raw[:8].cast("Q")[0] != _MAGIC:
            return "this is no file of hazards of this version"
        if len(raw) < hazard_bytes(raw[:_HEAD].cast("Q")[_ROWS_WORD]):
            return "the file of hazards is shorter than it says"
        return ""

    def named(
        self, pages: Sequence[PageId] | Pages, stamps: Sequence[Stamp] | U64
    ) -> npt.NDArray[np.bool_]:
        """Which pages are used.

        Args:
            pages: different ones.
            stamps: beside `pages`: a hazard under another stamp is of what was there before.

        Returns:
            Whether it is used, beside `pages`.
        """
        wanted, under = np.asarray(pages, np.uint64) + np.uint64(1), np.asarray(stamps, np.uint64)
        found = np.zeros(len(wanted), np.bool_)
        rows = self._rows[: self._words[_MARK_WORD]]
        at = rows[:, 0].copy()  # before their stamps: a row may begin to name another page
        used = np.flatnonzero(at)
        if not len(used) or not len(wanted):
            return found
        order = np.argsort(wanted)
        here, seen = at[used], rows[used, 1]
        place = order[np.minimum(np.searchsorted(wanted, here, sorter=order), len(wanted) - 1)]
        found[place[(wanted[place] == here) & (under[place] == seen)]] = True
        return found

    def pages(self) -> Pages:
        """All pages that are named now.

        Returns:
            Page ids, under whatever stamp, in no order; one may be there several times.
        """
        at: U64 = self._rows[: self._words[_MARK_WORD], 0].copy()
        found: Pages = at[at != 0].astype(np.int64) - 1
        return found
