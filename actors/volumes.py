"""The flusher's directories: opened, loaded, written, recycled, and given up for a while.

A volume is *opening* until its directory has been looked into, *loading* until the rows of all its
segments are known, then *up*.  It is *closed* while it cannot be used; then it is opened anew from
time to time.  Independently of that it is writable until something cannot be written; then a new
segment is tried from time to time, and the first that succeeds makes it writable again.

One segment at a time is written (`Writer`).  Groups of it are written side by side, but a block has
its place only once its group is durable: then whoever waits for it hears (`Landed`).  When the
segment is full, its footer follows the last durable group.  When the next but one would be beyond
the capacity, the oldest is recycled: what is hot in it is carried over into the new one, then its
keys are forgotten, and once nobody reads from it any more its file goes.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice

from pegaflow.cache.flushplan import FlushPlan
from pegaflow.cache.segments import (
    GROUP_ROWS,
    Row,
    joined,
    unpack_rows,
)
from pegaflow.cache.shelf import Segment, Shelf
from pegaflow.limits import MIB
from pegaflow.series import labelled
from pegaflow.wire.control import Hello
from pegaflow.wire.diskjobs import (
    CarryGroup,
    DropSegment,
    LoadSegment,
    MakeSegment,
    OpenVolume,
    SealSegment,
    SyncSegment,
)
from pegaflow.wire.flusher import MANIFEST_KEYS, Forget
from pegaflow.wire.jobs import Done
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, INDEX, Address

from .actor import MS, Do, Effect, Note
from .child import Child
from .volume import Batch, Landed, Volume, Writer

SEGMENT_BYTES = 256 * MIB
"""Bytes of a segment: large enough that making, sealing and removing it costs nothing beside
writing it, small enough that what is lost with the oldest is a small part of the log."""

SEGMENTS = 16
"""A smaller log is cut into so many segments, so that it still forgets little at a time."""

SEGMENT_SMALLEST = 4 * MIB
"""Bytes of the smallest segment: some blocks of any model have to fit."""

CARRY_BYTES = 8 * MIB
"""Bytes carried over at a time: their buffer belongs to the process for good."""

RETRY_NS = (1000 * MS, 5000 * MS, 15_000 * MS, 60_000 * MS)
"""Rest after the nth fault in a row, the last one for all further."""

READ_FAULTS = 3
"""Reads in a row that fail before the volume is closed: a single bad block is no dead disk."""


class Volumes(Child):
    """All volumes, and the map of what is in them."""

    DIALS = (ALLOCATOR, INDEX)

    def __init__(self, address: Address, supervisor: Address, hello: Hello, plan: FlushPlan):
        super().__init__(address, supervisor, hello)
        self.plan = plan
        self.shelf = Shelf()
        self.volumes = [Volume(n, path) for n, path in enumerate(plan.paths)]
        self.writers: set[Writer] = set()  # whose segments are not sealed
        for path in plan.paths:  # so that the first of them is seen as one more than none
            for name in ("write_bytes", "prefetch_bytes", "faults"):
                self.counts[labelled(f"ssd_directory_{name}", path)] = 0
        self.capacity = plan.capacity // len(plan.paths) if plan.capacity else None  # of each
        self.segment_bytes = SEGMENT_BYTES
        if self.capacity:
            cut = self.capacity // SEGMENTS // PAGE_ALIGN * PAGE_ALIGN
            self.segment_bytes = min(SEGMENT_BYTES, max(SEGMENT_SMALLEST, cut))

    # what the other halves do

    def write_on(self, volume: Volume, now: int) -> list[Effect]:
        """Hook: write what is queued for this volume."""
        raise NotImplementedError

    def changed(self, now: int) -> list[Effect]:
        """Hook: what the tier can do is different."""
        raise NotImplementedError

    def found(self, rows: list[Row], now: int) -> list[Effect]:
        """Hook: these blocks were in the log all the time."""
        raise NotImplementedError

    def homeless(self, batches: list[Batch], now: int) -> list[Effect]:
        """Hook: these cannot be written here."""
        raise NotImplementedError

    # opening and loading

    def up(self, now: int) -> list[Effect]:
        """Open all."""
        return [effect for volume in self.volumes for effect in self.open(volume)]

    def tend(self, now: int) -> list[Effect]:
        """Try again what is due."""
        effects: list[Effect] = []
        for volume in self.volumes:
            if not volume.retry_at or now < volume.retry_at:
                continue
            if volume.state == "closed" and not volume.jobs:
                effects += self.open(volume)
            elif volume.readable and not volume.writable:
                volume.retry_at = 0
                effects += self.want_segment(volume, now)
        return effects

    def do(
        self, volume: Volume, job: Message, then: Callable[[Done, int], list[Effect]]
    ) -> list[Effect]:
        """Device work on a volume."""
        volume.jobs += 1

        def done(answer: Done, now: int) -> list[Effect]:
            volume.jobs -= 1
            return then(answer, now)

        return [Do(job, done)]

    def open(self, volume: Volume) -> list[Effect]:
        """Look into the directory."""
        volume.state, volume.retry_at = "opening", 0

        def opened(done: Done, now: int) -> list[Effect]:
            if done.status is not Status.OK:
                return self.close(volume, done, now)
            lines = done.note.splitlines()
            notes: list[Effect] = [
                Note("ssd_note", (("path", volume.path), ("what", line)), "warning")
                for line in lines
            ]
            found = list(zip(done.values[1::2], done.values[2::2], strict=True))
            for number, size in found:
                segment = self.shelf.segment(volume.number, number, size)
                volume.segments[number] = segment
                volume.unread.append(segment)
                volume.next_number = max(volume.next_number, number + 1)
            volume.state, volume.writable, volume.why = "loading", True, ""
            volume.fault = Status.OK
            return notes + self.changed(now) + self._load_next(volume, now)

        return self.do(volume, OpenVolume(volume.number), opened)

    def _load_next(self, volume: Volume, now: int) -> list[Effect]:
        """The rows of the newest segment that is not known yet, then those before it."""
        if volume.state != "loading":
            return []
        if not volume.unread:
            volume.state, volume.faults = "up", 0
            facts = (("path", volume.path), ("segments", len(volume.segments)))
            ready: list[Effect] = [Note("ssd_ready", (*facts, ("bytes", volume.bytes_)))]
            ready += self.changed(now) + self._shrink(volume, now)
            return ready + self.write_on(volume, now)
        segment = volume.unread.pop()

        def loaded(done: Done, now: int) -> list[Effect]:
            if volume.segments.get(segment.number) is not segment:
                return []  # closed meanwhile
            if done.status is not Status.OK:
                del volume.segments[segment.number]
                facts = (("path", volume.path), ("segment", segment.number), ("why", done.note))
                left: list[Effect] = [Note("ssd_segment_left", facts, "warning")]
                return left + self._load_next(volume, now)
            segment.size, scanned, corrupt = done.values[:3]
            segment.sealed = True
            new = self.shelf.load(segment, done.data)
            self.counts["ssd_blocks_recovered"] += len(new)
            self.counts["ssd_segments_scanned"] += scanned
            self.counts["ssd_blocks_corrupt"] += corrupt
            effects = self.found(new, now)
            if not segment.count:
                effects += self._remove(volume, segment)
            effects += self._load_next(volume, now)
            if scanned:
                where = (("path", volume.path), ("segment", segment.number))
                what = (("blocks", segment.count), ("corrupt", corrupt))
                effects.append(Note("ssd_segment_scanned", (*where, *what)))
            return effects

        return self.do(volume, LoadSegment(volume.number, segment.number), loaded)

    def close(self, volume: Volume, done: Done, now: int) -> list[Effect]:
        """It cannot be used now: nothing of it is known any more, until it is opened again."""
        effects: list[Effect] = []
        for segment in volume.segments.values():
            effects += self._forget(self.shelf.drop(segment))
        volume.segments.clear()
        volume.unread.clear()
        volume.state, volume.recycling = "closed", None
        return effects + self.fault(volume, done, now)

    # faults

    def fault(self, volume: Volume, done: Done, now: int) -> list[Effect]:
        """Something could not be written: nothing is, until it is time to try again."""
        why, volume.fault = done.note, done.status
        volume.faults += 1
        self.counts["ssd_faults"] += 1
        self.counts[labelled("ssd_directory_faults", volume.path)] += 1
        rest = RETRY_NS[min(volume.faults, len(RETRY_NS)) - 1]
        volume.retry_at = now + rest
        effects: list[Effect] = []
        if volume.writable or volume.why != why:
            event = "ssd_off" if volume.state == "closed" else "ssd_read_only"
            facts = (("path", volume.path), ("why", why), ("retries_s", rest // (1000 * MS)))
            effects.append(Note(event, facts, "warning"))
        volume.writable, volume.why = False, why
        batches = list(volume.queue)
        volume.queue.clear()
        if volume.writer is not None:
            volume.writer.broken = True
            effects += self.fill(volume, now)
        return effects + self.changed(now) + self.homeless(batches, now)

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
            room = self._shrink(volume, now)
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

    def _shrink(self, volume: Volume, now: int) -> list[Effect]:
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
        return self._forget(gone) + self.unlink(volume, segment, now)

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
            return self._shrink(volume, now) + self.write_on(volume, now)

        return self.do(volume, DropSegment(volume.number, segment.number), dropped)

    def _remove(self, volume: Volume, segment: Segment) -> list[Effect]:
        """Remove a segment without a block."""
        self.shelf.drop(segment)
        del volume.segments[segment.number]
        return self.do(volume, DropSegment(volume.number, segment.number), lambda done, now: [])

    def _forget(self, gone: dict[bytes, list[bytes]]) -> list[Effect]:
        effects: list[Effect] = []
        for namespace, keys in gone.items():
            for part in parts(keys):
                effects += self.tell(INDEX, Forget(namespace, part))
        return effects


def parts(keys: Iterable[bytes]) -> Iterator[tuple[bytes, ...]]:
    """The keys as lists that one message can name."""
    for _, alike in groupby(sorted(keys, key=len), len):
        while part := tuple(islice(alike, MANIFEST_KEYS)):
            yield part
