"""Recurrent layers that were not run with a real engine: the configurations that the tests have of
them are what vLLM's own classes say, and are served."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from pegaflow.connectors.vllm import compat, kvgroups
from pegaflow.connectors.vllm.ranks import divided_by, replicas
from tests.connectors.vllm.fakes import config
from tests.connectors.vllm.states import NAMES, GatedSpec, KdaSpec, LinearSpec, Mamba1Spec

from .conftest import VLLM

pytestmark = pytest.mark.skipif(VLLM < (0, 32), reason="before 0.32 vLLM names no replicas")
PLANNING = f"vllm.v1.core.kv_cache_{'planning' if VLLM >= (0, 33) else 'utils'}"
BLOCK = 544


def state(kind: type, ranks: int) -> Any:
    """vLLM's spec of such a layer."""
    import torch
    from vllm.model_executor.layers.mamba.mamba_utils import MambaStateDtypeCalculator as Dtypes
    from vllm.model_executor.layers.mamba.mamba_utils import MambaStateShapeCalculator as Shapes
    from vllm.v1.attention.backends.registry import MambaAttentionBackendEnum as Types
    from vllm.v1.kv_cache_interface import MambaSpec

    half = torch.bfloat16
    shapes: dict[type, Any] = {
        KdaSpec: Shapes.kda_state_shape(ranks, 32, 128),
        GatedSpec: Shapes.gated_delta_net_state_shape(ranks, 16, 32, 128, 128, 4),
        Mamba1Spec: Shapes.mamba1_state_shape(ranks, 8192, 16, 4),
        LinearSpec: Shapes.linear_attention_state_shape(64, ranks, 128),
    }
    dtypes: dict[type, Any] = {
        KdaSpec: Dtypes.kda_state_dtype(half, "auto"),
        GatedSpec: Dtypes.gated_delta_net_state_dtype(half, "auto"),
        Mamba1Spec: Dtypes.mamba1_state_dtype(half, "auto", "auto"),
        LinearSpec: Dtypes.linear_attention_state_dtype(half, "float32"),
    }
    said: Any = kind
    return MambaSpec(
        block_size=BLOCK,
        shapes=shapes[kind],
        dtypes=dtypes[kind],
        mamba_type=Types[said.mamba_type.name],
        mamba_cache_mode="align",
    )


def attention(kind: type) -> Any:
    """vLLM's spec of the layers between them."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, MLAAttentionSpec

    made = MLAAttentionSpec if kind is KdaSpec else FullAttentionSpec
    heads = 1 if kind is KdaSpec else 2
    return made(block_size=BLOCK, num_kv_heads=heads, head_size=256, dtype=torch.bfloat16)


@pytest.mark.parametrize("kind", NAMES, ids=NAMES.get)
def test_they_are_what_vllm_says_and_are_served(kind: type) -> None:
    from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec

    replicas_of = importlib.import_module(PLANNING).kv_cache_groups_tp_replicas
    one: Any = state(kind, 1)
    said: Any = kind
    assert (tuple(map(tuple, one.shapes)), tuple(map(str, one.dtypes))) == (
        said.shapes,
        said.dtypes,
    )
    for ranks in (1, 2):
        groups = [
            KVCacheGroupSpec(["a", "b"], state(kind, ranks)),
            KVCacheGroupSpec(["c"], attention(kind)),
        ]
        made = KVCacheConfig(
            num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups, hash_block_size=BLOCK
        )
        made.kv_tp_replicas = replicas_of(groups, ranks)
        seen = config(world=ranks)
        assert compat.unsupported(seen, made) == kvgroups.unsupported(seen, made) == ""
        found = kvgroups.groups(seen, made)
        assert found is not None
        assert [group.number for group in found.states] == [0]
        assert [group.number for group in found.full] == [1]
        alone = SimpleNamespace(replicas=1, divided_by=ranks)
        assert (replicas(seen, made), divided_by(seen, made)) == (alone.replicas, alone.divided_by)
