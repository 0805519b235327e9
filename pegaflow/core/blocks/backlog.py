"""Which blocks are still to be written to the log, and in which order.

Worth decides: blocks that somebody has asked for since they were saved go before those that nobody
has, and of each kind the one that came first, so that the heads of chains go before their tails.
With `reused_only` a block is worth nothing before it was asked for, or saved a second time: then
what is never seen again costs the disk nothing.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain, islice

from pegaflow.wire.identities import Key, Namespace
from pegaflow.wire.units import Count

from .table import Block

SEEN_MAX: Count = 1 << 18
"""Keys of one generation that are remembered to have been saved once: some 30 MB for both."""

LOOK_MAX: Count = 1024
"""Blocks one batch is picked from: those of other namespaces are passed over."""


class Backlog:
    """Blocks in memory that are not in the log, nor on their way there."""

    def __init__(self) -> None:
        self.reused_only = False
        self._reused: OrderedDict[Block, None] = OrderedDict()
        self._fresh: OrderedDict[Block, None] = OrderedDict()  # disjoint
        self._seen: set[tuple[Namespace, Key]] = set()  # saved once; the younger generation
        self._seen_before: set[tuple[Namespace, Key]] = set()

    def __len__(self) -> int:
        return len(self._reused) + len(self._fresh)

    def saved(self, block: Block) -> None:
        """A block was saved."""
        if not self.reused_only:
            self._fresh[block] = None
            return
        name = (block.namespace, block.key)
        if name in self._seen or name in self._seen_before:
            self._reused[block] = None
            return
        self._seen.add(name)
        if len(self._seen) == SEEN_MAX:
            self._seen, self._seen_before = set(), self._seen

    def asked_for(self, block: Block) -> None:
        """Somebody wants it, and it is not in the log, nor on its way there."""
        if self.reused_only or block in self._fresh:
            self._fresh.pop(block, None)
            self._reused.setdefault(block)

    def again(self, block: Block) -> None:
        """It was on its way, and has not arrived: it goes first."""
        if block not in self._fresh:
            self._reused[block] = None
            self._reused.move_to_end(block, last=False)

    def discard(self, block: Block) -> None:
        """It is not to be written any more."""
        self._fresh.pop(block, None)
        self._reused.pop(block, None)

    def take(
        self, most: int, bytes_: int, alone: bool, wanted: Callable[[Block], bool]
    ) -> list[Block]:
        """Take the next blocks out, all of one namespace and one length of keys.

        Args:
            most: how many at most.
            bytes_: of their pages together, at most.
            alone: a single block may exceed `bytes_`.
            wanted: whether a block is still to be written; others are forgotten.

        Returns:
            In the order in which they are to be written; empty if nothing fits.
        """
        while queue := self._reused or self._fresh:
            found: list[Block] = []
            forgotten: list[Block] = []
            room = bytes_
            for block in islice(queue, LOOK_MAX):
                if len(found) == most:
                    break
                if not wanted(block):
                    forgotten.append(block)
                    continue
                if found and not _alike(block, found[0]):
                    continue
                size = len(block.pages) * block.page_size
                if size > room and not (alone and not found):
                    break
                found.append(block)
                room -= size
            for block in (*found, *forgotten):
                del queue[block]
            if found or not forgotten:
                return found
        return []

    def __contains__(self, block: Block) -> bool:
        return block in self._fresh or block in self._reused

    def __iter__(self) -> Iterator[Block]:
        return chain(self._reused, self._fresh)

    def check(self) -> None:
        """No block is in both queues."""
        assert not self._reused.keys() & self._fresh.keys()


def _alike(block: Block, other: Block) -> bool:
    """Whether one message can name both."""
    return (block.namespace, len(block.key)) == (other.namespace, len(other.key))
