"""Blocks that a request needs at a place are those that vLLM's managers keep there, and as long;
and how vLLM groups the layers of models that were not run."""

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from pegaflow.connectors.common.groups import Group, Groups
from pegaflow.connectors.vllm import compat, kvgroups
from tests.connectors.vllm.fakes import BLOCK, config
from tests.connectors.vllm.grouping import Chunk
from tests.connectors.vllm.test_hybrid import LARGE

from .conftest import VLLM

pytestmark = pytest.mark.skipif(VLLM < (0, 30), reason="models with windows are off before 0.30")
PLACES = range(1, 40)
PLANNING = f"vllm.v1.core.kv_cache_{'planning' if VLLM >= (0, 33) else 'utils'}"
TOKENS = 16


def kept_from(window: int, computed: int) -> int:
    """The first block of a group that vLLM has not taken away when so much is computed."""
    from vllm.v1.core import single_type_kv_cache_manager as managers

    kind: Any = managers.SlidingWindowManager
    if isinstance(window, Chunk):
        kind = managers.ChunkedLocalAttentionManager
    manager = SimpleNamespace(
        sliding_window=window, attention_chunk_size=window, extra_retained_tokens=0
    )
    return int(kind.get_num_skipped_tokens(manager, computed)) // BLOCK


def group_of(window: int) -> Group:
    """What the connector makes of vLLM's own spec."""
    import torch
    from vllm.v1 import kv_cache_interface as specs

    how: dict[str, Any] = {"num_kv_heads": 1, "head_size": 8, "dtype": torch.float32}
    if isinstance(window, Chunk):
        spec = specs.ChunkedLocalAttentionSpec(
            block_size=BLOCK, attention_chunk_size=int(window), **how
        )
    else:
        spec = specs.SlidingWindowSpec(block_size=BLOCK, sliding_window=window, **how)
    listed = [SimpleNamespace(kv_cache_spec=spec, layer_names=["a"])]
    found = kvgroups.groups(config(), SimpleNamespace(kv_cache_groups=listed))
    assert found is not None
    return found.all[0]


@pytest.mark.parametrize("window", [*range(2, 4 * BLOCK), *map(Chunk, (8, 12, 32))])
def test_what_is_needed_at_a_place_is_there(window: int) -> None:
    group = group_of(window)
    for place in PLACES:
        first, end = Groups([group]).first(group, place), place * BLOCK
        assert first == kept_from(window, end)
        away = kept_from(window, end + group.spare - 1) > first
        assert not away or first == place, "nothing of it is needed"


@pytest.mark.parametrize("window", range(2, 4 * BLOCK))
def test_the_first_block_of_a_window_is_away_soon_behind(window: int) -> None:
    group = group_of(window)
    for place in PLACES[5:]:
        first = Groups([group]).first(group, place)
        assert kept_from(window, place * BLOCK + group.spare) == first + 1


def planned(model: str, full: Any, window: Any, pattern: list[bool]) -> list[Any]:
    """The groups that vLLM makes of layers, those of full attention first."""
    from vllm.engine.arg_utils import EngineArgs

    how = {"max_model_len": 1024, "dtype": "float32", "skip_tokenizer_init": True}
    said = EngineArgs(model=model, **how).create_engine_config()
    said.cache_config.kv_cache_layout = "LBNHC"
    layers = {f"layers.{n}": full if one else window for n, one in enumerate(pattern)}
    found = importlib.import_module(PLANNING).get_kv_cache_groups(said, layers)
    return sorted(found, key=lambda group: type(group.kv_cache_spec).__name__)


def specs(window: int, full_heads: int, window_heads: int, **more: Any) -> tuple[Any, Any]:
    """vLLM's, of a layer of full attention and one of a window."""
    import torch
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

    more |= {"block_size": TOKENS, "dtype": torch.bfloat16}
    return (
        FullAttentionSpec(num_kv_heads=full_heads, **more),
        SlidingWindowSpec(num_kv_heads=window_heads, sliding_window=window, **more),
    )


SHAPES = {"Gemma 3 27B": (16, 128, 6), "gpt-oss-20b": (8, 64, 2)}
"""Heads, their width, and every how manieth layer has full attention."""


@pytest.mark.parametrize("kind", LARGE)
def test_layers_of_large_models_are_grouped_as_was_said(model: str, kind: str) -> None:
    large, (heads, width, every) = LARGE[kind], SHAPES[kind]
    both = specs(large.window * TOKENS, heads, heads, head_size=width)
    pattern = [n % every == every - 1 for n in range(large.layers)]
    groups = planned(model, *both, pattern)
    kinds = [type(group.kv_cache_spec).__name__ for group in groups]
    assert kinds == ["FullAttentionSpec", *["SlidingWindowSpec"] * large.groups]
    assert max(len(group.layer_names) for group in groups) == large.slots


def test_windows_with_other_heads_than_full_attention_are_served(model: str) -> None:
    """MiMo-V2-Flash: a block of full attention, which has half as many heads, is twice as long."""
    from vllm.v1.kv_cache_interface import KVCacheConfig

    pattern = [n % 6 == 5 or not n for n in range(48)]
    groups = planned(model, *specs(128, 4, 8, head_size=192, head_size_v=128), pattern)
    assert [group.kv_cache_spec.block_size for group in groups] == [32, *[16] * (len(groups) - 1)]
    more = {"hash_block_size": TOKENS} if VLLM >= (0, 32) else {}
    made = KVCacheConfig(num_blocks=8, kv_cache_tensors=[], kv_cache_groups=groups, **more)
    seen = config()
    assert compat.unsupported(seen, made) == kvgroups.unsupported(seen, made) == ""
    found = kvgroups.groups(seen, made)
    assert found is not None
    assert [group.number for group in found.full] == [0]
    assert [group.hashes for group in found.full + found.windows] == [2, *[1] * (len(groups) - 1)]
