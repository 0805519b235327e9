"""KV cache groups of a model, as vLLM configures them and as the connector sees them."""

from types import SimpleNamespace
from typing import Any

from pegaflow.connectors.common.groups import Group, window_blocks, window_spare

from .fakes import BLOCK, FullAttentionSpec
from .specs import ChunkedLocalAttentionSpec, MambaSpec, SlidingWindowSpec

STATE = -1
"""In place of a window: the group's layers keep a state (recurrent.py)."""


class Chunk(int):
    """In place of a window: tokens of a chunk of local attention."""


def skipped(window: int | None, computed: int) -> int:
    """Tokens that the next one does not see, as vLLM counts them."""
    if window is None:
        return 0
    return (
        computed // window * window if isinstance(window, Chunk) else max(0, computed - window + 1)
    )


def seen_as(number: int, window: int | None, tokens: int = BLOCK) -> Group:
    """What a group with blocks of so many tokens is to the connector, where a hash has BLOCK."""
    hashes = tokens // BLOCK
    if window == STATE:
        return Group(number, 1, recurrent=True, hashes=hashes)
    if window is None:
        return Group(number, hashes=hashes)
    if isinstance(window, Chunk):
        blocks = window // tokens
        return Group(number, blocks - 1, hashes=hashes, spare=tokens, chunk=blocks)
    spare = window_spare(window, tokens)
    return Group(number, window_blocks(window, tokens), hashes=hashes, spare=spare)


def kv_config(windows: list[int | None], blocks: int, sizes: list[int]) -> Any:
    """vLLM's KVCacheConfig.

    Args:
        sizes: tokens of a block of each group.
    """
    groups = []
    for number, (window, tokens) in enumerate(zip(windows, sizes, strict=True)):
        spec: Any = FullAttentionSpec() if window is None else SlidingWindowSpec()
        if window == STATE:
            spec = MambaSpec()
        elif isinstance(window, Chunk):
            spec = ChunkedLocalAttentionSpec()
            spec.attention_chunk_size = window
        elif window is not None:
            spec.sliding_window = window
        spec.block_size = tokens
        groups.append(SimpleNamespace(kv_cache_spec=spec, layer_names=[f"layers.{number}"]))
    return SimpleNamespace(num_blocks=blocks, kv_cache_groups=groups, hash_block_size=BLOCK)


def wrapped(*specs: Any) -> Any:
    """vLLM's UniformTypeKVCacheSpecs: of layers in one group that need the same blocks."""
    made = {f"layers.{number}": spec for number, spec in enumerate(specs)}
    return SimpleNamespace(block_size=specs[0].block_size, kv_cache_specs=made)


def both_forms(*groups: list[Any], blocks: int = 8) -> tuple[Any, Any]:
    """A KVCacheConfig as vLLM's scheduler has it, which names one layer's spec for each group, and
    as the workers have it.

    Args:
        groups: the specs of each one's layers.
    """
    made = []
    for specs in ([layers[0] for layers in groups], [wrapped(*layers) for layers in groups]):
        listed = [SimpleNamespace(kv_cache_spec=spec, layer_names=["a"]) for spec in specs]
        made.append(
            SimpleNamespace(num_blocks=blocks, kv_cache_groups=listed, hash_block_size=BLOCK)
        )
    return made[0], made[1]
