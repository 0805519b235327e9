"""The segments of the flusher's directories: made, written, sealed and recycled.

One segment at a time is written (`Writer`).  Groups of it are written side by side, but a block has
its place only once its group is durable: then whoever waits for it hears (`Landed`).  When the
segment is full, its footer follows the last durable group.  When the next but one would be beyond
the capacity, the oldest is recycled: what is hot in it is carried over into the new one, then its
keys are forgotten, and once nobody reads from it any more its file goes.
"""

from pegaflow.actors.runtime.contract import Effect, Note
from pegaflow.core.limits import MIB
from pegaflow.core.segments.catalog import Segment
from pegaflow.core.segments.codec import GROUP_ROWS, Row, joined, unpack_rows
from pegaflow.wire.diskjobs import CarryGroup, DropSegment, MakeSegment, SealSegment, SyncSegment
from pegaflow.wire.jobs import Done
from pegaflow.wire.status import Status

from .directories import Directories
from .volume import Landed, Volume, Writer

CARRY_BYTES = 8 * MIB
"""Bytes carried over at a time: their buffer belongs to the process for good."""


class Volumes(Directories):
    """What is written to them."""

    # writing segments

    def want_segment(self, volume: Volume, now: int) -> list[Effect]:
        """Have a segment to write, now or as soon as there is room."""
        if volume.making or volume.writer is not None or not volume.readable:
            return []
        if volume.segments and self._is_over(volume, self.segment_bytes):
            return self._recycle(volume, now)  # what follows comes back here
        volume.making = True
        number, volume.next_number = volume.next_number, volume.next_number + 1

        def made(done: Done, now: int) -> list[Effect]:
            volume.making = False
            if not volume.readable:
                return []
            if done.status is Status.NO_SPACE and self._oldest(volume) is not None:
                self.counts["ssd_squeezed"] += 1  # others use the disk: make do with less
                return self._recycle(volume, now)
            if done.status is not Status.OK:
                return self.fault(volume, done, now)
            segment = self.shelf.segment(volume.number, number, self.segment_bytes)
            volume.segments[number] = segment
            volume.writer = Writer(segment)
            self.writers.add(volume.writer)
            back: list[Effect] = []
            if not volume.writable:
                back = [Note("ssd_back", (("path", volume.path),))]
            volume.writable, volume.why, volume.retry_at, volume.faults = True, "", 0, 0
            volume.fault = Status.OK
            room = self.shrink(volume, now)
            return back + self.changed(now) + room + self.write_on(volume, now)

        return self.do(volume, MakeSegment(volume.number, number, self.segment_bytes), made)

    def fill(self, volume: Volume, now: int) -> list[Effect]:
        """Nothing more goes into the segment that is written."""
        writer, volume.writer = volume.writer, None
        if writer is None:
            return []
        writer.full = True
        return self.sync(volume, writer, now)

    def land(
        self, volume: Volume, writer: Writer, rows: list[Row], landed: Landed, now: int
    ) -> list[Effect]:
        """A group is written: say so once it is durable."""
        writer.written.append((rows, landed))
        return self.sync(volume, writer, now)

    def sync(self, volume: Volume, writer: Writer, now: int) -> list[Effect]:
        """Make durable what is written; when nothing is left of a full segment, its footer."""
        if writer.syncing:
            return []
        if not writer.written:
            done = writer.full and not writer.writing and not writer.sealing
            return self._seal(volume, writer, now) if done else []
        group, writer.written = writer.written, []
        writer.syncing = True

        def synced(done: Done, now: int) -> list[Effect]:
            writer.syncing = False
            ok = done.status is Status.OK and self._is_there(volume, writer)
            effects: list[Effect] = []
            if done.status is not Status.OK:
                writer.broken = True
                effects += self.fault(volume, done, now)
            for rows, landed in group:
                if ok:
                    self.shelf.append(writer.segment, rows)
                effects += landed(ok, now)
            return effects + self.sync(volume, writer, now)

        return self.do(volume, SyncSegment(volume.number, writer.segment.number), synced)

    def _is_there(self, volume: Volume, writer: Writer) -> bool:
        return volume.segments.get(writer.segment.number) is writer.segment

    def _seal(self, volume: Volume, writer: Writer, now: int) -> list[Effect]:
        segment, writer.sealing = writer.segment, True
        if writer.broken or not self._is_there(volume, writer):
            return self._sealed(volume, writer, now)  # the next start looks at its blocks
        job = SealSegment(volume.number, segment.number, writer.offset, bytes(segment.rows))

        def sealed(done: Done, now: int) -> list[Effect]:
            effects: list[Effect] = []
            if done.status is Status.OK:
                segment.size = done.values[0]
            else:
                effects = self.fault(volume, done, now)
            return effects + self._sealed(volume, writer, now)

        return self.do(volume, job, sealed)

    def _sealed(self, volume: Volume, writer: Writer, now: int) -> list[Effect]:
        writer.segment.sealed = True
        self.writers.discard(writer)
        return self.write_on(volume, now) + self.sealed(now)

    def sealed(self, now: int) -> list[Effect]:
        """Hook: a segment has its footer, or gets none."""
        return []

    # recycling

    def _is_over(self, volume: Volume, more: int) -> bool:
        return self.capacity is not None and volume.bytes_ + more > self.capacity

    def _oldest(self, volume: Volume) -> Segment | None:
        """The segment that goes next: none before its rows are known."""
        first = next(iter(volume.segments.values()), None)
        if first is None or not first.sealed or volume.recycling is not None:
            return None
        return first

    def shrink(self, volume: Volume, now: int) -> list[Effect]:
        """Make room for the segment after this one, if there is none."""
        return self._recycle(volume, now) if self._is_over(volume, self.segment_bytes) else []

    def _recycle(self, volume: Volume, now: int) -> list[Effect]:
        segment = self._oldest(volume)
        if segment is None:
            return []
        segment.going, volume.recycling = True, segment
        self.counts["ssd_segments_recycled"] += 1
        return self._carry(volume, segment, self.shelf.hot(segment), now)

    def _carry(self, volume: Volume, segment: Segment, hot: list[int], now: int) -> list[Effect]:
        """Carry over the first few of these rows, then the others; then the segment goes."""
        rows: list[Row] = []
        length = 0
        for at in hot[:GROUP_ROWS]:
            row = segment.row(at)
            if rows and length + row.length > CARRY_BYTES:
                break
            rows.append(row)
            length += row.length
        writer = volume.writer
        if not rows or writer is None or not writer.has_room(length, len(rows)):
            return self._retire(volume, segment, now)
        offset, index = writer.begin(length, len(rows))
        segment.users += 1
        names = (volume.number, segment.number, writer.segment.number, index, offset)

        def landed(ok: bool, now: int) -> list[Effect]:
            if not ok:
                return self._retire(volume, segment, now)
            return self._carry(volume, segment, hot[len(rows) :], now)

        def carried(done: Done, now: int) -> list[Effect]:
            segment.users -= 1
            writer.writing -= 1
            if done.status is not Status.OK:
                effects = self.fault(volume, done, now)
                return effects + self._retire(volume, segment, now) + self.sync(volume, writer, now)
            new = unpack_rows(done.data)
            self.counts["ssd_blocks_carried"] += len(new)
            self.counts["ssd_carried_bytes"] += sum(row.length for row in new)
            self.counts["ssd_blocks_corrupt"] += len(rows) - len(new)
            return self.land(volume, writer, new, landed, now)

        return self.do(volume, CarryGroup(*names, joined(rows)), carried)

    def _retire(self, volume: Volume, segment: Segment, now: int) -> list[Effect]:
        """Its keys are forgotten, then its file goes."""
        if volume.segments.get(segment.number) is not segment:
            return []  # closed meanwhile
        gone = self.shelf.drop(segment)
        self.counts["ssd_blocks_recycled"] += sum(map(len, gone.values()))
        return self.forget(gone) + self.unlink(volume, segment, now)

    def unlink(self, volume: Volume, segment: Segment, now: int) -> list[Effect]:
        """Remove a retired segment, unless somebody still reads it."""
        if segment.users or volume.recycling is not segment or segment.leaving:
            return []
        segment.leaving = True

        def dropped(done: Done, now: int) -> list[Effect]:
            if volume.recycling is segment:
                volume.recycling = None
                del volume.segments[segment.number]
            if done.status is not Status.OK:
                return self.fault(volume, done, now)
            return self.shrink(volume, now) + self.write_on(volume, now)

        return self.do(volume, DropSegment(volume.number, segment.number), dropped)
