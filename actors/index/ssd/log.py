"""What is in the log of the SSD tier, by the word of the flusher that lives.

When that flusher dies, nothing is known until the next one has said its Manifest.  Of each block
that comes and goes the listing is told, so that readers know whether anybody need be asked.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from pegaflow.actors.index.residency import Residency
from pegaflow.actors.index.tiers import Space
from pegaflow.core.blocks.columns import Mask
from pegaflow.wire.flusher import Flushed, Manifest, Tier
from pegaflow.wire.identities import Key, Namespace
from pegaflow.wire.units import Count
from pegaflow.wire.values import NOBODY

NOT_SAID = Tier(
    writable=False,
    depth=0,
    window_bytes=0,
    batch_blocks=0,
    batch_bytes=0,
    block_bytes=0,
    prefetch=0,
)
"""What is known of a flusher that has not said its Tier."""


class SsdLog:
    """What one flusher has said."""

    def __init__(self, residency: Residency) -> None:
        self._residency = residency
        self.flusher = NOBODY  # whose word this is
        self.tier = NOT_SAID
        self.stored: dict[Namespace, set[Key]] = {}  # namespace -> keys in the log; none empty
        self.spaces: dict[Namespace, Space] = {}  # of the same namespaces

    def has(self, namespace: Namespace, key: Key) -> bool:
        """Whether this block is in the log."""
        return key in self.stored.get(namespace, ())

    @property
    def flushable(self) -> Count:
        """Blocks of as many Flushes as the tier takes at a time."""
        return max(1, self.tier.depth * self.tier.batch_blocks)

    def have(self, namespace: Namespace, keys: Sequence[Key]) -> Mask:
        """Which of these blocks of one namespace are in it."""
        there = map(self.stored.get(namespace, frozenset()).__contains__, keys)
        return np.fromiter(there, np.bool_, len(keys))

    def store(self, msg: Manifest | Flushed) -> None:
        """These are in it."""
        if msg.keys:
            stored = self.stored.setdefault(msg.namespace, set())
            new = set(msg.keys) - stored
            stored |= new
            self.spaces[msg.namespace] = Space(msg.payload_bytes, msg.shards)
            self._residency.listing.tier_has(msg.namespace, new)

    def forget(self, namespace: Namespace, keys: Iterable[Key]) -> None:
        """These are not in it."""
        stored = self.stored.get(namespace)
        if stored is None:
            return
        gone = stored.intersection(keys)
        stored -= gone
        self._residency.listing.tier_lost(namespace, gone)
        if not stored:
            del self.stored[namespace], self.spaces[namespace]

    def clear(self) -> None:
        """The flusher is dead."""
        self.flusher, self.tier = NOBODY, NOT_SAID
        self._residency.listing.tier_forgot()
        self.stored.clear()
        self.spaces.clear()

    def __len__(self) -> int:
        """Blocks in it."""
        return sum(map(len, self.stored.values()))

    def check(self) -> None:
        """Of what is in it we know how it is cut."""
        assert all(self.stored.values()) and self.spaces.keys() == self.stored.keys()
        for namespace, keys in self.stored.items():
            self._residency.listing.check_tier(namespace, keys)
