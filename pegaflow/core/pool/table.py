"""The table: from a block's fingerprint to its first page, in memory that every process maps.

It lies in the ledger's file, is written by the index alone, and is only a *hint*: whoever finds a
page in it asks the page's ledger record, which decides.  So it may lack blocks, name pages that
hold other blocks by now, and be read while it changes.

    ledger's header, from 2048 on     words: magic and version; live; clearing; closed; tiers
    behind the records, in whole 4 KiB:
    next shard                        u32 per page: the page of the block's next shard + 1; 0: last
    half 0, half 1                    buckets: 8 fingerprints, u64, then 8 pages, u32
    filter                            what the tiers have (tierfilter.py)

`live` says which half is read and how many buckets it has, with a generation that never comes back;
0: there is no table.  The index builds another table in the other half when the live one is nearly
full or has too many removed slots: bucket by bucket, while what is added and removed goes to the
live half, and to the other one too if it is past the place that the work has come to.  Then one
store of `live` makes the other half the live one.  A reader reads `live` before and after it has
looked; if it has changed, it looks once more, and then knows nothing.

A new index builds its table from what it adopts, while readers go on with what the one before it
has left.  A service that starts removes that (`forget`), since the pool may have another size now.

Space is made real before it is touched; where there is none, the table stays as it is.

Each block has a slot, also one of many in a chain.  A slot per run of a chain would be smaller and
need fewer probes, but blocks come and go one by one, in the middle of runs too, which then have to
be cut while they are read; and a reader compares a record for each block anyway.  It saves little:
of the 165 us that 128 blocks take to be found and kept, the table takes 33, of the 440 us of 1,024
blocks 46, since numpy looks for all of them at once (AMD EPYC, caches cold; perf/peers/lookups.py).
"""

import enum
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from pegaflow.wire.identities import PageId
from pegaflow.wire.units import Share

from .buckets import BUCKET_BYTES, SLOTS, Half
from .columns import distinct
from .fingerprints import U64
from .ledger import HEADER_BYTES, RECORD_BYTES, WritableBuffer
from .tierfilter import Reserve, TierFilter, TierFilterReader, cells_log2

FULL: Share = 5 / 8
"""Of a half's slots are in use, and another half is built."""

CRAMMED: Share = 7 / 8
"""Of a half's slots are in use, and nothing is added before it is rebuilt, which takes milliseconds
where steps would have taken less each."""

REMOVED: Share = 1 / 8
"""Of a half's slots may have been removed from: they make a search for what is not there longer."""

Mask = npt.NDArray[np.bool_]
Pages = npt.NDArray[np.int64]

_WORDS_AT = 2048  # in the ledger's header, which is one page and always there
_LIVE, _CLEARING, _CLOSED, _TIERS = 1, 2, 3, 4
_WORDS = 5
_MAGIC = int.from_bytes(b"PEGATBL\1", "big")
_GRAIN = 4096
_LEAST_LOG2 = 3


class TierWord(enum.IntEnum):
    """What a lookup is told of the tiers, and of what the table lacks."""

    NONE = 0  # none has anything
    ASK = 1  # any of them may have anything, or memory what the table has no place for
    FILTER = 2  # the filter says what they have


def file_bytes(records: int) -> int:
    """Size of the ledger's file with room for its table."""
    return _Area(records).end


class _Area:
    """Where the table's parts are in the file."""

    def __init__(self, records: int) -> None:
        self.most_log2 = _log2_for(records)
        self.next_at = _rounded(HEADER_BYTES + records * RECORD_BYTES)
        self.halves_at = self.next_at + _rounded(records * 4)
        self.half_bytes = _rounded(BUCKET_BYTES << self.most_log2)
        self.filter_at = self.halves_at + 2 * self.half_bytes
        self.end = self.filter_at + _rounded(1 << cells_log2(records))


class TableReader:
    """Looks into the table.

    Args:
        buffer: the ledger's file, mapped.
        records: pages of the pool.
    """

    def __init__(self, buffer: WritableBuffer, records: int) -> None:
        self.records = records
        self._bytes = memoryview(buffer).cast("B")
        self._area = _Area(records)
        end = _WORDS_AT + _WORDS * 8
        self._words = self._bytes[_WORDS_AT:end].cast("Q")
        # Files of earlier versions end before.
        self._there = len(self._bytes) >= self._area.filter_at
        self._seen: Half | None = None
        self._filter = TierFilterReader(self._bytes, self._area.filter_at, records)

    @property
    def clearing(self) -> int | None:
        """The extent that readers keep out of, if there is one."""
        return self._words[_CLEARING] - 1 if self._words[_CLEARING] else None

    @property
    def closed(self) -> bool:
        """Whether so much is kept from eviction that nobody should begin to use anything."""
        return self._words[_CLOSED] != 0

    @property
    def tiers(self) -> int:
        """A TierWord, or what a later version says instead."""
        return self._words[_TIERS]

    def may_go_on(self, fingerprint: int) -> bool:
        """Whether a tier may have this block; if not, none has it as far as the index knows."""
        word = self._words[_TIERS]
        if word != TierWord.FILTER:
            return word != TierWord.NONE
        return not self._filter.there or self._filter.may_have(fingerprint)

    def below(self, fingerprints: U64) -> Mask | None:
        """Which of these blocks a tier may have; None: any of them, as far as is known."""
        word = self._words[_TIERS]
        if word == TierWord.NONE:
            return np.zeros(len(fingerprints), np.bool_)
        if word == TierWord.FILTER and self._filter.there:
            return self._filter.may_have_each(fingerprints)
        return None

    def find(self, fingerprints: U64) -> Pages | None:
        """Where blocks may be.

        Returns:
            The first page of each, -1 where none is known; in a damaged table it may be no page of
            the pool.  None: there is no table, or it changes faster than one can look.
        """
        for _ in range(2):
            live = self._words[_LIVE]
            half = self._half(live)
            if half is None:
                return None
            found = half.find(fingerprints)
            if self._words[_LIVE] == live:
                return found
        return None

    def next_shards(self, pages: Pages) -> Pages:
        """Follow blocks of several shards, which are linked.

        Returns:
            The page of the next shard of the block that each page is part of; -1: that is the last.
        """
        found = self._links()[pages].astype(np.int64) - 1
        found[found >= self.records] = -1
        return found

    def _links(self) -> npt.NDArray[np.uint32]:
        return np.ndarray(self.records, np.uint32, self._bytes, self._area.next_at)

    def _half(self, live: int) -> Half | None:
        if self._seen is not None and self._seen.live == live:
            return self._seen
        log2 = live >> 1 & 0x7F
        if not self._there or self._words[0] != _MAGIC or live == 0:
            return None
        if not _LEAST_LOG2 <= log2 <= self._area.most_log2:
            return None
        at = self._area.halves_at + (live & 1) * self._area.half_bytes
        self._seen = Half(live, log2, self._bytes, at)
        return self._seen


class Table(TableReader):
    """The index's: begin, add what is there, publish; then add and remove, and rebuild if wanted.

    Args:
        reserve: makes a range of the file real.
    """

    def __init__(self, buffer: WritableBuffer, records: int, reserve: Reserve) -> None:
        super().__init__(buffer, records)
        self._reserve = reserve
        self.filter = TierFilter(self._bytes, self._area.filter_at, records, reserve)
        self._own: Half | None = None  # the live one, once it is ours
        self._next: Half | None = None  # the one that is being built
        self._cleared = 0  # buckets of `_next` that are empty or were filled
        self._copied = 0  # buckets of `_own` that `_next` has
        self._patience = 0  # changes until room is looked for again
        self._linkable = bytearray(-(-records * 4 // _GRAIN))  # parts of `next shard` made real
        self.fault = ""  # why it cannot grow
        self.lacks = 0  # blocks that found no place

    # what readers keep to

    def set_clearing(self, extent: int | None) -> None:
        """Readers keep out of this extent."""
        self._words[_CLEARING] = 0 if extent is None else extent + 1

    def set_closed(self, closed: bool) -> None:
        """Readers begin to use nothing."""
        self._words[_CLOSED] = closed

    def set_tiers(self, word: TierWord) -> None:
        """What to do where a run ends in memory."""
        self._words[_TIERS] = word

    # building

    def begin(self, blocks: int) -> str:
        """Begin a table, in which nobody but us finds anything before `publish`; `clear_step` until
        it is empty, or the first `add` does the rest.

        Args:
            blocks: that it has room for at least.

        Returns:
            '', or in one line why there can be none.
        """
        if self._words[0] != _MAGIC:
            self._words[_LIVE] = 0
            self._words[0] = _MAGIC
        if not self._start(_log2_for(2 * blocks)):
            if self._own is None:  # it is our predecessor's
                self._words[_LIVE] = 0
            return self.fault
        self._own = None
        return ""

    def clear_step(self, slots: int) -> bool:
        """Empty some slots of the table that is being made.

        Args:
            slots: about so many.

        Returns:
            False if they all are empty already.
        """
        assert self._next is not None
        if self._cleared == len(self._next.words):
            return False
        self._clear(max(1, slots // SLOTS))
        return True

    def publish(self) -> None:
        """What was added since `begin` is the table."""
        if self._own is None and self._next is not None:
            self._clear(len(self._next.words))
            self._switch()

    @property
    def wants_rebuild(self) -> bool:
        """Whether `rebuild_step` has something to do."""
        if self._next is not None:
            return self._own is not None
        half = self._own
        if half is None or self._patience > 0:
            return False
        slots = SLOTS << half.log2
        if half.removed > REMOVED * slots:
            return True
        return half.used + half.removed > FULL * slots and self._wanted_log2(half) > half.log2

    def rebuild_step(self, slots: int) -> bool:
        """Go on with the table that takes the place of this one.

        Args:
            slots: about so many are looked at.

        Returns:
            False once nothing is wanted any more.
        """
        if self._own is None or not self.wants_rebuild:
            return False
        if self._next is None:
            return self._start(self._wanted_log2(self._own))
        buckets = max(1, slots // SLOTS)
        if self.clear_step(4 * slots):
            return True
        first, last = self._copied, min(self._copied + buckets, len(self._own.words))
        self._count(self._next.pour(*self._own.entries(first, last)))
        self._copied = last
        if last == len(self._own.words):
            self._switch()
        return self.wants_rebuild

    def too_small_for(self, blocks: int) -> bool:
        """Whether the table that is being made, since `begin`, has no room for so many more where a
        larger one would have."""
        return self._own is None and self._next is not None and self._crams(self._next, blocks)

    def _wanted_log2(self, half: Half, more: int = 0) -> int:
        """For what is there, so many more, and as many again."""
        return min(_log2_for(2 * (half.used + more)), self._area.most_log2)

    def _crams(self, half: Half, more: int) -> bool:
        """Whether so many more are too many for this half, and fewer than the largest can have."""
        crammed = half.used + half.removed + more > CRAMMED * (SLOTS << half.log2)
        return crammed and self._wanted_log2(half, more) > half.log2

    def _make_room(self, blocks: int) -> None:
        """So many are too many to add before a rebuild is done in steps: do it at once."""
        while self._own is not None and self._patience <= 0:
            if not self._crams(self._own, blocks):
                return
            wanted = self._wanted_log2(self._own, blocks)
            if self._next is None and not self._start(wanted):
                return
            while self._next is not None:
                self.rebuild_step(SLOTS << wanted)

    def _start(self, log2: int) -> bool:
        """Have an empty half of this size to build in."""
        before = self._words[_LIVE]
        log2 = min(log2, self._area.most_log2)
        which = ~before & 1
        at = self._area.halves_at + which * self._area.half_bytes
        size = BUCKET_BYTES << log2
        self.fault = self._reserve(at, size) if self._there else "the file ends before it"
        if self.fault:
            self._patience = SLOTS << log2 >> 4
            return False
        live = ((before >> 8) + 1) << 8 | log2 << 1 | which
        self._next, self._seen = self._half(live), None
        self._cleared = self._copied = 0
        return True

    def _clear(self, buckets: int) -> None:
        assert self._next is not None
        last = min(self._cleared + buckets, len(self._next.words))
        self._next.words[self._cleared : last] = 0
        self._cleared = last

    def _switch(self) -> None:
        assert self._next is not None
        self._own, self._next = self._next, None
        self._words[_LIVE] = self._own.live

    # blocks

    def add(self, fingerprints: U64, pages: Sequence[PageId] | Pages, shards: int = 1) -> None:
        """Blocks that are resident from now on, each once.  Those that find no place are counted.

        Args:
            fingerprints: one per block.
            pages: `shards` per block, block-major.
            shards: pages of each block.
        """
        every = np.asarray(pages, np.int64).reshape(-1, shards)
        assert len(every) == len(fingerprints), (len(every), len(fingerprints))
        if shards > 1:
            fits = self._link(every)
            every, fingerprints = every[fits], fingerprints[fits]
        self._patience -= len(fingerprints)
        first = every[:, 0].astype(np.uint32)
        self._make_room(len(first))
        if self._own is None:
            if self._next is not None:
                self._clear(len(self._next.words))
                self._put(self._next, fingerprints, first)
            return
        buckets = self._put(self._own, fingerprints, first)
        if self._next is not None:
            past = (buckets >= 0) & (buckets < self._copied)
            self._put(self._next, fingerprints[past], first[past])

    def remove(self, fingerprints: U64, pages: Sequence[PageId] | Pages) -> None:
        """Blocks that are not resident any more; those that are not there are passed over.

        Args:
            fingerprints: one per block.
            pages: the first of each block.
        """
        first = np.asarray(pages, np.int64).astype(np.uint32)
        self._patience -= len(fingerprints)
        for half in (self._own, self._next):
            if half is not None:
                half.take(fingerprints, first)

    def _link(self, pages: Pages) -> Mask:
        """Have each page name the next one of its row; which rows there was room for."""
        parts = pages * 4 // _GRAIN
        for part in distinct(parts.reshape(-1)).tolist() if self._there else ():
            if not self._linkable[part]:
                why = self._reserve(self._area.next_at + part * _GRAIN, _GRAIN)
                self._linkable[part] = not why
                self.fault = why or self.fault
        made: Mask = np.all(np.frombuffer(self._linkable, np.bool_)[parts], axis=1)
        self.lacks += int((~made).sum())
        if made.any():
            links = self._links()
            links[pages[made, :-1]] = pages[made, 1:] + 1
            links[pages[made, -1]] = 0
        return made

    def _put(self, half: Half, fingerprints: U64, pages: npt.NDArray[np.uint32]) -> Pages:
        return self._count(half.put(fingerprints, pages))

    def _count(self, put: Pages) -> Pages:
        """Those that were not put have found no place."""
        self.lacks += len(put) - int(np.count_nonzero(put >= 0))
        return put


def forget(buffer: WritableBuffer) -> None:
    """There is no table in this ledger's file."""
    memoryview(buffer).cast("B")[_WORDS_AT : _WORDS_AT + _WORDS * 8] = bytes(_WORDS * 8)


def _log2_for(blocks: int) -> int:
    """Of the buckets that so many blocks do not fill."""
    least = -(-blocks // int(SLOTS * FULL))
    return max(_LEAST_LOG2, (least - 1).bit_length())


def _rounded(length: int) -> int:
    return -(-length // _GRAIN) * _GRAIN
