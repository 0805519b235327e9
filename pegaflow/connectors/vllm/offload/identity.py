"""Who may exchange chunks with this engine's tier.

A chunk is what vLLM's workers have put into a row of its host memory: for each rank, for each layer
(or packed block), the bytes of the pages as that rank's attention backend has them in device
memory. The tier lives in the scheduler's process and sees no tensor, so everything that decides
those bytes counts as a fact, beside all that the connector goes by (settings, model files, hash
seed):

    vLLM's version, and those of packages that have attention kernels of their own
    the kind of device, its name and its capability, by which vLLM chooses a backend
    variables of the environment by which a user does
    what vLLM's offloading is configured to be: groups, sizes, ranks, replicated or canonical
    the KV cache specs of all groups, and how the layers lie in a block

The name of an axis order (`LBHNC`) is one of these facts and never enough: two backends of that
order hold different bytes. So engines share that are started alike on hosts of one kind; others are
apart, whether or not their bytes would be the same.

An engine of which one of these cannot be told caches for itself alone. With LoRA adapters the tier
is off: vLLM's keys hold an adapter's name, not its weights, and no tier is told which request has
one.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from importlib import metadata
from typing import Any

from pegaflow.connectors.common.hints import PREFIX

from .. import compat
from ..files import Unestablished
from ..identity import in_memory, render
from ..namespace import Namespace, namespace
from ..settings import Reading, Role, Settings, identity, settings
from . import contract

PACKAGES = tuple(
    "vllm torch triton flash-attn flash-attn-3 flash-attn-4 flashinfer-python flashinfer-cubin"
    " flash-mla xformers aiter amd-aiter intel-extension-for-pytorch vllm-xpu-kernels"
    " sageattention".split()
)
"""Whose code may decide how a page's bytes lie. One that is not installed counts as that."""

CHOOSING = tuple(
    "VLLM_ATTENTION VLLM_FLASH VLLM_USE VLLM_KV VLLM_ROCM VLLM_XPU VLLM_TRITON VLLM_TRTLLM"
    " VLLM_MLA VLLM_CPU_SGL VLLM_CPU_ATTN VLLM_DISABLE VLLM_V1 VLLM_V2".split()
)
"""How variables begin by which an attention backend or a cache layout is chosen."""

OWN = frozenset({"engine_id", "extra_config", "enable_kv_cache_events", "model", "parallel"})
"""Fields of vLLM's OffloadingConfig that name this engine, or that count in parts."""

WINDOW = "sliding_window_size_in_chunks"
"""A field of its groups since 0.33; before that, a group's windows are not told to a tier."""

RANKS = tuple("world_size tp_size pp_size pcp_size dcp_size is_parallelism_agnostic".split())
"""Fields of its part `parallel` that say how a chunk is made of the ranks' bytes."""


@dataclass(frozen=True, slots=True)
class Tenant:
    """This tier, as the service is to know it."""

    name: str
    settings: Settings
    space: Namespace

    def space_of(self, generation: bytes) -> Namespace:
        """The namespace of one life of this engine, which nobody else can have."""
        return namespace({**dict(self.space.facts), "life": generation.hex()}, self.space.probe)


def tenant(
    offloading: Any, options: Mapping[str, Any], vllm_config: Any, kv_cache_config: Any
) -> tuple[Tenant | None, list[str]]:
    """This tier.

    Args:
        offloading: vLLM's OffloadingConfig.
        options: what the user has written for the tier; it goes before what the connector has.

    Returns:
        None: this engine cannot have one. And lines for the log.
    """
    if vllm_config is None:
        return None, ["tier: off: vLLM's configuration was not found among the callers"]
    if not all(hasattr(group, WINDOW) for group in offloading.groups):
        return None, ["tier: off: vLLM's offloading is of a version before 0.33"]
    if compat.attribute(vllm_config, "lora_config") is not None:
        return None, ["tier: off: LoRA adapters are told apart by name only in vLLM's keys"]
    if compat.is_encoder_decoder(vllm_config):
        return None, ["tier: off: the KV of an encoder-decoder depends on more than its tokens"]
    extra = dict(compat.extra_config(vllm_config))
    for key, value in options.items():
        extra[key if key.startswith(PREFIX) else f"{PREFIX}{key}"] = value
    role = str(compat.attribute(vllm_config, "kv_transfer_config.kv_role", Role.BOTH))
    chosen, warnings = settings(extra, os.environ, role)
    if chosen.hints.wait_for_full_prefix or chosen.tail_save or chosen.tail_load:
        warnings.append(
            f"tier: {PREFIX}wait_for_full_prefix, {PREFIX}pd_tail_save and {PREFIX}pd_tail_load"
            " have no effect: vLLM's offloading decides when it asks, and of which blocks"
        )
    whole = chosen.weights_hash is Reading.FULL
    more, why = bytes_facts(offloading, vllm_config, kv_cache_config)
    if why:
        more["unknown"] = os.urandom(16).hex()
        warnings.append(f"tier: no other engine will find what this one caches: {why}")
    known, lines = identity(vllm_config, kv_cache_config, whole, more)
    made = Tenant(f"{compat.engine_id(vllm_config)}+tier", chosen, known.space)
    return made, warnings + lines


def bytes_facts(
    offloading: Any, vllm_config: Any, kv_cache_config: Any
) -> tuple[dict[str, str], str]:
    """What decides the bytes of a chunk, and why it cannot be told ('' if it can)."""
    found = {f"package {name}": _version(name) for name in PACKAGES}
    found |= {f"${n}": v for n, v in os.environ.items() if n.startswith(CHOOSING)}
    found["tier"] = "chunk"
    ranks = compat.attribute(vllm_config, "parallel_config.tensor_parallel_size", 1)
    found["tensor parallel ranks"] = str(ranks)
    backend = compat.attribute(vllm_config, "attention_config.backend")
    try:
        found["attention backend"] = render(backend, "attention_config.backend")
        found |= dict(_offloading(offloading))
        found |= dict(_cache(kv_cache_config))
        found["device"] = contract.device()
    except Unestablished as why:
        return found, str(why)
    found["memory"], why_not = in_memory(vllm_config)
    return found, why_not


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "-"


def _names(config: Any) -> list[str]:
    if is_dataclass(config):
        return [one.name for one in fields(config)]
    raise Unestablished(f"vLLM's offloading is configured by a {type(config).__name__}")


def _offloading(config: Any) -> Iterator[tuple[str, str]]:
    for name in _names(config):
        if name not in OWN:
            yield f"offload.{name}", render(getattr(config, name), name)
    yield "offload.dtype", render(config.model.dtype, "dtype")
    for name in RANKS:
        yield f"offload.{name}", render(getattr(config.parallel, name), name)


def _cache(config: Any) -> Iterator[tuple[str, str]]:
    for number, group in enumerate(config.kv_cache_groups):
        spec = group.kv_cache_spec
        yield f"group {number}", f"{type(spec).__name__} {render(spec, 'kv_cache_spec')}"
        inner = compat.attribute(spec, "kv_cache_specs")
        kinds = {name: type(one).__name__ for name, one in inner.items()} if inner else {}
        yield f"group {number} kinds", render(kinds, "kv_cache_specs")
    blocks = config.num_blocks
    for number, tensor in enumerate(config.kv_cache_tensors):
        packed = tensor.block_stride * blocks == tensor.size
        # Where layers are outermost, their places grow with the number of blocks; the order stays.
        place = tensor.offset if packed else tensor.offset / blocks
        step = tensor.layer_stride if packed else tensor.layer_stride / blocks
        said = (tensor.layers, tensor.block_stride, place, step, tensor.host_resident)
        yield f"tensor {number}", render(said, "kv_cache_tensors")
    yield "replicas", render(config.kv_tp_replicas, "kv_tp_replicas")
