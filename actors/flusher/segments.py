"""The segments of the flusher's volumes: made, written, synced, closed with a footer and recycled.

One segment of a volume at a time is written (`Writer`).  Groups of it are written side by side, but
a block has its place only once its group is durable: then whoever waits for it hears (`Durable`).
When the segment is full, its footer follows the last durable group.  When the next but one would be
beyond the capacity, the oldest is recycled: what is hot in it is carried over into the new one,
then its keys are forgotten, and once nobody reads from it any more its file goes.

A volume to which something could not be written (`fault`) is not written to for a while; what was
queued for it is reassigned.  Later a new segment is tried, and the first that can be made makes the
volume writable again.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from pegaflow.actors.runtime.contract import MS, Effect, Note, Part
from pegaflow.core.limits import MIB
from pegaflow.core.segments.catalog import Segment
from pegaflow.core.segments.codec import (
    GROUP_ROWS,
    HEAD_BYTES,
    Row,
    footer_bytes,
    joined,
    unpack_rows,
)
from pegaflow.core.series import labelled
from pegaflow.wire.control import LogLevel
from pegaflow.wire.diskjobs import (
    CarryGroup,
    DropSegment,
    FooterWritten,
    GroupCarried,
    MakeSegment,
    SyncSegment,
    WriteFooter,
)
from pegaflow.wire.jobs import Done
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Nanoseconds

from .inventory import Inventory
from .tier import TierState
from .volumes import State, Volume, Volumes

CARRY_BYTES: Bytes = 8 * MIB
"""Bytes carried over at a time: their buffer belongs to the process for good."""

RETRY_NS: tuple[Nanoseconds, ...] = (1000 * MS, 5000 * MS, 15_000 * MS, 60_000 * MS)
"""Rest after the nth fault in a row, the last one for all further."""

Durable = Callable[[bool, int], list[Effect]]
"""Hears whether blocks are durable now, or will never be."""


class Queues(Protocol):
    """Who has blocks to write."""

    def write_on(self, volume: Volume, now: int) -> list[Effect]:
        """There may be room for more of what is queued for this volume."""

    def reassign(self, volume: Volume, now: int) -> list[Effect]:
        """What is queued for this volume cannot be written there."""


@dataclass(slots=True, eq=False)
class Writer:
    """The segment that a volume writes, or one whose last groups are still on their way."""

    volume: Volume
    segment: Segment
    offset: int = HEAD_BYTES  # where the next group begins
    groups: int = 0  # begun
    rows: int = 0  # in them
    writing: int = 0  # groups without an end yet
    written: list[tuple[list[Row], Durable]] = field(default_factory=list)  # not durable yet
    syncing: bool = False
    full: bool = False  # no further group is begun
    broken: bool = False  # something of it could not be written: it gets no footer
    closing: bool = False  # its footer is on its way

    def has_room(self, bytes_: int, rows: int) -> bool:
        """Whether one group more fits before the footer.

        Args:
            bytes_: of the group's blocks, beside its page of rows.
            rows: how many blocks.
        """
        end = self.offset + PAGE_ALIGN + bytes_ + footer_bytes(self.rows + rows)
        return not self.full and end <= self.segment.size

    def begin(self, bytes_: int, rows: int) -> tuple[int, int]:
        """Begin a group, for which there is room.

        Args:
            bytes_: of its blocks, beside its page of rows.
            rows: how many blocks.

        Returns:
            Where it begins in the file, and its number.
        """
        at = (self.offset, self.groups)
        self.offset += PAGE_ALIGN + bytes_
        self.groups += 1
        self.rows += rows
        self.writing += 1
        return at


@dataclass(slots=True, eq=False)
class _Log:
    """The ends of one volume's log."""

    writer: Writer | None = None
    making: bool = False  # the next segment
    recycling: Segment | None = None  # the oldest one


class SegmentLog(Part):
    """What is written to the volumes, and what goes from them."""

    def __init__(
        self, volumes: Volumes, tier: TierState, inventory: Inventory, counts: Counter[str]
    ) -> None:
        self._volumes, self._tier, self._inventory = volumes, tier, inventory
        self._counts = counts
        self._logs = [_Log() for _ in volumes]
        self._queues: Queues
        self.writers: set[Writer] = set()  # whose segments are not closed
        self._gone: deque[Segment] = deque()  # of closed volumes: to be dropped one by one
        self._finished: Callable[[int], list[Effect]] = lambda now: []

    def listen(self, queues: Queues) -> None:
        """Said once: whose blocks are written."""
        self._queues = queues

    def wake_at(self) -> int | None:
        """At once while there are segments of closed volumes."""
        return 0 if self._gone else None

    def wake(self, now: int) -> list[Effect]:
        """Drop one of them."""
        return self._drop_gone()

    def check(self) -> None:
        """Segments that are written are open ones, and those that are gone are in no volume."""
        assert not any(writer.segment.closed for writer in self.writers)
        assert not any(self._volumes.has(segment) for segment in self._gone)

    # writing segments

    def writer(self, volume: Volume) -> Writer | None:
        """The segment that is written, if there is one."""
        return self._logs[volume.number].writer

    def want_segment(self, volume: Volume, now: int) -> list[Effect]:
        """Have a segment to write, now or as soon as there is room."""
        log = self._logs[volume.number]
        if log.making or log.writer is not None or not volume.readable:
            return []
        if volume.segments and self._is_full(volume):
            return self._recycle(volume, now)  # what follows comes back here
        log.making = True
        number, volume.next_number = volume.next_number, volume.next_number + 1
        size = self._volumes.segment_bytes

        def made(done: Done, now: int) -> list[Effect]:
            log.making = False
            if not volume.readable:
                return []
            if done.status is Status.NO_SPACE and self._oldest(volume) is not None:
                self._counts["ssd_squeezed"] += 1  # others use the disk: make do with less
                return self._recycle(volume, now)
            if done.status is not Status.OK:
                return self.fault(volume, done, now)
            segment = self._volumes.catalog.segment(volume.number, number, size)
            volume.segments[number] = segment
            log.writer = Writer(volume, segment)
            self.writers.add(log.writer)
            return self._back(volume) + self._go_on(volume, now)

        return self._volumes.do(volume, MakeSegment(volume.number, number, size), made)

    def _back(self, volume: Volume) -> list[Effect]:
        """It can be written to, perhaps again."""
        notes: list[Effect] = []
        if not volume.writable:
            notes = [Note("ssd_back", (("path", volume.path),))]
        volume.writable, volume.why, volume.retry_at_ns, volume.faults = True, "", 0, 0
        volume.fault = Status.OK
        return notes + self._tier.changed()

    def _go_on(self, volume: Volume, now: int) -> list[Effect]:
        return self.make_room(volume, now) + self._queues.write_on(volume, now)

    def close_segment(self, volume: Volume, now: int) -> list[Effect]:
        """Nothing more goes into the segment that is written."""
        log = self._logs[volume.number]
        writer, log.writer = log.writer, None
        if writer is None:
            return []
        writer.full = True
        return self.sync(writer, now)

    def written(self, writer: Writer, rows: list[Row], durable: Durable, now: int) -> list[Effect]:
        """A group is written: say so once it is durable.

        Args:
            rows: of its blocks, in the order of their places.
            durable: told exactly once, whether they are durable or lost.
        """
        writer.written.append((rows, durable))
        return self.sync(writer, now)

    def sync(self, writer: Writer, now: int) -> list[Effect]:
        """Make durable what is written; when nothing is left of a full segment, its footer."""
        if writer.syncing:
            return []
        if not writer.written:
            done = writer.full and not writer.writing and not writer.closing
            return self._write_footer(writer, now) if done else []
        group, writer.written = writer.written, []
        writer.syncing = True
        volume, segment = writer.volume, writer.segment

        def synced(done: Done, now: int) -> list[Effect]:
            writer.syncing = False
            ok = done.status is Status.OK and self._volumes.has(segment)
            effects: list[Effect] = []
            if done.status is not Status.OK:
                writer.broken = True
                effects += self.fault(volume, done, now)
            for rows, durable in group:
                if ok:
                    self._volumes.catalog.append(segment, rows)
                effects += durable(ok, now)
            return effects + self.sync(writer, now)

        return self._volumes.do(volume, SyncSegment(volume.number, segment.number), synced)

    def _write_footer(self, writer: Writer, now: int) -> list[Effect]:
        volume, segment, writer.closing = writer.volume, writer.segment, True
        if writer.broken or not self._volumes.has(segment):
            return self._closed(writer, now)  # the next start looks at its blocks
        job = WriteFooter(volume.number, segment.number, writer.offset, bytes(segment.rows))

        def written(result: FooterWritten | Done, now: int) -> list[Effect]:
            effects: list[Effect] = []
            if isinstance(result, Done):
                effects = self.fault(volume, result, now)
            else:
                segment.size = result.file_bytes
            return effects + self._closed(writer, now)

        return self._volumes.do(volume, job, written)

    def _closed(self, writer: Writer, now: int) -> list[Effect]:
        """The segment has its footer, or gets none."""
        writer.segment.closed = True
        self.writers.discard(writer)
        return self._queues.write_on(writer.volume, now) + self._perhaps_finished(now)

    def finish(self, now: int, finished: Callable[[int], list[Effect]]) -> list[Effect]:
        """No further group is begun: write the footers.

        Args:
            finished: called once there is none left to write.
        """
        self._finished = finished
        closed = [e for volume in self._volumes for e in self.close_segment(volume, now)]
        return closed + self._perhaps_finished(now)

    def _perhaps_finished(self, now: int) -> list[Effect]:
        return [] if self.writers else self._finished(now)

    # faults

    def fault(self, volume: Volume, done: Done, now: int) -> list[Effect]:
        """Something could not be written: nothing is, until it is time to try again.

        Args:
            done: how the job ended; its note is for people.
        """
        why, volume.fault = done.note, done.status
        volume.faults += 1
        self._counts["ssd_faults"] += 1
        self._counts[labelled("ssd_directory_faults", volume.path)] += 1
        rest = RETRY_NS[min(volume.faults, len(RETRY_NS)) - 1]
        volume.retry_at_ns = now + rest
        effects: list[Effect] = []
        if volume.writable or volume.why != why:
            event = "ssd_off" if volume.state is State.CLOSED else "ssd_read_only"
            facts = (("path", volume.path), ("why", why), ("retries_s", rest // (1000 * MS)))
            effects.append(Note(event, facts, LogLevel.WARNING))
        volume.writable, volume.why = False, why
        reassigned = self._queues.reassign(volume, now)  # before anybody looks for more to write
        writer = self.writer(volume)
        if writer is not None:
            writer.broken = True
            effects += self.close_segment(volume, now)
        return effects + self._tier.changed() + reassigned

    def abandon(self, volume: Volume) -> list[Effect]:
        """It cannot be used now: nobody finds anything of it any more, and the index hears of that
        segment by segment."""
        for segment in volume.segments.values():
            segment.gone = True
            self._gone.append(segment)
        volume.segments.clear()
        self._logs[volume.number].recycling = None
        return self._drop_gone()

    def is_abandoning(self, volume: Volume) -> bool:
        """Whether there is something left of what was known of it."""
        return any(segment.volume == volume.number for segment in self._gone)

    def _drop_gone(self) -> list[Effect]:
        if not self._gone:
            return []
        return self._inventory.forget(self._volumes.catalog.drop(self._gone.popleft()))

    # recycling

    def make_room(self, volume: Volume, now: int) -> list[Effect]:
        """Make room for the segment after this one, if there is none."""
        return self._recycle(volume, now) if self._is_full(volume) else []

    def _is_full(self, volume: Volume) -> bool:
        """Whether a further segment would be beyond the capacity."""
        capacity = self._volumes.capacity_bytes
        return capacity is not None and volume.bytes_ + self._volumes.segment_bytes > capacity

    def _oldest(self, volume: Volume) -> Segment | None:
        """The segment that goes next: none before its rows are known."""
        first = next(iter(volume.segments.values()), None)
        recycling = self._logs[volume.number].recycling
        return first if first is not None and first.closed and recycling is None else None

    def _recycle(self, volume: Volume, now: int) -> list[Effect]:
        segment = self._oldest(volume)
        if segment is None:
            return []
        segment.going, self._logs[volume.number].recycling = True, segment
        self._counts["ssd_segments_recycled"] += 1
        return self._carry(segment, self._volumes.catalog.hot(segment), now)

    def _carry(self, segment: Segment, hot: list[int], now: int) -> list[Effect]:
        """Carry over the first few of these rows, then the others; then the segment goes."""
        rows: list[Row] = []
        bytes_ = 0
        for at in hot[:GROUP_ROWS]:
            row = segment.row(at)
            if rows and bytes_ + row.bytes_ > CARRY_BYTES:
                break
            rows.append(row)
            bytes_ += row.bytes_
        volume = self._volumes.of(segment)
        writer = self.writer(volume)
        if not rows or writer is None or not writer.has_room(bytes_, len(rows)):
            return self._retire(segment, now)
        offset, index = writer.begin(bytes_, len(rows))
        segment.users += 1
        job = CarryGroup(
            volume=volume.number,
            source=segment.number,
            segment=writer.segment.number,
            index=index,
            offset=offset,
            rows=joined(rows),
        )

        def durable(ok: bool, now: int) -> list[Effect]:
            if not ok:
                return self._retire(segment, now)
            return self._carry(segment, hot[len(rows) :], now)

        def carried(result: GroupCarried | Done, now: int) -> list[Effect]:
            segment.users -= 1
            writer.writing -= 1
            if isinstance(result, Done):
                effects = self.fault(volume, result, now)
                return effects + self._retire(segment, now) + self.sync(writer, now)
            new = unpack_rows(result.rows)
            self._counts["ssd_blocks_carried"] += len(new)
            self._counts["ssd_carried_bytes"] += sum(row.bytes_ for row in new)
            self._counts["ssd_blocks_corrupt"] += len(rows) - len(new)
            return self.written(writer, new, durable, now)

        return self._volumes.do(volume, job, carried)

    def _retire(self, segment: Segment, now: int) -> list[Effect]:
        """Its keys are forgotten, then its file goes."""
        if not self._volumes.has(segment):
            return []  # closed meanwhile
        gone = self._volumes.catalog.drop(segment)
        self._counts["ssd_blocks_recycled"] += sum(map(len, gone.values()))
        return self._inventory.forget(gone) + self.unlink(segment, now)

    def unlink(self, segment: Segment, now: int) -> list[Effect]:
        """Remove a retired segment, unless somebody still reads it."""
        volume = self._volumes.of(segment)
        log = self._logs[volume.number]
        if segment.users or log.recycling is not segment or segment.leaving:
            return []
        segment.leaving = True

        def dropped(done: Done, now: int) -> list[Effect]:
            if log.recycling is segment:
                log.recycling = None
                del volume.segments[segment.number]
            if done.status is not Status.OK:
                return self.fault(volume, done, now)
            return self._go_on(volume, now)

        return self._volumes.do(volume, DropSegment(volume.number, segment.number), dropped)
