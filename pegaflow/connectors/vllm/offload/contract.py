"""What is used of vLLM's tiering, and stand-ins for it where there is no vLLM.

The stand-ins have what `tier` uses, under the same names, so that it can be imported and tested
without vLLM.
"""

import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from pegaflow.wire.units import Constant, Count

from ..files import Unestablished

try:
    from vllm.v1.kv_offload import base as _offload
    from vllm.v1.kv_offload.tiering import base as _tiering
except ImportError:
    _offload = _tiering = None


class _LookupResult(Enum):
    MISS = auto()
    HIT = auto()
    RETRY = auto()


class _Medium(Enum):
    CPU = "CPU"
    STORAGE = "STORAGE"


class _Locality(Enum):
    LOCAL = "LOCAL"


@dataclass
class _JobResult:
    job_id: int
    success: bool
    successful_keys: Sequence[bytes] | None = None
    transfer_time: float | None = None
    transfer_bytes: int | None = None


@dataclass
class _OffloadingEvent:
    keys: Sequence[bytes]
    medium: Any
    removed: bool
    locality: Any = None
    ownership: str | None = None
    removal_expected: bool = False


class _RequestOffloadingContext:
    """Nothing is wished for."""


class _SecondaryTierManager:
    def __init__(
        self,
        *,
        offloading_spec: Any,
        primary_kv_view: memoryview,
        tier_type: str,
        backpressure_detector: Any = None,
    ) -> None:
        self.tier_type = tier_type


TierBase: Any = getattr(_tiering, "SecondaryTierManager", _SecondaryTierManager)
JobResult: Any = getattr(_tiering, "JobResult", _JobResult)
LookupResult: Any = getattr(_offload, "LookupResult", _LookupResult)
Medium: Any = getattr(_offload, "Medium", _Medium)
Locality: Any = getattr(_offload, "Locality", _Locality)
OffloadingEvent: Any = getattr(_offload, "OffloadingEvent", _OffloadingEvent)
RequestOffloadingContext: Any = getattr(
    _offload, "RequestOffloadingContext", _RequestOffloadingContext
)

GROUP_BYTES: Constant = 4
"""The end of a key: the number of its KV cache group; what is before it is the block's hash."""

CALLERS: Count = 24
"""Frames looked at for the configuration: half of them lie between us and whoever has it."""


def group_of(key: bytes) -> int:
    """The KV cache group of a key."""
    return int.from_bytes(key[-GROUP_BYTES:], "big")


def calling_configs() -> tuple[Any, Any]:
    """vLLM's configuration and KV cache configuration, of the caller that has both.

    A tier is not given them, and what it is given leaves out most of what the bytes depend on.

    Returns:
        (None, None) where no caller has them.
    """
    for said in _callers():
        found = said.get("vllm_config"), said.get("kv_cache_config")
        if None not in found:
            return found
    return None, None


def calling_core() -> Any:
    """vLLM's EngineCore, through which everything goes that is asked of its workers; None where no
    caller is one."""
    for said in _callers():
        core = said.get("self")
        if callable(getattr(core, "collective_rpc", None)) and hasattr(core, "model_executor"):
            return core
    return None


def _callers() -> Iterator[dict[str, Any]]:
    """The local names of whoever is calling, the nearest first."""
    frame: Any = sys._getframe(2)
    for _ in range(CALLERS):
        if frame is None:
            return
        yield frame.f_locals
        frame = frame.f_back


HARMLESS = frozenset(
    "update_max_model_len compute_weight_checksums get_model_inspection synchronize_device"
    " init_weight_transfer_engine shutdown_weight_transfer_engine check_health profile".split()
)
"""What may be asked of the workers without a thought that their weights are others afterwards."""


def watch(core: Any, changed: Callable[[], None]) -> None:
    """Have `changed` called whenever the workers are asked for anything that may change weights."""
    ask = core.collective_rpc

    @functools.wraps(ask)
    def collective_rpc(*args: Any, **kwargs: Any) -> Any:
        method = args[0] if args else kwargs.get("method")
        if not (isinstance(method, str) and method in HARMLESS):
            changed()
        return ask(*args, **kwargs)

    core.collective_rpc = collective_rpc


def device() -> str:
    """The kind of device that vLLM runs on.

    Raises:
        Unestablished: vLLM does not say.
    """
    try:
        from vllm.platforms import current_platform as platform

        capability = platform.get_device_capability()
        said = [platform.device_type, platform.get_device_name(), str(capability)]
        if platform.is_cpu():
            from torch.backends.cpu import get_cpu_capability

            said.append(get_cpu_capability())
    except (ImportError, AttributeError, RuntimeError, NotImplementedError) as error:
        raise Unestablished(f"the device is not known: {error!r}") from None
    return " ".join(said)
