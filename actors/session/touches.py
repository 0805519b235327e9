"""What was used under hazards, told to the index after the fact.

It ages blocks as the end of a lease of its own does.  It is told with the beat, and before a Seal:
what was used before a block was published must not look younger than the block, for a pool that
everybody has just read from would give up what is being saved into it, its head first.  And it is
told before pages are asked for, which may be those of whatever looks oldest: a prompt that is saved
from where its hit has ended must not have its pages from its own head.

The latest use is told first, each in chain order, for the index takes what comes first for the
youngest.  What one message does not hold goes in several, the last of them first: the tail of a
chain must not be told of after its head.  A word that is lost makes a block older than it is, so
what is too much while there is no index is forgotten, the oldest use first.
"""

from collections import Counter

import numpy as np

from pegaflow.actors.runtime.contract import Effect, Part
from pegaflow.actors.runtime.member import Member
from pegaflow.core.pool.columns import Places, said
from pegaflow.wire.index import Touched
from pegaflow.wire.units import Count
from pegaflow.wire.values import INDEX, NOBODY

from .records import NO_PLACES

TOUCHED_BATCH: Count = 4096
"""Blocks that are told without waiting for the beat: half a dozen long requests."""

TOUCHED_MAX: Count = 1 << 16
"""Blocks remembered while there is no index: more than it would keep apart by age."""


class Touches(Part):
    """Blocks that the index has not been told of."""

    def __init__(self, member: Member, counts: Counter[str]) -> None:
        self._member, self._counts = member, counts
        self._waiting = NO_PLACES  # first pages, those of the lease that ended last first

    def beat(self, now: int) -> list[Effect]:
        """Tell the index."""
        return self.tell()

    def add(self, firsts: Places) -> list[Effect]:
        """A lease of our own has ended.

        Args:
            firsts: the first page of each block, in chain order.
        """
        self._waiting = np.concatenate([firsts, self._waiting])
        return self.tell() if len(self._waiting) >= TOUCHED_BATCH else []

    def tell(self) -> list[Effect]:
        """The index hears of all that waits."""
        if self._member.peer(INDEX) == NOBODY:
            forgotten = len(self._waiting) - TOUCHED_MAX
            if forgotten > 0:
                self._counts["touches_forgotten"] += forgotten
                self._waiting = self._waiting[:TOUCHED_MAX]
            return []
        pages, self._waiting = self._waiting, NO_PLACES
        batches = [pages[at : at + TOUCHED_BATCH] for at in range(0, len(pages), TOUCHED_BATCH)]
        told = [Touched(said(batch)) for batch in reversed(batches)]
        return [effect for msg in told for effect in self._member.tell(INDEX, msg)]
