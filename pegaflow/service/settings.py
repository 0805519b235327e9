"""All settings of a service: each is declared once, here.

The field's name is the setting's in the file, in the environment and on the command line
(config.py, flags.py).  What its declaration says is all there is to it: how it is read, what it is
for, what it is if nobody says anything and why that, and under which name the processes of the
service are told of it.  No other file has a list of settings, or a default once more: whoever needs
one has `Settings.copy_threads`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from pegaflow.core.limits import MIB
from pegaflow.core.segments.plan import Admission
from pegaflow.wire.control import LogLevel
from pegaflow.wire.units import Bytes, Count, Seconds, Share

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
"""Whoever stops a service waits no longer before it is killed."""


@dataclass(frozen=True)
class Setting:
    """One setting, wherever it is said."""

    #: What was said, made a value; raises `UserError`.
    parse: Callable[[object], object]
    help: str
    metavar: str
    #: Why the default is what it is; empty where there is nothing to say.
    why: str = ""
    #: The field of Plan, Welcome, or another plan in which processes are told of it, if any.
    told: str = ""
    #: The setting without which this one means nothing.
    needs: str = ""
    #: Whether a running service takes it up when it is told to read its settings again.
    live: bool = False
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
    **more: Any,
) -> Any:
    """Declare a field of `Settings`; the arguments are those of `Setting`, and its default."""
    setting = Setting(parse, help, metavar, **more)
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
    #: As asked for, or None for the default of `poolsize`.
    pool_size: Bytes | None = said(
        values.size,
        "Host memory of the pool, for example 30GiB.",
        "SIZE",
        default=None,
        unset="a quarter of the memory, less where less is free",
    )
    #: A power of two, a multiple of the 4 KiB page.
    extent_size: Bytes = said(
        values.size_of_extent,
        "Unit in which page sizes share the pool.",
        "SIZE",
        default=32 * MIB,
        why="Large enough that hundreds of pages fit and a grant is rare, small enough that a pool "
        "on a laptop still has dozens of them to share between page sizes.",
    )
    spares: Count = said(
        values.number(0, SPARES_MAX),
        "Sessions kept ready for the next engine.",
        "N",
        default=2,
        why="One engine may register while the spare of the last one is still starting (0.3 s).",
        told="spares",
    )
    #: As wire.gpu.device_name spells them.
    devices: tuple[str, ...] = said(
        values.gpus,
        "GPUs that spares are ready for before an engine uses them: numbers, UUIDs or bus ids.",
        "GPU,...",
        default=(),
        told="devices",
        unset="those in use",
    )
    use_hugepages: bool = said(
        values.yes_or_no,
        "Keep the pool in reserved huge pages, in a mounted hugetlbfs.",
        "",
        default=False,
        why="The pages have to be reserved before, and nobody else has use of them then.",
    )
    numa_affinity: bool = said(
        values.yes_or_no,
        "Spread a new pool over the NUMA nodes that have GPUs (those of --devices).",
        "",
        default=True,
        told="numa",
    )
    copy_threads: Count = said(
        values.number(1, COPY_THREADS_MAX),
        "Threads with which each session copies.",
        "N",
        default=2,
        why="One core copies at a third to a half of what a memory controller can do; more threads "
        "than two would take cores from the engine for little.",
        told="copy_threads",
    )
    #: host:port where HTTP is answered, or values.NO_HTTP.
    http_addr: str = said(
        values.http_addr,
        "Where health and metrics are served, or none.",
        "HOST:PORT",
        default="127.0.0.1:9091",
        why="The original's port, so that its users' scrapers find it; on loopback only: nobody is "
        "asked for a password.",
    )
    #: host:port of the TCP endpoint, an IP address and 0..65535 (0: any); None: no TCP.
    addr: str | None = said(
        values.host_port,
        "Also listen for clients on TCP; needs --curve-dir.",
        "HOST:PORT",
        default=None,
        told="addr",
    )
    #: Folder of the keys for TCP (keys.py).
    curve_dir: str | None = said(
        values.path,
        "The keys for TCP, as `pegaflow keygen` made them.",
        "DIR",
        default=None,
        told="curve_dir",
    )
    #: Whether TCP is served without keys.
    insecure_tcp: bool = said(
        values.yes_or_no,
        "Listen on TCP without keys; on loopback only.",
        "",
        default=False,
        told="insecure_tcp",
    )
    #: host:port where other hosts are answered, an IP address and a port; None: no peers.
    peer_listen: str | None = said(
        values.host_port,
        "Listen for other hosts on this port, and on the next one for their reads.",
        "HOST:PORT",
        default=None,
        told="peer_listen",
    )
    #: Other hosts: NAME@host:port, or host:port where there are no keys.
    peers: tuple[str, ...] = said(
        values.places,
        "Another host to read from: its name among the keys, and where it listens.",
        "NAME@HOST:PORT",
        default=(),
        told="peers",
        needs="peer_listen",
        many=True,
    )
    #: Folder of the keys of hosts (keys.py).
    peer_keys: str | None = said(
        values.path,
        "This host's keys, as `pegaflow keygen --hosts` made them.",
        "DIR",
        default=None,
        told="peer_keys",
        needs="peer_listen",
    )
    #: Whether other hosts are spoken with without keys.
    insecure_peers: bool = said(
        values.yes_or_no,
        "Speak with other hosts without keys; on loopback only.",
        "",
        default=False,
        told="insecure_peers",
        needs="peer_listen",
    )
    #: Of the pool: what one engine's leases may keep from eviction, above 0 and at most 1.
    max_pinned: Share = said(
        values.share,
        "Part of the pool that one engine's leases may hold, such as 0.5 or 50%.",
        "SHARE",
        default=0.5,
        why="The prompts that one engine loads at a time fit into it wherever they fit twice, and "
        "the other half is there for everybody's saves.",
        told="max_pinned_bytes",
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
        values.yes_or_no,
        "Check each page's checksum when it is loaded.",
        "",
        default=False,
        told="verify",
    )
    #: Directories of the SSD tier, absolute, one per device; none: there is no SSD tier.
    ssd_cache_path: tuple[str, ...] = said(
        values.folders,
        "A directory for the SSD tier; one per device.",
        "DIR",
        default=(),
        told="paths",
        many=True,
    )
    #: Of the whole log; None: as far as the floor.
    ssd_cache_capacity: Bytes | None = said(
        values.capacity,
        "Bytes of the whole log, for example 512gb.",
        "SIZE",
        default=None,
        told="capacity_bytes",
        needs="ssd_cache_path",
        unset="as far as the floor",
    )
    #: Of each file system, what stays free; None: a share of it.
    ssd_free_floor: Bytes | None = said(
        values.size,
        "Bytes of each file system that stay free.",
        "SIZE",
        default=None,
        told="floor_bytes",
        needs="ssd_cache_path",
        unset="a twentieth of it",
    )
    #: Batches of blocks on their way to the log.
    ssd_write_queue_depth: Count = said(
        values.number(1, SSD_DEPTH_MAX),
        "Batches of blocks on their way to the log.",
        "N",
        default=8,
        why="What they name cannot be evicted meanwhile.",
        told="write_queue_depth",
    )
    #: Writes side by side in each directory.
    ssd_write_inflight: Count = said(
        values.number(1, SSD_INFLIGHT_MAX),
        "Writes side by side in each directory.",
        "N",
        default=4,
        why="A disk is busy while the next groups are summed, and while others are synced.",
        told="write_inflight",
    )
    #: Reads side by side in each directory.
    ssd_prefetch_inflight: Count = said(
        values.number(1, SSD_INFLIGHT_MAX),
        "Reads side by side in each directory.",
        "N",
        default=16,
        why="An NVMe disk is at its best from here on.",
        told="prefetch_inflight",
    )
    #: Blocks that one engine may await from the log.
    max_prefetch_blocks: Count = said(
        values.number(1, PREFETCH_BLOCKS_MAX),
        "Blocks that one engine may await from the log.",
        "N",
        default=2048,
        why="A prompt of 32 Ki tokens in blocks of 16; and of blocks of 64 KiB it takes as many to "
        "keep two disks busy while others are compared and published.",
        told="max_prefetch_blocks",
    )
    ssd_admission: Admission = said(
        values.one_of(Admission),
        "Write all blocks, or those reused: asked for or saved again.",
        "WHAT",
        default=Admission.ALL,
        told="admission",
        choices=Admission,
    )
    #: Whether to remove what is in the log.
    fresh_ssd: bool = said(
        values.yes_or_no, "Remove what is in the log.", "", default=False, needs="ssd_cache_path"
    )
    #: At the end, for blocks that are not in the log yet.
    drain_timeout: Seconds = said(
        values.number(0, int(DRAIN_TIMEOUT_MAX_S)),
        "Seconds at the end to write what is not in the log.",
        "S",
        default=3,
        told="drain_timeout_s",
    )
    log_level: LogLevel = said(
        values.one_of(LogLevel),
        "The least level of a line in the log.",
        "LEVEL",
        default=LogLevel.INFO,
        live=True,
        choices=LogLevel,
    )
    log_format: LogFormat = said(
        values.one_of(LogFormat),
        "The form of the log; auto: console on a terminal, json elsewhere.",
        "FORMAT",
        default=LogFormat.AUTO,
        choices=LogFormat,
    )

    def told(self, cls: type) -> dict[str, Any]:
        """What is set, for whoever is told of it in the fields of this class, by their names."""
        names = {field.name for field in fields(cls)}
        return {s.told: getattr(self, key) for key, s in SETTINGS.items() if s.told in names}


SETTINGS: dict[str, Setting] = {f.name: f.metadata["setting"] for f in fields(Settings)}
"""All settings, by name."""
