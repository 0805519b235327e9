"""Which block is where in the log, and which segment goes next.

A key has one place: that of its newest row.  Rows are kept as they are on the disk, so a million
blocks cost little more than their keys.  Segments of a volume are numbered in the order in which
they were made, and go in that order, whole.  Of the one that goes next, the blocks that somebody
has read since they were written are `hot`: they are to be carried over, the last read first, as far
as the budget reaches; so what is used does not age out as in a plain queue.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from pegaflow.wire.identities import Key, Namespace
from pegaflow.wire.units import Share

from .codec import ROW_BYTES, Row, pack_row, row_at

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

    def load(self, segment: Segment, rows: bytes) -> list[Row]:
        """Learn an older segment than all that have rows already: keys that are known keep their
        places.

        Args:
            rows: as in its footer, ROW_BYTES each.

        Returns:
            The rows whose keys were new.
        """
        assert not segment.rows
        segment.rows = bytearray(rows)
        base, new = segment.serial << _ROW_BITS, []
        for at in range(segment.count):
            row = segment.row(at)
            places = self._places.setdefault(row.namespace, {})
            if places.setdefault(row.key, base + at) == base + at:
                new.append(row)
        segment.live = len(new)
        self.blocks += len(new)
        return new

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
        return self._segments[place >> _ROW_BITS], place & (1 << _ROW_BITS) - 1

    def has(self, namespace: Namespace, key: Key) -> bool:
        """Whether the block is here."""
        return key in self._places.get(namespace, ())

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
        base = segment.serial << _ROW_BITS
        for at in range(segment.count):
            row = segment.row(at)
            places = self._places.get(row.namespace, {})
            if places.get(row.key) == base + at:
                del places[row.key]
                gone.setdefault(row.namespace, []).append(row.key)
                if not places:
                    del self._places[row.namespace]
        self.blocks -= segment.live
        del self._segments[segment.serial]
        segment.rows, segment.live = bytearray(), 0
        segment.read.clear()
        return gone

    def listing(self) -> Iterator[tuple[Row, list[Key]]]:
        """Every namespace: a row of it, and its keys as of now."""
        for namespace, places in list(self._places.items()):
            keys = list(places)
            found = self.find(namespace, keys[0])
            assert found is not None
            yield found[0].row(found[1]), keys

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
