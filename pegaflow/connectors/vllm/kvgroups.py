"""vLLM's KV cache groups: which of them are served, and what they are to us (common/groups.py).

Served are full attention (MLA too), sliding windows, chunks beside full attention, and recurrent
states (Mamba, linear attention) in vLLM's `align` mode, in any number of groups. The memory of all
groups is the same: vLLM gives a block to one group at a time, so what a block of any group holds is
one page, and one layout describes them all. A state may be shorter than its page, which vLLM makes
as long as those of attention; the page is saved as it lies. Which layers are in which group goes
into the layout's name: another vLLM may group them otherwise.

Blocks of one group may have more tokens than those of another: where layers keep fewer bytes of a
token than others, vLLM makes their blocks longer until the pages are alike, or packs pages of
several sizes into each block. Of a recurrent layer that is not served unless each of its blocks has
one hash: vLLM may keep a state in the middle of a block that has more.

A model of one group of full attention is served as ever, as if there were no groups at all.

Layers of one group may differ in what they keep. vLLM's scheduler knows the first of them alone
(its `generate_scheduler_kv_cache_config`), so what both halves have to agree on goes by the first;
what a worker knows of the others goes into the layout's name.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from pegaflow.connectors.common.groups import Group, Groups, window_blocks, window_spare

from . import compat, sizes

FULL_ATTENTION = frozenset({"FullAttentionSpec", "MLAAttentionSpec"})
"""KV cache kinds whose blocks stay with their request until it ends, and are named by one hash
each."""

WINDOW = "SlidingWindowSpec"
"""The kind whose blocks leave their request when all of their tokens are out of the window."""

CHUNK = "ChunkedLocalAttentionSpec"
"""The kind whose blocks leave their request when the next chunk begins."""

STATE = "MambaSpec"
"""The kind whose block is a state, of whatever recurrent layer."""

SHORT = "SHORT_CONV"
"""The end of the names of short convolutions, as vLLM types recurrent layers.  On the CPU a request
that resumes from such a state, which vLLM has found in its own cache, says something else."""

SERVED = FULL_ATTENTION | {WINDOW, CHUNK, STATE}
"""All kinds that are served."""

WINDOWED = frozenset({WINDOW, CHUNK})
"""Kinds that vLLM treats as full attention if it is started without its hybrid manager."""


def _layer_specs(spec: Any) -> list[Any]:
    """Those of a group's layers, which may differ."""
    inner = compat.attribute(spec, "kv_cache_specs")
    return list(inner.values()) if inner else [spec]


def _kinds(specs: Iterable[Any]) -> set[str]:
    return {type(one).__name__ for spec in specs for one in _layer_specs(spec)}


def _first_specs(kv_cache_config: Any) -> list[Any]:
    """Those of the first layers of all groups."""
    return [_layer_specs(spec)[0] for spec in sizes.specs_of_groups(kv_cache_config)]


def _window_tokens(spec: Any) -> int | None:
    """Of a layer; None: it has no window."""
    return int(spec.sliding_window) if type(spec).__name__ == WINDOW else None


def _is_recurrent(spec: Any) -> bool:
    """Whether a layer keeps states."""
    return type(spec).__name__ == STATE


def are_several(kv_cache_config: Any) -> bool:
    """Whether there is more than one group of full attention."""
    found = _first_specs(kv_cache_config)
    return len(found) > 1 or not _kinds(found) <= FULL_ATTENTION


def groups(vllm_config: Any, kv_cache_config: Any) -> Groups | None:
    """Those of an engine that is served; None: it has one group of full attention."""
    if not are_several(kv_cache_config):
        return None
    found = _first_specs(kv_cache_config)
    unit = sizes.hash_tokens(vllm_config, kv_cache_config)
    tokens = sizes.all_tokens(vllm_config, kv_cache_config)
    return Groups(
        _group(number, spec, of_block, of_block // unit)
        for number, (spec, of_block) in enumerate(zip(found, tokens, strict=True))
    )


def _group(number: int, spec: Any, tokens: int, hashes: int) -> Group:
    if _is_recurrent(spec):
        return Group(number, 1, recurrent=True, hashes=hashes)
    if type(spec).__name__ == CHUNK:
        blocks = int(spec.attention_chunk_size) // tokens
        return Group(number, blocks - 1, hashes=hashes, spare=tokens, chunk=blocks)
    window = _window_tokens(spec)
    if window is None:
        return Group(number, hashes=hashes)
    blocks, spare = window_blocks(window, tokens), window_spare(window, tokens)
    return Group(number, blocks, hashes=hashes, spare=spare)


def describe(kv_cache_config: Any) -> str:
    """What changes the meaning of a group's key: part of an engine's identity."""
    return " ".join(map(_described, _first_specs(kv_cache_config)))


def _described(spec: Any) -> str:
    """What of a layer matters."""
    form = str(_needs(spec)[1])
    if _is_recurrent(spec):
        names = ("mamba_type", "shapes", "dtypes")
        form = str([str(getattr(spec, name, "")) for name in names])
    return f"{type(spec).__name__}:{form}:{compat.attribute(spec, 'block_size')}"


def layers(kv_cache_config: Any) -> str:
    """Which layers are in which group, in vLLM's order, which says where in a page each of them
    lies, and what they keep where they differ: the end of a layout's name; '' for one group of full
    attention."""
    if not are_several(kv_cache_config):
        return ""
    digest = blake2b(digest_size=8)
    for group in kv_cache_config.kv_cache_groups:
        digest.update(repr(list(compat.attribute(group, "layer_names", []))).encode())
        kept = [_described(spec) for spec in _layer_specs(group.kv_cache_spec)]
        if len({*kept}) > 1:
            digest.update(repr(kept).encode())
    return f" groups={digest.hexdigest()}"


def unsupported(vllm_config: Any, kv_cache_config: Any) -> str:
    """Why these groups cannot be served, in one line; '' if they can."""
    found = sizes.specs_of_groups(kv_cache_config)
    kinds = _kinds(found)
    if not found:
        return "the model has 0 KV cache groups"
    if _computes_whole_prompts(vllm_config):
        return (
            "vLLM computes latent attention here from a prompt's first token on alone (so it does"
            " on a CPU without AMX, with its own prefix cache turned off)"
        )
    why = ""
    if kinds - SERVED:
        listed = ", ".join(sorted(kinds - SERVED))
        why = f"the KV cache kind {listed} is not supported"
    elif are_several(kv_cache_config) or kinds - FULL_ATTENTION:
        why = _unservable(vllm_config, kv_cache_config)
    if not why:
        return _unhashable(vllm_config, kv_cache_config)
    if kinds <= FULL_ATTENTION | WINDOWED and kinds & FULL_ATTENTION:
        why += "; vLLM started with --disable-hybrid-kv-cache-manager is served"
    return why


def _unhashable(vllm_config: Any, kv_cache_config: Any) -> str:
    """Which blocks have no hash of their own; '' if all have."""
    unit = sizes.hash_tokens(vllm_config, kv_cache_config)
    for tokens in sizes.all_tokens(vllm_config, kv_cache_config):
        if tokens % unit:
            return f"a block of {tokens} tokens is no multiple of the {unit} tokens of a hash"
    return ""


def _computes_whole_prompts(vllm_config: Any) -> bool:
    """Whether tokens behind found ones would be computed without these: of latent attention vLLM's
    platform for CPUs knows it, and turns both of these settings off (platforms/cpu.py)."""
    settings = ("cache_config.enable_prefix_caching", "scheduler_config.enable_chunked_prefill")
    off = all(compat.attribute(vllm_config, name) is False for name in settings)
    return off and bool(compat.attribute(vllm_config, "model_config.use_mla", False))


def _unservable(vllm_config: Any, kv_cache_config: Any) -> str:
    found = sizes.specs_of_groups(kv_cache_config)
    if compat.Results is None:
        return (
            "windows and states need vLLM 0.30 or later, which says where states are whole, and"
            " hears of a load that has failed as a whole"
        )
    if compat.attribute(vllm_config, "parallel_config.decode_context_parallel_size", 1) > 1:
        return "decode context parallelism is not supported with several KV cache groups"
    if CHUNK in _kinds(found) and (why := _unservable_chunks(vllm_config, kv_cache_config)):
        return why
    if STATE in _kinds(found) and (why := _unservable_states(vllm_config, kv_cache_config)):
        return why
    if any(len({_needs(one) for one in _layer_specs(spec)}) > 1 for spec in found):
        return "layers of one KV cache group differ in what they keep"
    if any(compat.attribute(spec, "extra_retained_tokens", 0) for spec in found):
        return "windows that keep more than they attend to are not supported"
    for group in kv_cache_config.kv_cache_groups:
        stored = compat.attribute(group, "enable_kv_transfer", True)
        if not stored or not compat.attribute(group.kv_cache_spec, "prefix_cacheable", True):
            return "a KV cache group of the model may not be stored"
    return ""


def _unservable_chunks(vllm_config: Any, kv_cache_config: Any) -> str:
    """Why chunked local attention cannot be served; '' if it can."""
    kept = compat.specs(kv_cache_config)
    if not _kinds(kept) & FULL_ATTENTION:
        return "chunked local attention is not supported without layers of full attention"
    chunks = {one.attention_chunk_size for one in kept if type(one).__name__ == CHUNK}
    if any(n % sizes.block_tokens(vllm_config, kv_cache_config) for n in chunks):
        return "chunks of local attention end within a block"
    return ""


def _needs(spec: Any) -> tuple[str, Any]:
    """Which blocks of a request a layer needs."""
    if type(spec).__name__ in FULL_ATTENTION:
        return "all", None
    tokens = "attention_chunk_size" if type(spec).__name__ == CHUNK else "sliding_window"
    return type(spec).__name__, compat.attribute(spec, tokens)


def _unservable_states(vllm_config: Any, kv_cache_config: Any) -> str:
    """Why the states of recurrent layers cannot be served, with what to set; '' if they can."""
    kept = [one for one in compat.specs(kv_cache_config) if type(one).__name__ == STATE]
    if any(compat.attribute(one, "mamba_cache_mode") != "align" for one in kept):
        return (
            "the states of recurrent layers are not kept at the ends of blocks; start vLLM with"
            " --enable-prefix-caching (mamba_cache_mode 'align')"
        )
    if any(str(compat.attribute(one, "mamba_type.name", "")).endswith(SHORT) for one in kept):
        return "the states of short convolutions are not supported"
    speculates = compat.attribute(vllm_config, "speculative_config") is not None
    if speculates or any(compat.attribute(one, "num_speculative_blocks", 0) for one in kept):
        return (
            "speculative decoding is not supported with recurrent layers; start vLLM without"
            " --speculative-config"
        )
    if compat.attribute(vllm_config, "cache_config.use_replayssm", False):
        return (
            "the states of recurrent layers are not written in each step; start vLLM without"
            " --use-replayssm"
        )
    unit = sizes.hash_tokens(vllm_config, kv_cache_config)
    if any(sizes.group_tokens(vllm_config, one) != unit for one in kept):
        why = (
            "a recurrent layer's block has several hashes, and its state may be one of a part of it"
        )
        alike = len({*sizes.all_tokens(vllm_config, kv_cache_config)}) == 1
        cure = "leave --prefix-match-unit unset" if alike else "other layers have shorter blocks"
        return f"{why}; {cure}"
    return ""
