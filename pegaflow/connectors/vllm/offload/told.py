"""What routers are told of this engine's chunks in the pool and on SSD: vLLM's events of a tier.

A chunk that a job has published is told of with the job's result. Until then vLLM keeps it in its
host memory, and while anything was told of it, the tokens that an event of it has. Whatever else
changes, evictions above all, is found by looks at some chunks at a time, for which the carrier
asks; `common/announcing.py` says what there is to be told. Each chunk counts by itself, whether or
not its parent is there: that may be in one of vLLM's own caches.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from pegaflow.client import Seen
from pegaflow.connectors.common.announcing import Announcer, Block, Said, Stored, Tier
from pegaflow.wire.identities import Key
from pegaflow.wire.units import Seconds

from ..events import BLIND_S
from .contract import Medium, OffloadingEvent

LOOK_EVERY_S: Seconds = 0.1
"""Some 200 chunks are looked at each time, which takes as many microseconds of the carrier."""

MEDIA = {Tier.CPU: Medium.CPU, Tier.DISK: Medium.STORAGE}


@dataclass(slots=True, eq=False)
class Look:
    """Where these chunks are."""

    blocks: Sequence[Block]
    seen: Seen | None = None  # filled in when it is done; None: nobody knows


class Told:
    """See the module. All methods are for the engine's thread.

    Args:
        owner: vLLM's name of this tier.
        locality: vLLM's word for where it is.
    """

    def __init__(self, owner: str, locality: Any) -> None:
        self._owner, self._locality = owner, locality
        self._announcer = Announcer()
        self._said: Said = []  # to be told with the next step
        self._looking = False  # a look has not come back
        self._look_at_s = 0.0
        self._sighted_s = time.monotonic()  # when something was seen last

    def stored(self, keys: Sequence[bytes], new: bool, now_s: float) -> None:
        """A job has stored these chunks.

        Args:
            new: all of them were published by it; otherwise that is to be seen: another engine may
                be about to publish them, or have them on SSD.
        """
        blocks = [block for key in keys if (block := self._add(Key(key), now_s)) is not None]
        if new:
            said = self._announcer.seen(blocks, [True] * len(blocks), _on_disk(blocks), now_s)
            self._said += said

    def _add(self, key: Key, now_s: float) -> Block | None:
        block = self._announcer.get(key)
        if block is None:
            return self._announcer.add(key, None, None, now_s)
        self._announcer.again(block, now_s)
        return block

    def look(self, now_s: float) -> Look | None:
        """The next chunks to look at, if it is time."""
        blocks = self._announcer.due() if now_s >= self._look_at_s and not self._looking else []
        if not blocks:
            if not len(self._announcer):
                self._sighted_s = now_s
            return None
        self._looking, self._look_at_s = True, now_s + LOOK_EVERY_S
        return Look(blocks)

    def looked(self, look: Look, now_s: float) -> None:
        """A look has come back."""
        self._looking = False
        if look.seen is not None:
            self._sighted_s = now_s
            self._take_in(look.blocks, look.seen, now_s)
        elif now_s - self._sighted_s > BLIND_S:
            self.lost()

    def _take_in(self, blocks: Sequence[Block], seen: Seen, now_s: float) -> None:
        below = _on_disk(blocks) if seen.below is None else seen.below
        known = [at for at, block in enumerate(blocks) if self._announcer.get(block.key) is block]
        self._said += self._announcer.seen(
            [blocks[at] for at in known],
            [seen.here[at] for at in known],
            [below[at] for at in known],
            now_s,
        )

    def lost(self) -> None:
        """What was told of cannot be loaded any more."""
        self._said += self._announcer.lost()

    def take(self) -> list[Any]:
        """vLLM's events since the last step."""
        said, self._said = self._said, []
        return [
            OffloadingEvent(
                keys=[block.key for one in many for block in one.blocks],
                medium=MEDIA[tier],
                removed=kind is not Stored,
                locality=self._locality,
                ownership=self._owner,
                removal_expected=True,
            )
            for (kind, tier), many in groupby(said, lambda one: (type(one), one.tier))
        ]


def _on_disk(blocks: Sequence[Block]) -> list[bool]:
    """As it was told."""
    return [bool(block.told & Tier.DISK) for block in blocks]
