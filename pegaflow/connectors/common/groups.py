"""The KV cache groups of a model: which blocks each needs, and how they are named. Pure.

vLLM puts layers that need the same blocks into a group; a request has a table of blocks for each
of them. Layers of full attention need all blocks of a request. Layers of a sliding window need the
few last ones, and vLLM takes the others away while the request goes on. Layers of chunked local
attention need those since the last multiple of a chunk, at which they need none. Recurrent layers
(Mamba, linear attention, short convolutions) keep a state, which is one block whatever the length
of the request; the block before a place holds the state behind all tokens up to there.

A *place* is a number of tokens at which blocks of all groups end. Blocks of a group may have more
tokens than those of another one: then there are as many tokens from one place to the next as the
least common multiple of all block sizes, which is where vLLM's own prefix cache resumes, too.
Places are counted by these steps, and the blocks of a group by its own.

To *resume* at a place means to have all that is needed to go on computing behind it: in a group of
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
    every place of an answer          if a place is longer than a window's block: at the end of the
                                      request the first block of the last place may be away

A step may go past a place (over tokens drafted by speculation that were right). Its windows are
there until so many tokens behind it are computed as their first block has within them (`spare`).

A block is named by the engine's hash of all tokens up to its end. The engine hashes in units that
no block is shorter than (the *chain* of a request has one hash for each), so a block of several
units is named by the **last** of its hashes: any other one would also be that of prompts that part
within the block. The first group, of full attention if there is one, is named by the hash itself;
what the others have of the same tokens, by that hash mixed with the group's number.

Blocks that a request needs to resume are listed in one order everywhere: by their place, those of
one place by group, and those of one group in order. So what a request needs beyond what it has is
always the end of that list.
"""

from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b
from itertools import chain as joined
from math import lcm
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
    hashes: int = 1  # the engine's, of a block
    spare: int = 1  # tokens computed behind a place at which the first of those blocks is away
    chunk: int = 0  # blocks; those of one are needed up to a place in it (the window is at most)


Entry = tuple[Group, int]
"""A block: its group, and its number in the request."""


class Groups:
    """All groups of a model; tables of blocks are by vLLM's number of the group."""

    def __init__(self, groups: Iterable[Group]) -> None:
        self.all = sorted(groups, key=lambda group: (group.window is not None, group.number))
        self.hashes = lcm(*(group.hashes for group in self.all))
        """From one place to the next."""
        self.full = [group for group in self.all if group.window is None]
        self.partial = [group for group in self.all if group.window is not None]
        self.windows = [group for group in self.partial if not group.recurrent]
        self.states = [group for group in self.partial if group.recurrent]
        self.reach = self._reach(self.partial)
        """Places that the widest window reaches back."""
        self.most = sum(group.window or 0 for group in self.partial)
        """Blocks that are needed at a place at most, beside those of full attention."""
        self.spare = min((group.spare for group in self.windows if group.window), default=1)
        """Tokens computed behind a place at which a block of its windows is away."""
        self.full_blocks = sum(map(self.per, self.full))
        """Of full attention, from one place to the next."""
        self.blocks = sum(map(self.per, self.all))
        """Of all groups, from one place to the next."""

    def _reach(self, groups: Iterable[Group]) -> int:
        return max((-(-(group.window or 0) // self.per(group)) for group in groups), default=0)

    def per(self, group: Group) -> int:
        """Blocks of a group from one place to the next."""
        return self.hashes // group.hashes

    @property
    def named_first(self) -> Group:
        """The group whose blocks have the engine's own hashes for keys."""
        return self.all[0]

    @property
    def alike(self) -> bool:
        """Whether the blocks of all groups have the same number of tokens."""
        return self.blocks == len(self.all)

    @property
    def splits_places(self) -> bool:
        """Whether a window's blocks are shorter than a place."""
        return any(self.per(group) > 1 for group in self.windows)

    @property
    def apart(self) -> int:
        """Places from one at which windows are kept, come what may, to the next: where there are
        chunks alone, a chunk, at whose end nothing of it is needed."""
        chunks = max((group.chunk // self.per(group) for group in self.windows), default=0)
        return APART * self._reach(group for group in self.partial if not group.chunk) or chunks

    def first(self, group: Group, place: int) -> int:
        """The first block of a group that is needed to resume at a place."""
        end = place * self.per(group)
        if group.chunk:
            return end // group.chunk * group.chunk
        return 0 if group.window is None else max(0, end - group.window)

    def looked_for(self, end: int) -> tuple[Group, int]:
        """Where else one can resume than at this place.

        Returns:
            The group whose blocks tell it, the rarest of all, and the first block to look at.
        """
        group = (self.states or [one for one in self.windows if not one.chunk] or self.windows)[0]
        back = STATES_BACK if self.states else self.apart
        return group, self.first(group, max(0, end - back))

    # which blocks

    def needed(self, place: int, since: int = 0) -> list[Entry]:
        """Blocks that are needed to resume at a place, from the place `since` on."""
        low = max(since, self._low(place))
        found = self.full_entries(since, low)
        for one in range(low, place):
            for group in self.all:
                first = self.first(group, place)
                found += [(group, block) for block in self._between(group, one) if block >= first]
        return found

    def full_entries(self, first: int, end: int) -> list[Entry]:
        """Blocks of full attention from one place to another, in that order."""
        return [
            (group, block)
            for place in range(first, end)
            for group in self.full
            for block in self._between(group, place)
        ]

    def _between(self, group: Group, place: int) -> range:
        """Blocks of a group from a place to the next."""
        per = self.per(group)
        return range(place * per, (place + 1) * per)

    def count(self, place: int, since: int = 0) -> int:
        """How many they are that `needed` has."""
        return sum(
            max(0, place * self.per(group) - max(since * self.per(group), self.first(group, place)))
            for group in self.all
        )

    def _low(self, place: int) -> int:
        """The place behind which the first block is that any window needs."""
        return max(0, place - self.reach)

    def kept(self, places: Iterable[int], known: int) -> list[Entry]:
        """Blocks of the windows at these places, but for those of the place `known`."""
        wanted = list(places)
        found: list[Entry] = []
        for group in self.windows:
            blocks = {block for place in wanted for block in self._window(group, place)}
            blocks.difference_update(self._window(group, known))
            found += [(group, block) for block in sorted(blocks)]
        return found

    def _window(self, group: Group, place: int) -> range:
        return range(self.first(group, place), place * self.per(group))

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
        if group is self.all[0]:
            return name
        tag = b"kv cache group %d" % group.number
        return Key(blake2b(name, digest_size=len(name), key=tag).digest())

    def names(self, group: Group, chain: Sequence[bytes], first: int, end: int) -> list[Key]:
        """The engine's hashes of a group's blocks first..end, as far as the chain goes.

        Args:
            chain: of the request, from its first token on.
        """
        units = group.hashes
        last = min(end, len(chain) // units)
        return [Key(bytes(one)) for one in chain[(first + 1) * units - 1 : last * units : units]]

    def keys(self, group: Group, chain: Sequence[bytes], first: int, end: int) -> list[Key]:
        """Keys of a group's blocks first..end, as far as the chain goes."""
        names = self.names(group, chain, first, end)
        return names if group is self.all[0] else [self.key(group, name) for name in names]

    def keys_of(self, chain: Sequence[bytes], entries: Iterable[Entry]) -> tuple[Key, ...]:
        """Keys of these blocks, to all of which the chain goes."""
        return tuple(
            self.key(group, Key(bytes(chain[(block + 1) * group.hashes - 1])))
            for group, block in entries
        )

    def full_keys(self, chain: Sequence[bytes], first: int, end: int) -> tuple[Key, ...]:
        """Keys of full attention's blocks from one place to another, as `full_entries` has them."""
        columns = [
            (per, self.keys(group, chain, first * per, end * per))
            for group, per in zip(self.full, map(self.per, self.full), strict=True)
        ]
        if len(columns) == 1:
            return tuple(columns[0][1])
        rows = range(end - first)
        return tuple(
            joined.from_iterable(
                keys[row * per : (row + 1) * per] for row in rows for per, keys in columns
            )
        )

    def needed_keys(self, chain: Sequence[bytes], place: int) -> tuple[Key, ...]:
        """Keys of all that is needed to resume at a place.

        Args:
            chain: of the request, from its first token on.
        """
        low = self._low(place)
        return self.full_keys(chain, 0, low) + self.keys_of(chain, self.needed(place, low))


def blocks_of(tables: Sequence[Sequence[int]], entries: Iterable[Entry]) -> tuple[int, ...] | None:
    """The engine's blocks of these entries; None: some are not there (any more).

    Args:
        tables: by vLLM's number of the group; a 0 stands for a block that was taken away.
    """
    found = tuple(_blocks(tables, entries))
    return found if all(found) else None


def _blocks(tables: Sequence[Sequence[int]], entries: Iterable[Entry]) -> Iterator[int]:
    for group, block in entries:
        table = table_of(tables, group)
        yield table[block] if block < len(table) else 0


def table_of(tables: Sequence[Sequence[int]], group: Group) -> Sequence[int]:
    """A group's; empty: the request has no blocks."""
    return tables[group.number] if group.number < len(tables) else ()


def window_blocks(window_tokens: int, block_tokens: int) -> int:
    """Blocks before a place that a window reaches back to: the token at the place is one of it."""
    return -(-(window_tokens - 1) // block_tokens)


def window_spare(window_tokens: int, block_tokens: int) -> int:
    """Tokens computed behind a place at which the first block of its window is away: vLLM takes a
    block when none of its tokens is in the window of the next token."""
    return window_tokens - 1 - (window_blocks(window_tokens, block_tokens) - 1) * block_tokens
