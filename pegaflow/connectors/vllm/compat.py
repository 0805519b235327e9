"""The one file that knows vLLM by name, and what differs between its versions; its KV events are in
eventwords.py, and in ranks.py which ranks hold the same.

Everything is imported defensively: where vLLM (or a newer name of it) is missing, a stand-in takes
its place, so that the connector can be imported and tested without vLLM and survives older
versions. vLLM's configuration objects are read with `attribute`, a dotted getattr that answers a
default: a field that a version does not have must not stop an engine.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Collection, Mapping
from hashlib import blake2b
from math import prod
from types import SimpleNamespace
from typing import Any

from pegaflow.connectors.common.steps import OPEN_MAX
from pegaflow.wire.units import Constant, Count

try:
    from vllm.distributed.kv_transfer.kv_connector.v1 import base as _base
except ImportError:
    _base = None

try:
    from vllm.distributed.kv_transfer.kv_connector.v1 import metrics as _metrics
except ImportError:
    _metrics = None

try:
    from vllm.v1.core import kv_cache_utils as _hashes
except ImportError:
    _hashes = None

try:
    from vllm.v1.metrics.cache_hit_source import CacheHitSource as _Source
except ImportError:
    _Source = None


INSTALLED = _base is not None
"""Whether this process has a vLLM at all."""


class _Absent:
    """Stands for a base class that this vLLM does not have."""


def _named(name: str) -> Any:
    return getattr(_base, name, _Absent)


class _NoHybrid:
    """Stands for SupportsHMA, by which a connector says that it bears several KV cache groups."""


class _StandInConnector:
    """What the connector needs of KVConnectorBase_V1 where there is no vLLM."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any = None) -> None:
        self._connector_metadata: Any = None

    def bind_connector_metadata(self, connector_metadata: Any) -> None:
        self._connector_metadata = connector_metadata

    def clear_connector_metadata(self) -> None:
        self._connector_metadata = None


class _StandInStats:
    """KVConnectorStats, where there is no vLLM."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data


class _StandInMetrics:
    """KVConnectorPromMetrics, where there is no vLLM."""

    def __init__(
        self, config: Any, kinds: Mapping[Any, Any], labels: Any, engines: Mapping[int, Any]
    ) -> None:
        by_name = {kind.__name__: made for kind, made in kinds.items()}
        self._gauge_cls = by_name["Gauge"]
        self._counter_cls = by_name["Counter"]
        self._histogram_cls = by_name["Histogram"]


ConnectorBase: Any = getattr(_base, "KVConnectorBase_V1", _StandInConnector)
TELLS_SLEEP = hasattr(ConnectorBase, "unregister_kv_caches")
"""Whether vLLM says that it takes the KV memory away, since 0.33."""
SupportsHMA: Any = getattr(_base, "SupportsHMA", _NoHybrid)
Metadata: Any = _named("KVConnectorMetadata")
WorkerMetadata: Any = _named("KVConnectorWorkerMetadata")
Results: Any = getattr(_base, "KVConnectorTransferResults", None if INSTALLED else SimpleNamespace)
"""What has ended, since 0.30; None in older versions."""

Stats: Any = getattr(_metrics, "KVConnectorStats", _StandInStats)
PromMetrics: Any = getattr(_metrics, "KVConnectorPromMetrics", _StandInMetrics)

KINDS = ("seq", "tok")
"""vLLM pools over sequences or over tokens, each in its own way."""

RANDOM_SEEDED = frozenset({"xxhash", "xxhash_cbor"})
"""Hash algorithms that vLLM seeds anew in every process unless PYTHONHASHSEED is set."""

PROBE_TOKENS: tuple[Constant, ...] = tuple(range(1, 17))
"""The fixed block whose hash tells whether two engines hash alike."""


def logger() -> logging.Logger:
    """A logger below vLLM's own, whose handler is the one that an engine configures."""
    return logging.getLogger("vllm.pegaflow")


def attribute(root: Any, path: str, default: Any = None) -> Any:
    """An attribute of an attribute, and so on.

    Args:
        path: names with dots between them.
        default: where any step is missing or None.
    """
    for name in path.split("."):
        root = getattr(root, name, None)
        if root is None:
            return default
    return root


def is_scheduler(role: Any) -> bool:
    """vLLM's KVConnectorRole, by name."""
    return getattr(role, "name", str(role)).upper().endswith("SCHEDULER")


def extra_config(vllm_config: Any) -> Mapping[str, Any]:
    """The user's kv_connector_extra_config."""
    return attribute(vllm_config, "kv_transfer_config.kv_connector_extra_config", {}) or {}


def engine_id(vllm_config: Any) -> str:
    """The engine's name: unique per engine unless the user chose it."""
    name = attribute(vllm_config, "kv_transfer_config.engine_id") or attribute(
        vllm_config, "instance_id"
    )
    return str(name or "vllm")


_PROCESS_DRAW = os.urandom(
    16
)  # stands in where the configuration has nothing that is new per start


def generation(vllm_config: Any, epoch: int = 0) -> bytes:
    """16 bytes that all processes of one engine agree on and that no other start repeats.

    vLLM's `instance_id` is drawn when the configuration is made (from the clock in nanoseconds
    since 0.32) and travels inside it to every process of the engine. Versions without one get a
    number of this process, which is right as long as scheduler and worker share it (one rank).

    Args:
        epoch: 0 at the start of the engine.
    """
    digest = blake2b(digest_size=16, person=b"pegaflow.gener")
    drawn = str(attribute(vllm_config, "instance_id") or "").encode() or _PROCESS_DRAW
    for part in (engine_id(vllm_config).encode(), drawn, str(epoch).encode()):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def world(vllm_config: Any) -> int:
    """Processes that hold a part of every block.

    vLLM's own `world_size` is no such number: under an external launcher it counts the data
    parallel ranks too, each of which is an engine of its own to us.
    """
    ways = ("tensor", "pipeline", "prefill_context")
    return prod(
        int(attribute(vllm_config, f"parallel_config.{way}_parallel_size", 1)) for way in ways
    )


def rank(vllm_config: Any) -> int:
    """This worker's place among them."""
    return int(attribute(vllm_config, "parallel_config.rank", 0)) % world(vllm_config)


def specs(kv_cache_config: Any) -> list[Any]:
    """What the engine's layers keep: the KV cache specs of all groups."""
    found: list[Any] = []
    for group in attribute(kv_cache_config, "kv_cache_groups", []):
        inner = attribute(group.kv_cache_spec, "kv_cache_specs")
        found += inner.values() if inner else [group.kv_cache_spec]
    return found


def is_encoder_decoder(vllm_config: Any) -> bool:
    """Whether the model attends to an encoder's output, which no token's hash covers."""
    return bool(attribute(vllm_config, "model_config.is_encoder_decoder", False))


def unsupported(vllm_config: Any, kv_cache_config: Any) -> str:
    """Why this engine's KV cannot be cached by block hash, in one line; '' if it can.

    A model for which vLLM itself rules prefix caching out is never offered a hit: it pools over all
    tokens of a step, say, or attends to later ones. A user who merely turned vLLM's own cache off
    is served.
    """
    if attribute(vllm_config, "parallel_config.prefill_context_parallel_size", 1) > 1:
        return "prefill context parallelism is not supported"
    executor = attribute(vllm_config, "parallel_config.distributed_executor_backend")
    if executor == "external_launcher" and world(vllm_config) > 1:
        # A lookup that is answered sooner at one rank than at another would part them for good.
        return "the launcher gives each rank a scheduler of its own, and all must decide alike"
    sleeps = attribute(vllm_config, "model_config.enable_sleep_mode", False)
    if sleeps and attribute(vllm_config, "device_config.device_type") == "cuda" and not TELLS_SLEEP:
        # Whoever copies there at that moment ends the engine with an error of its GPU.
        return "before 0.33, vLLM does not say when sleep mode takes a GPU's KV memory away"
    kept = specs(kv_cache_config)
    if is_encoder_decoder(vllm_config):
        return "the model is an encoder-decoder, whose KV depends on more than its tokens"
    if any(attribute(spec, "non_causal", False) for spec in kept):
        return "the model attends to later tokens, so a prefix cannot be reused"
    if not attribute(vllm_config, "model_config.is_prefix_caching_supported", True):
        pooler = "model_config.pooler_config"
        names = {str(attribute(vllm_config, f"{pooler}.{kind}_pooling_type", "")) for kind in KINDS}
        how = f" ({'/'.join(sorted(names - {''}))} pooling)" if names - {""} else ""
        return f"vLLM does not support prefix caching for this model{how}"
    return ""


def withdraw(vllm_config: Any) -> None:
    """Take the connector out of the engine of an encoder-decoder, which vLLM starts with none.

    Only where the worker lives in the scheduler's process and shares its configuration: a worker
    elsewhere would have a connector that its scheduler does not know. There vLLM itself refuses to
    start, with its reason.
    """
    executor = attribute(vllm_config, "parallel_config.distributed_executor_backend")
    if is_encoder_decoder(vllm_config) and executor == "uni":
        logger().warning("pegaflow: off: %s", unsupported(vllm_config, None))
        vllm_config.kv_transfer_config = None


def hit_sources(tokens: int, disk: int, peers: int) -> dict[Any, int]:
    """Tokens by the tier they came from, in vLLM's words; empty before 0.32.

    Args:
        tokens: all of them.
        disk: those that came from the SSD.
        peers: those that came from other hosts.
    """
    if _Source is None:
        return {}
    counts = {_Source.HOST: tokens - disk - peers, _Source.DISK: disk, _Source.P2P: peers}
    return {source: count for source, count in counts.items() if count}


def transfer_results(
    sent: Collection[str], received: Collection[str], failed: Collection[str]
) -> Any:
    """Requests whose transfers are over, in vLLM's words; None before 0.30, which asks for none.

    Args:
        failed: those that are received, but have not got everything.
    """
    if Results is None:
        return None
    return Results(
        finished_sending=set(sent), finished_recving=set(received), failed_recving=set(failed)
    )


def hash_algorithm(vllm_config: Any) -> str:
    """The name of the engine's block hash function."""
    return str(attribute(vllm_config, "cache_config.prefix_caching_hash_algo", "builtin"))


def _hash_function(algorithm: str) -> Callable[[Any], bytes] | None:
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        from vllm.utils.hashing import get_hash_fn_by_name

        function: Callable[[Any], bytes] = get_hash_fn_by_name(algorithm)
        return function
    return None


def _fixes_seeds() -> bool:
    """Whether the cryptographic algorithms have a fixed seed here, as they do from 0.29 on."""
    return hasattr(_hashes, "resolve_none_hash_seed")


def seed_is_fixed(algorithm: str) -> bool:
    """Whether two processes of this vLLM start their hash chains from the same value."""
    if os.environ.get("PYTHONHASHSEED") is not None:
        return True
    return algorithm not in RANDOM_SEEDED and _fixes_seeds()


def other_cure(algorithm: str) -> str:
    """What else than PYTHONHASHSEED makes the hashes of engines alike, as the end of a line."""
    if _fixes_seeds():
        return " or use sha256"
    return "" if algorithm in RANDOM_SEEDED else ", or use vLLM 0.29 or later"


def first_parent(algorithm: str) -> bytes | None:
    """What the hash chains of this engine start from; None where it cannot be known beforehand.

    vLLM draws it (`NONE_HASH`) only after both connectors were built, so it is worked out by the
    same rule; `parent_differs` compares with the real one once there is a request.
    """
    function = _hash_function(algorithm)
    if function is None or not seed_is_fixed(algorithm):
        return None
    resolve = getattr(_hashes, "resolve_none_hash_seed", None)
    seed = resolve(function) if resolve else os.environ["PYTHONHASHSEED"]
    return bytes(function(seed))


def probe(algorithm: str, parent: bytes) -> bytes:
    """The hash of a fixed first block, as this engine computes it.

    Args:
        parent: what the engine's hash chains start from.
    """
    function = _hash_function(algorithm)
    if function is None or _hashes is None:
        return parent
    return bytes(_hashes.hash_block_tokens(function, parent, PROBE_TOKENS))


def hash_of(algorithm: str, request: Any, start: int, end: int, *, parent: bytes | None) -> bytes:
    """The hash that vLLM would give to some tokens of a request, were they a block.

    Args:
        start: the first of them.
        end: behind the last.
        parent: of the block before them; None: there is none.

    Returns:
        Empty: this vLLM cannot be asked.
    """
    function = _hash_function(algorithm)
    if function is None or _hashes is None:
        return b""
    extra, _ = _hashes.generate_block_hash_extra_keys(request, start, end, 0)
    tokens = request.all_token_ids[start:end]
    return bytes(_hashes.hash_block_tokens(function, parent, tokens, extra))


def parent_differs(parent: bytes | None) -> bool:
    """Whether vLLM's own NONE_HASH is there and is not what we worked out."""
    real = getattr(_hashes, "NONE_HASH", None)
    return parent is not None and isinstance(real, bytes) and real != parent


def processed_tokens(request: Any) -> int:
    """Tokens of a vLLM Request that are computed, by steps whose output vLLM has taken in.

    `num_computed_tokens` is set forward when a step is scheduled; with asynchronous scheduling or
    pipeline ranks some of that is still in flight.
    """
    return int(request.num_computed_tokens) - int(request.num_in_flight_tokens)


def steps_under_way(vllm_config: Any) -> int:
    """How many steps vLLM begins before it has taken in the output of the first."""
    return int(attribute(vllm_config, "max_concurrent_batches", OPEN_MAX))


def unlike(request: Any, pool: Any, parent: bytes | None, hash_tokens: int) -> str:
    """How a running vLLM is not what it was taken for at its start, in one line; '' if it is.

    Args:
        request: its first.
        pool: its blocks; None: it has not shown them.
        parent: as of `first_parent`.
        hash_tokens: of each hash (sizes.py). Before 0.32 that is a guess, and a wrong one would put
            blocks under the hashes of other tokens.
    """
    if parent_differs(parent):
        return "vLLM's hash seed is not what its configuration says"
    if not hasattr(request, "num_in_flight_tokens"):
        return "this vLLM does not say what of a request is computed; 0.28 and later do"
    real = getattr(pool, "hash_block_size", hash_tokens)
    if real != hash_tokens:
        return f"vLLM's hashes cover {real} tokens each, and its configuration says {hash_tokens}"
    return ""


def said(request: Any) -> tuple[Any, Any]:
    """What a vLLM Request brings for connectors: its `kv_transfer_params`, and its `kv_hints`,
    which it has since 0.31."""
    return getattr(request, "kv_transfer_params", None), getattr(request, "kv_hints", None)


CALLERS: Count = 12
"""Frames looked at for the model runner: it is one or two above us, or a few more under a connector
that holds others."""


def calling_models() -> list[Any]:
    """The model, and a draft model beside it, of the model runner that is calling us; none where
    nobody among the callers has one."""
    frame = sys._getframe(1)
    for _ in range(CALLERS):
        if frame.f_back is None:
            break
        frame = frame.f_back
        runner: Any = frame.f_locals.get("self")
        if callable(getattr(runner, "get_model", None)):
            draft = getattr(runner, "get_draft_model", lambda: None)
            return [model for model in (runner.get_model(), draft()) if model is not None]
    return []


def failure_policy(vllm_config: Any) -> str:
    """What a load that fails does to its request, by vLLM's scheduler: `fail` or `recompute`.

    MultiConnector makes a configuration for each connector, whose policy nobody goes by; what vLLM
    goes by is in its own, which is read there while it makes this one.
    """
    frame = sys._getframe(1)
    for _ in range(CALLERS):
        if frame.f_back is None:
            break
        frame = frame.f_back
        kinds = type(frame.f_locals.get("self")).__mro__
        if any(kind.__name__ == "MultiConnector" for kind in kinds):
            vllm_config = frame.f_locals.get("vllm_config", vllm_config)
    return str(attribute(vllm_config, "kv_transfer_config.kv_load_failure_policy"))


def holds_nothing(pool: Any) -> bool:
    """Whether vLLM is known to hold no KV: its prefix cache is empty, and no request has blocks,
    of which one that is not full is in no cache."""
    cached: Any = getattr(pool, "cached_block_hash_to_block", None)
    if not hasattr(cached, "__len__") or len(cached):
        return False
    return int(pool.num_gpu_blocks) - int(pool.get_num_free_blocks()) <= 1  # vLLM's null block


def layout_name(kv_cache_config: Any) -> str:
    """vLLM's own name of the tensors' axis order, where it has one."""
    return str(attribute(kv_cache_config, "kv_cache_layout", ""))
