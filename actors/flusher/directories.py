"""The flusher's directories: opened, loaded, watched, and given up for a while.

A volume is *opening* until its directory has been looked into, *loading* until the rows of all its
segments are known, then *up*.  It is *closed* while it cannot be used; then it is opened anew from
time to time.  With each beat it is watched: a directory that is not the one which was opened, or
has lost segments, is closed at once.  Independently of that a volume is writable until something
cannot be written; then a new segment is tried from time to time, and the first that succeeds makes
it writable again.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby, islice

from pegaflow.actors.runtime.child import Child
from pegaflow.actors.runtime.contract import MS, Do, Effect, Note
from pegaflow.core.limits import MIB
from pegaflow.core.segments.catalog import Segment, Shelf
from pegaflow.core.segments.codec import Row
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.core.series import labelled
from pegaflow.wire.control import Hello
from pegaflow.wire.diskjobs import DropSegment, LoadSegment, OpenVolume, WatchVolume
from pegaflow.wire.flusher import MANIFEST_KEYS, Forget
from pegaflow.wire.jobs import Done
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, INDEX, Address

from .volume import Batch, Volume, Writer

SEGMENT_BYTES = 256 * MIB
"""Bytes of a segment: large enough that making, sealing and removing it costs nothing beside
writing it, small enough that what is lost with the oldest is a small part of the log."""

SEGMENTS = 16
"""A smaller log is cut into so many segments, so that it still forgets little at a time."""

SEGMENT_SMALLEST = 4 * MIB
"""Bytes of the smallest segment: some blocks of any model have to fit."""

RETRY_NS = (1000 * MS, 5000 * MS, 15_000 * MS, 60_000 * MS)
"""Rest after the nth fault in a row, the last one for all further."""


class Directories(Child):
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

    def want_segment(self, volume: Volume, now: int) -> list[Effect]:
        """Hook: have a segment to write, now or as soon as there is room."""
        raise NotImplementedError

    def fill(self, volume: Volume, now: int) -> list[Effect]:
        """Hook: nothing more goes into the segment that is written."""
        raise NotImplementedError

    def shrink(self, volume: Volume, now: int) -> list[Effect]:
        """Hook: make room for the segment after this one, if there is none."""
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
                volume.next_number = max(volume.next_number, number + 1)
                if size:
                    segment = self.shelf.segment(volume.number, number, size)
                    volume.segments[number] = segment
                    volume.unread.append(segment)
            volume.state, volume.writable, volume.why = "loading", True, ""
            volume.fault = Status.OK
            return notes + self.changed(now) + self._load_next(volume, now)

        return self.do(volume, OpenVolume(volume.number), opened)

    def watch(self, now: int) -> list[Effect]:
        """Look whether every directory in use is still what was opened."""
        effects: list[Effect] = []
        for volume in self.volumes:
            if volume.readable and not volume.watching:
                effects += self._watch(volume)
        return effects

    def _watch(self, volume: Volume) -> list[Effect]:
        volume.watching = True

        def watched(done: Done, now: int) -> list[Effect]:
            volume.watching = False
            if done.status is Status.GONE and volume.readable:
                return self.close(volume, done, now)
            if not done.note or done.status is not Status.OK:
                return []
            return [Note("ssd_note", (("path", volume.path), ("what", done.note)), "warning")]

        return self.do(volume, WatchVolume(volume.number), watched)

    def _load_next(self, volume: Volume, now: int) -> list[Effect]:
        """The rows of the newest segment that is not known yet, then those before it."""
        if volume.state != "loading":
            return []
        if not volume.unread:
            volume.state, volume.faults = "up", 0
            facts = (("path", volume.path), ("segments", len(volume.segments)))
            ready: list[Effect] = [Note("ssd_ready", (*facts, ("bytes", volume.bytes_)))]
            ready += self.changed(now) + self.shrink(volume, now)
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
            effects += self.forget(self.shelf.drop(segment))
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

    def _remove(self, volume: Volume, segment: Segment) -> list[Effect]:
        """Remove a segment without a block."""
        self.shelf.drop(segment)
        del volume.segments[segment.number]
        return self.do(volume, DropSegment(volume.number, segment.number), lambda done, now: [])

    def forget(self, gone: dict[bytes, list[bytes]]) -> list[Effect]:
        """The index should know that these are not in the log any more."""
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
