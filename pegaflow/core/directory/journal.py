"""What this host tells others of its blocks: numbered changes, and snapshots for who lacks some.

The peer link owns one Publisher.  It says with `add` and `remove` what has come and gone, and every
few milliseconds sends what `changes` makes of it to all that are connected, on the connection on
which it also answers them, so that what is said first arrives first.  A change has a number, one
more than that before it; `standing`, said about once a second, names the last one, so that who has
missed the last change learns of it.

Who has missed something, is new, or is in the middle of a snapshot asks: an `Ask` says all that
there is to know of him (whose life he follows, the last change that he has, how far his snapshot
has come), so nothing is kept here for each of those that follow, and none of them can make us
keep more.  He gets

    the changes behind his last one     if the journal still has them
    the next chunk of a snapshot        if he has all changes, and no whole snapshot
    the first chunk of a snapshot       if he has followed another life, or is too far behind

A chunk is all that we have told to have between two fingerprints, as of the last change.  So a
snapshot may go on while changes do: a change that comes between two chunks applies to what the
first has set, and what it says of the rest the second chunk says again.

What is told is told in the order in which it happened, one block at a time: what has gone and come
again is told again, even if it has been away for a moment only, since somebody may have asked for
it in this moment, and taken it out of his copy (copies.py).
"""

from collections import deque
from typing import NamedTuple

import numpy as np

from pegaflow.core.pool.columns import distinct
from pegaflow.core.pool.fingerprints import U64
from pegaflow.wire.units import Constant, Count

from .held import LAST_NAME, Held

CHUNK_BLOCKS: Count = 8192
"""Fingerprints in one message: 64 KiB, which are a fraction of a millisecond of a slow network, and
two milliseconds of whoever puts them in its table."""

JOURNAL_BLOCKS: Count = 1 << 17
"""Fingerprints in the changes that are kept, 1 MiB: who has missed more gets a snapshot, which is
shorter then for hosts of up to as many blocks, and some ten times as long for one of a million."""

ANSWER_BLOCKS: Count = 4 * CHUNK_BLOCKS
"""Fingerprints in the changes of one answer: 256 KiB, behind which nothing else waits for long."""

NO_LIFE: Constant = 0
"""The incarnation of a publisher of which nothing is known."""

WHOLE: Constant = LAST_NAME + 1
"""Where a snapshot goes on that has all."""


class Standing(NamedTuple):
    """What a publisher has told."""

    incarnation: int  # never used before by this host; not NO_LIFE
    number: int  # of the last change
    serial: int = 0  # of the Ask whose answer ends with this; 0: of none


class Changes(NamedTuple):
    """What has changed, in this order: first nothing of `removed` is there, then all of `added`."""

    incarnation: int
    number: int
    removed: U64
    added: U64


class Chunk(NamedTuple):
    """All that a publisher has between two fingerprints, as of a change."""

    incarnation: int
    number: int  # of that change
    serial: int  # of the Ask
    first: int
    last: int
    blocks: int  # of the publisher, in all
    names: U64


class Ask(NamedTuple):
    """What a follower has of a publisher."""

    serial: int
    incarnation: int = NO_LIFE  # that it follows
    number: int = 0  # of the last change that it has
    at: int = 0  # where its snapshot goes on


Said = Standing | Changes | Chunk
"""What a publisher says."""

_HAS, _TOLD = 0, 1
_HAS_BIT, _TOLD_BIT = np.uint64(1 << _HAS), np.uint64(1 << _TOLD)


class Publisher:
    """Tells what this host has.  Another one, of another incarnation, begins with nothing.

    Args:
        incarnation: of this publisher; this host has used none like it, before a reboot either.
        most: blocks that are told, at most.
    """

    def __init__(self, incarnation: int, most: int) -> None:
        assert incarnation != NO_LIFE
        self.incarnation = incarnation
        self._held = Held(2, most)  # what we have, and what we have told to have
        self._touched: deque[tuple[U64, bool]] = deque()  # still to tell; whether it was removed
        self._number = 0
        self._journal: deque[Changes] = deque()  # the last changes, of ascending numbers
        self._kept = 0  # fingerprints in the journal

    @property
    def standing(self) -> Standing:
        """What was told last."""
        return Standing(self.incarnation, self._number)

    @property
    def blocks(self) -> int:
        """That we have."""
        return self._held.counts[_HAS]

    def add(self, names: U64) -> int:
        """We have these blocks.

        Returns:
            How many are more than we may tell of.
        """
        refused = self._held.add(_HAS, names)
        self._touch(names, False)
        return refused

    def remove(self, names: U64) -> None:
        """We have not got these blocks any more."""
        had = names[self._held.owners_of(names) & _HAS_BIT != 0]
        self._held.remove(_HAS, had)
        self._touch(had, True)

    def _touch(self, names: U64, gone: bool) -> None:
        """To be told, in messages of fingerprints from everywhere: a table that is to grow for them
        has no room for many in one place."""
        ordered = distinct(names)
        parts = -(-len(ordered) // CHUNK_BLOCKS)
        for part in range(parts):
            self._touched.append((ordered[part::parts], gone))

    def changes(self) -> Changes | None:
        """The next change, for everybody; None: there is none more."""
        while self._touched:
            names, gone = self._touched.popleft()
            masks = self._held.owners_of(names)
            has, told = masks & _HAS_BIT != 0, masks & _TOLD_BIT != 0
            removed, added = names[told & ~has], names[has & (~told | gone)]
            self._held.remove(_TOLD, removed)
            self._held.add(_TOLD, added)
            if len(removed) or len(added):
                self._number += 1
                change = Changes(self.incarnation, self._number, removed, added)
                self._keep(change)
                return change
        return None

    def _keep(self, change: Changes) -> None:
        self._journal.append(change)
        self._kept += _size(change)
        while self._kept > JOURNAL_BLOCKS:
            self._kept -= _size(self._journal.popleft())

    def answer(self, ask: Ask) -> list[Said]:
        """What a follower lacks, or the next part of it."""
        known = self._number - len(self._journal)  # the last change that nobody can have again
        if ask.incarnation != self.incarnation or not known <= ask.number <= self._number:
            return [self._chunk(ask.serial, 0)]
        if ask.number == self._number and ask.at <= LAST_NAME:
            return [self._chunk(ask.serial, ask.at)]
        said: list[Said] = []
        size = 0
        for n in range(ask.number - known, len(self._journal)):
            change = self._journal[n]
            size += _size(change)
            if size > ANSWER_BLOCKS and said:
                break
            said.append(change)
        return [*said, self.standing._replace(serial=ask.serial)]

    def _chunk(self, serial: int, first: int) -> Chunk:
        names, last = self._held.chunk(_TOLD, first, CHUNK_BLOCKS)
        return Chunk(
            *(self.incarnation, self._number, serial),
            first=first,
            last=last,
            blocks=self._held.counts[_TOLD],
            names=names,
        )

    def check(self) -> None:
        """The journal is bounded, and without a gap."""
        self._held.check()
        numbers = [change.number for change in self._journal]
        assert numbers == list(range(self._number - len(numbers) + 1, self._number + 1))
        assert self._kept == sum(map(_size, self._journal)) <= JOURNAL_BLOCKS
        if not self._touched:
            assert self._held.counts[_HAS] == self._held.counts[_TOLD]


def _size(change: Changes) -> int:
    """Fingerprints in it."""
    return len(change.removed) + len(change.added)
