"""The one file that knows vLLM by name, and what differs between its versions.

Everything is imported defensively: where vLLM (or a newer name of it) is missing, a stand-in takes
its place, so that the connector can be imported and tested without vLLM and survives older
versions. vLLM's configuration objects are read with `attribute`, a dotted getattr that answers a
default: a field that a version does not have must not stop an engine.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Callable, Mapping
from hashlib import blake2b
from math import prod
from typing import Any

from pegaflow.wire.units import Constant, Count

try:
    from vllm.distributed.kv_transfer.kv_connector.v1 import base as _base
except ImportError:
    _base = None

try:
    from vllm.v1.core import kv_cache_utils as _hashes
except ImportError:
    _hashes = None

try:
    from vllm.v1.metrics.cache_hit_source import CacheHitSource as _Source
except ImportError:
    _Source = None


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


ConnectorBase: Any = getattr(_base, "KVConnectorBase_V1", _StandInConnector)
SupportsHMA: Any = getattr(_base, "SupportsHMA", _NoHybrid)
Metadata: Any = _named("KVConnectorMetadata")
WorkerMetadata: Any = _named("KVConnectorWorkerMetadata")

FULL_ATTENTION = frozenset({"FullAttentionSpec", "MLAAttentionSpec"})
"""KV cache kinds whose blocks stay with their request until it ends, and are named by one hash
each."""

WINDOWED = frozenset({"SlidingWindowSpec", "ChunkedLocalAttentionSpec"})
"""Kinds that vLLM treats as full attention if it is started without its hybrid manager."""

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


def block_tokens(vllm_config: Any, kv_cache_config: Any) -> int:
    """Tokens of one scheduler block: ranks of a decode context-parallel group hold a slice each, of
    the kinds of KV that are sharded among them (all, before vLLM could tell)."""
    groups = attribute(kv_cache_config, "kv_cache_groups", [])
    spec = attribute(groups[0], "kv_cache_spec") if groups else None
    tokens = attribute(spec, "block_size")
    if tokens is None:
        tokens = attribute(vllm_config, "cache_config.block_size", 16)
    if attribute(spec, "dcp_sharded", True):
        tokens *= attribute(vllm_config, "parallel_config.decode_context_parallel_size", 1)
    return int(tokens)


def hash_tokens(vllm_config: Any, kv_cache_config: Any) -> int:
    """Tokens covered by one entry of `request.block_hashes`."""
    tokens = attribute(kv_cache_config, "hash_block_size")
    return int(tokens or block_tokens(vllm_config, kv_cache_config))


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
    kept = specs(kv_cache_config)
    kinds = {type(spec).__name__ for spec in kept}
    groups = len(attribute(kv_cache_config, "kv_cache_groups", []))
    if is_encoder_decoder(vllm_config):
        return "the model is an encoder-decoder, whose KV depends on more than its tokens"
    if any(attribute(spec, "non_causal", False) for spec in kept):
        return "the model attends to later tokens, so a prefix cannot be reused"
    if not attribute(vllm_config, "model_config.is_prefix_caching_supported", True):
        pooler = "model_config.pooler_config"
        names = {str(attribute(vllm_config, f"{pooler}.{kind}_pooling_type", "")) for kind in KINDS}
        how = f" ({'/'.join(sorted(names - {''}))} pooling)" if names - {""} else ""
        return f"vLLM does not support prefix caching for this model{how}"
    if groups != 1 and kinds and kinds <= FULL_ATTENTION | WINDOWED:
        return (
            f"the model has {groups} KV cache groups, for full attention and windows; one is"
            " supported: start vLLM with --disable-hybrid-kv-cache-manager, and it has one"
        )
    if groups != 1:
        listed = f" ({', '.join(sorted(kinds))})" if kinds else ""
        return f"the model has {groups} KV cache groups{listed}; one is supported"
    if not kinds <= FULL_ATTENTION:
        return f"the KV cache kind {', '.join(sorted(kinds - FULL_ATTENTION))} is not supported"
    hashed, whole = (
        hash_tokens(vllm_config, kv_cache_config),
        block_tokens(vllm_config, kv_cache_config),
    )
    if whole % hashed:
        return f"a block of {whole} tokens is no multiple of the {hashed} tokens of a hash"
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


def hit_sources(host: int, disk: int) -> dict[Any, int]:
    """Tokens by the tier they came from, in vLLM's words; empty before 0.32.

    Args:
        host: tokens that came from the pool.
        disk: tokens that came from the SSD.
    """
    if _Source is None:
        return {}
    return {name: n for name, n in ((_Source.HOST, host), (_Source.DISK, disk)) if n}


def hash_algorithm(vllm_config: Any) -> str:
    """The name of the engine's block hash function."""
    return str(attribute(vllm_config, "cache_config.prefix_caching_hash_algo", "builtin"))


def _hash_function(algorithm: str) -> Callable[[Any], bytes] | None:
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        from vllm.utils.hashing import get_hash_fn_by_name

        function: Callable[[Any], bytes] = get_hash_fn_by_name(algorithm)
        return function
    return None


def seed_is_fixed(algorithm: str) -> bool:
    """Whether two processes of this vLLM start their hash chains from the same value.

    From 0.29 on (known by `resolve_none_hash_seed`) the cryptographic algorithms have a fixed seed.
    """
    if os.environ.get("PYTHONHASHSEED") is not None:
        return True
    return algorithm not in RANDOM_SEEDED and hasattr(_hashes, "resolve_none_hash_seed")


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


def parent_differs(parent: bytes | None) -> bool:
    """Whether vLLM's own NONE_HASH is there and is not what we worked out."""
    real = getattr(_hashes, "NONE_HASH", None)
    return parent is not None and isinstance(real, bytes) and real != parent


def processed_tokens(request: Any) -> int:
    """Tokens of a vLLM Request that are computed, by steps whose output vLLM has taken in.

    `num_computed_tokens` is set forward when a step is scheduled; with asynchronous scheduling or
    pipeline ranks some of that is still in flight.
    """
    return int(request.num_computed_tokens) - int(getattr(request, "num_in_flight_tokens", 0))


def block_ids(blocks: Any) -> list[int]:
    """The ids of the only group of a KVCacheBlocks, or of a tuple of lists as step outputs have
    it."""
    groups = blocks.get_block_ids() if hasattr(blocks, "get_block_ids") else blocks
    return list(groups[0]) if groups else []


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


def holds_nothing(pool: Any) -> bool:
    """Whether vLLM's own prefix cache is known to be empty."""
    cached: Any = getattr(pool, "cached_block_hash_to_block", None)
    return hasattr(cached, "__len__") and not len(cached)


def layout_name(kv_cache_config: Any) -> str:
    """vLLM's own name of the tensors' axis order, where it has one."""
    return str(attribute(kv_cache_config, "kv_cache_layout", ""))
