"""vLLM's KV cache groups: which of them are served, and what they are to us (common/groups.py).

Served are full attention (MLA too) and sliding windows, in any number of groups, all with blocks of
the same number of tokens. The memory of all groups is the same: vLLM gives a block to one group at
a time, so what a block of any group holds is one page, and one layout describes them all. Which
layers are in which group goes into the layout's name: another vLLM may group them otherwise.

A model of one group of full attention is served as ever, as if there were no groups at all.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Any

from pegaflow.connectors.common.groups import Group, Groups, window_blocks

from . import compat

FULL_ATTENTION = frozenset({"FullAttentionSpec", "MLAAttentionSpec"})
"""KV cache kinds whose blocks stay with their request until it ends, and are named by one hash
each."""

WINDOW = "SlidingWindowSpec"
"""The kind whose blocks leave their request when all of their tokens are out of the window."""

WINDOWED = frozenset({WINDOW, "ChunkedLocalAttentionSpec"})
"""Kinds that vLLM treats as full attention if it is started without its hybrid manager."""


def _specs(kv_cache_config: Any) -> list[Any]:
    return [
        group.kv_cache_spec for group in compat.attribute(kv_cache_config, "kv_cache_groups", [])
    ]


def _layer_specs(spec: Any) -> list[Any]:
    """Those of a group's layers, which may differ."""
    inner = compat.attribute(spec, "kv_cache_specs")
    return list(inner.values()) if inner else [spec]


def _kinds(specs: Iterable[Any]) -> set[str]:
    return {type(one).__name__ for spec in specs for one in _layer_specs(spec)}


def _window_tokens(spec: Any) -> int | None:
    """Of a group of windows; None: it is none."""
    windows = {one.sliding_window for one in _layer_specs(spec) if type(one).__name__ == WINDOW}
    return int(windows.pop()) if windows else None


def are_several(kv_cache_config: Any) -> bool:
    """Whether there is more than one group of full attention."""
    found = _specs(kv_cache_config)
    return len(found) > 1 or not _kinds(found) <= FULL_ATTENTION


def groups(kv_cache_config: Any) -> Groups | None:
    """Those of an engine that is served; None: it has one group of full attention."""
    if not are_several(kv_cache_config):
        return None
    return Groups(_group(number, spec) for number, spec in enumerate(_specs(kv_cache_config)))


def _group(number: int, spec: Any) -> Group:
    window = _window_tokens(spec)
    return Group(number, window and window_blocks(window, int(spec.block_size)))


def describe(kv_cache_config: Any) -> str:
    """What changes the meaning of a group's key: part of an engine's identity."""
    return " ".join(
        f"{'/'.join(sorted(_kinds([spec])))}:{_window_tokens(spec)}"
        for spec in _specs(kv_cache_config)
    )


def layers(kv_cache_config: Any) -> str:
    """Which layers are in which group, as the end of a layout's name; '' for one of full
    attention."""
    if not are_several(kv_cache_config):
        return ""
    digest = blake2b(digest_size=8)
    for group in kv_cache_config.kv_cache_groups:
        digest.update(repr(sorted(compat.attribute(group, "layer_names", []))).encode())
    return f" groups={digest.hexdigest()}"


def unsupported(vllm_config: Any, kv_cache_config: Any) -> str:
    """Why these groups cannot be served, in one line; '' if they can."""
    found = _specs(kv_cache_config)
    kinds = _kinds(found)
    if not found:
        return "the model has 0 KV cache groups"
    why = ""
    if kinds - FULL_ATTENTION - {WINDOW}:
        listed = ", ".join(sorted(kinds - FULL_ATTENTION - {WINDOW}))
        why = f"the KV cache kind {listed} is not supported"
    elif are_several(kv_cache_config):
        why = _unservable(vllm_config, kv_cache_config)
    if why and kinds <= FULL_ATTENTION | WINDOWED and kinds & FULL_ATTENTION:
        why += "; vLLM started with --disable-hybrid-kv-cache-manager is served"
    return why


def _unservable(vllm_config: Any, kv_cache_config: Any) -> str:
    found = _specs(kv_cache_config)
    if compat.Results is None:
        return "windows need vLLM 0.30 or later, which hears of a load that has failed as a whole"
    if len({spec.block_size for spec in found}) > 1:
        return "the blocks of the model's KV cache groups differ in their tokens"
    if compat.attribute(vllm_config, "parallel_config.decode_context_parallel_size", 1) > 1:
        return "decode context parallelism is not supported with several KV cache groups"
    if any(
        len({(type(one), compat.attribute(one, "sliding_window")) for one in _layer_specs(spec)})
        > 1
        for spec in found
    ):
        return "layers of one KV cache group differ in their windows"
    if any(compat.attribute(spec, "extra_retained_tokens", 0) for spec in found):
        return "windows that keep more than they attend to are not supported"
    for group in kv_cache_config.kv_cache_groups:
        stored = compat.attribute(group, "enable_kv_transfer", True)
        if not stored or not compat.attribute(group.kv_cache_spec, "prefix_cacheable", True):
            return "a KV cache group of the model may not be stored"
    return ""
