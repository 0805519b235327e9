"""Blocks that a request needs at a place are those that vLLM's managers keep there, and as long."""

from types import SimpleNamespace
from typing import Any

import pytest

from pegaflow.connectors.common.groups import Groups
from tests.connectors.vllm.fakes import BLOCK
from tests.connectors.vllm.grouping import Chunk, seen_as

from .conftest import VLLM

pytestmark = pytest.mark.skipif(VLLM < (0, 30), reason="models with windows are off before 0.30")
PLACES = range(1, 40)


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


@pytest.mark.parametrize("window", [*range(2, 4 * BLOCK), *map(Chunk, (8, 12, 32))])
def test_what_is_needed_at_a_place_is_there(window: int) -> None:
    group = seen_as(0, window)
    for place in PLACES:
        first, end = Groups([group]).first(group, place), place * BLOCK
        assert first == kept_from(window, end)
        away = kept_from(window, end + group.spare - 1) > first
        assert not away or first == place, "nothing of it is needed"


@pytest.mark.parametrize("window", range(2, 4 * BLOCK))
def test_the_first_block_of_a_window_is_away_soon_behind(window: int) -> None:
    group = seen_as(0, window)
    for place in PLACES[5:]:
        first = Groups([group]).first(group, place)
        assert kept_from(window, place * BLOCK + group.spare) == first + 1
