"""What is being saved when vLLM takes blocks back in a step, or of a request, that fails here; and
what is begun with weights that are others when it ends."""

from types import SimpleNamespace
from typing import Any

import pytest

from .fakes import Request, Store, blocks, output
from .pair import Pair
from .test_weights import Running, model, train


def under_way(pair: Pair, store: Store) -> Request:
    """A request whose two full blocks are being copied."""
    request = Request("a", 9)
    pair.scheduler.on_new_request(request)
    pair.memories[:, :, 1], pair.memories[:, :, 2] = 1, 2
    store.holding = True
    pair.step(output(new=[("a", [1, 2, 3], 0, 9)]))
    return request


def ended(pair: Pair, store: Store) -> Request:
    """The same, and vLLM may give its blocks to others: the request has ended."""
    request = under_way(pair, store)
    assert not pair.finish(request)
    return request


def written(pair: Pair, store: Store) -> set[int]:
    """Somebody else writes the blocks, and only then they are copied; the bytes in the cache."""
    pair.memories[:, :, [1, 2]] = 255
    store.let_go()
    pair.until(pair.idle)
    return {byte for parts in store.pages.values() for part in parts for byte in part}


def fail() -> Any:
    raise RuntimeError("on purpose")


@pytest.mark.parametrize("failing", [True, False])
def test_a_step_that_failed_drops_the_saves_of_who_is_preempted_in_it(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    under_way(pair, store)
    half: Any = pair.scheduler._scheduler
    with monkeypatch.context() as patch:
        if failing:
            patch.setattr(half._requests, "stale", lambda now_s: fail())
        pair.step(output(new=[("b", [1, 2], 0, 8)], preempted={"a"}))
    assert 255 not in written(pair, store)


@pytest.mark.parametrize("failing", [True, False])
def test_a_request_whose_end_failed_leaves_no_save_that_reads_from_its_blocks(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    request = under_way(pair, store)
    half: Any = pair.scheduler._scheduler
    with monkeypatch.context() as patch:
        patch.setattr(half, "_free", fail if failing else lambda: 60)
        assert not pair.finish(request), "vLLM may have the blocks"
    assert half._requests.tracked == {}
    pair.scheduler.on_new_request(Request("b", 9, salt="b"))
    pair.step(output(new=[("b", [1, 2], 0, 8)]))
    written(pair, store)
    assert not store.has(request)


@pytest.mark.parametrize("failing", [True, False])
def test_after_a_step_that_failed_each_block_is_saved_under_its_own_key(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch, failing: bool
) -> None:
    request = Request("a", 28)
    half: Any = pair.scheduler._scheduler
    pair.scheduler.on_new_request(request)
    for block in range(1, 8):
        pair.memories[:, :, block] = block
    pair.step(output(new=[("a", [1, 2], 0, 8)]))
    with monkeypatch.context() as patch:
        if failing:
            patch.setattr(half._requests, "stale", lambda now_s: fail())
        pair.step(output(cached=[("a", [3, 4], 8, 8)]))
    pair.step(output(cached=[("a", [5, 6, 7], 16, 12)]))
    pair.until(pair.idle)
    for place, key in enumerate(request.block_hashes):
        for name, parts in store.pages.items():
            if name.endswith(key):
                assert set(parts[0]) == {place + 1}, f"what is under the key of block {place}"


@pytest.mark.parametrize("loaded", [0, 8])
def test_blocks_that_another_connector_fills_at_once_are_somebody_elses(
    pair: Pair, store: Store, loaded: int
) -> None:
    request = ended(pair, store)
    other, store.finds = Request("b", 9, salt="b"), True
    pair.scheduler.on_new_request(other)
    assert pair.scheduler.get_num_new_matched_tokens(other, 0) == (0, False)
    pair.scheduler.update_state_after_alloc(other, blocks([1, 2, 3]), 0)
    pair.step(output(new=[("b", [1, 2, 3], loaded, 9 - loaded)]))
    written(pair, store)
    assert not store.has(request)


def test_a_block_that_is_zeroed_for_who_is_preempted_at_once_is_somebody_elses(
    pair: Pair, store: Store
) -> None:
    request = ended(pair, store)
    pair.step(SimpleNamespace(**vars(output()), new_block_ids_to_zero=[2]))
    written(pair, store)
    assert not store.has(request)


def test_a_request_that_finds_blocks_in_vllms_own_cache_leaves_their_saves_alone(
    pair: Pair, store: Store
) -> None:
    request = ended(pair, store)
    again, store.finds = Request("b", 9), True
    pair.scheduler.on_new_request(again)
    assert pair.scheduler.get_num_new_matched_tokens(again, 8) == (0, False)
    pair.scheduler.update_state_after_alloc(again, blocks([1, 2, 3]), 0)
    pair.step(output(new=[("b", [1, 2, 3], 8, 1)]))
    store.let_go()
    pair.until(pair.idle)
    assert store.has(request)


def test_orders_that_a_failed_step_has_not_sent_are_over(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    half: Any = pair.scheduler._scheduler
    request = Request("a", 9)
    pair.scheduler.on_new_request(request)
    with monkeypatch.context() as patch:
        patch.setattr(half, "_note", lambda orders: fail())
        assert pair.step(output(new=[("a", [1, 2, 3], 0, 9)])).saves == ()
    pair.step()
    assert not half._requests._open and not pair.finish(request)


def test_a_block_that_is_begun_with_other_weights_is_not_saved(store: Store) -> None:
    running = Running(model())
    used = SimpleNamespace(
        cached_block_hash_to_block={}, num_gpu_blocks=64, get_num_free_blocks=lambda: 62
    )  # one block, and vLLM's null block
    running.scheduler.bind_gpu_block_pool(used)
    request = Request("b", 3, salt="b")
    running.scheduler.on_new_request(request)
    running.step(output(new=[("b", [8], 0, 3)]))
    train(running.get_model())
    running.scheduler.reset_cache()  # vLLM could not reset its own cache, and asks us all the same
    request.num_tokens = 5
    running.step(output(cached=[("b", [], 3, 1)]))
    running.until(lambda: running.mover._client is not None and running.mover._client.attached)
    running.until(running.idle)
    running.step()
    assert not store.has(request), "three of its four tokens are of the old weights"
    running.close()
