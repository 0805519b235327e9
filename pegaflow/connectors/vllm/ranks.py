"""Which tensor parallel ranks of an engine hold the same KV, as vLLM's configuration says it.

Attention heads are shared out among the ranks, so each holds other bytes. Latent attention (MLA)
has no heads in its cache: every rank computes, and keeps, all of it. Such ranks are *replicas*: of
what they save there is one page per block, each saves a part of the blocks, and each loads into its
own memory (actors/session/ranks.py).

    0.32 and later   KVCacheConfig.kv_tp_replicas: so many consecutive ranks hold the same in every
                     layer; and of each layer's spec `max_tp_shards`, among how many ranks its cache
                     can be divided at all (1: latent; None: vLLM does not say)
    before           neither: a model is latent if vLLM says `use_mla` and every layer keeps an
                     MLAAttentionSpec of the common kind

vLLM 0.33 does not say it of grouped heads that are fewer than the ranks, so these ranks are no
replicas to us, though pairs of them hold the same bytes. Decode context parallel ranks have other
tokens each, and are none.

A cache that is not divided at all is the same with any number of ranks, and an engine of two finds
what an engine of one has saved. What each rank says of itself when it registers its memory must be
free of their number then: no `tp`, and of the weights only those that every rank has whole
(live.py). Weights that are quantized while they are loaded are not the same for every number of
ranks, for each rank has scales for its part of them: then the number counts.
"""

from typing import Any

from .compat import attribute, specs

LATENT = "MLAAttentionSpec"
"""The kind of a layer whose cache is not divided."""

QUANTIZED = ("hf_config.quantization_config", "hf_text_config.quantization_config")
"""Where a model says that its files hold quantized weights."""


def replicas(vllm_config: Any, kv_cache_config: Any) -> int:
    """So many consecutive ranks, each with those of its own PP stage, hold the same bytes."""
    said = attribute(kv_cache_config, "kv_tp_replicas")
    if said is not None:
        return int(said)
    return _tp(vllm_config) if _is_latent(vllm_config, kv_cache_config) else 1


def divided_by(vllm_config: Any, kv_cache_config: Any) -> int:
    """Among how many tensor parallel ranks the KV is divided.

    Returns:
        0: it is not, and it would be the same with any number of ranks.
    """
    ranks = _tp(vllm_config)
    known = attribute(kv_cache_config, "kv_tp_replicas") is not None
    kept = specs(kv_cache_config)
    if known:
        whole = bool(kept) and all(attribute(spec, "max_tp_shards") == 1 for spec in kept)
        whole = whole and not _is_shared_by_tokens(vllm_config)
    else:
        whole = _is_latent(vllm_config, kv_cache_config)
    alike = replicas(vllm_config, kv_cache_config) == ranks
    return 0 if whole and alike and not _is_quantized_late(vllm_config) else ranks


def _tp(vllm_config: Any) -> int:
    return int(attribute(vllm_config, "parallel_config.tensor_parallel_size", 1))


def _is_shared_by_tokens(vllm_config: Any) -> bool:
    return int(attribute(vllm_config, "parallel_config.decode_context_parallel_size", 1)) > 1


def _is_latent(vllm_config: Any, kv_cache_config: Any) -> bool:
    """Before vLLM said it."""
    kept = specs(kv_cache_config)
    common = [type(s).__name__ == LATENT and not attribute(s, "model_version") for s in kept]
    said = bool(attribute(vllm_config, "model_config.use_mla", False))
    return said and bool(kept) and all(common) and not _is_shared_by_tokens(vllm_config)


def _is_quantized_late(vllm_config: Any) -> bool:
    if attribute(vllm_config, "model_config.quantization") is None:
        return False
    return not any(attribute(vllm_config, f"model_config.{where}") for where in QUANTIZED)
