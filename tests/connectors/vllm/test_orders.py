"""Blocks that vLLM gives away are not saved any more once a step's orders are there, though it
writes them before it calls a worker's connector, as its second model runner does."""

import copy
from typing import Any

import pytest

from pegaflow.connectors.vllm.orders import StepOrders

from .fakes import Request, Store, output
from .pair import Pair
from .test_publishing import Pool

SAVED = [1, 2, 3, 4, 5, 6, 7]


def there(pair: Pair, out: Any, process: str, monkeypatch: pytest.MonkeyPatch) -> StepOrders:
    """A step's orders, in the worker's process."""
    if process == "the scheduler's":
        return pair.schedule(out)
    with monkeypatch.context() as elsewhere:
        elsewhere.setattr(StepOrders, "arrive", lambda _: None)
        orders = pair.schedule(out)
    return copy.copy(orders)  # made anew from its state, as what comes from another process is


@pytest.mark.parametrize("process", ["the scheduler's", "another"])
@pytest.mark.parametrize("why", ["it has ended", "it is preempted"])
def test_a_save_whose_blocks_are_written_before_its_worker_is_called_is_not_published(
    pair: Pair, store: Store, monkeypatch: pytest.MonkeyPatch, why: str, process: str
) -> None:
    request = Request("a", 25)
    pair.scheduler.bind_gpu_block_pool(Pool())
    pair.scheduler.on_new_request(request)
    pair.scheduler.on_new_request(Request("w", 9, salt="w"))
    store.holding = True
    pair.compute(request, SAVED)
    if why == "it has ended":
        assert not pair.finish(request)
    preempted = {"a"} if why == "it is preempted" else set()
    out = output(new=[("w", [3, 8, 9], 0, 9)], preempted=preempted)
    orders = there(pair, out, process, monkeypatch)
    pair.memories[:, :, [3, 8, 9]] = 99
    store.let_go()
    while not pair.mover.done:  # all of the save, before its worker is called
        pair.mover._thread.join(0.001)  # type: ignore[union-attr]
    pair.execute(orders)
    pair.until(pair.idle)
    assert not store.has(request) and store.has(Request("w", 9, salt="w"))
    half = pair.worker._worker
    assert half is not None and half._taken.orders == set()
