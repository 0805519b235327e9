"""Which block is where in the log, and which segment goes next.

A key has one place: that of its newest row.  Rows are kept as they are on the disk, so a million
blocks cost little more than their keys.  Segments of a volume are numbered in the order in which
they were made, and go in that order, whole.  Of the one that goes next, the blocks that somebody
has read since they were written are `hot`: they are to be carried over, the last read first, as far
as the budget reaches; so what is used does not age out as in a plain queue.

A segment comes and goes as a whole, with as many rows as a small block fits into it: all of that is
done for whole columns of rows (named.py), in tens of milliseconds for 65,000.  Where many segments
go at once, with their directory, each is `gone` at once, so that nothing finds its blocks, and is
dropped in a turn of its own.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import compress, repeat

import numpy as np
import numpy.typing as npt

from pegaflow.wire.identities import Key, Namespace
from pegaflow.wire.units import Count, Share

from .codec import ROW_BYTES, Row, pack_row, row_at
from .named import Named, named

_ROW_BITS = 24  # of a place; a segment has fewer rows

CARRY_SHARE: Share = 0.5
"""Part of a segment's bytes that may be carried over: each byte written then costs at most one
more."""


@dataclass(slots=True, eq=False)
class Segment:
    """One file of the log."""

    serial: int  # of this process; never reused
    volume: int
    number: int
    size: int  # bytes of the file
    closed: bool = False  # nothing is added any more
    rows: bytearray = field(default_factory=bytearray)  # what is in it, synced
    live: int = 0  # rows that are places of their keys
    read: dict[int, None] = field(default_factory=dict)  # rows read since, the last one last
    users: int = 0  # reads of it that run; it is not removed before the last has ended
    going: bool = False  # it is being recycled
    gone: bool = False  # its directory is: nobody finds what is in it, until it is dropped
    leaving: bool = False  # its file is being removed

    @property
    def count(self) -> int:
        """Rows."""
        return len(self.rows) // ROW_BYTES

    def row(self, at: int) -> Row:
        """One of them."""
        return row_at(self.rows, at)


class Catalog:
    """All segments of all volumes."""

    def __init__(self) -> None:
        self._places: dict[Namespace, dict[Key, int]] = {}  # namespace -> key -> serial and row
        self._segments: dict[int, Segment] = {}  # by serial
        self._serial = 0
        self.blocks = 0  # keys with a place

    def segment(self, volume: int, number: int, size: int) -> Segment:
        """A segment without rows.

        Args:
            volume: number of the directory.
            number: of the file in it.
            size: bytes that the file was made with.
        """
        self._serial += 1
        made = self._segments[self._serial] = Segment(self._serial, volume, number, size)
        return made

    @property
    def segments(self) -> list[Segment]:
        """All of them, the one that was made last first."""
        return list(reversed(self._segments.values()))

    def load(self, segment: Segment, rows: bytes) -> Count:
        """Learn an older segment than all that have rows already: keys that are known keep their
        places.

        Args:
            rows: as in its footer, ROW_BYTES each.

        Returns:
            How many keys were new.
        """
        assert not segment.rows
        segment.rows = bytearray(rows)
        base = segment.serial << _ROW_BITS
        for some in named(rows):
            places = self._places.setdefault(some.namespace, {})
            mine = some.places + base
            first: npt.NDArray[np.int64] = np.fromiter(
                map(places.setdefault, some.keys, mine.tolist()), np.int64, len(mine)
            )
            segment.live += int(np.count_nonzero(first == mine))
            for at in np.flatnonzero(first != mine).tolist() if self._any_gone() else ():
                key = some.keys[at]
                if self._segments[places[key] >> _ROW_BITS].gone:
                    self._take(some.namespace, key)
                    self._places.setdefault(some.namespace, places)[key] = int(mine[at])
                    segment.live += 1
        self.blocks += segment.live
        return segment.live

    def append(self, segment: Segment, rows: Iterable[Row]) -> None:
        """These blocks are in the segment now, and nowhere else.

        Args:
            rows: their offsets count in this segment.
        """
        for row in rows:
            self._take(row.namespace, row.key)
            at = segment.count
            segment.rows += pack_row(row)
            places = self._places.setdefault(row.namespace, {})
            places[row.key] = (segment.serial << _ROW_BITS) + at
            segment.live += 1
            self.blocks += 1

    def find(self, namespace: Namespace, key: Key) -> tuple[Segment, int] | None:
        """Where a block is.

        Returns:
            The segment, and the row's place in it; None if the block is not in the log.
        """
        place = self._places.get(namespace, {}).get(key)
        if place is None:
            return None
        segment = self._segments[place >> _ROW_BITS]
        return None if segment.gone else (segment, place & (1 << _ROW_BITS) - 1)

    def has(self, namespace: Namespace, key: Key) -> bool:
        """Whether the block is here."""
        return self.find(namespace, key) is not None

    def were_read(self, segment: Segment, places: Iterable[int]) -> None:
        """Somebody has read these rows, unless they have been dropped meanwhile.

        Args:
            places: of the rows in the segment.
        """
        for at in places if segment.rows else ():
            segment.read.pop(at, None)
            segment.read[at] = None

    def forget(self, namespace: Namespace, key: Key) -> None:
        """The block is not what it should be, wherever it is."""
        self._take(namespace, key)

    def hot(self, segment: Segment) -> list[int]:
        """Rows to be carried over before the segment goes, in the order of their places."""
        budget = int(segment.size * CARRY_SHARE)
        chosen = []
        for at in reversed(segment.read):
            row = segment.row(at)
            if self.find(row.namespace, row.key) != (segment, at):
                continue
            budget -= row.bytes_
            if budget < 0:
                break
            chosen.append(at)
        return sorted(chosen)

    def drop(self, segment: Segment) -> dict[Namespace, list[Key]]:
        """The segment goes: the keys that have no place any more, by namespace."""
        gone: dict[Namespace, list[Key]] = {}
        for some in named(segment.rows):
            ended = self._live(segment, some)
            if not ended:
                continue
            places = self._places[some.namespace]
            deque(map(places.__delitem__, ended), maxlen=0)
            gone.setdefault(some.namespace, []).extend(ended)
            if not places:
                del self._places[some.namespace]
        self.blocks -= segment.live
        del self._segments[segment.serial]
        segment.rows, segment.live = bytearray(), 0
        segment.read.clear()
        return gone

    def listing(self, segment: Segment, first: int, count: Count) -> list[tuple[Row, list[Key]]]:
        """What these rows of a segment say, as far as they are the places of their keys.

        Args:
            first: place of the first of them.
            count: rows; there may be fewer.

        Returns:
            By namespace and length of key: a row of them, and their keys.
        """
        if segment.gone or not segment.live:
            return []
        rows = bytes(memoryview(segment.rows)[first * ROW_BYTES : (first + count) * ROW_BYTES])
        found = []
        for some in named(rows):
            keys = self._live(segment, some._replace(places=some.places + first))
            if keys:
                found.append((row_at(rows, int(some.places[0])), keys))
        return found

    def _live(self, segment: Segment, some: Named) -> list[Key]:
        """The keys whose places these rows of a segment are; each once."""
        places = self._places.get(some.namespace, {})
        known: npt.NDArray[np.int64] = np.fromiter(
            map(places.get, some.keys, repeat(-1)), np.int64, len(some.keys)
        )
        return list(compress(some.keys, known == some.places + (segment.serial << _ROW_BITS)))

    def _any_gone(self) -> bool:
        return any([segment.gone for segment in self._segments.values()])

    def _take(self, namespace: Namespace, key: Key) -> None:
        """The block's place is no place any more."""
        places = self._places.get(namespace)
        place = places.pop(key, None) if places else None
        if places is None or place is None:
            return
        if not places:
            del self._places[namespace]
        self._segments[place >> _ROW_BITS].live -= 1
        self.blocks -= 1

    def check(self) -> None:
        """Places and segments agree."""
        live: dict[int, int] = {}
        for namespace, places in self._places.items():
            assert places, "an empty namespace stayed"
            for key, place in places.items():
                segment = self._segments[place >> _ROW_BITS]
                row = segment.row(place & (1 << _ROW_BITS) - 1)
                assert (row.namespace, row.key) == (namespace, key)
                live[segment.serial] = live.get(segment.serial, 0) + 1
        for serial, segment in self._segments.items():
            assert segment.live == live.get(serial, 0), (segment.number, segment.live)
            assert len(segment.rows) % ROW_BYTES == 0
            assert all(at < segment.count for at in segment.read)
        assert self.blocks == sum(live.values())
