"""What is promised to vLLM of a load and a save, whatever becomes of the request: wherever it is
aborted or preempted, whatever vLLM makes of the offer, and whatever it says twice."""

from collections.abc import Iterator
from typing import Any

import pytest

from .fakes import BLOCK, Request, Store, blocks, output, worker_output
from .pair import Pair
from .test_publishing import Pool
from .test_scheduler import ask

SAVED = [1, 2, 3, 4, 5, 6, 7]
LOADED = [10, 11, 12, 13, 14, 15]
GROWN = [16, 17, 18]
FOUND = {f"a/{place}": block for place, block in enumerate(SAVED[:6])}
ADDED = {f"a/{place}": block for place, block in zip((6, 7), GROWN, strict=False)}


@pytest.fixture(params=[1, 2], ids=["one rank", "two ranks"])
def ranks(request: Any, store: Store) -> Iterator[Pair]:
    """An engine of one rank or two that has saved a prompt of 6 blocks."""
    made = Pair(world=request.param)
    made.save(store, Request("a", 25, salt="a"), SAVED)
    yield made
    made.close()


def reported(pair: Pair, count: int) -> None:
    """Wait until so many loads have been reported, of all requests."""
    pair.until(lambda: len(pair.received) == count)


def failed(pair: Pair, request: Request, ids: list[int], policy: str) -> list[int]:
    """A request's life up to its computation, as vLLM leads it when loads fail.

    Returns:
        Tokens of each load that it was offered.
    """
    offered: list[int] = []
    while tokens := pair.load(request, ids):
        offered.append(tokens)
        pair.errors.clear()
        reported(pair, len(pair.received) + 1)
        bad = [place for place, block in enumerate(ids) if block in pair.errors]
        if bad and policy == "fail":
            assert not pair.finish(request)
            return offered
        if not bad or bad[0]:
            break
        assert len(offered) < 9, "it is offered again and again"
    return offered


@pytest.mark.parametrize("failing", range(1, 7))
def test_a_load_that_fails_is_not_offered_again(ranks: Pair, store: Store, failing: int) -> None:
    store.failing = failing
    request = Request("b", 25, salt="a")
    assert failed(ranks, request, LOADED, "recompute") == [24]
    for again in range(3):  # it is preempted again and again, and asks each time
        ranks.step(output(preempted={"b"}))
        offered = ranks.load(request, LOADED)
        assert offered == 24 - BLOCK * failing
        if offered:
            store.failing = 0
            reported(ranks, again + 2)
    assert not ranks.finish(request) and not store.leases


def test_a_request_that_vllm_ends_for_a_failed_load_leaves_nothing_and_harms_no_other(
    ranks: Pair, store: Store
) -> None:
    pair = Pair(world=ranks.world, policy="fail")
    store.failing = 1
    for name in "bcd":
        assert failed(pair, Request(name, 25, salt="a"), LOADED, "fail") == [24]
    store.failing = 0
    assert failed(pair, Request("e", 25, salt="a"), LOADED, "fail") == [24]
    assert pair.received == list("bcde") and pair.holds(LOADED, SAVED[:6])
    half = pair.scheduler._scheduler
    assert half is not None and half._engine.careful
    assert list(half._requests.tracked) == ["e"] and not store.leases
    pair.close()


@pytest.mark.parametrize(
    ("tokens", "ids", "loaded"),
    [
        (16, LOADED, 4),  # another connector, or vLLM itself, has cut the hit
        (22, LOADED, 6),  # inside of a block: all of that block is loaded
        (1, LOADED, 1),
        (24, LOADED[:5], 0),  # fewer blocks than it takes
        (28, [*LOADED, 16], 0),  # more than was offered
    ],
)
def test_vllm_makes_something_else_of_an_offer(
    ranks: Pair, store: Store, tokens: int, ids: list[int], loaded: int
) -> None:
    request = Request("b", 33, salt="a")
    ranks.until(lambda: ask(ranks, request) == (24, True))
    ranks.scheduler.update_state_after_alloc(request, blocks(ids), tokens)
    ranks.until(lambda: ranks.received == ["b"])
    if loaded:
        assert ranks.errors == set() and ranks.holds(LOADED[:loaded], SAVED[:loaded])
        assert not ranks.memories[:, :, LOADED[loaded:]].any()
    else:
        assert ranks.errors == set(ids)
        assert ask(ranks, request) == (0, False), "vLLM would try for ever"
    assert ranks.scheduler._errors == 0 and not store.leases
    assert all(worker._errors == 0 for worker in ranks.workers)
    assert not any(mover.dead for mover in ranks.movers)


def test_a_load_starts_steps_after_it_was_taken(ranks: Pair, store: Store) -> None:
    request, other = Request("b", 25, salt="a"), Request("c", 25, salt="c")
    ranks.until(lambda: ask(ranks, request) == (24, True))
    ranks.scheduler.on_new_request(other)
    ranks.compute(other, [20, 21, 22, 23, 24, 25, 26])
    ranks.step()
    assert ranks.received == []
    ranks.scheduler.update_state_after_alloc(request, blocks(LOADED), 24)
    ranks.until(lambda: ranks.received == ["b"])
    assert ranks.errors == set() and ranks.holds(LOADED, SAVED[:6])


STAGES = ["asked", "found", "promised", "loading", "loaded", "computing", "saving", "saved"]


def led_to(stage: str, pair: Pair, store: Store, request: Request) -> None:
    """A request that has come as far as this; what of it is open stays open."""
    at = STAGES.index(stage)
    store.holding = at == 0
    pair.scheduler.on_new_request(request)
    if at >= 1:
        pair.until(lambda: ask(pair, request) == (24, True))
    if at >= 2:
        pair.scheduler.update_state_after_alloc(request, blocks(LOADED), 24)
    if at >= 3:
        store.holding = at == 3
        pair.step()
    if at >= 4:
        pair.until(lambda: pair.received == ["r"])
    if at >= 5:
        for rank, block in ((r, b) for r in range(pair.world) for b in GROWN):
            pair.memories[rank, :, block] = block + 64 * rank
        store.holding = at in (5, 6)
        ids = [*LOADED, *GROWN]
        pair.scheduler.update_state_after_alloc(request, blocks(ids), 0)
        pair.orders = pair.schedule(output(new=[("r", ids, 24, 9)]))
    if at >= 6:
        pair.execute(pair.orders)
    if at >= 7:
        pair.until(lambda: len(store.pages) == 8)


def settle(stage: str, pair: Pair, store: Store) -> None:
    """Everything that is open ends, and each promise was kept once."""
    at = STAGES.index(stage)
    if at == 5:
        pair.execute(pair.orders)
    store.let_go()
    half = pair.scheduler._scheduler
    assert half is not None
    pair.until(lambda: pair.idle() and not store.leases and not half._requests._open)
    pair.step()
    assert pair.received == ["r"] * (at >= 2), "a load is reported once, if it was promised"
    assert pair.sent in ([], ["a"]), "nobody else's blocks are given back"
    assert pair.scheduler._errors == 0 and all(w._errors == 0 for w in pair.workers)


def contents(store: Store, world: int) -> dict[str, int]:
    """Which block each page of the store has the bytes of, the same of every rank."""
    found = {}
    for key, parts in store.pages.items():
        first = [part[0] - 64 * rank for rank, part in enumerate(parts)]
        assert len(parts) == world and len(set(first)) == 1
        assert all(set(part) == {part[0]} for part in parts)
        found[key[-32:].decode().strip()] = first[0]
    return found


def next_one_finds(pair: Pair, stored: dict[str, int]) -> None:
    """A request with the same prompt gets the bytes that belong to it."""
    request, ids = Request("z", 33, salt="a"), [*range(30, 38)]
    tokens = pair.load(request, ids)
    assert tokens == BLOCK * len(stored)
    pair.until(lambda: pair.received[-1:] == ["z"])
    assert pair.holds(ids[: len(stored)], [stored[f"a/{i}"] for i in range(len(stored))])


@pytest.mark.parametrize("stage", STAGES)
def test_a_request_is_aborted_at_any_stage(ranks: Pair, store: Store, stage: str) -> None:
    request = Request("r", 33, salt="a")
    led_to(stage, ranks, store, request)
    assert not ranks.finish(request), "nobody waits for its blocks"
    settle(stage, ranks, store)
    stored = contents(store, ranks.world)
    assert stored == (FOUND if STAGES.index(stage) < 5 else FOUND | ADDED)
    next_one_finds(ranks, stored)


@pytest.mark.parametrize("stage", STAGES[4:])
def test_a_request_is_preempted_at_any_stage(ranks: Pair, store: Store, stage: str) -> None:
    request = Request("r", 33, salt="a")
    led_to(stage, ranks, store, request)
    orders = ranks.schedule(output(preempted={"r"}))
    for worker in ranks.workers:
        worker.handle_preemptions(orders)
    ranks.memories[:, :, LOADED + GROWN] = 99
    request.num_computed_tokens = 0
    if stage == "computing":
        ranks.execute(ranks.orders)
        ranks.execute(orders)
        store.let_go()
    else:
        ranks.execute(orders)
    settle("saving" if stage == "computing" else stage, ranks, store)
    stored = contents(store, ranks.world)
    assert stored == (FOUND | ADDED if stage == "saved" else FOUND), "bytes of somebody else"
    ids = [*LOADED, *GROWN][: len(stored)]
    assert ranks.load(request, ids) == BLOCK * len(stored), "it asks again"
    ranks.until(lambda: ranks.received == ["r", "r"])
    assert ranks.errors == set() and not ranks.finish(request)
    next_one_finds(ranks, stored)


def test_a_worker_output_that_comes_twice_says_what_it_said(store: Store) -> None:
    pair = Pair(world=2)
    request, other = Request("a", 25), Request("w", 9, salt="w")
    pair.scheduler.on_new_request(request)
    pair.scheduler.on_new_request(other)
    pair.scheduler.bind_gpu_block_pool(Pool())
    store.holding = True
    orders = pair.compute(request, SAVED)
    half = pair.workers[1]._worker
    assert half is not None
    half._drop("a")
    report = half.report()
    for _ in range(3):
        pair.scheduler.update_connector_output(worker_output(set(), (), report, ()))
    assert not pair.finish(request)
    given = pair.schedule(output(new=[("w", [3, 8, 9], 0, 9)]))
    assert given.dropped == (orders.saves[0].order,), "rank 0 still reads from block 3"
    for worker in pair.workers:
        worker.handle_preemptions(given)
    pair.memories[:] = 99
    store.let_go()
    pair.execute(given)
    pair.until(pair.idle)
    assert not store.has(request)
    pair.close()


def test_loads_of_a_step_that_cannot_begin_are_reported(
    ranks: Pair, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    request, other = Request("b", 25, salt="a"), Request("c", 25, salt="a")
    asked = ranks.scheduler.get_num_new_matched_tokens
    for one in (request, other):
        ranks.scheduler.on_new_request(one)
    ranks.until(lambda: [asked(one, 0) for one in (request, other)] == [(24, True)] * 2)
    for one, ids in ((request, LOADED), (other, GROWN * 2)):  # without a step in between
        ranks.scheduler.update_state_after_alloc(one, blocks(ids), 24)
    half = ranks.scheduler._scheduler
    assert half is not None
    half._loads["b"] = tuple(LOADED)  # as after an error: nobody is to load it
    orders = ranks.schedule()
    assert orders.abandoned == (("b", tuple(LOADED)),) and orders.loads
    with monkeypatch.context() as broken:
        for worker in ranks.workers:
            broken.setattr(worker._worker, "_collect", cannot_collect)
        ranks.execute(orders)
    assert sorted(ranks.received) == ["b", "c"] and ranks.errors == {*LOADED, *GROWN}
    ranks.step()
    assert sorted(ranks.received) == ["b", "c"]


def cannot_collect() -> None:
    """What a worker does that cannot collect."""
    raise RuntimeError("broken on purpose")


def test_a_whole_output_that_comes_twice_changes_nothing(ranks: Pair, store: Store) -> None:
    request = Request("b", 33, salt="a")
    store.failing = 2
    assert ranks.load(request, LOADED) == 24
    ranks.until(lambda: ranks.received == ["b"])
    named = worker_output({"b"}, ranks.errors, None, {"b", "nobody"})
    for _ in range(2):
        ranks.scheduler.update_connector_output(named)
        assert list(ranks.scheduler.take_events()) == []
    store.failing = 0
    ranks.step(output(preempted={"b"}))
    assert ranks.load(request, LOADED) == 16
    ranks.until(lambda: ranks.received == ["b", "b"])
    assert ranks.scheduler._errors == 0 and not ranks.finish(request) and not store.leases
