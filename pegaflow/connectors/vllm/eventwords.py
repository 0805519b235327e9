"""vLLM's KV events, and what vLLM itself says in them; beside compat.py, and made as that is.

A block in a tier is told of in the words in which vLLM tells of the same block in the GPU's memory,
so that a router knows the two for one: the same hash, of bytes or of 64 bits as vLLM was asked for,
the same tokens, adapter and further keys. Fields that a version does not have are left out.
"""

from collections.abc import Sequence
from typing import Any

from . import compat

try:
    from vllm.distributed import kv_events as _events
except ImportError:
    _events = None

try:
    from vllm.v1.core import kv_cache_utils as _hashes
except ImportError:
    _hashes = None


class _StandIn:
    """An event where there is no vLLM."""

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)


class _BlockStored(_StandIn):
    """See there."""


class _BlockRemoved(_StandIn):
    """See there."""


_Stored: Any = getattr(_events, "BlockStored", _BlockStored)
_Removed: Any = getattr(_events, "BlockRemoved", _BlockRemoved)


def are_wanted(vllm_config: Any) -> bool:
    """Whether vLLM publishes events."""
    return bool(compat.attribute(vllm_config, "kv_events_config.enable_kv_cache_events", False))


def own_cache(pool: Any) -> Any:
    """vLLM's own map of cached blocks; a reset, which has routers forget all tiers, replaces it."""
    return getattr(pool, "cached_block_hash_to_block", None)


def external(block_hash: bytes) -> Any:
    """A block's hash as it is published."""
    convert = getattr(_hashes, "maybe_convert_block_hash", bytes)
    return convert(block_hash)


def extra_keys(request: Any, start: int, end: int) -> tuple[Any, ...] | None:
    """What the hash of a block covers beside its tokens, and its parent's.

    Args:
        start: the block's first token.
        end: behind its last.
    """
    adapter, embeds = (getattr(request, n, None) for n in ("lora_request", "prompt_embeds"))
    media, salt = (getattr(request, name, None) for name in ("mm_features", "cache_salt"))
    if _hashes is None or not (media or salt or adapter is not None or embeds is not None):
        return None
    keys, _ = _hashes.generate_block_hash_extra_keys(request, start, end, 0)
    untag = getattr(_hashes, "to_event_extra_keys", list)
    found: tuple[Any, ...] | None = (untag([keys]) or [None])[0]
    return found


def stored(
    hashes: Sequence[Any],
    parent: Any,
    tokens: list[int],
    *,
    block_tokens: int,
    group: int,
    medium: str,
    lora: Any,
    extra: Sequence[tuple[Any, ...] | None],
) -> Any:
    """Blocks are in a tier.

    Args:
        hashes: `external` of each, in chain order.
        parent: that of the block before them; None: there is none.
        tokens: of all of them.
        block_tokens: of each.
        group: vLLM's number of their KV cache group.
        lora: vLLM's LoRARequest; None: there is no adapter.
        extra: `extra_keys` of each.
    """
    return _made(
        _Stored,
        block_hashes=list(hashes),
        parent_block_hash=parent,
        token_ids=tokens,
        block_size=block_tokens,
        lora_id=getattr(lora, "adapter_id", None),
        medium=medium,
        lora_name=getattr(lora, "name", None),
        extra_keys=list(extra),
        group_idx=group,
    )


def removed(hashes: Sequence[Any], medium: str, group: int) -> Any:
    """Blocks are not there any more."""
    return _made(_Removed, block_hashes=list(hashes), medium=medium, group_idx=group)


def _made(kind: Any, **fields: Any) -> Any:
    known = getattr(kind, "__struct_fields__", fields)
    return kind(**{name: value for name, value in fields.items() if name in known})
