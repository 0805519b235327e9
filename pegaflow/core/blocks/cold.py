"""The blocks of one namespace that a restart has found and nobody has asked for yet.

A million keys in a dict cost half a second and a hundred bytes each. Here a cold block is a 64-bit
hash of its key (core/pool/fingerprints.py) and its page, in two arrays sorted by hash; the key
itself stays in the ledger, and whoever finds a hash compares the key that is there.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pegaflow.core.pool.fingerprints import hash_of, key_hashes
from pegaflow.core.pool.ledger import Record
from pegaflow.wire.identities import Key, PageId

_GONE = PageId(-1)

Hashes = npt.NDArray[np.uint64]
Pages = npt.NDArray[np.int64]


class ColdTable:
    """Hash -> page.  `add` until all are there, then `settle`; nothing is found before that.

    Args:
        read: the ledger record of a page.
    """

    def __init__(self, read: Callable[[PageId], Record | None]) -> None:
        self._read = read
        self._parts: list[tuple[Hashes, Pages]] = []  # until it is settled
        self._hashes = memoryview(b"").cast("Q")  # ascending
        none: Any = memoryview(bytearray()).cast("q")
        self._pages: memoryview[PageId] = none  # beside it; _GONE: not here any more
        self._count = 0
        self._first = 0  # all entries before this one are gone

    def __len__(self) -> int:
        return self._count

    def add(self, hashes: Hashes, pages: Pages) -> None:
        """Blocks of one page each; two with one hash may be different keys.

        Args:
            hashes: `hash_of` their keys.
            pages: their page ids, beside `hashes`.
        """
        self._parts.append((hashes, pages))
        self._count += len(pages)

    def settle(self) -> list[PageId]:
        """All are there.  Of several pages with one key the last stays; the others are returned."""
        hashes = np.concatenate([h for h, _ in self._parts])
        pages = np.concatenate([p for _, p in self._parts])
        self._parts.clear()
        order = np.argsort(hashes, kind="stable")
        hashes, pages = hashes[order], pages[order]
        column: Any = pages.data.cast("B").cast("q")
        self._hashes, self._pages = hashes.data.cast("B").cast("Q"), column
        dropped = []
        for at in (np.flatnonzero(hashes[1:] == hashes[:-1]) + 1).tolist():
            key = self._record(at).key
            before = at - 1
            while before >= 0 and self._hashes[before] == self._hashes[at]:
                if self._pages[before] != _GONE and self._record(before).key == key:
                    dropped.append(self._pages[before])
                    self._remove(before)
                before -= 1
        return dropped

    def find(self, key: Key) -> PageId | None:
        """The page of this key; None: it is not cold."""
        found = self._find(key)
        return None if found is None else self._pages[found[0]]

    def find_all(self, keys: Sequence[Key]) -> Pages:
        """Pages whose keys have the hashes of these, -1 where there is none; of several with one
        hash it is any."""
        found = np.full(len(keys), -1, np.int64)
        if not len(self._hashes) or not keys:
            return found
        mine, column = self._columns()
        hashes = key_hashes(keys)
        left, at = self._among(mine, hashes, np.arange(len(keys)), np.searchsorted(mine, hashes))
        while len(left):
            found[left] = column[at]
            gone = found[left] == _GONE
            left, at = self._among(mine, hashes, left[gone], at[gone] + 1)
        return found

    def take(self, hashes: Hashes, pages: Pages) -> npt.NDArray[np.bool_]:
        """Take these out: they are not cold any more.

        Args:
            hashes: of their keys.
            pages: beside `hashes`; each once.

        Returns:
            Which were here.
        """
        taken = np.zeros(len(pages), np.bool_)
        if not len(self._hashes):
            return taken
        mine, column = self._columns()
        left, at = self._among(mine, hashes, np.arange(len(pages)), np.searchsorted(mine, hashes))
        while len(left):
            here = column[at] == pages[left]
            taken[left[here]] = True
            column[at[here]] = _GONE
            left, at = self._among(mine, hashes, left[~here], at[~here] + 1)
        self._count -= int(np.count_nonzero(taken))
        return taken

    def _columns(self) -> tuple[Hashes, Pages]:
        pages: Any = self._pages
        return np.frombuffer(self._hashes, np.uint64), np.frombuffer(pages, np.int64)

    @staticmethod
    def _among(mine: Hashes, hashes: Hashes, left: Pages, at: Pages) -> tuple[Pages, Pages]:
        """Of those that are left, the ones whose place has their hash."""
        there = at < len(mine)
        left, at = left[there], at[there]
        same = mine[at] == hashes[left]
        return left[same], at[same]

    def any_page(self) -> PageId | None:
        """Some page that is here; None: there is none left."""
        while self._first < len(self._pages) and self._pages[self._first] == _GONE:
            self._first += 1
        return self._pages[self._first] if self._first < len(self._pages) else None

    def pop(self, key: Key, page: PageId | None = None) -> tuple[PageId, Record] | None:
        """Take a key out: it is not cold any more.

        Args:
            page: None: wherever it is.

        Returns:
            Its page and record; None if it was not here, or is in another page than this one.
        """
        found = self._find(key)
        if found is None or page not in (None, self._pages[found[0]]):
            return None
        at, record = found
        here = self._pages[at]
        self._remove(at)
        return here, record

    def __iter__(self) -> Iterator[PageId]:
        """Every page that is here."""
        return (page for page in self._pages if page != _GONE)

    def _find(self, key: Key) -> tuple[int, Record] | None:
        wanted = hash_of(key)
        at = bisect_left(self._hashes, wanted)
        while at < len(self._hashes) and self._hashes[at] == wanted:
            if self._pages[at] != _GONE and (record := self._record(at)).key == key:
                return at, record
            at += 1
        return None

    def _record(self, at: int) -> Record:
        record = self._read(self._pages[at])
        assert record is not None, self._pages[at]
        return record

    def _remove(self, at: int) -> None:
        self._pages[at] = _GONE
        self._count -= 1
