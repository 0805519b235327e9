"""What routers are told of the blocks of one engine, tier by tier. Pure.

A router sends a request where most of its prefix is cached. It learns that from events, "stored"
and "removed", of the engine that can load the blocks. The service knows keys and no tokens, and
events have tokens, so the engine says what the service has: it looks at the blocks of its own
requests, in shared memory, and tells what has changed since it looked last.

    add     a request has saved these blocks, or loads them: they are looked at soon, and often
            until they are seen, for some time at most
    due     the next blocks to look at: those, and a few of all others, round and round
    seen    what was seen of them, and so what is to be said

What was told of a tier is always whole chains: a block is stored after its parent, and where one is
gone, all that was told of its descendants is taken back before. A lookup ends at the first block
that is missing, so nobody could find them; they are told again when the parent is back. A block
that is nowhere, and has no descendant that is somewhere, is forgotten.
"""

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from itertools import islice
from typing import Any

from pegaflow.wire.identities import Key
from pegaflow.wire.units import Count, Seconds

KNOWN_MAX: Count = 131_072
"""Blocks that are looked at: of 16 tokens each two million; some 60 MB. Others are not told of."""

NEW_MAX: Count = 128
"""Added blocks that are looked at together; all of them and what is to be said take 0.5 ms."""

OLD_MAX: Count = 64
"""Others beside them."""

AWAIT_S: Seconds = 30.0
"""A block that was added is there within milliseconds, or when the pool has room, or never."""


class Tier(IntEnum):
    """Where a block can be; routers know the names."""

    CPU = 1
    DISK = 2


@dataclass(slots=True, eq=False)
class Block:
    """One block that is looked at."""

    key: Key
    parent: "Block | None"
    content: Any  # what an event says of it
    until_s: float  # when it is not awaited any more
    told: int = 0  # tiers
    children: "set[Block]" = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Stored:
    """These blocks, each the parent of the next, are in a tier."""

    tier: Tier
    blocks: list[Block]


@dataclass(frozen=True, slots=True)
class Removed:
    """These blocks are not in that tier any more."""

    tier: Tier
    blocks: list[Block]


Said = list[Stored | Removed]


class Announcer:
    """See the module. A block is known by its key; `new` and `old` have each exactly once."""

    def __init__(self, most: int = KNOWN_MAX) -> None:
        self._most = most
        self._new: OrderedDict[Key, Block] = OrderedDict()  # awaited; the next one first
        self._old: OrderedDict[Key, Block] = OrderedDict()

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def get(self, key: Key) -> Block | None:
        """The block of this key, if it is known."""
        return self._new.get(key) or self._old.get(key)

    def add(self, key: Key, parent: Block | None, content: Any, now_s: float) -> Block | None:
        """A block is there, or soon will be.

        Args:
            key: not known yet.
            parent: the block before it; None: it is the first of its chain.
            content: what an event says of it.

        Returns:
            None: too many are known.
        """
        if len(self) >= self._most:
            return None
        block = self._new[key] = Block(key, parent, content, now_s + AWAIT_S)
        if parent is not None:
            parent.children.add(block)
        return block

    def again(self, block: Block, now_s: float) -> None:
        """A block that is known was added once more."""
        block.until_s = now_s + AWAIT_S
        if block.key in self._old and not block.told & Tier.CPU:
            self._new[block.key] = self._old.pop(block.key)

    def due(self) -> list[Block]:
        """The next blocks to look at."""
        return [*islice(self._new.values(), NEW_MAX), *islice(self._old.values(), OLD_MAX)]

    def seen(
        self, blocks: Sequence[Block], here: Sequence[bool], below: Sequence[bool], now_s: float
    ) -> Said:
        """What was seen of the blocks that were due.

        Args:
            here: beside `blocks`, whether it is in memory.
            below: likewise, whether it is on disk.

        Returns:
            What is to be said, in this order.
        """
        said: dict[Tier, Said] = {tier: [] for tier in Tier}
        for block, in_memory, on_disk in zip(blocks, here, below, strict=True):
            there = int(in_memory) | on_disk << 1
            if there != block.told:
                for tier, of_tier in said.items():
                    self._look(block, tier, there, of_tier)
            self._keep(block, there, now_s)
        return [one for tier in Tier for one in said[tier]]

    def lost(self) -> Said:
        """Nothing of it can be loaded any more; it is forgotten."""
        known = [*self._new.values(), *self._old.values()]
        self._new.clear()
        self._old.clear()
        told = {tier: [block for block in known if block.told & tier] for tier in Tier}
        return [Removed(tier, blocks) for tier, blocks in told.items() if blocks]

    def unheard(self) -> None:
        """Whoever listens has forgotten all that was told: it is told again as it is seen."""
        for block in [*self._old.values(), *self._new.values()]:
            block.told = 0
        self._new = OrderedDict([*self._old.items(), *self._new.items()])
        self._old = OrderedDict()

    def _look(self, block: Block, tier: Tier, there: int, said: Said) -> None:
        if block.told & tier:
            if not there & tier:
                _add_removed(said, tier, block)
        elif there & tier and (block.parent is None or block.parent.told & tier):
            block.told |= tier
            last = said[-1] if said else None
            if isinstance(last, Stored) and last.blocks[-1] is block.parent:
                last.blocks.append(block)
            else:
                said.append(Stored(tier, [block]))

    def _keep(self, block: Block, there: int, now_s: float) -> None:
        """It was looked at: when is it again?"""
        known = there or block.told or block.children
        if block.key in self._old:
            if known:
                self._old.move_to_end(block.key)
                return
            del self._old[block.key]
        elif not block.told and now_s < block.until_s:
            self._new.move_to_end(block.key)
            return
        else:
            del self._new[block.key]
            if known:
                self._old[block.key] = block
                return
        if block.parent is not None:
            block.parent.children.discard(block)


def _add_removed(said: Said, tier: Tier, block: Block) -> None:
    """Take back what was told of a block, after all of its descendants."""
    gone = [one for one in _family(block) if one.told & tier]
    gone.reverse()
    for one in gone:
        one.told &= ~tier
    if said and isinstance(said[-1], Removed):
        said[-1].blocks.extend(gone)
    else:
        said.append(Removed(tier, gone))


def _family(block: Block) -> Iterator[Block]:
    """The block and its descendants, each after its parent."""
    waiting = [block]
    while waiting:
        one = waiting.pop()
        yield one
        waiting.extend(one.children)
