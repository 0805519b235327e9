"""Many entries of columns are parted, so that each part is handled by itself: what a sort of all of
them would do, in steps of a few milliseconds.
"""

from collections.abc import Callable, Iterator

import numpy as np

from pegaflow.wire.units import Count

from .columns import Pages

PART: Count = 2048
"""Entries of a part, more or less, and those that one step looks at: some milliseconds with what is
done to a part."""


def parted(count: int, parts: int, part_of: Callable[[slice], Pages]) -> Iterator[Pages]:
    """Part so many entries.

    Args:
        part_of: into which part each of some entries goes.

    Yields:
        The places of a part's entries, part by part, all in their order; and nothing at all, again
        and again, while that is being made ready.
    """
    sizes = np.zeros(parts + 1, np.int64)
    slices = [slice(first, min(first + PART, count)) for first in range(0, count, PART)]
    for some in slices:
        sizes[1:] += np.bincount(part_of(some), minlength=parts)
        yield np.empty(0, np.int64)
    ends = np.cumsum(sizes)
    filled = ends[:-1].copy()
    places = np.empty(count, np.int64)
    for some in slices:
        part = part_of(some)
        order = np.argsort(part, kind="stable")
        part = part[order]
        firsts = np.searchsorted(part, part)  # where the entries of the same part begin
        places[filled[part] + np.arange(len(part)) - firsts] = some.start + order
        filled += np.bincount(part, minlength=parts)
        yield np.empty(0, np.int64)
    for number in range(parts):
        yield places[ends[number] : ends[number + 1]]
