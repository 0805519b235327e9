"""The flusher's directories: opened, loaded, watched, and given up for a while.

A volume is *opening* until its directory has been looked into, *loading* until the rows of all its
segments are known, then *up*.  It is *closed* while it cannot be used; then it is opened anew from
time to time.  With each beat it is watched: a directory that is not the one which was opened, or
has lost segments, is closed at once.  Independently of that a volume is writable until something
cannot be written (segments.py).
"""

from collections import Counter

from pegaflow.actors.runtime.contract import Effect, Note, Part
from pegaflow.core.segments.catalog import Segment
from pegaflow.wire.control import LogLevel, Welcome
from pegaflow.wire.diskjobs import (
    DropSegment,
    LoadSegment,
    OpenVolume,
    SegmentLoaded,
    VolumeOpened,
    VolumeWatched,
    WatchVolume,
)
from pegaflow.wire.jobs import Done
from pegaflow.wire.status import Status

from .inventory import Inventory
from .segments import SegmentLog
from .tier import TierState
from .volumes import State, Volume, Volumes
from .write_back import WriteBack


class Directories(Part):
    """Opens volumes, closes them, and tries again."""

    def __init__(
        self,
        *,
        volumes: Volumes,
        tier: TierState,
        inventory: Inventory,
        segments: SegmentLog,
        write_back: WriteBack,
        counts: Counter[str],
    ) -> None:
        self._volumes, self._tier, self._inventory = volumes, tier, inventory
        self._segments, self._write_back = segments, write_back
        self._counts = counts
        self._unread: list[list[Segment]] = [[] for _ in volumes]  # rows not known; newest last

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """Open all."""
        return [effect for volume in self._volumes for effect in self._open(volume)]

    def wake_at(self) -> int | None:
        """The next retry."""
        return min((v.retry_at_ns for v in self._volumes if v.retry_at_ns), default=None)

    def wake(self, now: int) -> list[Effect]:
        """Try again what is due."""
        effects: list[Effect] = []
        for volume in self._volumes:
            if not volume.retry_at_ns or now < volume.retry_at_ns:
                continue
            if volume.state is State.CLOSED:
                busy = volume.jobs or self._segments.is_abandoning(volume)
                effects += [] if busy else self._open(volume)
            elif volume.readable and not volume.writable:
                volume.retry_at_ns = 0
                effects += self._segments.want_segment(volume, now)
        return effects

    def close(self, volume: Volume, done: Done, now: int) -> list[Effect]:
        """A volume cannot be used now; later it is opened again.

        Args:
            done: how the job ended that has found it out.
        """
        effects = self._segments.abandon(volume)
        volume.state = State.CLOSED
        return effects + self._segments.fault(volume, done, now)

    def _open(self, volume: Volume) -> list[Effect]:
        """Look into the directory."""
        volume.state, volume.retry_at_ns = State.OPENING, 0

        def opened(result: VolumeOpened | Done, now: int) -> list[Effect]:
            if isinstance(result, Done):
                return self.close(volume, result, now)
            notes: list[Effect] = [
                Note("ssd_note", (("path", volume.path), ("what", line)), LogLevel.WARNING)
                for line in result.notes
            ]
            unread = self._unread[volume.number] = []
            for number, size in zip(result.segments, result.segment_bytes, strict=True):
                volume.next_number = max(volume.next_number, number + 1)
                if size:
                    segment = self._volumes.catalog.segment(volume.number, number, size)
                    volume.segments[number] = segment
                    unread.append(segment)
            volume.state, volume.writable, volume.why = State.LOADING, True, ""
            volume.fault = Status.OK
            return notes + self._tier.changed() + self._load_next(volume, now)

        return self._volumes.do(volume, OpenVolume(volume.number), opened)

    def _load_next(self, volume: Volume, now: int) -> list[Effect]:
        """The rows of the newest segment that is not known yet, then those before it."""
        if volume.state is not State.LOADING:
            return []
        if not self._unread[volume.number]:
            return self._all_loaded(volume, now)
        segment = self._unread[volume.number].pop()

        def loaded(result: SegmentLoaded | Done, now: int) -> list[Effect]:
            if not self._volumes.has(segment):
                return []  # closed meanwhile
            if isinstance(result, Done):
                del volume.segments[segment.number]
                facts = (("path", volume.path), ("segment", segment.number), ("why", result.note))
                left: list[Effect] = [Note("ssd_segment_left", facts, LogLevel.WARNING)]
                return left + self._load_next(volume, now)
            return self._loaded(segment, result, now)

        return self._volumes.do(volume, LoadSegment(volume.number, segment.number), loaded)

    def _loaded(self, segment: Segment, result: SegmentLoaded, now: int) -> list[Effect]:
        """The rows of a segment are known."""
        volume = self._volumes.of(segment)
        segment.size, segment.closed = result.file_bytes, True
        new = self._volumes.catalog.load(segment, result.rows)
        self._counts["ssd_blocks_recovered"] += new
        self._counts["ssd_segments_scanned"] += result.scanned
        self._counts["ssd_blocks_corrupt"] += result.corrupt
        effects = self._inventory.found(segment, now)
        if not segment.count:
            effects += self._remove(volume, segment)
        effects += self._load_next(volume, now)
        if result.scanned:
            where = (("path", volume.path), ("segment", segment.number))
            what = (("blocks", segment.count), ("corrupt", result.corrupt))
            effects.append(Note("ssd_segment_scanned", (*where, *what)))
        return effects

    def _all_loaded(self, volume: Volume, now: int) -> list[Effect]:
        volume.state, volume.faults = State.UP, 0
        facts = (("path", volume.path), ("segments", len(volume.segments)))
        ready: list[Effect] = [Note("ssd_ready", (*facts, ("bytes", volume.bytes_)))]
        ready += self._tier.changed() + self._segments.make_room(volume, now)
        return ready + self._write_back.write_on(volume, now)

    def _remove(self, volume: Volume, segment: Segment) -> list[Effect]:
        """Remove a segment without a block."""
        self._volumes.catalog.drop(segment)
        del volume.segments[segment.number]
        job = DropSegment(volume.number, segment.number)
        return self._volumes.do(volume, job, lambda done, now: [])


class Watch(Part):
    """Looks with each beat whether every directory in use is still what was opened."""

    def __init__(self, volumes: Volumes, directories: Directories) -> None:
        self._volumes, self._directories = volumes, directories
        self._watching: set[int] = set()  # volumes that are being looked at

    def beat(self, now: int) -> list[Effect]:
        """Look; a disk that hangs is not asked again."""
        effects: list[Effect] = []
        for volume in self._volumes:
            if volume.readable and volume.number not in self._watching:
                effects += self._watch(volume)
        return effects

    def _watch(self, volume: Volume) -> list[Effect]:
        self._watching.add(volume.number)

        def watched(result: VolumeWatched | Done, now: int) -> list[Effect]:
            self._watching.discard(volume.number)
            if isinstance(result, Done):
                gone = result.status is Status.GONE and volume.readable
                return self._directories.close(volume, result, now) if gone else []
            facts = (("path", volume.path), ("what", result.mended))
            return [Note("ssd_note", facts, LogLevel.WARNING)] if result.mended else []

        return self._volumes.do(volume, WatchVolume(volume.number), watched)
