"""Stand-ins of a model with latent attention, as vLLM describes it before and since 0.32."""

from collections.abc import Sequence
from typing import Any

from .fakes import FullAttentionSpec, kv_cache_config


class MLAAttentionSpec(FullAttentionSpec):
    """Of its layers, in 0.32 and later."""

    max_tp_shards = 1


class Before(FullAttentionSpec):
    """Before."""


class DeepseekV4(Before):
    """Of which the name does not say enough."""

    model_version = "deepseek_v4"


for _kind in (Before, DeepseekV4):
    _kind.__name__ = MLAAttentionSpec.__name__


def cache_config(
    blocks: int = 64,
    kinds: Sequence[type] = (MLAAttentionSpec,),
    replicas: int | None = 1,
) -> Any:
    """A KVCacheConfig with a group of each kind; `replicas` None: before 0.32."""
    made = kv_cache_config(blocks, kinds)
    if replicas is not None:
        made.kv_tp_replicas = replicas
    return made
