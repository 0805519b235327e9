"""The buckets of the table (table.py): how one half of it is searched and filled.

A fingerprint's upper bits say in which bucket it belongs; if that is full, it is in one of the next
few.  A fingerprint of 0 is an empty slot, 1 one that is empty since something was removed from a
bucket that was full: a bucket that has a slot of 0 was never full, so a search ends there.  No
bucket has both.

Many are looked at with each call of numpy's, which costs a microsecond for few as for many: the
last few, whose buckets are full, one by one.
"""

import numpy as np
import numpy.typing as npt

from pegaflow.wire.units import Bytes, Count

from .fingerprints import U64

SLOTS: Count = 8
"""Of a bucket: their fingerprints are one line of the processor's cache."""

BUCKET_BYTES: Bytes = SLOTS * (8 + 4)
"""Fingerprints and pages of its slots, nothing between them."""

HOPS: Count = 8
"""Buckets that are looked at for one fingerprint.  At the fullest, one of 14 buckets overflows."""

FEW: Count = 16
"""Searched one by one: cheaper than the twenty calls of one more round for all of them."""

Pages = npt.NDArray[np.int64]
HalfWords = npt.NDArray[np.uint32]

_WIDE, _NARROW = BUCKET_BYTES // 8, BUCKET_BYTES // 4  # words and half words of a bucket
_EMPTY, _GONE = 0, 1


class Half:
    """A half of the table as it is mapped.  What it counts is the writer's, from the empty half on.

    Args:
        live: the word that makes it the live one.
        log2: of its buckets.
        at: where it begins in the buffer.
    """

    def __init__(self, live: int, log2: int, buffer: memoryview, at: int) -> None:
        self.live, self.log2 = live, log2
        self.words: U64 = np.ndarray((1 << log2, _WIDE), np.uint64, buffer, at)  # by bucket
        self._slots = self.words.reshape(-1)
        self._pages: HalfWords = np.ndarray(_NARROW << log2, np.uint32, buffer, at)
        self._shift, self._last = np.uint64(64 - log2), len(self.words) - 1
        self.used = 0  # slots with a page
        self.removed = 0  # slots of 1

    def find(self, fingerprints: U64) -> Pages:
        """Search for each of these.

        Returns:
            The first page of each block, -1 where none is known.
        """
        if len(fingerprints) <= FEW:
            homes = (fingerprints >> self._shift).tolist()
            each = zip(fingerprints.tolist(), homes, strict=True)
            return np.array([self._find_from(name, home, HOPS) for name, home in each], np.int64)
        found = np.full(len(fingerprints), -1, np.int64)
        left, names = np.arange(len(found)), fingerprints
        buckets, hops = (names >> self._shift).astype(np.int64), HOPS
        while len(names) > FEW and hops:
            rows = self.words.take(buckets, axis=0)
            there = rows[:, :SLOTS]
            same = there == names[:, None]
            hit = _words(same)
            hits = int(np.count_nonzero(hit))
            if hits:
                slots = same.argmax(axis=1)
                slots += np.arange(2 * SLOTS, len(slots) * _NARROW, _NARROW)
                pages = rows.view(np.uint32).reshape(-1).take(slots)
                if hits == len(found):
                    found[:] = pages
                    return found
                some = hit.nonzero()[0]
                found[left[some]] = pages[some]
            on = ((hit | _words(there == _EMPTY)) == 0).nonzero()[0]
            left, names = left[on], names[on]
            buckets, hops = (buckets[on] + 1) & self._last, hops - 1
        rest = zip(left.tolist(), names.tolist(), buckets.tolist(), strict=True)
        for at, name, bucket in rest:
            found[at] = self._find_from(name, bucket, hops)
        return found

    def _find_from(self, fingerprint: int, bucket: int, hops: int) -> int:
        """The page of this one, in this bucket or one after it; -1: it is not there."""
        for _ in range(hops):
            row = self._slots[bucket * _WIDE : bucket * _WIDE + SLOTS].tolist()
            if fingerprint in row:
                return int(self._pages[bucket * _NARROW + 2 * SLOTS + row.index(fingerprint)])
            if _EMPTY in row:
                break
            bucket = (bucket + 1) & self._last
        return -1

    def entries(self, first: int, last: int) -> tuple[U64, HalfWords]:
        """What these buckets have.

        Returns:
            Fingerprints, and beside them the first pages.
        """
        part = self.words[first:last]
        bucket, slot = np.divmod(np.flatnonzero(part[:, :SLOTS] > _GONE), SLOTS)
        return part[bucket, slot], self._pages[(bucket + first) * _NARROW + 2 * SLOTS + slot]

    def put(self, fingerprints: U64, pages: HalfWords) -> Pages:
        """Put them into free slots.

        Returns:
            The bucket of each; -1: there was no free slot near its own.
        """
        if len(fingerprints) <= FEW:
            homes = (fingerprints >> self._shift).tolist()
            each = zip(fingerprints, pages, homes, strict=True)
            return np.array([self._put_from(*one, HOPS) for one in each], np.int64)
        put = np.full(len(fingerprints), -1, np.int64)
        left, names, first = np.arange(len(fingerprints)), fingerprints, pages
        buckets = (names >> self._shift).astype(np.int64)
        hops = np.full(len(left), HOPS)  # that they may still make
        while len(left) > FEW:
            rows = self.words.take(buckets, axis=0)
            free = rows[:, :SLOTS] <= _GONE
            full = _words(free) == 0
            some, slots = (~full).nonzero()[0], free.argmax(axis=1)
            went = self._fill(some, slots, rows, (names, first, buckets))
            put[left[went]] = buckets[went]
            if len(went) == len(left):
                return put
            stays = np.ones(len(left), np.bool_)
            stays[went] = False
            hops -= full
            stays &= hops > 0
            buckets = (buckets + full) & self._last
            left, names, first = left[stays], names[stays], first[stays]
            buckets, hops = buckets[stays], hops[stays]
        rest = zip(left.tolist(), buckets.tolist(), hops.tolist(), strict=True)
        for n, (at, bucket, more) in enumerate(rest):
            put[at] = self._put_from(names[n], first[n], bucket, more)
        return put

    def pour(self, fingerprints: U64, pages: HalfWords) -> Pages:
        """`put`, for what comes bucket by bucket out of another half, several into each of these:
        one by one it would be as many rounds as the fullest bucket gets."""
        count = len(fingerprints)
        if count <= FEW:
            return self.put(fingerprints, pages)
        homes = (fingerprints >> self._shift).astype(np.int64)
        order = np.argsort(homes, kind="stable")
        homes = homes[order]
        first = np.ones(count, np.bool_)  # of its bucket
        first[1:] = homes[1:] != homes[:-1]
        starts = first.nonzero()[0]
        each = np.diff(starts, append=count)
        slots = np.arange(count) - np.repeat(starts, each)
        there = self.words.take(homes[starts], axis=0)[:, :SLOTS]
        fits = np.repeat(_words(there != _EMPTY) == 0, each)
        fits &= slots < SLOTS
        some, rest = order[fits], order[~fits]
        homes, slots = homes[fits], slots[fits]
        self._pages[homes * _NARROW + 2 * SLOTS + slots] = pages[some]
        self._slots[homes * _WIDE + slots] = fingerprints[some]
        self.used += len(some)
        put = np.empty(count, np.int64)
        put[some] = homes
        put[rest] = self.put(fingerprints[rest], pages[rest])
        return put

    def _fill(
        self, some: Pages, slots: Pages, rows: U64, what: tuple[U64, HalfWords, Pages]
    ) -> Pages:
        """Put entries into slots.

        Args:
            some: of the entries these.
            slots: of its bucket that each entry is to have.
            rows: copies of their buckets, in which these slots are free.
            what: fingerprints, pages and buckets of the entries.

        Returns:
            Which are there now: of several that were to have one slot, one.
        """
        names, first, buckets = what
        if len(some) < len(names):
            names, first, buckets, slots = names[some], first[some], buckets[some], slots[some]
        wide = buckets * _WIDE + slots
        narrow = 2 * wide + (2 * SLOTS - slots)
        self._pages[narrow] = first
        self._slots[wide] = names
        there = self._slots.take(wide) == names
        there &= self._pages.take(narrow) == first
        if self.removed:
            before = rows.reshape(-1).take(some * _WIDE + slots)
            self.removed -= int(np.count_nonzero(before[there]))
        went = there.nonzero()[0]
        self.used += len(went)
        return some if len(went) == len(some) else some[went]

    def _put_from(self, fingerprint: np.uint64, page: np.uint32, bucket: int, hops: int) -> int:
        """Put this one into this bucket or one after it; which that was, -1: there was no place."""
        for _ in range(hops):
            row = self._slots[bucket * _WIDE : bucket * _WIDE + SLOTS].tolist()
            least = min(row)
            if least <= _GONE:
                slot = row.index(least)
                self._pages[bucket * _NARROW + 2 * SLOTS + slot] = page
                self._slots[bucket * _WIDE + slot] = fingerprint
                self.used += 1
                self.removed -= least
                return bucket
            bucket = (bucket + 1) & self._last
        return -1

    def take(self, fingerprints: U64, pages: HalfWords) -> None:
        """Empty their slots.

        Args:
            pages: the first page of each, since two blocks may have the same fingerprint.
        """
        names, first = fingerprints, pages
        buckets, hops = (names >> self._shift).astype(np.int64), HOPS
        while len(names) > FEW and hops:
            rows = self.words.take(buckets, axis=0)
            there = rows[:, :SLOTS]
            same = there == names[:, None]
            same &= rows.view(np.uint32)[:, 2 * SLOTS :] == first[:, None]
            hit, full = _words(same) != 0, _words(there == _EMPTY) == 0
            some = hit.nonzero()[0]
            at = buckets[some] * _WIDE + same.argmax(axis=1)[some]
            # Nothing went past a bucket with an empty slot, so that another one does no harm.
            gone = full[some]
            self._slots[at] = gone
            self.used -= len(some)
            self.removed += int(np.count_nonzero(gone))
            on = (full & ~hit).nonzero()[0]
            names, first, buckets = names[on], first[on], (buckets[on] + 1) & self._last
            hops -= 1
        for name, page, bucket in zip(
            names.tolist(), first.tolist(), buckets.tolist(), strict=True
        ):
            self._take_from(name, page, bucket, hops)

    def _take_from(self, fingerprint: int, page: int, bucket: int, hops: int) -> None:
        """Empty its slot, in this bucket or one after it."""
        for _ in range(hops):
            at = bucket * _WIDE
            row = self._slots[at : at + SLOTS].tolist()
            if fingerprint in row:
                behind = bucket * _NARROW + 2 * SLOTS
                pages = self._pages[behind : behind + SLOTS].tolist()
                if (fingerprint, page) in (pairs := list(zip(row, pages, strict=True))):
                    gone = _EMPTY not in row
                    self._slots[at + pairs.index((fingerprint, page))] = gone
                    self.used -= 1
                    self.removed += gone
                    return
            if _EMPTY in row:
                return
            bucket = (bucket + 1) & self._last


def _words(mask: npt.NDArray[np.bool_]) -> U64:
    """Rows of SLOTS truth values as a word each: 0 where none is true."""
    return mask.view(np.uint64).reshape(-1)
