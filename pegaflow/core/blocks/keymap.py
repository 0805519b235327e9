"""From fingerprints to pages, for the index alone: as the table that readers see, but complete.

The table behind the ledger (core/pool/table.py) is a hint, in memory that may be lacking.  The
index has to know, so it has buckets of its own (core/pool/buckets.py): 12 bytes a slot.  When three
quarters of them are in use, or many were removed from, other buckets take their place, and they are
filled with every `put`, a few at a time: whoever fills a million of them at once answers nobody
meanwhile.  What finds no place near its bucket, one of a thousand in the fullest map, is in a dict
beside them until others take their place; the lowest bits of its fingerprint are marked, so that
whoever searches for many asks that dict for few.
"""

import numpy as np
import numpy.typing as npt

from pegaflow.core.pool.buckets import BUCKET_BYTES, SLOTS, Half, Pages
from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.table import REMOVED
from pegaflow.wire.identities import PageId
from pegaflow.wire.units import Count, Share

FULL: Share = 3 / 4
"""Of the slots are in use, and others are filled; so they are 3/8 full at least: 16 to 32 bytes a
block, and half as much again while others are filled."""

STEP_BUCKETS: Count = 256
"""Copied in one go: a third of a millisecond."""

COPIED_EACH: Count = 2
"""Buckets copied for each block that is put: all are, before another sixteenth of the slots is
used; after an eighth there would be too little room."""

MARKS: Count = 1 << 15
"""Of what is in the dict: 128 KiB.  When a map of ten million blocks is at its fullest, one key in
four is looked for in the dict too."""

_LEAST_LOG2 = 3
_LOWEST = np.uint64(MARKS - 1)


class KeyMap:
    """Fingerprint -> page, each fingerprint once."""

    def __init__(self) -> None:
        self._own = _empty(_LEAST_LOG2)
        self._next: Half | None = None  # takes its place
        self._copied = 0  # buckets that `_next` has
        self._owed = 0  # buckets that are to be copied by now
        self._spilt: dict[int, PageId] = {}  # what found no place
        self._marks = np.zeros(MARKS, np.uint32)  # how many of these have the same lowest bits

    def reserve(self, blocks: Count) -> None:
        """So many are coming to an empty map."""
        assert not len(self) and self._next is None
        self._own = _empty(_log2_for(blocks))

    def find(self, fingerprints: U64) -> Pages:
        """The page of each, -1 where there is none."""
        found = self._own.find(fingerprints)
        if self._spilt:
            for at in self._marked(fingerprints):
                if found[at] < 0:
                    found[at] = self._spilt.get(int(fingerprints[at]), -1)
        return found

    def put(self, fingerprints: U64, pages: Pages) -> None:
        """These are not there yet, and no two of them are equal."""
        if not len(fingerprints):
            return
        first = pages.astype(np.uint32)
        self._grow(len(fingerprints))
        buckets = self._put(self._own, fingerprints, first)
        if self._next is not None:
            past = (buckets >= 0) & (buckets < self._copied)
            self._put(self._next, fingerprints[past], first[past])

    def take(self, fingerprints: U64, pages: Pages) -> None:
        """These go, if they are there and lead to these pages."""
        first = pages.astype(np.uint32)
        for half in (self._own, self._next):
            if half is not None:
                half.take(fingerprints, first)
        for at in self._marked(fingerprints) if self._spilt else ():
            name = int(fingerprints[at])
            if self._spilt.get(name) == pages[at]:
                del self._spilt[name]
                self._marks[name % MARKS] -= 1

    def __len__(self) -> int:
        return self._own.used + len(self._spilt)

    def _put(self, half: Half, fingerprints: U64, pages: npt.NDArray[np.uint32]) -> Pages:
        put = half.put(fingerprints, pages)
        self._spill(put, fingerprints, pages)
        return put

    def _spill(self, put: Pages, fingerprints: U64, pages: npt.NDArray[np.uint32]) -> None:
        """Those that were not put have found no place."""
        for at in np.flatnonzero(put < 0).tolist() if np.count_nonzero(put < 0) else ():
            name = int(fingerprints[at])
            self._marks[name % MARKS] += name not in self._spilt
            self._spilt[name] = PageId(int(pages[at]))

    def _marked(self, fingerprints: U64) -> list[int]:
        """The places of those that may have spilt, few of which have not."""
        found: list[int] = self._marks[fingerprints & _LOWEST].nonzero()[0].tolist()
        return found

    def _grow(self, more: int) -> None:
        """Have room for so many more, and go on with what takes the place of this."""
        own = self._own
        slots = SLOTS << own.log2
        if self._next is None:
            full = own.used + own.removed + more > FULL * slots
            if not full and own.removed <= REMOVED * slots:
                return
            self._next, self._copied, self._owed = _empty(_log2_for(own.used + more)), 0, 0
        self._owed += COPIED_EACH * more
        crammed = own.used + own.removed + more > (1 + FULL) / 2 * slots
        while self._next is not None and (crammed or self._owed >= STEP_BUCKETS):
            self._copy(self._next)

    def _copy(self, target: Half) -> None:
        own = self._own
        last = min(self._copied + STEP_BUCKETS, len(own.words))
        names, pages = own.entries(self._copied, last)
        self._spill(target.pour(names, pages), names, pages)
        self._copied, self._owed = last, self._owed - STEP_BUCKETS
        if last == len(own.words):
            self._own, self._next = target, None
            spilt, self._spilt = self._spilt, {}
            self._marks[:] = 0
            self._put(target, np.array([*spilt], np.uint64), np.array([*spilt.values()], np.uint32))

    def check(self) -> None:
        """What is there is found."""
        if self._next is not None:
            return
        names, pages = self._own.entries(0, len(self._own.words))
        assert len(names) == self._own.used == len(set(names.tolist()))
        assert (self._own.find(names) == pages).all()
        assert self._spilt.keys().isdisjoint(names.tolist())
        lowest = np.array([name % MARKS for name in self._spilt], np.int64)
        assert (np.bincount(lowest, minlength=MARKS) == self._marks).all()


def _empty(log2: int) -> Half:
    """Buckets whose memory is there once it is touched."""
    return Half(0, log2, np.zeros(BUCKET_BYTES << log2, np.uint8).data, 0)


def _log2_for(blocks: int) -> int:
    """Of the buckets that these and half as many again do not fill."""
    least = -(-blocks * 3 // int(2 * SLOTS * FULL))
    return max(_LEAST_LOG2, (least - 1).bit_length())
