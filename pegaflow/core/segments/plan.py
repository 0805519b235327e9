"""What a flusher is told once: where it writes, and how much of everything."""

import enum
from dataclasses import dataclass

from pegaflow.wire.units import Bytes, Count, Nanoseconds

CAPACITY_LEAST: Bytes = 64 << 20
"""Bytes of the smallest log: sixteen of the smallest segments."""

WRITE_QUEUE_DEPTH: Count = 8
"""Flushes open at a time: what they name cannot be evicted meanwhile."""

WRITE_INFLIGHT: Count = 4
"""Groups of one directory that are written side by side: a disk is busy while the next ones are
summed, and while others are synced."""

PREFETCH_INFLIGHT: Count = 16
"""Reads of one directory side by side: an NVMe disk is at its best from here on."""

PREFETCH_BLOCKS: Count = 2048
"""Blocks that one engine may await at a time: a prompt of 32 Ki tokens in blocks of 16.  Of blocks
of 64 KiB it takes as many to keep two disks busy while others are compared and published."""

DRAIN_NS: Nanoseconds = 3_000_000_000
"""Time at the end of the service for what is still to be written."""


class Admission(enum.StrEnum):
    """Which blocks are written."""

    ALL = "all"
    REUSED = "reused"  # those that were asked for, or saved again


@dataclass(frozen=True, slots=True)
class FlushPlan:
    """Settings of the SSD tier."""

    paths: tuple[str, ...]  # directories, one per device; at least one
    capacity: int | None = None  # bytes of all segments together; None: as far as the floor
    floor: int | None = None  # bytes of each file system that stay free; None: a share of it
    write_queue_depth: int = WRITE_QUEUE_DEPTH
    write_inflight: int = WRITE_INFLIGHT  # of each directory
    prefetch_inflight: int = PREFETCH_INFLIGHT  # of each directory
    max_prefetch_blocks: int = PREFETCH_BLOCKS
    reused_only: bool = False  # write only what was asked for, or saved again
    drain_ns: int = DRAIN_NS
