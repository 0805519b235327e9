"""What names a thing: a lease is no claim, a page no stamp, a key no namespace.

Each is an int or bytes at run time and on the wire; it is the checker of types who tells them
apart, so that two arguments that changed places are found before anything runs.  A value becomes
one of these where it comes into being: in a decoder, in a book that counts, where a file or shared
memory is read.  A list is not taken apart for that: it is said once what it is a list of.
"""

from collections.abc import Sequence
from typing import Any, NewType, TypeVar

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

PageId = NewType("PageId", int)
"""A page of the pool, and its record in the ledger; no offset, and no number within an extent."""

Key = NewType("Key", bytes)
"""The hash of a block and of all before it in its chain, as the engine makes it."""

NO_KEY = Key(b"")
"""Before the first block of a chain, or where nobody knows."""

EngineNamespace = NewType("EngineNamespace", bytes)
"""What an engine says that changes the meaning of its blocks' bytes, their layout excepted."""

Namespace = NewType("Namespace", bytes)
"""What a session makes of its engine's own namespace and of the layouts of its ranks: blocks of two
namespaces have nothing to do with each other, whatever their keys."""

NO_NAMESPACE = Namespace(b"")
"""Of an engine that lacks a rank, or of no key."""

_N = TypeVar("_N", bound=int)


def numbered(first: _N, count: int) -> Sequence[_N]:
    """Numbers of one kind, each one more than that before it.

    Args:
        first: the first of them.
        count: how many.
    """
    numbers: Sequence[Any] = range(first, first + count)
    return numbers
