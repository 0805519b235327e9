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
        make_all: the same of many.
    """

    def __init__(
        self,
        make: Callable[[PageId], Block] | None = None,
        make_all: Callable[[Pages], list[Block]] | None = None,
    ) -> None:
        self._make, self._make_all = make, make_all
        self._there: WeakValueDictionary[PageId, Block] = WeakValueDictionary()
        self._marks = np.zeros(0, np.bool_)  # by first page; others have no object

    def get(self, first: PageId) -> Block | None:
        """The object, if there is one."""
        return self._there.get(first)

    def of(self, first: PageId) -> Block:
        """The object."""
        block = self._there.get(first)
        if block is None:
            assert self._make is not None, first
            block = self._make(first)
            self.note(block)
        return block

    def all_of(self, first: Pages) -> list[Block]:
        """The objects of many: those that are not there are made together."""
        pages = first.tolist()
        held = [self._there.get(page) for page in pages]
        absent = dict.fromkeys([page for page, b in zip(pages, held, strict=True) if b is None])
        made: list[Block] = []  # referred to, as `held` is, until they are given out
        if absent and self._make_all is not None:
            made = self._make_all(np.array([*absent], np.int64))
        for block in made:
            self.note(block)
        return list(map(self.of, pages))

    def note(self, block: Block) -> None:
        """This object stands for the block."""
        first = block.pages[0]
        if first >= len(self._marks):
            grown = np.zeros(max(first + 1, 2 * len(self._marks)), np.bool_)
            grown[: len(self._marks)] = self._marks
            self._marks = grown
        self._there[first], self._marks[first] = block, True

    def forget(self, first: Pages) -> None:
        """The blocks are gone, whoever still refers to them."""
        for at in self._marked(first):
            page = PageId(int(first[at]))
            self._there.pop(page, None)
            self._marks[page] = False

    def leased(self, first: Pages) -> Mask:
        """Which of these have leases: without an object there is none."""
        found = np.zeros(len(first), np.bool_)
        for at in self._marked(first):
            page = PageId(int(first[at]))
            block = self._there.get(page)
            found[at] = block is not None and block.leases > 0
            self._marks[page] = block is not None
        return found

    def _marked(self, first: Pages) -> list[int]:
        """The places of those that may have an object: it goes with the last who refers to it, and
        its mark when somebody looks."""
        if not self._there:
            return []
        marked = self._marks.take(first, mode="clip") & (first < len(self._marks))
        found: list[int] = marked.nonzero()[0].tolist()
        return found
