"""Which blocks a tier may have, for readers: a counting Bloom filter of their fingerprints.

Who looks up a prefix finds where it ends in memory.  Whether it goes on in a tier only the index
can say; but mostly it does not, since the rest of a prompt is new, and then nobody need be asked.
So the index counts every block of a tier in two cells of a byte each, and takes it off when the
tier has it no more.  A reader who finds one of the two cells of a block at 0 knows that no tier
has it.  Two other blocks may have filled both: then the index is asked in vain, by one of twenty
lookups with eight cells for each block in the tiers, one of seven with four, four of ten with two.

The cells lie behind the table, in the ledger's file, sixteen for each smallest page of the pool,
and 32 Mi at most; real only once a tier has a block.  A new index clears them before it counts.  A
cell that has come to 255 stays there: it may only be asked about in vain.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pegaflow.wire.units import Count

from .fingerprints import U64

CELLS_EACH: Count = 16
"""Cells for each smallest page of the pool: eight for each block of a log of eight times the pool's
size, with blocks of four such pages."""

CELLS_MOST: Count = 1 << 25
"""32 MiB: zeroed in some milliseconds, when a flusher has died."""

CELLS_LEAST: Count = 1 << 12
"""One page of memory."""

Reserve = Callable[[int, int], str]
"""(offset, length) -> '', with these bytes of the file really there; or why not."""

_STUCK = 255
_MASK = (1 << 64) - 1
_FACTORS = 0x9E37_79B9_7F4A_7C15, 0xC2B2_AE3D_27D4_EB4F  # odd, of no pattern


def cells_log2(records: int) -> int:
    """Of the cells that a pool with so many records has."""
    return (min(max(CELLS_EACH * records, CELLS_LEAST), CELLS_MOST) - 1).bit_length()


class TierFilterReader:
    """Asks about blocks.

    Args:
        file: the ledger's, mapped.
        at: where the cells begin.
        records: of the pool.
    """

    def __init__(self, file: memoryview, at: int, records: int) -> None:
        self._log2, self._at = cells_log2(records), at
        self._cells = file[at : at + (1 << self._log2)]
        self.there = len(self._cells) == 1 << self._log2  # files of earlier versions end before

    def may_have(self, fingerprint: int) -> bool:
        """Whether a tier may have this block; if not, none has."""
        shift, cells = 64 - self._log2, self._cells
        return all(cells[(fingerprint * factor & _MASK) >> shift] for factor in _FACTORS)

    def may_have_each(self, fingerprints: U64) -> npt.NDArray[np.bool_]:
        """The same of many blocks."""
        shift, cells = np.uint64(64 - self._log2), np.frombuffer(self._cells, np.uint8)
        first, second = (cells[fingerprints * np.uint64(f) >> shift] for f in _FACTORS)
        both: npt.NDArray[np.bool_] = (first != 0) & (second != 0)
        return both


class TierFilter(TierFilterReader):
    """The index's: counts what tiers have, from nothing on."""

    def __init__(self, file: memoryview, at: int, records: int, reserve: Reserve) -> None:
        super().__init__(file, at, records)
        self._reserve = reserve
        self._counts = np.frombuffer(self._cells, np.uint8)
        self.fault = ""  # why it is of no use until it is cleared
        self.counts = False  # every block that a tier has is counted

    def clear(self) -> None:
        """No tier has anything; readers have been told that there is none to ask about."""
        self.counts, self.fault = False, ""

    def add(self, fingerprints: U64) -> None:
        """A tier has these blocks, and had none of them before."""
        if not self.counts and not self.fault:
            size = 1 << self._log2
            too_short = "the ledger's file ends before the filter of the tiers"
            self.fault = self._reserve(self._at, size) if self.there else too_short
            if not self.fault:
                self._counts[:] = 0
                self.counts = True
        if self.counts:
            cells, more = self._cells_of(fingerprints)
            self._counts[cells] = np.minimum(self._counts[cells] + more, _STUCK)

    def remove(self, fingerprints: U64) -> None:
        """A tier has these blocks no more, and had all of them."""
        if self.counts:
            cells, fewer = self._cells_of(fingerprints)
            before = self._counts[cells].astype(np.int64)
            self._counts[cells] = np.where(before == _STUCK, _STUCK, np.maximum(before - fewer, 0))

    def _cells_of(self, fingerprints: U64) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
        """The cells of these blocks, each once, and how many of the blocks are in each."""
        shift = np.uint64(64 - self._log2)
        both = np.concatenate([fingerprints * np.uint64(factor) >> shift for factor in _FACTORS])
        cells, times = np.unique(both, return_counts=True)
        return cells, times
