"""Pages that are freed ahead of need, so that whoever asks finds some waiting.

A save into a full pool that has to wait for its pages waits for the index: victims are looked for,
are no hits any more, a memory barrier, every hazard file, records void, and the answer.  All of
that can be done while the save before still copies.

For each page size there are two marks.  A grant that leaves fewer free pages than the lower one
begins a refill: as many pages as lack to the upper one are asked for, batch by batch, or until a
batch has freed nothing.  Each is asked for once, whatever comes of it, and nothing else begins a
refill, so a pool that nobody saves into keeps all that it has.  Free extents count as free pages of
every size, and as long as the pool grows nobody is pressed.

What it costs: the upper mark is a share of the extents that are cut for that size, so with however
many sizes at most EMPTY_SHARE of the pool stands empty, and mostly between that and half of it; of
a large pool it is a constant that does not count.  A size with so few pages that its share is less
than one has none waiting.
"""

from pegaflow.actors.runtime.contract import MS
from pegaflow.core.limits import MIB
from pegaflow.wire.allocator import Pressure
from pegaflow.wire.units import Bytes, Count, Nanoseconds, Share

from .pages import Pages

EMPTY_SHARE: Share = 1 / 16
"""Of the extents of a page size, so much stands empty at most: 2 MiB of 32.  It is memory without
blocks, and as large a share of the hits is lost with it at most."""

EMPTY_PAGES: Count = 2176
"""There are so many free pages of a size at most: what two of the largest Reserves of a session
take (1,024, and the 64 that it keeps ready).  So the lower mark is one of them: while that is
filled, the next is evicted."""

EMPTY_BYTES: Bytes = 128 * MIB
"""And up to so many bytes: two of the largest Reserves again, if the pages are large."""

BATCH_PAGES: Count = 544
"""Of one Pressure ahead of need, half of the lower mark: one or two milliseconds of the index, for
which a Claim, a Seal or a Reserve that finds too few pages waits at most.  Smaller ones would pay
for more barriers."""

REST_NS: Nanoseconds = 100 * MS
"""After a Pressure that freed nothing, none is sent ahead of need for so long: what could go is in
use, or on its way to the SSD, and looking for it costs the index as much as finding it."""


class Ahead:
    """Which page size to press for while nobody waits, and for how many pages."""

    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._refilling: dict[int, int] = {}  # by page size: pages that are still to be asked for
        self._rests_until_ns = 0

    def took(self, page_size: int) -> None:
        """Pages of this size were granted."""
        upper, free = self._upper(page_size), self._pages.free(page_size)
        if page_size in self._refilling or 2 * free < upper:
            self._refilling[page_size] = upper - free

    def pressure(self, now: int) -> Pressure | None:
        """What to ask the index for; None: nothing."""
        while self._refilling and now >= self._rests_until_ns:
            page_size, left = next(iter(self._refilling.items()))
            missing = self._upper(page_size) - self._pages.free(page_size)
            count = min(left, missing, BATCH_PAGES)
            if count > 0:
                self._refilling[page_size] = left - count
                return Pressure(page_size, count, reassign=False, ahead=True)
            del self._refilling[page_size]
        return None

    def in_vain(self, page_size: int, now: int) -> None:
        """Pressure for this size has freed nothing: it is over until somebody takes more."""
        self._refilling.pop(page_size, None)
        self._rests_until_ns = now + REST_NS

    def _upper(self, page_size: int) -> int:
        """The upper mark of this size; the lower one is half of it."""
        assert self._pages.slab is not None
        share = int(self._pages.slab.cut_pages(page_size) * EMPTY_SHARE)
        return min(share, EMPTY_PAGES, EMPTY_BYTES // page_size)
