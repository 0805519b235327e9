"""The flusher's volumes: what is known of each directory, and which block is in which of them.

This is what the parts of the flusher have in common.  Directories opens and closes a volume,
SegmentLog adds and removes its segments and says what is wrong with it, and everybody who has work
for its device leaves it here (`do`).  What else concerns a volume (its queue, the segment that is
written, the reads that run) belongs to the part that does it.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from pegaflow.actors.runtime.contract import Do, Effect, Part
from pegaflow.core.limits import MIB
from pegaflow.core.segments.catalog import Catalog, Segment
from pegaflow.core.segments.codec import HEAD_BYTES, footer_bytes
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.core.series import labelled
from pegaflow.wire.jobs import Job, Result
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Count

SEGMENT_BYTES: Bytes = 256 * MIB
"""Bytes of a segment: large enough that making, closing and removing it costs nothing beside
writing it, small enough that what is lost with the oldest is a small part of the log."""

SEGMENTS: Count = 16
"""A smaller log is cut into so many segments, so that it still forgets little at a time."""

SEGMENT_SMALLEST: Bytes = 4 * MIB
"""Bytes of the smallest segment: some blocks of any model have to fit."""

_R = TypeVar("_R", bound=Result)


class State(Enum):
    """How much of a volume is known."""

    CLOSED = "closed"  # nothing: it cannot be used now
    OPENING = "opening"  # its directory is being looked into
    LOADING = "loading"  # its segments; their rows are being read, and blocks too
    UP = "up"  # everything


@dataclass(slots=True, eq=False)
class Volume:
    """One directory."""

    number: int
    path: str
    state: State = State.CLOSED
    writable: bool = True  # as far as we know
    why: str = ""  # it is closed, or not writable
    fault: Status = Status.OK  # what kind of fault that is
    retry_at_ns: int = 0  # when to try again; 0: nothing to try
    faults: int = 0  # in a row
    jobs: int = 0  # under way
    segments: dict[int, Segment] = field(default_factory=dict)  # by number, the oldest first
    next_number: int = 1  # of a segment that is made

    @property
    def readable(self) -> bool:
        """Whether blocks of it may be read."""
        return self.state in (State.LOADING, State.UP)

    @property
    def open_to_writes(self) -> bool:
        """Whether blocks may be queued for it."""
        return self.readable and self.writable

    @property
    def is_loading(self) -> bool:
        """Whether more blocks may be found in it."""
        return self.state in (State.OPENING, State.LOADING)

    @property
    def bytes_(self) -> int:
        """Of all its segments."""
        return sum(segment.size for segment in self.segments.values())

    def gauges(self) -> dict[str, int]:
        """How it is."""
        return {
            "used_bytes": self.bytes_,
            "blocks": sum(segment.live for segment in self.segments.values()),
            "readable": int(self.readable),
            "writable": int(self.open_to_writes),
        }


class Volumes(Part):
    """All volumes, and the catalog of what is in them."""

    def __init__(self, plan: FlushPlan, counts: Counter[str]) -> None:
        self.plan = plan
        self.catalog = Catalog()
        self.all = [Volume(n, path) for n, path in enumerate(plan.paths)]
        for path in plan.paths:  # so that the first of them is seen as one more than none
            for name in ("write_bytes", "prefetch_bytes", "faults"):
                counts[labelled(f"ssd_directory_{name}", path)] = 0
        whole, count = plan.capacity_bytes, len(plan.paths)
        self.capacity_bytes = whole // count if whole else None  # of each
        self.segment_bytes = SEGMENT_BYTES
        if self.capacity_bytes:
            cut = self.capacity_bytes // SEGMENTS // PAGE_ALIGN * PAGE_ALIGN
            self.segment_bytes = min(SEGMENT_BYTES, max(SEGMENT_SMALLEST, cut))

    def __iter__(self) -> Iterator[Volume]:
        return iter(self.all)

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest block that a segment holds."""
        return self.segment_bytes - HEAD_BYTES - PAGE_ALIGN - footer_bytes(1)

    def of(self, segment: Segment) -> Volume:
        """Where a segment is, or was."""
        return self.all[segment.volume]

    def has(self, segment: Segment) -> bool:
        """Whether a segment is still there: its volume may have been closed."""
        return self.of(segment).segments.get(segment.number) is segment

    def do(
        self, volume: Volume, job: Job[_R], then: Callable[[_R, int], list[Effect]]
    ) -> list[Effect]:
        """Have the device do a job for a volume.

        Args:
            then: gets the result and `now`; always called, also when the volume is closed
                meanwhile.
        """
        volume.jobs += 1

        def done(result: _R, now: int) -> list[Effect]:
            volume.jobs -= 1
            return then(result, now)

        return [Do(job, done)]

    def gauges(self) -> dict[str, int]:
        """How they are, together and each."""
        return {
            "ssd_blocks": self.catalog.blocks,
            "ssd_bytes": sum(v.bytes_ for v in self.all),
            "ssd_capacity_bytes": self.plan.capacity_bytes or 0,
            "ssd_volumes": len(self.all),
            "ssd_fault": max((int(v.fault) for v in self.all), default=0),
            "ssd_readable_volumes": sum(v.readable for v in self.all),
            "ssd_writable_volumes": sum(v.open_to_writes for v in self.all),
            "ssd_loading_volumes": sum(v.is_loading for v in self.all),
            "ssd_gone_volumes": sum(v.fault is Status.GONE for v in self.all),
            "ssd_in_use_volumes": sum(v.fault is Status.IN_USE for v in self.all),
            **{
                labelled(f"ssd_directory_{name}", volume.path): value
                for volume in self.all
                for name, value in volume.gauges().items()
            },
        }

    def remarks(self) -> tuple[str, ...]:
        """Why directories cannot be used, or not be written to."""
        return tuple(volume.why for volume in self.all if volume.why)

    def check(self) -> None:
        """The catalog agrees with its segments."""
        self.catalog.check()
        for volume in self.all:
            assert volume.jobs >= 0
            for number, segment in volume.segments.items():
                assert (segment.number, segment.volume) == (number, volume.number)
                assert segment.users >= 0
            assert list(volume.segments) == sorted(volume.segments)
