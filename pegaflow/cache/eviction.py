"""Which blocks go first: the least recently used, and of one chain the tail before the head.

A block is of use only while all blocks before it in its chain are here. So whenever a chain is
used, its blocks become the youngest from the tail to the head: the head last, hence youngest of
all. Chains are always passed head first.

Each page size has its own order, since evicting a block makes room for one of the same size only. A
block under a lease is *pinned*: out of every order, so that no search ever steps over it. It comes
back as the youngest when its last lease ends.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import islice

from pegaflow.cache.prefix_index import Block


class Lru:
    """Knows every resident block exactly once: in an order, or pinned."""

    def __init__(self) -> None:
        # page size -> evictable blocks with the tick of their last use, oldest first; none empty
        self._orders: dict[int, OrderedDict[Block, int]] = {}
        self._pinned: set[Block] = set()  # blocks out of the orders: all that are leased
        self._tick = 0  # grows with every use, so that ages compare across page sizes

    def insert_chain(self, blocks: Sequence[Block]) -> None:
        """Makes these blocks the youngest, new ones and known ones alike.

        When blocks are added to a chain that is already here, pass the whole chain as far as it is
        known: alone, the new tail would outlive its head. Pinned ones stay pinned.
        """
        for block in reversed(blocks):
            if block.leases:
                self._leave(block)
                self._pinned.add(block)
            elif block not in self._pinned:
                self._enter(block)

    def touch(self, blocks: Sequence[Block]) -> None:
        """The chain was used: its evictable blocks become the youngest."""
        for block in reversed(blocks):
            order = self._orders.get(block.page_size)
            if order and block in order:
                self._enter(block)

    def pin(self, blocks: Sequence[Block]) -> None:
        """These blocks have just been leased. Pinned ones stay so."""
        orders, pinned = self._orders, self._pinned
        for block in blocks:
            assert block.leases > 0, block
            if block not in pinned:
                del orders[block.page_size][block]
                pinned.add(block)
        for page_size in [size for size, order in orders.items() if not order]:
            del orders[page_size]

    def unpin(self, blocks: Sequence[Block]) -> None:
        """A lease on these has ended: those without another become the youngest. Blocks that were
        removed while pinned are passed over."""
        pinned, tick = self._pinned, self._tick
        for block in reversed(blocks):
            if not block.leases and block in pinned:
                pinned.remove(block)
                order = self._orders.get(block.page_size)
                if order is None:
                    order = self._orders[block.page_size] = OrderedDict()
                tick += 1
                order[block] = tick
        self._tick = tick

    def victims(self, page_size: int, count: int) -> list[Block]:
        """Up to so many blocks, the oldest first. They stay; the caller removes what it evicts."""
        return list(islice(self._orders.get(page_size, ()), count))

    def remove(self, block: Block) -> None:
        """The block is gone, pinned or not."""
        if block in self._pinned:
            self._pinned.remove(block)
        else:
            assert self._leave(block), block

    def coldest_extent(
        self, page_size_excluded: int, extent_of: Callable[[int], int]
    ) -> int | None:
        """The extent of the oldest evictable block of any other page size, to be emptied and recut.
        Other blocks in that extent may be pinned."""
        oldest: tuple[int, Block] | None = None
        for page_size, order in self._orders.items():
            if page_size == page_size_excluded:
                continue
            block, tick = next(iter(order.items()))
            if oldest is None or tick < oldest[0]:
                oldest = (tick, block)
        return extent_of(oldest[1].pages[0]) if oldest else None

    def __len__(self) -> int:
        """Evictable blocks."""
        return sum(map(len, self._orders.values()))

    def _enter(self, block: Block) -> None:
        order = self._orders.setdefault(block.page_size, OrderedDict())
        self._tick += 1
        order[block] = self._tick
        order.move_to_end(block)

    def _leave(self, block: Block) -> bool:
        """Takes the block out of its order; False if it was in none."""
        order = self._orders.get(block.page_size)
        if order is None or order.pop(block, None) is None:
            return False
        if not order:
            del self._orders[block.page_size]
        return True

    def check(self) -> None:
        for page_size, order in self._orders.items():
            assert order, "an empty order stayed"
            ticks = list(order.values())
            assert ticks == sorted(set(ticks)) and ticks[-1] <= self._tick
            for block in order:
                assert block.page_size == page_size
                assert not block.leases and block not in self._pinned, block
        assert all(block.leases > 0 for block in self._pinned), "pinned without a lease"
