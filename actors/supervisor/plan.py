"""What the supervisor is told by its command line."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Plan:
    """How the service is to be."""

    spares: int
    run_dir: str
    version: str
    _: KW_ONLY
    http_addr: str = ""  # empty: no gateway
    told: Mapping[str, Any] = field(default_factory=dict)  # settings that Welcome has, too
    ssd: bool = False  # there is an SSD tier
    flush_ns: int = 0  # at the end, for blocks that are not in the log yet
    pid: int = 0  # the supervisor's own
    pid_namespace: int = 0  # inode of the one that all our pids are of; 0: unknown
    ping_ns: int = 0  # how often a service manager wants a sign of life; 0: never
    max_pinned: float = 0.0  # part of the pool that one engine's leases may hold; 0: all of it
