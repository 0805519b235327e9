"""What is published of a step, and when a finished request's blocks are given back."""

import time

import pytest

import pegaflow.connectors.vllm.worker
from pegaflow.connectors.common.steps import OPEN_MAX
from pegaflow.connectors.vllm.orders import StepOrders

from .fakes import Request, Store, blocks, output
from .pair import PATIENCE_S, Pair


def test_a_step_in_which_anybody_reports_errors_publishes_nothing(pair: Pair, store: Store) -> None:
    request = Request("a", 25)
    pair.scheduler.on_new_request(request)
    orders = pair.schedule(output(new=[("a", [1, 2, 3, 4, 5, 6, 7], 0, 9)]))
    assert len(orders.saves) == 1
    pair.execute(orders, bad={40})
    pair.until(pair.idle)
    assert store.pages == {}
    again = pair.step(output(cached=[("a", [], 9, 16)]))
    assert len(again.saves[0].keys) == 6, "all of it is saved again"
    pair.until(lambda: len(store.pages) == 6)


def test_a_step_scheduled_before_vllm_heard_of_the_error_publishes_nothing_either(
    pair: Pair, store: Store
) -> None:
    request = Request("a", 25)
    pair.scheduler.on_new_request(request)
    first = pair.schedule(output(new=[("a", [1, 2, 3, 4, 5, 6, 7], 0, 12)]))
    second = pair.schedule(output(cached=[("a", [], 12, 13)]))
    pair.execute(first, bad={40})
    pair.execute(second)
    pair.until(pair.idle)
    assert store.pages == {}


def test_a_request_that_is_set_back_publishes_nothing_of_that_step_or_what_follows(
    pair: Pair, store: Store
) -> None:
    request, other = Request("a", 25), Request("b", 9, salt="b")
    pair.scheduler.on_new_request(request)
    pair.scheduler.on_new_request(other)
    new = [("a", [1, 2, 3, 4, 5, 6, 7], 0, 12), ("b", [20, 21, 22], 0, 9)]
    first = pair.schedule(output(new=new))
    second = pair.schedule(output(cached=[("a", [], 12, 13)]))
    request.num_computed_tokens = 8
    pair.execute(first)
    pair.execute(second)
    pair.until(pair.idle)
    assert store.has(other) and not store.has(request)
    pair.step(output(cached=[("a", [], 8, 17)]))
    pair.until(lambda: all(store.has(r) for r in (request, other)) and len(store.pages) == 8)


@pytest.mark.parametrize("failed", [True, False])
def test_a_request_that_ends_while_its_step_runs(pair: Pair, store: Store, failed: bool) -> None:
    request = Request("a", 25)
    pair.scheduler.on_new_request(request)
    orders = pair.schedule(output(new=[("a", [1, 2, 3, 4, 5, 6, 7], 0, 25)]))
    if failed:
        pair._flying[0].clear()  # vLLM does not look at the output of a request that is gone
    assert not pair.finish(request)
    pair.execute(orders)
    pair.until(pair.idle)
    assert store.has(request) is not failed


def test_what_the_last_step_computed_is_published_without_another(pair: Pair, store: Store) -> None:
    request = Request("a", 25)
    pair.scheduler.on_new_request(request)
    pair.compute(request, [1, 2, 3, 4, 5, 6, 7])
    assert not pair.finish(request)
    end = time.monotonic() + PATIENCE_S
    while len(store.pages) < 6:
        assert time.monotonic() < end


def test_a_step_whose_end_nobody_sees_is_not_published(pair: Pair, store: Store) -> None:
    request = Request("a", 25)
    pair.scheduler.on_new_request(request)
    orders = pair.schedule(output(new=[("a", [1, 2, 3, 4, 5, 6, 7], 0, 25)]))
    pair.worker.bind_connector_metadata(orders)
    pair.worker.wait_for_save()
    for _ in range(OPEN_MAX + 2):
        pair.scheduler.build_connector_meta(output())
    pair.execute(StepOrders(orders.namespace))
    pair.until(pair.idle)
    assert store.pages == {}


class Pool:
    """vLLM's pool of blocks."""

    free = 1000

    def get_num_free_blocks(self) -> int:
        """So many are left."""
        return self.free


def finished_while_saving(pair: Pair, store: Store, free: int) -> tuple[Request, bool]:
    """A request that ends before it is copied, while another waits for 10 blocks."""
    pool = Pool()
    pool.free = free
    pair.scheduler.bind_gpu_block_pool(pool)
    request = Request("a", 25)
    pair.scheduler.on_new_request(request)
    pair.scheduler.on_new_request(Request("w", 37, salt="w"))
    pair.step()
    store.holding = True
    pair.compute(request, [1, 2, 3, 4, 5, 6, 7])
    return request, pair.finish(request)


def test_a_finished_request_is_held_until_saved_and_reported_once(pair: Pair, store: Store) -> None:
    _, held = finished_while_saving(pair, store, free=9)
    assert held
    for _ in range(3):
        pair.step(finished={"a"})
    assert pair.sent == []
    store.let_go()
    pair.until(lambda: pair.sent == ["a"])
    pair.step()
    assert pair.sent == ["a"] and len(store.pages) == 6


def test_a_request_nobody_saves_is_not_held_for_ever(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pegaflow.connectors.vllm.worker, "HOLD_S", 0.0)
    assert finished_while_saving(pair, store, free=9)[1]
    pair.step()
    assert pair.sent == ["a"]
    store.let_go()
    pair.until(pair.idle)
    assert store.pages == {}, "its blocks were given back before they were copied"


def test_a_held_request_is_let_go_when_there_is_room_and_saved_all_the_same(
    pair: Pair, store: Store
) -> None:
    assert finished_while_saving(pair, store, free=9)[1]
    pair.step()
    pair.scheduler.bind_gpu_block_pool(Pool())
    pair.step()
    assert pair.sent == ["a"] and not pair.idle()
    store.let_go()
    pair.until(lambda: len(store.pages) == 6)


def test_a_request_held_and_let_go_in_the_same_step(pair: Pair, store: Store) -> None:
    request, held = finished_while_saving(pair, store, free=9)
    pair.scheduler.request_finished(Request("w", 37, salt="w"), [])
    pair.step()
    assert held and pair.sent == ["a"]
    store.let_go()
    pair.until(lambda: store.has(request))


@pytest.mark.parametrize("by", ["new", "grown", "resumed", "loaded", "loaded by another"])
def test_blocks_given_to_somebody_else_are_not_saved_any_more(
    pair: Pair, store: Store, by: str
) -> None:
    pair.save(store, Request("b", 25, salt="b"), [41, 42, 43, 44, 45, 46, 47])
    loader = Request("l", 25, salt="b")
    if by == "loaded":
        assert pair.scheduler.get_num_new_matched_tokens(loader, 0) == (24, True)
    request, held = finished_while_saving(pair, store, free=1000)
    assert not held
    out = {
        "new": output(new=[("w", [20, 3], 4, 4)]),
        "grown": output(cached=[("w", [3], 4, 4)]),
        "resumed": output(cached=[("w", [20, 3], 4, 4)], resumed={"w"}),
    }.get(by, output())
    if by == "loaded":
        pair.scheduler.update_state_after_alloc(loader, blocks([20, 3, 22, 23, 24, 25]), 24)
    elif by == "loaded by another":
        pair.scheduler.update_state_after_alloc(Request("l", 9), blocks([20, 3]), 0)
    orders = pair.schedule(out)
    pair.worker.handle_preemptions(orders)
    pair.memory[:, :8] = 99
    store.let_go()
    pair.execute(orders)
    pair.until(pair.idle)
    assert not store.has(request)


def test_blocks_found_in_vllms_own_cache_are_saved_all_the_same(pair: Pair, store: Store) -> None:
    request, _ = finished_while_saving(pair, store, free=1000)
    pair.scheduler.update_state_after_alloc(Request("w", 37, salt="w"), blocks([1, 2, 30]), 0)
    assert pair.step(output(new=[("w", [1, 2, 30], 8, 4)])).dropped == ()
    store.let_go()
    pair.until(lambda: store.has(request))


def test_when_blocks_may_have_been_given_away_unseen_no_finished_request_is_saved(
    pair: Pair, store: Store
) -> None:
    request, _ = finished_while_saving(pair, store, free=1000)
    pair.scheduler.update_state_after_alloc(None, None, 0)
    assert len(pair.step().dropped) == 1
    store.let_go()
    pair.until(pair.idle)
    assert not store.has(request)


def test_after_an_error_in_a_step_no_finished_request_is_saved(pair: Pair, store: Store) -> None:
    request, _ = finished_while_saving(pair, store, free=1000)
    orders = pair.scheduler.build_connector_meta(None)
    assert isinstance(orders, StepOrders) and len(orders.dropped) == 1
    pair._flying.append([])
    pair.execute(orders)
    store.let_go()
    pair.until(pair.idle)
    assert not store.has(request)


def test_blocks_of_a_preempted_request_are_not_published(pair: Pair, store: Store) -> None:
    request = Request("a", 25)
    pair.scheduler.on_new_request(request)
    store.holding = True
    pair.compute(request, [1, 2, 3, 4, 5, 6, 7])
    pair.step(output(preempted={"a"}))
    pair.memory[:] = 99
    store.let_go()
    pair.until(pair.idle)
    assert store.pages == {}
    assert not pair.finish(request), "nothing is left to wait for"
