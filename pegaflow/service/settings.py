"""All settings of a service: each is declared once, here.

The field's name is the setting's in the file, in the environment and on the command line
(config.py, flags.py).  What its declaration says is all there is to it: how it is read, what it is
for, what it is if nobody says anything.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from pegaflow.core import limits
from pegaflow.core.segments import plan as flushplan
from pegaflow.wire.control import LogLevel
from pegaflow.wire.units import Count, Seconds

from . import values
from .logs import LogFormat

SPARES_MAX: Count = 64
"""More warm sessions than any host has engines would only eat memory."""

COPY_THREADS_MAX: Count = 16
"""Memory is full of work long before; each thread is a core that the engine does not have."""

SSD_DEPTH_MAX: Count = 64
"""Batches on their way to the log: half a gigabyte that cannot be evicted meanwhile."""

SSD_INFLIGHT_MAX: Count = 128
"""Requests at a time: no disk is faster with more, and each is a thread."""

PREFETCH_BLOCKS_MAX: Count = 65536
"""As many as one lookup can name."""

DRAIN_TIMEOUT_MAX_S: Seconds = 60
"""Seconds: whoever stops a service waits no longer before it is killed."""


@dataclass(frozen=True)
class Setting:
    """One setting, wherever it is said."""

    #: What was said, made a value; raises `UserError`.
    parse: Callable[[object], object]
    help: str
    metavar: str
    #: Whether the flag may be given several times.
    many: bool = False
    #: All that may be said, in this spelling or in another case; None: no list has it.
    choices: type[enum.StrEnum] | None = None
    #: What holds if nothing is said, where the default is none of the values.
    unset: str = "none"


def said(
    parse: Callable[[object], object],
    help: str,
    metavar: str,
    *,
    default: Any = MISSING,
    many: bool = False,
    choices: type[enum.StrEnum] | None = None,
    unset: str = "none",
) -> Any:
    """Declare a field of `Settings`; the arguments are those of `Setting`, and its default."""
    setting = Setting(
        parse=parse, help=help, metavar=metavar, many=many, choices=choices, unset=unset
    )
    return field(default=default, metadata={"setting": setting})


@dataclass(frozen=True)
class Settings:
    """All settings of a service, with their defaults."""

    #: Absolute; not yet created or checked (`rundir.prepare` does that).
    run_dir: Path = said(
        values.path,
        "Where sockets, lock and crash records are.",
        "DIR",
        unset="$XDG_RUNTIME_DIR/pegaflow, else pegaflow-UID in the temporary directory",
    )
    #: Bytes as asked for, or None for the default of `poolsize`.
    pool_size: int | None = said(
        values.size,
        "Host memory of the pool, for example 30GiB.",
        "SIZE",
        default=None,
        unset="a quarter of the memory, less where less is free",
    )
    #: A power of two, a multiple of the 4 KiB page.
    extent_size: int = said(
        values.size_of_extent,
        "Unit in which page sizes share the pool.",
        "SIZE",
        default=limits.EXTENT_SIZE,
    )
    spares: int = said(
        values.number(0, SPARES_MAX),
        "Sessions kept ready for the next engine.",
        "N",
        default=limits.SPARES,
    )
    copy_threads: int = said(
        values.number(1, COPY_THREADS_MAX),
        "Threads with which each session copies.",
        "N",
        default=limits.COPY_THREADS,
    )
    #: host:port where HTTP is answered, or values.NO_HTTP.
    http_addr: str = said(
        values.http_addr,
        "Where health and metrics are served, or none.",
        "HOST:PORT",
        default=limits.HTTP_ADDR,
    )
    #: host:port of the TCP endpoint, an IP address and 0..65535 (0: any); None: no TCP.
    addr: str | None = said(
        values.host_port,
        "Also listen for clients on TCP; needs --curve-dir.",
        "HOST:PORT",
        default=None,
    )
    #: Folder of the keys for TCP (keys.py).
    curve_dir: str | None = said(
        values.path, "The keys for TCP, as `pegaflow keygen` made them.", "DIR", default=None
    )
    #: Whether TCP is served without keys.
    insecure_tcp: bool = said(
        values.yes_or_no, "Listen on TCP without keys; on loopback only.", "", default=False
    )
    #: Part of the pool that one engine's leases may keep from eviction, above 0 and at most 1.
    max_pinned: float = said(
        values.share,
        "Part of the pool that one engine's leases may hold, such as 0.5 or 50%.",
        "SHARE",
        default=limits.MAX_PINNED,
    )
    #: Whether to start with an empty pool, whatever an earlier life has left.
    fresh: bool = said(
        values.yes_or_no, "Start with an empty pool, whatever was kept.", "", default=False
    )
    #: Whether a pool with blocks in it outlives a clean stop.
    keep_pool: bool = said(
        values.yes_or_no, "Keep the pool's blocks for the next start.", "", default=True
    )
    #: Whether pages are checked against their checksums on every load.
    verify: bool = said(
        values.yes_or_no, "Check each page's checksum when it is loaded.", "", default=False
    )
    #: Directories of the SSD tier, absolute, one per device; none: there is no SSD tier.
    ssd_cache_path: tuple[str, ...] = said(
        values.folders,
        "A directory for the SSD tier; one per device.",
        "DIR",
        default=(),
        many=True,
    )
    #: Bytes of the whole log; None: as far as the floor.
    ssd_cache_capacity: int | None = said(
        values.capacity,
        "Bytes of the whole log, for example 512gb.",
        "SIZE",
        default=None,
        unset="as far as the floor",
    )
    #: Bytes of each file system that stay free; None: a share of it.
    ssd_free_floor: int | None = said(
        values.size,
        "Bytes of each file system that stay free.",
        "SIZE",
        default=None,
        unset="a twentieth of it",
    )
    #: Batches of blocks on their way to the log.
    ssd_write_queue_depth: int = said(
        values.number(1, SSD_DEPTH_MAX),
        "Batches of blocks on their way to the log.",
        "N",
        default=flushplan.WRITE_QUEUE_DEPTH,
    )
    #: Writes side by side in each directory.
    ssd_write_inflight: int = said(
        values.number(1, SSD_INFLIGHT_MAX),
        "Writes side by side in each directory.",
        "N",
        default=flushplan.WRITE_INFLIGHT,
    )
    #: Reads side by side in each directory.
    ssd_prefetch_inflight: int = said(
        values.number(1, SSD_INFLIGHT_MAX),
        "Reads side by side in each directory.",
        "N",
        default=flushplan.PREFETCH_INFLIGHT,
    )
    #: Blocks that one engine may await from the log.
    max_prefetch_blocks: int = said(
        values.number(1, PREFETCH_BLOCKS_MAX),
        "Blocks that one engine may await from the log.",
        "N",
        default=flushplan.PREFETCH_BLOCKS,
    )
    ssd_admission: flushplan.Admission = said(
        values.one_of(flushplan.Admission),
        "Write all blocks, or those reused: asked for or saved again.",
        "WHAT",
        default=flushplan.Admission.ALL,
        choices=flushplan.Admission,
    )
    #: Whether to remove what is in the log.
    fresh_ssd: bool = said(values.yes_or_no, "Remove what is in the log.", "", default=False)
    #: Seconds at the end for blocks that are not in the log yet.
    drain_timeout: int = said(
        values.number(0, int(DRAIN_TIMEOUT_MAX_S)),
        "Seconds at the end to write what is not in the log.",
        "S",
        default=flushplan.DRAIN_NS // 1_000_000_000,
    )
    log_level: LogLevel = said(
        values.one_of(LogLevel),
        "The least level of a line in the log.",
        "LEVEL",
        default=LogLevel.INFO,
        choices=LogLevel,
    )
    log_format: LogFormat = said(
        values.one_of(LogFormat),
        "The form of the log; auto: console on a terminal, json elsewhere.",
        "FORMAT",
        default=LogFormat.AUTO,
        choices=LogFormat,
    )


SETTINGS: dict[str, Setting] = {f.name: f.metadata["setting"] for f in fields(Settings)}
"""All settings, by name."""
