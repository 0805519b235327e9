"""What is looked up, offered, loaded and saved for each request, step by step."""

import pytest

from pegaflow.client import Lease
from pegaflow.connectors.common.requests import KEEP_S, Requests
from pegaflow.connectors.common.tracked import Brought, Lookup
from pegaflow.wire.identities import Incarnation, LeaseId
from tests.connectors.vllm.fakes import BLOCK, Request

LEASE = Lease(Incarnation(1), LeaseId(7), 5)


def book(**how: object) -> Requests:
    return Requests(BLOCK, BLOCK, **how)  # type: ignore[arg-type]


def arrived(requests: Requests, tokens: int = 25, hit: int = 0, now: float = 0.0) -> str:
    """A request "r" whose lookup has found `hit` blocks."""
    requests.add("r", Request("r", tokens))
    requests.asked("r", 1, now)
    assert (
        requests.answered(1, Lease(Incarnation(1), LeaseId(7), hit) if hit else None, True, now)
        is None
    )
    return "r"


def test_all_full_blocks_are_looked_up_once() -> None:
    requests = book()
    requests.add("r", Request("r", 25))
    assert len(requests.wants("r", 0.0)) == 6
    requests.asked("r", 1, 0.0)
    assert requests.wants("r", 0.0) == ()
    assert requests.offer("r", 0) is None
    assert requests.offer("r", 0) is None


def test_an_offer_is_what_the_cache_has_beyond_the_engine_and_can_be_repeated() -> None:
    requests = book()
    arrived(requests, hit=5)
    assert [requests.offer("r", local) for local in (0, 8, 20, 24, 0)] == [20, 12, 0, 0, 20]
    assert requests.offer("r", 6) == 0, "a local hit that ends inside a block"


def test_a_coarse_block_is_named_by_its_last_hash() -> None:
    requests = Requests(2 * BLOCK, BLOCK)
    request = Request("r", 25)
    requests.add("r", request)
    assert requests.wants("r", 0.0) == tuple(request.block_hashes[1::2])


def test_a_load_carries_the_lease_away_and_is_not_saved_again() -> None:
    requests = book()
    arrived(requests, hit=5)
    assert requests.offer("r", 8) == 12
    assert requests.allocated("r", [10, 11, 12, 13, 14], 12) == []
    order = requests.tracked["r"].loading
    assert order is not None
    assert (order.first, order.blocks, order.lease) == (2, (12, 13, 14), LEASE)
    assert requests.wants("r", 0.0) == (), "nothing is asked while a load is under way"
    requests.loaded("r")
    save = requests.step("r", [10, 11, 12, 13, 14, 15, 16], True, 20, scheduled=5)
    assert save is not None
    assert save.blocks == (15,) and save.keys == tuple(Request("r", 25).block_hashes[5:])
    assert save.parent == Request("r", 25).block_hashes[4]
    assert requests.finished("r", -1) == (False, [])


def test_a_lease_that_is_not_needed_is_given_back() -> None:
    requests = book()
    arrived(requests, hit=5)
    assert requests.allocated("r", [1, 2, 3, 4, 5, 6, 7], 0) == [LEASE]
    arrived(other := book(), hit=5)
    assert other.finished("r", 9) == (False, [LEASE])
    arrived(third := book(), hit=5)
    assert third.clear_answers() == [LEASE]


def test_each_step_saves_the_blocks_it_completes() -> None:
    requests = book()
    request = Request("r", 25)
    requests.add("r", request)
    found = [requests.step("r", [1, 2, 3], True, 0, scheduled=10)]
    found.append(requests.step("r", [4, 5, 6, 7], False, 10, scheduled=15))
    request.num_tokens = 28
    found += [requests.step("r", [], False, 25 + i, scheduled=1) for i in range(3)]
    assert [f.blocks if f else () for f in found] == [(1, 2), (3, 4, 5, 6), (), (), (7,)]
    assert [f.order for f in found if f] == [1, 2, 3], "a number is never used again"


def test_a_block_without_a_hash_waits_for_it() -> None:
    requests = book()
    request = Request("r", 7)
    requests.add("r", request)
    assert requests.step("r", [1, 2, 3], True, 0, scheduled=9) is not None
    request.num_tokens = 8
    save = requests.step("r", [], False, 9, scheduled=1)
    assert save is not None and save.blocks == (2,)


def test_blocks_only_this_engine_has_are_saved_too() -> None:
    requests = book()
    arrived(requests, hit=1)
    assert requests.allocated("r", [1, 2, 3, 4, 5, 6, 7], 0) == [
        Lease(Incarnation(1), LeaseId(7), 1)
    ]
    save = requests.step("r", [1, 2, 3, 4, 5, 6, 7], True, 16, scheduled=9)
    assert save is not None and save.blocks == (2, 3, 4, 5, 6)


def test_without_an_answer_only_new_blocks_are_saved() -> None:
    requests = book()
    requests.add("r", Request("r", 25))
    save = requests.step("r", [1, 2, 3, 4, 5, 6, 7], True, 16, scheduled=9)
    assert save is not None and save.blocks == (5, 6)


def test_nothing_is_saved_where_saving_is_off() -> None:
    requests = book(saving=False)
    requests.add("r", Request("r", 25))
    assert requests.step("r", [1, 2, 3, 4, 5, 6, 7], True, 0, scheduled=25) is None
    assert requests.finished("r", 9) == (False, [])


def test_failed_blocks_are_never_offered_again_and_saved_when_computed() -> None:
    requests = book()
    arrived(requests, hit=5)
    requests.offer("r", 0)
    requests.allocated("r", [1, 2, 3, 4, 5], 20)
    requests.failed({3, 5, 99})
    requests.loaded("r")
    assert requests.wants("r", 0.0) == tuple(Request("r", 25).block_hashes[:2])
    requests.asked("r", 2, 1.0)
    requests.answered(2, LEASE, True, 1.0)
    assert requests.offer("r", 0) == 8
    requests.allocated("r", [1, 2, 3, 4, 5, 6, 7], 0)
    save = requests.step("r", [1, 2, 3, 4, 5, 6, 7], True, 8, scheduled=17)
    assert save is not None and save.blocks == (3, 4, 5, 6)


def test_a_load_that_failed_from_the_start_is_not_tried_again() -> None:
    requests = book()
    arrived(requests, hit=5)
    requests.offer("r", 0)
    requests.allocated("r", [1, 2, 3, 4, 5], 20)
    requests.failed({1})
    requests.loaded("r")
    assert requests.wants("r", 0.0) == ()
    assert requests.offer("r", 0) == 0


def test_a_lookup_that_takes_too_long_is_a_miss_for_good() -> None:
    requests = book()
    requests.add("r", Request("r", 25))
    requests.asked("r", 1, now_s=10.0)
    requests.give_up(before_s=9.0)
    assert requests.offer("r", 0) is None
    requests.give_up(before_s=10.0)
    assert requests.offer("r", 0) == 0
    assert requests.answered(1, LEASE, True, 11.0) == LEASE, "a late lease is given back"
    requests.preempted("r")
    assert requests.wants("r", 0.0) == ()


def test_an_expired_answer_is_a_miss_for_good() -> None:
    requests = book()
    requests.add("r", Request("r", 25))
    requests.asked("r", 1, 0.0)
    requests.answered(1, None, False, 1.0)
    assert requests.tracked["r"].lookup is Lookup.NEVER


def test_a_hit_that_waits_too_long_is_given_back_and_asked_again() -> None:
    requests = book()
    arrived(requests, hit=5, now=100.0)
    assert requests.stale(100.0 + KEEP_S) == []
    assert requests.stale(100.1 + KEEP_S) == [LEASE]
    assert len(requests.wants("r", 0.0)) == 6


def test_preemption_asks_again_and_saves_what_got_lost() -> None:
    requests = book()
    arrived(requests)
    assert requests.step("r", [1, 2, 3, 4, 5, 6, 7], True, 0, scheduled=25) is not None
    assert requests.preempted("r") == []
    assert len(requests.wants("r", 0.0)) == 6
    requests.asked("r", 2, 1.0)
    requests.answered(2, Lease(Incarnation(1), LeaseId(8), 2), True, 1.0)
    assert requests.offer("r", 0) == 8
    requests.allocated("r", [20, 21], 8)
    requests.loaded("r")
    save = requests.step("r", [20, 21, 22, 23, 24, 25, 26], True, 8, scheduled=17)
    assert save is not None and save.blocks == (22, 23, 24, 25)


@pytest.mark.parametrize("seen", [True, False])
def test_what_was_dropped_is_saved_again_although_nobody_is_asked_what_is_there(seen: bool) -> None:
    requests = book()
    requests.add("r", Request("r", 25))
    for done in (0, 8, 16):
        requests.step("r", [1, 2, 3, 4, 5, 6, 7][done // BLOCK :], not done, done, scheduled=8)
    requests.saved(1, 1)
    if seen:
        requests.preempted("r")
    else:
        requests.lose_sight()
    save = requests.step("r", [20, 21, 22, 23, 24, 25, 26], True, 0, scheduled=25)
    assert save is not None and save.blocks == (22, 23, 24, 25)


def saving(ranks: int = 1, waiting: int = 0) -> tuple[Requests, int]:
    """A request "r" with a save under way, beside one that waits for so many tokens' memory."""
    requests = book(ranks=ranks)
    requests.add("r", Request("r", 25))
    order = requests.step("r", [1, 2, 3, 4, 5, 6, 7], True, 0, scheduled=25)
    assert order is not None
    if waiting:
        requests.add("w", Request("w", waiting))
    return requests, order.order


@pytest.mark.parametrize("ranks", [1, 2])
def test_where_memory_is_tight_a_request_is_held_until_every_rank_has_saved(ranks: int) -> None:
    requests, order = saving(ranks, waiting=40)
    requests.saved(order, (1 << ranks) - 1)
    assert requests.finished("r", 0) == (False, [])
    requests, order = saving(ranks, waiting=40)
    for _ in range(2):  # a report may come twice
        requests.saved(order, (1 << ranks) - 2)
    assert requests.finished("r", 10) == (True, [])
    assert requests.finished("r", 10) == (False, [])
    assert requests.relax(10) == () and requests.reused([1]) == ()
    requests.saved(order, 1)
    requests.sent("r")
    assert requests.relax(11) == ()


def test_where_there_is_room_a_request_is_not_held_but_its_saves_give_way() -> None:
    requests, order = saving(waiting=40)
    assert requests.finished("r", 11) == (False, [])
    assert requests.reused([8, 9]) == ()
    assert requests.reused([9, 3]) == (order,)
    assert requests.reused([3]) == (), "said once"
    requests.saved(order, 1)
    assert not requests._open and not requests._loose


def test_a_save_that_is_over_does_not_give_way() -> None:
    requests, order = saving()
    assert requests.finished("r", 0) == (False, []), "nobody is there to take the blocks"
    requests.saved(order, 1)
    assert requests.reused([3]) == ()


def test_a_held_request_is_let_go_once_there_is_room() -> None:
    requests, order = saving(waiting=40)
    assert requests.finished("r", 10) == (True, [])
    assert requests.relax(11) == ("r",)
    assert requests.relax(11) == ()
    assert requests.reused([3]) == (order,)
    requests, order = saving(waiting=40)
    requests.finished("r", 10)
    requests.sent("r")
    assert requests.reused([3]) == (order,), "held no longer, for it took too long"


def test_a_running_request_takes_a_block_now_and_then() -> None:
    requests, _ = saving(waiting=40)
    requests.step("w", range(10, 21), True, 40, scheduled=1)
    assert requests.finished("r", 1) == (True, [])
    requests, _ = saving(waiting=40)
    requests.step("w", range(10, 21), True, 40, scheduled=1)
    assert requests.finished("r", 2) == (False, [])


def test_when_we_do_not_know_every_save_gives_way_until_blocks_are_named_anew() -> None:
    requests, order = saving()
    requests.add("s", Request("s", 25))
    second = requests.step("s", [11, 12, 13, 14], True, 0, scheduled=12)
    requests.finished("r", 0)
    assert second is not None and requests.lose_sight() == (order, second.order)
    assert requests.reused([3]) == ()
    assert requests.step("s", [], False, 12, scheduled=4) is None
    assert requests.step("s", [11, 12, 13, 14], True, 12, scheduled=4) is not None


def test_what_turned_out_void_is_saved_again() -> None:
    requests = book()
    requests.add("r", Request("r", 25))
    first = requests.step("r", [1, 2, 3, 4, 5, 6, 7], True, 0, scheduled=12)
    second = requests.step("r", [], False, 12, scheduled=13)
    assert first is not None and second is not None
    requests.void(requests.tracked["r"], second.first)
    again = requests.step("r", [], False, 12, scheduled=13)
    assert again is not None and again.blocks == second.blocks and again.order != second.order


def test_blocks_of_a_load_that_came_from_ssd_and_from_other_hosts() -> None:
    requests = book()
    requests.add("r", Request("r", 25))
    requests.asked("r", 1, 0.0)
    assert requests.answered(1, LEASE, True, 0.0, brought=Brought((0, 3, 4, 9), (1, 2))) is None
    requests.offer("r", 8)
    assert requests.brought("r") == [0, 0], "nothing is loaded yet"
    requests.allocated("r", [10, 11, 12, 13, 14], 12)
    assert requests.brought("r") == [2, 1] and requests.brought("x") == [0, 0]


def test_a_request_aborted_while_it_waits_for_a_load_of_whomever_is_not_held() -> None:
    """A second report of it would be the end of vLLM."""
    requests, _ = saving(waiting=40)
    requests.preempted("r")
    requests.offer("r", 0)
    assert requests.allocated("r", [1, 2, 3, 4, 5], 20) == [], "it was offered, and is gone"
    assert requests.finished("r", 0) == (False, [])
    requests, _ = saving(waiting=40)
    requests.lose_sight()  # a step in which it was preempted has failed
    requests.allocated("r", [1, 2, 3, 4, 5], 0)
    assert requests.finished("r", 0) == (False, []), "another connector loads it"


def test_a_request_aborted_while_it_loads_is_not_held() -> None:
    requests = book()
    requests.add("r", Request("r", 25))
    requests.step("r", [1, 2, 3, 4, 5, 6, 7], True, 0, scheduled=25)
    requests.preempted("r")
    requests.asked("r", 1, 0.0)
    requests.answered(1, LEASE, True, 0.0)
    requests.offer("r", 0)
    requests.allocated("r", [1, 2, 3, 4, 5], 20)
    assert requests.finished("r", 9) == (False, [])
    requests.loaded("r")
    requests.failed({1})


def test_what_was_saved_of_other_weights_is_saved_again_once_it_is_computed_anew() -> None:
    """The cache of these has nothing of it, and an engine that only saves never asks."""
    requests = book()
    requests.add("r", Request("r", 25))
    requests.add("other", Request("other", 25))
    for name in ("r", "other"):
        order = requests.step(name, [*range(1, 8)], True, 0, scheduled=20)
        assert order is not None and order.blocks == (1, 2, 3, 4, 5)
        requests.saved(order.order, 1)
    requests.preempted("r")
    requests.clear_answers()
    order = requests.step("r", [*range(11, 18)], True, 0, scheduled=25)
    assert order is not None and order.blocks == (11, 12, 13, 14, 15, 16)
    order = requests.step("other", [], False, 20, scheduled=5)
    assert order is not None and order.blocks == (6,), "what is before is of other weights, maybe"
