"""Recurrent groups of a request: which states are saved, and which are resumed from."""

import pytest

from pegaflow.connectors.common.grouped import State
from pegaflow.connectors.common.groups import Group
from pegaflow.connectors.common.tracked import GroupedRequest, SaveOrder
from tests.connectors.vllm.fakes import BLOCK, Request

from .test_grouped import FULL, Book

FIRST, SECOND = Group(1, 1, recurrent=True), Group(2, 1, recurrent=True)


@pytest.fixture
def book() -> Book:
    return Book(FULL, FIRST, SECOND)


def offered(place: int, first: int = 77, second: int = 78) -> list[State]:
    """vLLM says that the states behind so many blocks are there."""
    return [(1, first, place * BLOCK), (2, second, place * BLOCK)]


def run(book: Book, states: list[State], begun: int = 0, end: int = 41) -> list[SaveOrder]:
    """What is saved of states in a request's first step."""
    book.arrive()
    book.stepped("r", [list(range(1, 12)), [0] * 11, [0] * 11], True, begun, scheduled=end - begun)
    return book.states("r", states, end)


def test_a_state_is_saved_as_vllm_names_it(book: Book) -> None:
    (order,) = run(book, offered(10))
    name = Request("r", 41).block_hashes[9]
    assert order.keys == (book._groups.key(FIRST, name), book._groups.key(SECOND, name))
    assert order.blocks == (77, 78) and order.parent == name
    assert book.saving(order).end == 40, "the step must have computed up to there"


def test_states_of_several_places_are_saved_apart(book: Book) -> None:
    orders = run(book, offered(10, 5, 6) + offered(4, 3, 4))
    assert [order.blocks for order in orders] == [(3, 4), (5, 6)]
    assert book.reused([3]) == (orders[0].order,), "vLLM may give each to somebody else"


@pytest.mark.parametrize(
    ("states", "begun"),
    [
        (offered(4), 16),
        ([(1, 77, 18), (2, 78, 18)], 0),
        (offered(10)[:1], 0),
        (offered(10, second=0), 0),
        (offered(11), 0),
    ],
    ids=["loaded", "of a part of a block", "of one group", "no block", "ahead of the step"],
)
def test_what_is_no_whole_state_of_this_step_is_not_saved(
    book: Book, states: list[State], begun: int
) -> None:
    assert run(book, states, begun) == []


def test_what_is_said_a_step_late_is_saved(book: Book) -> None:
    run(book, [])
    book.stepped("r", [[], [], []], False, 41, scheduled=1)
    (order,) = book.states("r", offered(10), 42)
    assert order.blocks == (77, 78)


def test_nothing_is_saved_of_whom_nobody_knows_or_who_wants_nothing_saved(book: Book) -> None:
    assert book.states("gone", offered(10), 41) == []
    book.arrive(skip_save=True)
    book.stepped("r", [list(range(1, 12)), [0] * 11, [0] * 11], True, 0, scheduled=41)
    assert book.states("r", offered(10), 41) == []


def loading(book: Book) -> GroupedRequest:
    """A request that can resume at block 7, behind a prefix of 9."""
    book.has(FULL, *range(9))
    book.has(FIRST, 2, 6)
    book.has(SECOND, 2, 6)
    tracked = book.arrive()
    assert book.ask() == [10, 11, 9]
    return tracked


def test_a_hit_ends_where_every_group_has_its_state(book: Book) -> None:
    tracked = loading(book)
    assert book.offer("r", 0) == 28
    tables = [[11, 12, 13, 14, 15, 16, 17], [0, 0, 0, 0, 0, 0, 27], [0, 0, 0, 0, 0, 0, 37]]
    assert book.allocated("r", tables, 28) == []
    assert tracked.loading is not None
    assert tracked.loading.blocks == (11, 12, 13, 14, 15, 16, 17, 27, 37)


def test_the_state_is_loaded_whatever_vllm_has_itself(book: Book) -> None:
    tracked = loading(book)
    assert book.offer("r", 6 * BLOCK) == BLOCK
    tables = [[11, 12, 13, 14, 15, 16, 17], [0, 0, 0, 0, 0, 0, 27], [0, 0, 0, 0, 0, 0, 37]]
    book.allocated("r", tables, BLOCK)
    assert tracked.loading is not None and tracked.loading.blocks == (17, 27, 37)


def test_a_state_of_one_group_alone_is_no_hit(book: Book) -> None:
    book.has(FULL, *range(9))
    book.has(FIRST, 6, 8)
    book.has(SECOND, 5)
    book.arrive()
    book.ask()
    assert book.offer("r", 0) == 0


def test_without_attention_one_state_is_all() -> None:
    book = Book(FIRST)
    book.has(FIRST, 6)
    book.arrive()
    assert book.ask() == [1, 1] and book.offer("r", 0) == 28


def test_where_nobody_can_look_the_state_of_an_earlier_prompt_is_asked_for() -> None:
    """The next turn of a conversation: attention is there to the end of the answer."""
    book = Book(FULL, FIRST, sees=False)
    run(book, offered(4)[:1])
    book.finished("r", 99)
    book.has(FULL, *range(10))
    book.has(FIRST, 3)
    book.arrive()
    assert book.ask() == [10, 11, 4 + 1], "and not behind eight blocks"
    assert book.offer("r", 0) == 16
