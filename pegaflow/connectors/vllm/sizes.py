"""How many tokens a block of a KV cache group has, a hash covers, and are between two places at
which requests resume.

With one group all three are the same. With several, vLLM's scheduler goes by the least common
multiple of their block sizes: only there do blocks of every group end, so its own prefix cache
resumes nowhere else. It hashes in units of `prefix_match_unit` tokens, or else of the greatest
common divisor, and takes the last of a block's hashes for that block (its `resolve_kv_cache_block_
sizes` and `BlockHashListWithBlockSize`). Since 0.32 it says the unit; before, it is worked out
here, and compared with what vLLM does when there is a request (compat.unlike).
"""

from math import gcd, lcm
from typing import Any

from .compat import attribute


def specs_of_groups(kv_cache_config: Any) -> list[Any]:
    """One KV cache spec for each group, in vLLM's order."""
    groups = attribute(kv_cache_config, "kv_cache_groups", [])
    return [spec for group in groups if (spec := attribute(group, "kv_cache_spec")) is not None]


def group_tokens(vllm_config: Any, spec: Any) -> int:
    """Tokens of a block: ranks of a decode context-parallel group hold a slice each, of the kinds
    of KV that are sharded among them (all, before vLLM could tell)."""
    tokens = attribute(spec, "block_size")
    if tokens is None:
        tokens = attribute(vllm_config, "cache_config.block_size", 16)
    if attribute(spec, "dcp_sharded", True):
        tokens *= attribute(vllm_config, "parallel_config.decode_context_parallel_size", 1)
    return int(tokens)


def all_tokens(vllm_config: Any, kv_cache_config: Any) -> tuple[int, ...]:
    """Those of a block of each group; of vLLM's own block size, where it names no group."""
    found = specs_of_groups(kv_cache_config) or [None]
    return tuple(group_tokens(vllm_config, spec) for spec in found)


def block_tokens(vllm_config: Any, kv_cache_config: Any) -> int:
    """Tokens of one scheduler block, at whose end blocks of all groups end."""
    return lcm(*all_tokens(vllm_config, kv_cache_config))


def hash_tokens(vllm_config: Any, kv_cache_config: Any) -> int:
    """Tokens covered by one entry of `request.block_hashes`."""
    found = all_tokens(vllm_config, kv_cache_config)
    said = attribute(kv_cache_config, "hash_block_size")
    if said is None and len(found) > 1:
        said = attribute(vllm_config, "cache_config.prefix_match_unit")
    return int(said or gcd(*found))
