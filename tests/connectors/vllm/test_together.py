"""The saves of a step go to the session together, and stay what they are: one of each request."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from pegaflow.client import SaveDone
from pegaflow.connectors.common.tracked import SaveOrder
from pegaflow.connectors.vllm.mover import TOGETHER_BLOCKS, Save, missing, together
from pegaflow.connectors.vllm.orders import StepOrders
from pegaflow.wire.identities import NO_KEY, Key
from pegaflow.wire.status import Status

from .fakes import BLOCK, Request, Store, output
from .pair import Pair
from .test_publishing import Pool

NAMES = "abcd"


def saves(*blocks: int) -> tuple[Save, ...]:
    return tuple(
        Save(SaveOrder(n, str(n), (Key(b"k" * 32),) * count, tuple(range(count)), parent=NO_KEY))
        for n, count in enumerate(blocks)
    )


def sizes(groups: Iterator[tuple[Save, ...]]) -> list[list[int]]:
    return [[len(save.order.keys) for save in group] for group in groups]


@pytest.mark.parametrize(
    ("blocks", "groups"),
    [
        ((), []),
        ((1,), [[1]]),
        ((1,) * 16, [[1] * 16]),
        ((512, 1, 2), [[1, 2], [512]]),
        ((512, 300), [[300], [512]]),
        ((40, 30, 20), [[20, 30], [40]]),
        ((63, 1), [[1, 63]]),
        ((64, 1), [[1], [64]]),
        ((1,) * 65, [[1] * 64, [1]]),
    ],
)
def test_who_goes_together(blocks: Sequence[int], groups: list[list[int]]) -> None:
    assert sizes(together(saves(*blocks))) == groups
    assert TOGETHER_BLOCKS == 64


def test_what_each_lacks() -> None:
    three = saves(1, 2, 3)
    ended = SaveDone(1, Status.NO_SPACE, 2, 1, lost=(0, 4, 5))
    assert missing(three, ended) == [1, 0, 2]
    assert missing(three, SaveDone(1, Status.OK, 4, 2)) == [0, 0, 0]
    assert missing(three, SaveDone(1, Status.DISCONNECTED, 0, 0)) == [1, 2, 3]
    assert missing(saves(4), SaveDone(1, Status.NO_SPACE, 1, 1)) == [2]


@pytest.fixture(params=[1, 2], ids=["one rank", "two ranks"])
def ranks(request: Any, store: Store) -> Iterator[Pair]:
    """An engine of one rank or two."""
    made = Pair(world=request.param)
    yield made
    made.close()


def scheduled(pair: Pair) -> tuple[list[Request], StepOrders]:
    """Four requests that fill two blocks each in one step."""
    requests = [Request(name, 2 * BLOCK + 1, salt=name) for name in NAMES]
    for request in requests:
        pair.scheduler.on_new_request(request)
    rows = [(r.request_id, ids(n), 0, r.num_tokens) for n, r in enumerate(requests)]
    for rank, (_, own, _, _) in ((rank, row) for rank in range(pair.world) for row in rows):
        for block in own:
            pair.memories[rank, :, block] = block + 64 * rank
    return requests, pair.schedule(output(new=rows))


def ids(place: int) -> list[int]:
    """The engine's blocks of a request."""
    return list(range(3 * place + 1, 3 * place + 4))


def counted(pair: Pair) -> tuple[int, int]:
    """Saves that went well, and that did not, as vLLM is told."""
    data = pair.counted.data
    return data.get("save_success", 0), data.get("save_failure", 0)


def test_a_step_is_one_conversation(ranks: Pair, store: Store) -> None:
    requests, orders = scheduled(ranks)
    assert [order.request for order in orders.saves] == list(NAMES)
    ranks.execute(orders)
    ranks.until(ranks.idle)
    ranks.step()
    assert store.conversations == [4] * ranks.world
    assert all(map(store.has, requests)) and len(store.pages) == 8
    assert counted(ranks) == (4 * ranks.world, 0)
    assert ranks.load(Request("z", 2 * BLOCK + 1, salt="c"), [40, 41]) == 2 * BLOCK
    ranks.until(lambda: ranks.received == ["z"])
    assert ranks.holds([40, 41], ids(2)[:2]), "each block is its own"


def test_a_service_that_takes_no_chains_gets_one_by_one(ranks: Pair, store: Store) -> None:
    store.gathers = False
    requests, orders = scheduled(ranks)
    ranks.execute(orders)
    ranks.until(ranks.idle)
    assert store.conversations == [1] * 4 * ranks.world and all(map(store.has, requests))


def test_a_request_that_is_set_back_takes_nobody_with_it(ranks: Pair, store: Store) -> None:
    requests, orders = scheduled(ranks)
    requests[1].num_computed_tokens = 0
    ranks.execute(orders)
    ranks.until(ranks.idle)
    ranks.step()
    assert [store.has(request) for request in requests] == [True, False, True, True]
    assert counted(ranks) == (3 * ranks.world, 0), "the engine itself has given one up"


def test_blocks_that_are_written_again_take_only_their_own_save_along(
    ranks: Pair, store: Store
) -> None:
    ranks.scheduler.bind_gpu_block_pool(Pool())
    requests, orders = scheduled(ranks)
    store.holding = True
    ranks.execute(orders)
    assert not ranks.finish(requests[2])
    again = Request("n", BLOCK, salt="n")
    ranks.scheduler.on_new_request(again)
    given = ranks.step(output(new=[("n", ids(2)[:1], 0, BLOCK)]))
    assert given.dropped == (orders.saves[2].order,)
    ranks.memories[:, :, ids(2)] = 255
    store.let_go()
    ranks.until(ranks.idle)
    ranks.step()
    assert [store.has(request) for request in requests] == [True, True, False, True]
    assert store.has(again) and counted(ranks)[1] == 0


def test_when_all_are_given_up_before_they_begin_nobody_is_asked(pair: Pair, store: Store) -> None:
    _, orders = scheduled(pair)
    store.holding = True
    worker, mover = pair.worker._worker, pair.mover
    assert worker is not None
    submit = mover.submit
    kept: list[Any] = []
    mover_type: Any = type(mover)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mover_type, "submit", lambda _, *jobs: kept.extend(jobs))
        pair.execute(orders)
    worker.drop_all()
    submit(*kept)
    store.let_go()
    pair.until(pair.idle)
    assert store.conversations == [] and store.pages == {}
    assert {order for _, order in store.given_up} == {o.order for o in orders.saves}


def test_a_rank_that_saves_nothing_says_so_of_each(store: Store) -> None:
    made = Pair(world=2)
    requests, orders = scheduled(made)
    worker = made.workers[1]._worker
    assert worker is not None
    worker._disagrees = True
    made.execute(orders)
    made.until(made.idle)
    assert not any(map(store.has, requests))
    assert {order for _, order in store.given_up} == {o.order for o in orders.saves}
    made.close()


def test_keys_of_one_conversation_are_of_one_length() -> None:
    """A request with an adapter has keys of 32 bytes, beside those of 16 that xxhash makes."""
    mixed = [
        Save(SaveOrder(n, str(n), (Key(b"k" * length),), (n,), parent=NO_KEY))
        for n, length in enumerate((16, 32, 16, 32))
    ]
    groups = list(together(tuple(mixed)))
    lengths = [{len(key) for save in group for key in save.order.keys} for group in groups]
    assert lengths == [{16}, {32}]
