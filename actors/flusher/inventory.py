"""What the index is told of the blocks in the log: Manifest, a part at a time, and Forget.

An index, perhaps a new one, hears of all that is in the log, and when the last volume has been
loaded, that it was all.  One part at a time is unanswered; a part that was lost is said again.

The log is listed as it is told: a part is what some rows of one segment are the places of by then,
so no turn is longer for a larger log.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import groupby, islice

from pegaflow.actors.runtime.contract import MS, Ask, Effect, Part
from pegaflow.actors.runtime.member import Member
from pegaflow.core.segments.catalog import Segment
from pegaflow.wire.flusher import MANIFEST_KEYS, Forget, Manifest, Noted
from pegaflow.wire.identities import NO_NAMESPACE, Key, Namespace
from pegaflow.wire.message import Message
from pegaflow.wire.units import Nanoseconds
from pegaflow.wire.values import INDEX, NOBODY, Address

from .volumes import Volumes

NOTED_NS: Nanoseconds = 2000 * MS
"""Patience with an index that takes in a part of the inventory; then it is said again."""


class Inventory(Part):
    """What the index does not know yet to be in the log."""

    def __init__(self, member: Member, volumes: Volumes) -> None:
        self._member, self._volumes = member, volumes
        self._untold: deque[tuple[Segment, int]] = deque()  # rows of each from here on are to come
        self._told: set[tuple[Namespace, int]] = set()  # of the first part: with lengths of keys
        self._noting = False  # a Manifest is unanswered
        self._all_told = False  # the last Manifest was said to this index

    def met(self, neighbour: Address, now: int) -> list[Effect]:
        """An index, perhaps in a new life: begin anew."""
        if neighbour.name != INDEX:
            return []
        self._noting = self._all_told = False
        self._untold = deque((segment, 0) for segment in self._volumes.catalog.segments)
        self._told.clear()
        return self._tell_on(now)

    def wake(self, now: int) -> list[Effect]:
        """Perhaps the last volume has been loaded."""
        return self._tell_on(now)

    def found(self, segment: Segment, now: int) -> list[Effect]:
        """What is in a segment is known: the index should know, too."""
        self._untold.append((segment, 0))
        return self._tell_on(now)

    def forget(self, gone: dict[Namespace, list[Key]]) -> list[Effect]:
        """The index should know that these are not in the log any more."""
        effects: list[Effect] = []
        for namespace, keys in gone.items():
            for part in _parts(keys):
                effects += self._member.tell(INDEX, Forget(namespace, part))
        return effects

    def _tell_on(self, now: int) -> list[Effect]:
        """Say the next part, once the one before it is taken in; in the end, that it was all."""
        index = self._member.peer(INDEX)
        if index == NOBODY or self._noting:
            return []
        part = self._next()
        loading = any(volume.is_loading for volume in self._volumes)
        if part.last and (loading or self._all_told):
            return []
        self._noting = True

        def noted(answer: Message, now: int) -> list[Effect]:
            if self._member.peer(INDEX) != index:
                return []
            self._noting = False
            if isinstance(answer, Noted):
                self._all_told = part.last
                if not part.last:
                    self._told.add((part.namespace, len(part.keys[0])))
            return self._tell_on(now)

        return [Ask(index, part, now + NOTED_NS, noted)]

    def _next(self) -> Manifest:
        """What is to be said now."""
        while self._untold:
            segment, first = self._untold[0]
            for row, keys in self._volumes.catalog.listing(segment, first, MANIFEST_KEYS):
                if (row.namespace, len(row.key)) not in self._told:
                    return Manifest(row.namespace, row.payload_bytes, row.shards, tuple(keys))
            self._told.clear()
            if first + MANIFEST_KEYS < segment.count:
                self._untold[0] = (segment, first + MANIFEST_KEYS)
            else:
                self._untold.popleft()
        return Manifest(NO_NAMESPACE, 0, 0, (), last=True)


def _parts(keys: Iterable[Key]) -> Iterator[tuple[Key, ...]]:
    """The keys as lists that one message can name."""
    for _, alike in groupby(sorted(keys, key=len), len):
        while part := tuple(islice(alike, MANIFEST_KEYS)):
            yield part
