"""A resident block as an object, as long as somebody refers to it.

What the index knows of a block is columns and its ledger records.  A lease, or whoever wants a
block written, refers to a `Block` that says the same; two that stand for one block are the same
object.
"""

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

import numpy as np

from pegaflow.wire.identities import NO_KEY, Key, Namespace, PageId, Stamp

from .columns import Mask, Pages


@dataclass(slots=True, eq=False, weakref_slot=True)
class Block:
    """A block that is in place with every shard. Equal only to itself."""

    namespace: Namespace
    key: Key
    page_size: int  # of each of its pages
    pages: tuple[PageId, ...]  # one page id per shard, in shard order
    stamps: tuple[Stamp, ...]  # of the grants the pages were filled under, beside `pages`
    seal: int  # the seal id in the ledger records of all its pages
    depth: int  # position in its chain, 0 the first
    parent: Key = NO_KEY  # key of the block before it; may have been evicted since.  Empty: unknown
    leases: int = 0  # leases that name it, kept by the lease table; evictable only at 0
    checksums: tuple[int, ...] = ()  # of its pages, where they are kept; 0: never computed
    born_ns: int = 0  # when it was published; 0: in an earlier life, nobody knows


class Handles:
    """The blocks that somebody refers to, by first page; each page has one at most.

    Args:
        make: the block that begins at a page, of which there is no object.
    """

    def __init__(self, make: Callable[[PageId], Block] | None = None) -> None:
        self._make = make
        self._there: WeakValueDictionary[PageId, Block] = WeakValueDictionary()

    def get(self, first: PageId) -> Block | None:
        """The object, if there is one."""
        return self._there.get(first)

    def of(self, first: PageId) -> Block:
        """The object."""
        block = self._there.get(first)
        if block is None:
            assert self._make is not None, first
            block = self._there[first] = self._make(first)
        return block

    def note(self, block: Block) -> None:
        """This object stands for the block."""
        self._there[block.pages[0]] = block

    def forget(self, first: Pages) -> None:
        """The blocks are gone, whoever still refers to them."""
        if self._there:
            for page in first.tolist():
                self._there.pop(page, None)

    def leased(self, first: Pages) -> Mask:
        """Which of these have leases: without an object there is none."""
        get = self._there.get
        if not self._there:
            return np.zeros(len(first), np.bool_)
        blocks = [get(page) for page in first.tolist()]
        return np.array([block is not None and block.leases > 0 for block in blocks], np.bool_)
