"""What hit rate a trace allows: the infinite cache, and plain LRU at a size, shared or split.

A block counts as hit when it and every block before it in its request are in the cache; after the
request all of its blocks are. The LRU model makes the tail of a request's chain older than its head
(blocks are touched from the tail to the head), because a head without its tail is still useful and
a tail without its head is not.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .trace import Trace
from .tree import NONE


@dataclass(frozen=True, slots=True)
class Score:
    """Blocks asked for, and how many of them a cache would have had."""

    asked: int  # full blocks of all requests
    hit: int  # of these, blocks within a prefix hit; at most `asked`

    @property
    def rate(self) -> float:
        """Hits per block asked, 0..1."""
        return self.hit / self.asked if self.asked else 0.0

    @property
    def missed(self) -> int:
        """For the infinite cache this is the number of different blocks."""
        return self.asked - self.hit


class LruCache:
    """A prefix cache of `capacity` blocks with least-recently-used eviction."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity  # blocks held after a request: never more
        self._order: OrderedDict[int, None] = OrderedDict()  # oldest first

    def request(self, blocks: Sequence[int]) -> int:
        """Serve one request; the number of its leading blocks that were in the cache."""
        hit = _prefix(blocks, self._order)
        for block in reversed(blocks):
            self._order[block] = None
            self._order.move_to_end(block)
        while len(self._order) > self._capacity:
            self._order.popitem(last=False)
        return hit


def infinite(trace: Trace) -> Score:
    """A cache that forgets nothing: the ceiling of every real one.

    A block that was seen was seen with all before it, so each request is followed from its end up
    to the first block that is known.
    """
    seen = bytearray(len(trace.parents))
    missed = 0
    for node in trace.ends:
        while node != NONE and not seen[node]:
            seen[node] = True
            missed += 1
            node = trace.parents[node]
    asked = sum(trace.depths)
    return Score(asked, asked - missed)


def lru(trace: Trace, capacity: int, pools: int = 1) -> Score:
    """What LRU would hit with `capacity` blocks in all, cut into `pools` equal isolated caches.

    Request `i` goes to cache `i % pools`, as the replay gives it to an engine; with one pool that
    is the cache which all engines share.
    """
    caches = [LruCache(capacity // pools) for _ in range(pools)]
    hit = sum(caches[one.index % pools].request(one.blocks) for one in trace)
    return Score(sum(trace.depths), hit)


def _prefix(blocks: Sequence[int], held: Collection[int]) -> int:
    return next((n for n, block in enumerate(blocks) if block not in held), len(blocks))
