"""The last block of a prompt: saved, found and loaded before it is full."""

from dataclasses import dataclass
from typing import Any

import pytest

from pegaflow.client import Lease
from pegaflow.connectors.common.hints import Hints
from pegaflow.connectors.common.tails import TailedRequests, tail_key
from pegaflow.connectors.common.tracked import Lookup, SaveOrder
from pegaflow.wire.identities import Incarnation, LeaseId
from pegaflow.wire.values import LIST_MAX
from tests.connectors.vllm.fakes import BLOCK, Request

PROMPT = 27
FULL, TAIL = divmod(PROMPT, BLOCK)
BLOCKS = list(range(10, 10 + FULL + 1))
BOTH = (True, True)


@dataclass
class Asked(Request):
    """A request, and how much of it is prompt."""

    prompt: int = 0

    @property
    def num_prompt_tokens(self) -> int:
        return self.prompt


def name(source: Any, start: int, end: int) -> bytes:
    """The hash of some tokens, which no full block has here."""
    return f"{source.salt}/{start}-{end}".encode().ljust(32)


def book(tails: tuple[bool, bool] = BOTH, **how: Any) -> TailedRequests:
    return TailedRequests(BLOCK, BLOCK, hash_of=name, tails=tails, **how)


def ask(requests: TailedRequests, tokens: int = PROMPT, hit: int = 0) -> Asked:
    """A request "r" whose lookup has found so many blocks."""
    request = Asked("r", tokens, prompt=tokens)
    requests.add("r", request)
    assert requests.wants("r", 0.0)
    requests.asked("r", 1, 0.0)
    assert requests.answered(1, lease(hit) if hit else None, True, 0.0) is None
    return request


def lease(blocks: int) -> Lease:
    return Lease(Incarnation(1), LeaseId(7), blocks)


def say(request: Asked, tokens: int) -> None:
    """So many tokens of an answer are known."""
    request.num_tokens += tokens


def saved(orders: list[SaveOrder]) -> list[tuple[tuple[bytes, ...], tuple[int, ...], bytes]]:
    return [(order.keys, order.blocks, order.parent) for order in orders]


def key(request: Request, start: int, end: int) -> bytes:
    return tail_key(name(request, start, end), end - start)


def test_a_tails_key_is_of_its_hash_and_its_number_of_tokens() -> None:
    names = [bytes(32), b"a" * 32, bytes(16)]
    keys = {tail_key(one, tokens) for one in names for tokens in (2, 3, 258)}
    assert len(keys) == 9 and not keys & set(names)
    assert {len(one) for one in keys} == {16, 32}, "as long as those beside which it is asked for"


def test_the_tail_is_asked_for_behind_all_full_blocks() -> None:
    request = Asked("r", PROMPT, prompt=PROMPT)
    for tails, more in ((BOTH, 1), ((True, False), 0)):
        requests = book(tails)
        requests.add("r", request)
        keys = requests.wants("r", 0.0)
        assert keys[:FULL] == tuple(request.block_hashes)
        assert keys[FULL:] == (key(request, FULL * BLOCK, PROMPT),) * more


@pytest.mark.parametrize("tokens", [FULL * BLOCK, FULL * BLOCK + 1])
def test_a_tail_of_one_token_is_none(tokens: int) -> None:
    requests = book()
    request = Asked("r", tokens, prompt=tokens)
    requests.add("r", request)
    assert requests.wants("r", 0.0) == tuple(request.block_hashes)
    (order,) = requests.stepped("r", BLOCKS, True, 0, scheduled=tokens)
    assert order.keys == tuple(request.block_hashes)


def test_a_prompt_shorter_than_a_block_is_a_tail() -> None:
    requests = book()
    request = Asked("r", 3, prompt=3)
    requests.add("r", request)
    assert requests.wants("r", 0.0) == (key(request, 0, 3),)
    orders = requests.stepped("r", [10], True, 0, scheduled=3)
    assert saved(orders) == [((key(request, 0, 3),), (10,), b"")]


def test_the_tail_is_saved_by_the_step_that_ends_the_prompt_and_by_no_other() -> None:
    requests = book()
    request = Asked("r", PROMPT, prompt=PROMPT)
    requests.add("r", request)
    first = requests.stepped("r", BLOCKS[:3], True, 0, scheduled=10)
    assert [order.blocks for order in first] == [(10, 11)]
    full, tail = requests.stepped("r", BLOCKS[3:], False, 10, scheduled=PROMPT - 10)
    hashes = request.block_hashes
    assert saved([full]) == [(tuple(hashes[2:]), tuple(BLOCKS[2:FULL]), hashes[1])]
    tail_of = ((key(request, FULL * BLOCK, PROMPT),), (BLOCKS[FULL],), hashes[-1])
    assert saved([tail]) == [tail_of]
    assert requests.saving(tail).end == PROMPT and requests.saving(full).end == FULL * BLOCK
    say(request, 1)
    (filled,) = requests.stepped("r", [], False, PROMPT, scheduled=1)
    assert saved([filled]) == [((request.block_hashes[FULL],), (BLOCKS[FULL],), hashes[FULL - 1])]


@pytest.mark.parametrize("how", ["off", "hint", "read only"])
def test_no_tail_is_saved_where_it_is_not_wanted(how: str) -> None:
    requests = book((how != "off", True), saving=how != "read only")
    requests.add("r", Asked("r", PROMPT, prompt=PROMPT), Hints(skip_save=how == "hint"))
    orders = requests.stepped("r", BLOCKS, True, 0, scheduled=PROMPT)
    assert len(orders) == (how == "off")


def test_a_prompt_that_is_there_with_its_tail_is_offered_to_its_end() -> None:
    requests = book()
    request = ask(requests, hit=FULL + 1)
    offers = [requests.offer("r", local) for local in (8, FULL * BLOCK, 6, 0)]
    assert offers == [PROMPT - 8, TAIL, 0, PROMPT]
    assert requests.allocated("r", BLOCKS, PROMPT) == []
    order = requests.tracked["r"].loading
    assert order is not None and (order.first, order.blocks) == (0, tuple(BLOCKS))
    requests.loaded("r")
    orders = requests.stepped("r", BLOCKS, True, PROMPT - 1, scheduled=1)
    assert [order.blocks for order in orders] == [(BLOCKS[FULL],)], "the tail, and no full block"
    say(request, 1)
    (filled,) = requests.stepped("r", [], False, PROMPT, scheduled=1)
    assert filled.keys == (request.block_hashes[FULL],), "it is full now"


@pytest.mark.parametrize("hit", [0, 4, FULL])
def test_without_the_tail_full_blocks_are_offered(hit: int) -> None:
    requests = book()
    ask(requests, hit=hit)
    assert requests.offer("r", 0) == hit * BLOCK


def test_a_hit_that_is_not_taken_leaves_the_block_to_be_saved() -> None:
    requests = book((False, True))
    request = ask(requests, hit=FULL + 1)
    assert requests.allocated("r", BLOCKS, 0) == [lease(FULL + 1)]
    assert requests.stepped("r", BLOCKS, True, 0, scheduled=PROMPT) == []
    say(request, 1)
    (filled,) = requests.stepped("r", [], False, PROMPT, scheduled=1)
    assert filled.keys == (request.block_hashes[FULL],)


def test_a_request_that_goes_on_behind_its_prompt_takes_no_tail() -> None:
    requests = book()
    request = ask(requests, hit=FULL + 1)
    say(request, 1)
    assert requests.offer("r", 0) == FULL * BLOCK, "there is more in that block than the tail has"
    assert requests.clear_answers() == [lease(FULL + 1)]
    assert requests.wants("r", 0.0) == tuple(request.block_hashes)


def test_a_tail_that_failed_to_load_is_not_asked_for_again() -> None:
    requests = book((False, True))
    request = ask(requests, hit=FULL + 1)
    requests.allocated("r", BLOCKS, PROMPT)
    requests.failed([BLOCKS[FULL]])
    requests.loaded("r")
    assert requests.wants("r", 0.0) == tuple(request.block_hashes)
    requests.asked("r", 2, 0.0)
    requests.answered(2, lease(FULL), True, 0.0)
    assert requests.offer("r", 0) == FULL * BLOCK


def test_who_waits_for_the_full_prefix_waits_for_the_tail() -> None:
    requests = book(patience_s=10.0)
    requests.add("r", Asked("r", PROMPT, prompt=PROMPT), Hints(wait_for_full_prefix=True))
    assert len(requests.wants("r", 0.0)) == FULL + 1
    requests.asked("r", 1, 0.0)
    assert requests.answered(1, lease(FULL), True, 0.0) == lease(FULL)
    assert requests.tracked["r"].lookup is Lookup.SHORT
    keys = requests.wants("r", 1.0)
    assert len(keys) == FULL + 1
    requests.asked("r", 2, 1.0)
    requests.answered(2, lease(FULL + 1), True, 1.0)
    assert requests.offer("r", 0) == PROMPT


def test_a_question_has_no_room_for_the_tail_of_the_longest_prompts() -> None:
    requests = book()
    tokens = LIST_MAX * BLOCK + TAIL
    requests.add("r", Asked("r", tokens, prompt=tokens))
    assert len(requests.wants("r", 0.0)) == LIST_MAX
    assert requests._askable(requests.tracked["r"]) == LIST_MAX


def test_a_step_that_does_not_stand_saves_the_tail_when_it_is_computed_again() -> None:
    requests = book()
    request = Asked("r", PROMPT, prompt=PROMPT)
    requests.add("r", request)
    for _ in range(2):
        full, tail = requests.stepped("r", BLOCKS, True, 0, scheduled=PROMPT)
        assert tail.keys == (key(request, FULL * BLOCK, PROMPT),)
        for order in (full, tail):
            requests.void(requests.tracked["r"], requests.saving(order).first)
