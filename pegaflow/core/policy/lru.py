"""Which blocks go first: the least recently used, and of one chain the tail before the head.

A block is of use only while all blocks before it in its chain are here. So whenever a chain is
used, its blocks become the youngest from the tail to the head: the head last, hence youngest of
all. Chains are always passed head first.

Each page size has its own list, since evicting a block makes room for one of the same size only. A
block under a lease stays in its list, so that a lookup touches no list at all, and is never a
victim: a search that meets one makes it the youngest, which the end of its lease would do anyway.
So one lease costs all searches together one step per block, and no search takes more than LOOK_MAX.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

from pegaflow.core.blocks.table import Block
from pegaflow.wire.identities import PageId
from pegaflow.wire.units import Count

LOOK_MAX: Count = 65536
"""Blocks one search looks at: some milliseconds.  It may find too few; the next one goes on."""


class Lru:
    """Knows every resident block exactly once."""

    def __init__(self) -> None:
        # page size -> blocks with the tick of their last use, oldest first; none empty
        self._lists: dict[int, OrderedDict[Block, int]] = {}
        self._tick = 0  # grows with every use, so that ages compare across page sizes
        self._oldest = 0  # falls with every block that is put before all others

    def insert_chain(self, blocks: Sequence[Block]) -> None:
        """Makes these blocks the youngest, new ones and known ones alike.

        When blocks are added to a chain that is already here, pass the whole chain as far as it is
        known: alone, the new tail would outlive its head.
        """
        for block in reversed(blocks):
            self._enter(block)

    def insert_oldest(self, block: Block) -> None:
        """Makes a new block the oldest of all: nobody has used it in this life."""
        own = self._lists.setdefault(block.page_size, OrderedDict())
        assert block not in own, block
        self._oldest -= 1
        own[block] = self._oldest
        own.move_to_end(block, last=False)

    def touch(self, blocks: Sequence[Block]) -> None:
        """The chain was used, or a lease on it has ended: its blocks become the youngest. Those
        that are gone are passed over."""
        lists, tick = self._lists, self._tick
        for block in reversed(blocks):
            own = lists.get(block.page_size)
            if own is not None and block in own:
                tick += 1
                own[block] = tick
                own.move_to_end(block)
        self._tick = tick

    def victims(self, page_size: int, count: int) -> list[Block]:
        """Blocks without a lease, the oldest first. They stay; the caller removes what it evicts.

        Args:
            page_size: of all of them, in bytes.
            count: how many are wanted; fewer if LOOK_MAX were looked at first.
        """
        found: list[Block] = []
        leased: list[Block] = []
        for block in self._lists.get(page_size, ()):
            if len(found) == count or len(found) + len(leased) == LOOK_MAX:
                break
            (leased if block.leases else found).append(block)
        for block in leased:
            self._enter(block)
        return found

    @property
    def tick(self) -> int:
        """Of the newest use."""
        return self._tick

    def last_use(self, block: Block) -> int:
        """The tick of its last use: blocks used later have a higher one."""
        return self._lists[block.page_size][block]

    def remove(self, block: Block) -> None:
        """The block is gone."""
        own = self._lists[block.page_size]
        del own[block]
        if not own:
            del self._lists[block.page_size]

    def coldest_extent(
        self,
        page_size_excluded: int,
        extent_of: Callable[[PageId], int],
        avoided: frozenset[int] = frozenset(),
    ) -> int | None:
        """The extent of the oldest block without a lease, to be emptied and reassigned. Other
        blocks in that extent may be leased.

        Args:
            page_size_excluded: blocks of this size are not looked at: it is the one that needs an
                extent.
            extent_of: the extent of a page id.
            avoided: extents that are not to be chosen.

        Returns:
            None if there is no such block.
        """
        oldest: tuple[int, Block] | None = None
        for page_size, own in self._lists.items():
            count = LOOK_MAX if avoided else 1
            found = self.victims(page_size, count) if page_size != page_size_excluded else []
            for block in found:
                if avoided and not avoided.isdisjoint(map(extent_of, block.pages)):
                    continue
                if oldest is None or own[block] < oldest[0]:
                    oldest = (own[block], block)
                break
        return extent_of(oldest[1].pages[0]) if oldest else None

    def __len__(self) -> int:
        """All blocks."""
        return sum(map(len, self._lists.values()))

    def _enter(self, block: Block) -> None:
        own = self._lists.setdefault(block.page_size, OrderedDict())
        self._tick += 1
        own[block] = self._tick
        own.move_to_end(block)

    def check(self) -> None:
        """Lists are sorted and name each block once."""
        for page_size, own in self._lists.items():
            assert own, "an empty list stayed"
            ticks = list(own.values())
            assert ticks == sorted(set(ticks)) and ticks[-1] <= self._tick
            for block in own:
                assert block.page_size == page_size
