"""What the supervisor is told by its command line."""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from pegaflow.wire.units import Nanoseconds, Seconds


@dataclass(frozen=True, slots=True)
class Plan:
    """How the service is to be."""

    spares: int
    run_dir: str
    version: str
    _: KW_ONLY
    http_addr: str = ""  # empty: no gateway
    told: Mapping[str, Any] = field(default_factory=dict)  # settings, by fields of Welcome
    devices: tuple[str, ...] = ()  # GPUs that spares are ready for, as wire.gpu.device_name
    ssd: bool = False  # there is an SSD tier
    linked: bool = False  # other hosts are read from, and read
    drain_timeout_s: Seconds = 0  # at the end, for blocks that are not in the log yet
    pid: int = 0  # the supervisor's own
    pid_namespace: int = 0  # inode of the one that all our pids are of; 0: unknown
    ping_ns: int = 0  # how often a service manager wants a sign of life; 0: never

    @property
    def flush_ns(self) -> Nanoseconds:
        """Time that the flusher has at the end."""
        return int(self.drain_timeout_s * 1_000_000_000) if self.ssd else 0
