"""Hazards: what a reader uses now, said in memory that the index reads before it frees anything.

One file per session, of one section or several behind each other, each written by one reader:

    0       words: magic and version; rows that there are; rows that are in use at most (mark);
            sections of the file; allowed
    64      rows: page + 1 (0: the row is free), stamp

A reader that has found a page writes the stamp, then the page, and only then reads the page's
ledger record once more: is it sealed under this stamp, the page is the reader's until it clears the
row, which is one store of 0.  The index lets the record *leave*, has every processor settle its
stores (membarrier), and reads all rows: whoever's hazard it does not see there reads the record
after that, and finds it leaving.

The first section is the session's own.  Another one it lends to a client of its engine, which may
have as many bytes of the pool in its rows as `allowed` says.  A row can be *given*: from then on
the session says its end, by the store of 0, and the client takes it back when it sees that.

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

TAKE_BACK: Count = 1024
"""Given rows are looked at when there are so many: a few microseconds, and the mark stays low."""

_MAGIC = int.from_bytes(b"PEGAHAZ\2", "big")
_HEAD = 64
_ROW = 16
_ROWS_WORD, _MARK_WORD, _SECTIONS_WORD, _ALLOWED_WORD = 1, 2, 3, 4


def hazard_bytes(rows: int, sections: int = 1) -> int:
    """Size of a file with so many rows in each section; all of it is to be made real."""
    return sections * (_HEAD + rows * _ROW)


def cut(buffer: WritableBuffer, sections: int) -> list[memoryview]:
    """Make the sections of a new and zeroed file.

    Returns:
        Their bytes.
    """
    raw = memoryview(buffer).cast("B")
    size = len(raw) // sections
    parts = [raw[at * size : (at + 1) * size] for at in range(sections)]
    for part in reversed(parts):  # the first says that all are there
        words = part[:_HEAD].cast("Q")
        words[_ROWS_WORD], words[_SECTIONS_WORD] = (size - _HEAD) // _ROW, sections
        words[0] = _MAGIC
    return parts


def section_of(buffer: WritableBuffer, number: int) -> memoryview:
    """The bytes of one section of a sound file."""
    raw = memoryview(buffer).cast("B")
    size = hazard_bytes(raw[:_HEAD].cast("Q")[_ROWS_WORD])
    return raw[number * size : (number + 1) * size]


class Hazards:
    """A reader's own: a new and zeroed file, or a section that it writes from now on, in which rows
    that name a page are given."""

    def __init__(self, buffer: WritableBuffer) -> None:
        raw = memoryview(buffer).cast("B")
        self._words = raw[:_HEAD].cast("Q")
        if not self._words[0]:
            cut(buffer, 1)
        self.most = (len(raw) - _HEAD) // _ROW
        rows: U64 = np.ndarray((self.most, 2), np.uint64, raw, _HEAD)
        self._pages, self._stamps = rows[:, 0], rows[:, 1]
        self._given: Rows = np.flatnonzero(self._pages)
        self._look_again = TAKE_BACK  # when so many are given
        self._free: Rows = np.zeros(self.most, np.int64)  # a stack of rows, the lowest on top
        self._left = self.most - len(self._given)  # rows on it
        self._free[: self._left] = np.flatnonzero(self._pages == 0)[::-1]
        self._mark = self._words[_MARK_WORD]

    def __len__(self) -> int:
        return self.most - self._left

    @property
    def allowed(self) -> int:
        """Bytes of the pool that a borrowed section may keep; 0: it is of no use now."""
        return self._words[_ALLOWED_WORD]

    def publish(self, pages: Pages, stamps: U64) -> Rows:
        """Say that these pages are used.

        Args:
            pages: first pages of blocks.
            stamps: what each of them was found under.

        Returns:
            The rows that name them, for `clear`; fewer than pages if there are not as many left.
        """
        if len(self._given) >= self._look_again or len(pages) > self._left:
            self.take_back()
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

    def give(self, rows: Rows) -> None:
        """The end of these is the session's to say from now on."""
        self._given = np.concatenate([self._given, rows])

    def take_back(self) -> None:
        """Have the given rows again that have ended."""
        if not len(self._given):
            return
        over = self._pages[self._given] == 0
        rows, self._given = self._given[over], self._given[~over]
        self._free[self._left : self._left + len(rows)] = rows
        self._left += len(rows)
        self._look_again = max(TAKE_BACK, 2 * len(self._given))

    def check(self) -> None:
        """Each row is free, or names a page below the mark."""
        self.take_back()
        free = self._free[: self._left].tolist()
        used = np.flatnonzero(self._pages).tolist()
        assert sorted(free + used) == list(range(self.most))
        assert self._words[_MARK_WORD] == self._mark > max(used, default=-1)


class LentRows:
    """The session's view of a section that it lends."""

    def __init__(self, section: WritableBuffer) -> None:
        raw = memoryview(section).cast("B")
        self._words = raw[:_HEAD].cast("Q")
        self.most = (len(raw) - _HEAD) // _ROW
        rows: U64 = np.ndarray((self.most, 2), np.uint64, raw, _HEAD)
        self._pages, self._stamps = rows[:, 0], rows[:, 1]
        self.owned: npt.NDArray[np.bool_] = np.zeros(self.most, np.bool_)  # rows given to us
        self._place: Rows = np.zeros(self.most, np.int64)  # of a row among those that are named

    def allow(self, bytes_: int) -> None:
        """Say how much of the pool the section may keep."""
        self._words[_ALLOWED_WORD] = bytes_

    def take(self, rows: Rows, pages: Pages, stamps: U64) -> bool:
        """Rows are given to us.

        Args:
            rows: different ones of the section, as the client says.
            pages: that they name, as the client says.
            stamps: likewise.

        Returns:
            Whether it is so; if not, nothing has changed.
        """
        if not len(rows) or rows.astype(np.uint64).max() >= self.most:
            return False
        self._place[rows] = order = np.arange(len(rows))
        same = (self._place[rows] == order) & ~self.owned[rows]
        same &= self._pages[rows] == pages.astype(np.uint64) + np.uint64(1)
        same &= self._stamps[rows] == stamps
        if not same.all():
            return False
        self.owned[rows] = True
        return True

    def clear(self, rows: Rows) -> None:
        """Rows that were given to us have ended: the client may have them back."""
        self.owned[rows] = False
        self._pages[rows] = 0

    def forget(self) -> None:
        """Nobody has the section: what it names, and was not given to us, has ended."""
        self._pages[~self.owned] = 0

    @property
    def standing(self) -> int:
        """Rows that name a page."""
        return int(np.count_nonzero(self._pages[: self._words[_MARK_WORD]]))

    @property
    def unsaid(self) -> int:
        """Those of them that were not given to us."""
        return self.standing - int(np.count_nonzero(self.owned))


class HazardReader:
    """The index's view of a session's file, which is sound (`fault`)."""

    def __init__(self, buffer: WritableBuffer) -> None:
        raw = memoryview(buffer).cast("B")
        words = raw[:_HEAD].cast("Q")
        most, sections = words[_ROWS_WORD], words[_SECTIONS_WORD]
        self._sections: list[tuple[memoryview, U64]] = []  # header, rows
        for at in range(0, hazard_bytes(most, sections), hazard_bytes(most)):
            rows: U64 = np.ndarray((most, 2), np.uint64, raw, at + _HEAD)
            self._sections.append((raw[at : at + _HEAD].cast("Q"), rows))

    @staticmethod
    def fault(buffer: WritableBuffer) -> str:
        """Why this is no file of hazards, in one line; '' if it is one."""
        raw = memoryview(buffer).cast("B")
        if len(raw) < _HEAD or raw[:8].cast("Q")[0] != _MAGIC:
            return "this is no file of hazards of this version"
        words = raw[:_HEAD].cast("Q")
        if len(raw) < hazard_bytes(words[_ROWS_WORD], words[_SECTIONS_WORD]):
            return "the file of hazards is shorter than it says"
        return ""

    def _used(self) -> list[U64]:
        """Of each section the rows below its mark."""
        return [rows[: words[_MARK_WORD]] for words, rows in self._sections]

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
        order = np.argsort(wanted)
        for rows in self._used() if len(wanted) else ():
            at = rows[:, 0].copy()  # before their stamps: a row may begin to name another page
            used = np.flatnonzero(at)
            here, seen = at[used], rows[used, 1]
            place = order[np.minimum(np.searchsorted(wanted, here, sorter=order), len(wanted) - 1)]
            found[place[(wanted[place] == here) & (under[place] == seen)]] = True
        return found

    def pages(self) -> Pages:
        """All pages that are named now.

        Returns:
            Page ids, under whatever stamp, in no order; one may be there several times.
        """
        at: U64 = np.concatenate([rows[:, 0] for rows in self._used()])
        found: Pages = at[at != 0].astype(np.int64) - 1
        return found
