"""What names a thing: a lease is no claim, a page no stamp, a key no namespace.

Each is an int or bytes at run time and on the wire; it is the checker of types who tells them
apart, so that two arguments that changed places are found before anything runs.  A value becomes
one of these where it comes into being: in a decoder, in a book that counts, where a file or shared
memory is read.  A list is not taken apart for that: it is said once what it is a list of.
"""

from collections.abc import Sequence
from typing import Any, NewType

Incarnation = NewType("Incarnation", int)
"""One life of a process among all that a pool has seen."""

WHOEVER = Incarnation(0)
"""Whichever life is there now."""

GrantId = NewType("GrantId", int)
"""The number of a grant of pages, 1, 2, ... per holder; the allocator gives it."""

LeaseId = NewType("LeaseId", int)
"""The number of a lease, 1, 2, ... per holder; the index gives it."""

ClaimId = NewType("ClaimId", int)
"""The number of a claim, 1, 2, ... per session, or of a Fetch, which is the claim of its blocks."""

NO_GRANT, NO_LEASE, NO_CLAIM = GrantId(0), LeaseId(0), ClaimId(0)
"""Nothing was granted, or nothing is known of it."""

Stamp = NewType("Stamp", int)
"""What a page is filled under: given with the page, and never again."""


def stamps_after(newest: Stamp, count: int) -> tuple[Stamp, ...]:
    """The next stamps, for so many pages.

    Args:
        newest: the last that was given.
    """
    numbers: Sequence[Any] = range(newest + 1, newest + 1 + count)
    return tuple(numbers)
