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
        self._shift = np.uint64(64 - log2)
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
        rows, slots, hit = self._look(fingerprints, fingerprints >> self._shift)
        slots += np.arange(2 * SLOTS, len(slots) * _NARROW, _NARROW)
        found: Pages = rows.view(np.uint32).reshape(-1).take(slots).astype(np.int64)
        if np.count_nonzero(hit) == len(hit):
            return found
        found[hit == 0] = -1
        left = np.flatnonzero(hit == 0)
        left = left[(rows[left, :SLOTS] != _EMPTY).all(axis=1)]
        buckets = (fingerprints[left] >> self._shift).astype(np.int64)
        hops = HOPS - 1
        while len(left) > FEW and hops:
            buckets, hops = (buckets + 1) & len(self.words) - 1, hops - 1
            rows, slots, hit = self._look(fingerprints[left], buckets)
            there = np.flatnonzero(hit)
            found[left[there]] = rows.view(np.uint32)[there, slots[there] + 2 * SLOTS]
            on = (hit == 0) & (rows[:, :SLOTS] != _EMPTY).all(axis=1)
            left, buckets = left[on], buckets[on]
        for at, bucket in zip(left.tolist(), buckets.tolist(), strict=True):
            after = (bucket + 1) & len(self.words) - 1
            found[at] = self._find_from(int(fingerprints[at]), after, hops)
        return found

    def _find_from(self, fingerprint: int, bucket: int, hops: int) -> int:
        """The page of this one, in this bucket or one after it; -1: it is not there."""
        for _ in range(hops):
            row = self._slots[bucket * _WIDE : bucket * _WIDE + SLOTS].tolist()
            if fingerprint in row:
                return int(self._pages[bucket * _NARROW + 2 * SLOTS + row.index(fingerprint)])
            if _EMPTY in row:
                break
            bucket = (bucket + 1) & len(self.words) - 1
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
        mask = len(self.words) - 1
        left = np.arange(len(fingerprints))
        buckets = (fingerprints >> self._shift).astype(np.int64)
        hops = np.full(len(left), HOPS)  # that they may still make
        while len(left) > FEW:
            there = self.words.take(buckets, axis=0)[:, :SLOTS]
            slots = (there <= _GONE).argmax(axis=1)
            fits = np.flatnonzero(there[np.arange(len(left)), slots] <= _GONE)
            at = buckets[fits] * _WIDE + slots[fits]
            once = np.unique(at, return_index=True)[1]  # of two with one slot, one
            at, now = at[once], fits[once]
            where = buckets[now]
            self.removed -= int(np.count_nonzero(there[now, slots[now]]))
            self._pages[where * _NARROW + 2 * SLOTS + slots[now]] = pages[left[now]]
            self._slots[at] = fingerprints[left[now]]
            self.used += len(now)
            put[left[now]] = where
            full = np.ones(len(left), np.bool_)
            full[fits] = False
            buckets = (buckets + full) & mask
            hops -= full
            stays = hops > 0
            stays[now] = False
            left, buckets, hops = left[stays], buckets[stays], hops[stays]
        for at, bucket, more in zip(left.tolist(), buckets.tolist(), hops.tolist(), strict=True):
            put[at] = self._put_from(fingerprints[at], pages[at], bucket, more)
        return put

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
            bucket = (bucket + 1) & len(self.words) - 1
        return -1

    def take(self, fingerprints: U64, pages: HalfWords) -> None:
        """Empty their slots.

        Args:
            pages: the first page of each, since two blocks may have the same fingerprint.
        """
        mask = len(self.words) - 1
        left = np.arange(len(fingerprints))
        home = (fingerprints >> self._shift).astype(np.int64)
        for hop in range(HOPS):
            if not len(left):
                break
            buckets = (home[left] + hop) & mask
            rows = self.words[buckets]
            there = rows[:, :SLOTS]
            same = there == fingerprints[left, None]
            same &= rows.view(np.uint32)[:, 2 * SLOTS :] == pages[left, None]
            hit, ends = same.any(axis=1), (there == _EMPTY).any(axis=1)
            at, slot = buckets[hit], same[hit].argmax(axis=1)
            # Nothing went past a bucket with an empty slot, so that another one does no harm.
            self._slots[at * _WIDE + slot] = np.where(ends[hit], _EMPTY, _GONE).astype(np.uint64)
            self.used -= len(at)
            self.removed += int((~ends[hit]).sum())
            left = left[~hit & ~ends]

    def _look(self, wanted: U64, buckets: U64 | Pages) -> tuple[U64, Pages, U64]:
        """Copies of these buckets, and in which slot of each the fingerprint is; 0: in none."""
        rows = self.words.take(buckets, axis=0)
        same = rows[:, :SLOTS] == wanted[:, None]
        return rows, same.argmax(axis=1), same.view(np.uint64).reshape(-1)
