"""What a flusher is told once: where it writes, and how much of everything."""

import enum
from dataclasses import KW_ONLY, dataclass

from pegaflow.wire.units import Bytes, Count, Nanoseconds, Seconds

CAPACITY_LEAST: Bytes = 64 << 20
"""Bytes of the smallest log: sixteen of the smallest segments."""


class Admission(enum.StrEnum):
    """Which blocks are written."""

    ALL = "all"
    REUSED = "reused"  # those that were asked for, or saved again


@dataclass(frozen=True, slots=True)
class FlushPlan:
    """Settings of the SSD tier (pegaflow/service/settings.py has what they are for)."""

    paths: tuple[str, ...]  # directories, one per device; at least one
    _: KW_ONLY
    capacity_bytes: Bytes | None  # of all segments together; None: as far as the floor
    floor_bytes: Bytes | None  # of each file system, what stays free; None: a share of it
    write_queue_depth: Count  # Flushes open at a time
    write_inflight: Count  # groups of each directory
    prefetch_inflight: Count  # reads of each directory
    max_prefetch_blocks: Count
    admission: str  # an Admission
    drain_timeout_s: Seconds

    @property
    def reused_only(self) -> bool:
        """Whether only those blocks are written that were asked for, or saved again."""
        return self.admission == Admission.REUSED

    @property
    def drain_ns(self) -> Nanoseconds:
        """Time at the end of the service for what is still to be written."""
        return int(self.drain_timeout_s * 1_000_000_000)
