"""One directory of the flusher, and the segment that is written there: what is known of them."""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pegaflow.actors.runtime.contract import Effect
from pegaflow.core.segments.catalog import Segment
from pegaflow.core.segments.codec import HEAD_BYTES, Row, footer_bytes
from pegaflow.wire.flusher import Flush
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.status import Status

Landed = Callable[[bool, int], list[Effect]]
"""Says whether blocks are durable now."""

_Written = list[tuple[list[Row], Landed]]


@dataclass(slots=True, eq=False)
class Writer:
    """The segment that a volume writes, or one whose last groups are still on their way."""

    segment: Segment
    offset: int = HEAD_BYTES  # where the next group begins
    groups: int = 0  # begun
    rows: int = 0  # in them
    writing: int = 0  # groups without an end yet
    written: _Written = field(default_factory=list)  # not durable yet
    syncing: bool = False
    full: bool = False  # no further group is begun
    broken: bool = False  # something of it could not be written: it gets no footer
    sealing: bool = False  # its footer is on its way

    def has_room(self, length: int, rows: int) -> bool:
        """For a group of so many bytes beside its page of rows, and for the footer."""
        end = self.offset + PAGE_ALIGN + length + footer_bytes(self.rows + rows)
        return not self.full and end <= self.segment.size

    def begin(self, length: int, rows: int) -> tuple[int, int]:
        """Offset and number of a new group."""
        at = (self.offset, self.groups)
        self.offset += PAGE_ALIGN + length
        self.groups += 1
        self.rows += rows
        self.writing += 1
        return at


@dataclass(slots=True, eq=False)
class Batch:
    """Blocks of one Flush that are written together."""

    msg: Flush
    positions: tuple[int, ...]

    @property
    def length(self) -> int:
        """Bytes of their pages."""
        return len(self.positions) * self.msg.shards * self.msg.page_size


@dataclass(slots=True, eq=False)
class Volume:
    """One directory."""

    number: int
    path: str
    state: str = "closed"
    writable: bool = True  # as far as we know
    why: str = ""  # it is closed, or not writable
    fault: Status = Status.OK  # what kind of fault that is
    retry_at: int = 0  # when to try again; 0: nothing to try
    faults: int = 0  # in a row
    bad_reads: int = 0  # in a row
    jobs: int = 0  # under way
    watching: bool = False  # one of them looks whether it is still there
    segments: dict[int, Segment] = field(default_factory=dict)  # by number, the oldest first
    unread: list[Segment] = field(default_factory=list)  # whose rows are not known; newest last
    writer: Writer | None = None
    making: bool = False
    recycling: Segment | None = None
    next_number: int = 1
    queue: deque[Batch] = field(default_factory=deque)  # to be written
    writing: int = 0  # groups under way
    writing_bytes: int = 0  # of their blocks
    not_before: int = 0  # when the next may begin
    runs: int = 0  # of blocks, from their reservation to the end of their seal
    run_bytes: int = 0  # of them
    reads: dict[int, int] = field(default_factory=dict)  # running: number -> since when

    @property
    def readable(self) -> bool:
        """Whether blocks of it may be read."""
        return self.state in ("loading", "up")

    @property
    def open_to_writes(self) -> bool:
        """Whether blocks may be queued for it."""
        return self.readable and self.writable

    def gauges(self) -> dict[str, int]:
        """How it is."""
        return {
            "used_bytes": self.bytes_,
            "blocks": sum(segment.live for segment in self.segments.values()),
            "readable": int(self.readable),
            "writable": int(self.open_to_writes),
        }

    @property
    def bytes_(self) -> int:
        """Of all its segments."""
        return sum(segment.size for segment in self.segments.values())
