"""Which ranks hold the same, from what each vLLM's configuration says."""

from types import SimpleNamespace
from typing import Any

import pytest

from pegaflow.connectors.vllm.ranks import divided_by, replicas
from pegaflow.connectors.vllm.settings import engine

from .fakes import FullAttentionSpec, config
from .latent import Before, DeepseekV4, MLAAttentionSpec, cache_config


def seen(tp: int, *kinds: type, alike: int | None = None, **more: Any) -> tuple[int, int]:
    """What is made of a configuration: replicas, and what divides the KV."""
    parallel = {name: more.pop(name) for name in list(more) if name.endswith("parallel_size")}
    made = config(world=tp, **more)
    for name, size in parallel.items():
        setattr(made.parallel_config, name, size)
    cache = cache_config(kinds=kinds, replicas=alike)
    return replicas(made, cache), divided_by(made, cache)


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_latent_attention_is_the_same_in_all_ranks_whatever_their_number(tp: int) -> None:
    assert seen(tp, MLAAttentionSpec, alike=tp) == (tp, 0), "0.32 and later"
    assert seen(tp, Before, use_mla=True) == (tp, 0), "before"


@pytest.mark.parametrize("tp", [1, 2, 8])
def test_heads_are_shared_out(tp: int) -> None:
    assert seen(tp, FullAttentionSpec, alike=1) == (1, tp)
    assert seen(tp, FullAttentionSpec, use_mla=False) == (1, tp)


def test_what_vllm_says_of_some_of_the_ranks_is_believed() -> None:
    assert seen(8, FullAttentionSpec, alike=2) == (2, 8)


DCP = {"decode_context_parallel_size": 2}


@pytest.mark.parametrize(
    ("kinds", "more"),
    [
        ((MLAAttentionSpec, FullAttentionSpec), {"alike": 1}),
        ((MLAAttentionSpec,), {"alike": 1, **DCP}),
        ((Before,), {"use_mla": True, **DCP}),
        ((Before, FullAttentionSpec), {"use_mla": True}),
        ((Before,), {"use_mla": False}),
        ((DeepseekV4,), {"use_mla": True}),
        ((), {"use_mla": True}),
    ],
)
@pytest.mark.parametrize("tp", [1, 2])
def test_where_one_layer_is_divided_or_unknown_no_ranks_are_alike(
    tp: int, kinds: tuple[type, ...], more: dict[str, Any]
) -> None:
    assert seen(tp, *kinds, **more) == (1, tp)


FILES = SimpleNamespace(quantization_config={"quant_method": "fp8"})


def test_weights_quantized_while_they_are_loaded_depend_on_the_ranks() -> None:
    kind = MLAAttentionSpec
    assert seen(2, kind, alike=2, quantization="fp8") == (2, 2)
    assert seen(2, kind, alike=2, quantization="fp8", hf_config=FILES) == (2, 0)


def test_the_number_of_ranks_is_in_no_fact_of_the_configuration() -> None:
    spaces = {engine(config(world=tp), cache_config(replicas=tp))[0].space.final for tp in (1, 2)}
    assert len(spaces) == 1, "a worker says it with its memory"
