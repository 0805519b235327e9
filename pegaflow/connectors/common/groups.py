"""The KV cache groups of a model: which blocks each needs, and how they are named. Pure.

vLLM puts layers that need the same blocks into a group; a request has a table of blocks for each
of them. Layers of full attention need all blocks of a request. Layers of a sliding window need the
few last ones, and vLLM takes the others away while the request goes on. Recurrent layers (Mamba,
linear attention, short convolutions) keep a state, which is one block whatever the length of the
request; the block before a place holds the state behind all tokens up to there.

To *resume* at a block means to have all that is needed to go on computing behind it: in a group of
full attention every block before it, in one of windows the `window` blocks before it, in a
recurrent one the block before it. So a hit is the largest place at which every group can resume.
States are kept wherever vLLM has a whole one, at the ends of its chunks (grouped.py). Windows are
not kept everywhere, only at places where requests are likely to part from each other or to be
continued:

    every APART windows of tokens     so that a long prompt that others share a part of is not lost
    the end of the prompt             a prompt that is sent again, or has another question behind it
    where an earlier prompt parted    the cache had the full attention's blocks up to here, but no
                                      window: the next request that parts here finds one
    the end of the request            the next turn of a conversation begins there

A block is named by the engine's hash of it. The first group, of full attention if there is one, is
named by the hash itself; what the others have of the same tokens, by that hash mixed with the
group's number.

Blocks that a request needs to resume are listed in one order everywhere: by their place, and those
of one place by group. So what a request needs beyond what it has is always the end of that list.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

from pegaflow.wire.identities import Key
from pegaflow.wire.units import Count

APART: Count = 8
"""A window in this many is kept of a long prompt: an eighth of what all of them would take, and a
request that parts from another one computes no more than so many windows again."""

STATES_BACK: Count = 1024
"""Blocks before the end of a prefix among which a state is looked for. Chunks of some thousand
tokens end in a state, and a block of such models has hundreds; a look at so many takes some
milliseconds, once for a request that parts from what is cached."""


class Group(NamedTuple):
    """Layers that share a table of blocks."""

    number: int  # vLLM's
    window: int | None = None  # blocks before a place that are needed there; None: all of them
    recurrent: bool = False  # such a block is a state, of which one is needed (a window of 1)

    def first(self, place: int) -> int:
        """The first block that is needed to resume at a place."""
        return 0 if self.window is None else max(0, place - self.window)


Entry = tuple[Group, int]
"""A block: its group, and its place in the request."""


class Groups:
    """All groups of a model; tables of blocks are by vLLM's number of the group."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self._all = sorted(groups, key=lambda group: (group.window is not None, group.number))
        self.full = [group for group in self._all if group.window is None]
        partial = [group for group in self._all if group.window is not None]
        self.windows = [group for group in partial if not group.recurrent]
        self.states = [group for group in partial if group.recurrent]
        self.reach = max((group.window or 0 for group in partial), default=0)
        """Blocks of the widest window."""
        self.most = self.reach * len(partial)
        """Blocks that are needed at a place at most, beside those of full attention."""

    @property
    def number(self) -> int:
        """How many there are."""
        return len(self._all)

    @property
    def apart(self) -> int:
        """Blocks from one place at which windows are kept, come what may, to the next."""
        return APART * self.reach

    def looked_for(self, end: int) -> tuple[Group, int]:
        """Where else one can resume than at this place.

        Returns:
            The group whose blocks tell it, the rarest of all, and the first block to look at.
        """
        group = (self.states or self.windows)[0]
        return group, group.first(max(0, end - (STATES_BACK if self.states else self.apart)))

    # which blocks

    def needed(self, place: int, since: int = 0) -> list[Entry]:
        """Blocks that are needed to resume at a place, from the block `since` on."""
        low = max(since, self._low(place))
        found = [(group, block) for block in range(since, low) for group in self.full]
        for block in range(low, place):
            found += [(group, block) for group in self._all if block >= group.first(place)]
        return found

    def count(self, place: int, since: int = 0) -> int:
        """How many they are."""
        return sum(max(0, place - max(since, group.first(place))) for group in self._all)

    def _low(self, place: int) -> int:
        """The first block that any window needs."""
        return max(0, place - self.reach)

    def kept(self, places: Iterable[int], known: int) -> list[Entry]:
        """Blocks of the windows at these places, but for those of the place `known`."""
        wanted = list(places)
        found: list[Entry] = []
        for group in self.windows:
            blocks = {block for place in wanted for block in range(group.first(place), place)}
            blocks.difference_update(range(group.first(known), known))
            found += [(group, block) for block in sorted(blocks)]
        return found

    def places(self, low: int, high: int, special: Iterable[int]) -> list[int]:
        """Places low..high at which windows are kept, in order.

        Args:
            special: the request's own such places.
        """
        found = {place for place in special if low <= place <= high}
        if self.apart:
            found.update(range(-(-low // self.apart) * self.apart, high + 1, self.apart))
        return sorted(found - {0})

    # their names

    def key(self, group: Group, name: Key) -> Key:
        """The key of a group's block.

        Args:
            name: the engine's hash of it.
        """
        if group is self._all[0]:
            return name
        tag = b"kv cache group %d" % group.number
        return Key(blake2b(name, digest_size=len(name), key=tag).digest())

    def full_keys(self, names: Iterable[Key]) -> tuple[Key, ...]:
        """Keys of these blocks in all groups of full attention, block by block."""
        if len(self.full) == 1:
            return tuple(names)
        return tuple(self.key(group, name) for name in names for group in self.full)

    def needed_keys(self, names: Sequence[Key], place: int) -> tuple[Key, ...]:
        """Keys of all that is needed to resume at a place.

        Args:
            names: the request's blocks, from its first on.
        """
        low = self._low(place)
        tail = tuple(self.key(group, names[block]) for group, block in self.needed(place, low))
        return self.full_keys(names[:low]) + tail


def blocks_of(tables: Sequence[Sequence[int]], entries: Iterable[Entry]) -> tuple[int, ...] | None:
    """The engine's blocks of these entries; None: some are not there (any more).

    Args:
        tables: by vLLM's number of the group; a 0 stands for a block that was taken away.
    """
    found = tuple(_blocks(tables, entries))
    return found if all(found) else None


def _blocks(tables: Sequence[Sequence[int]], entries: Iterable[Entry]) -> Iterator[int]:
    for group, block in entries:
        table = tables[group.number] if group.number < len(tables) else ()
        yield table[block] if block < len(table) else 0


def window_blocks(window_tokens: int, block_tokens: int) -> int:
    """Blocks before a place that a window reaches back to: the token at the place is one of it."""
    return -(-(window_tokens - 1) // block_tokens)
