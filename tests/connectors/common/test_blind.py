"""Where a request of several groups is found to resume if nobody can look into the cache."""

from pegaflow.connectors.common.groups import APART, Group
from pegaflow.connectors.common.places import PLACES_ASKED
from tests.connectors.vllm.fakes import BLOCK, Request

from .test_grouped import FULL, WINDOW, Book, loading


def test_where_nobody_can_look_the_regular_place_before_is_asked_for() -> None:
    book = Book(FULL, Group(1, 1), sees=False)
    book.has(FULL, *range(10))
    book.has(Group(1, 1), APART - 1)
    book.arrive()
    assert book.ask() == [10, 11, APART + 1]
    assert book.offer("r", 0) == APART * BLOCK


def leaves(book: Book, *lengths: int) -> None:
    """Requests of so many tokens have left their windows, each at the end of its prompt."""
    for length in lengths:
        book.add(str(length), Request(str(length), length))
        book.stepped(str(length), [list(range(1, 12))] * 2, True, 0, scheduled=length)


def test_where_nobody_can_look_places_that_others_have_left_are_asked_for() -> None:
    book = Book(FULL, WINDOW, sees=False)
    leaves(book, 21, 30)
    book.has(FULL, *range(10))
    book.has(WINDOW, 3, 4)
    book.arrive()
    assert book.ask() == [10, 12, 7 + 2, 5 + 2]
    assert book.offer("r", 0) == 20
    book.preempted("r")
    leaves(book, 26)
    book.has(WINDOW, 5)
    assert book.ask() == [10, 12, 7 + 2, 6 + 2]
    assert book.offer("r", 0) == 24


def test_where_nobody_can_look_few_places_are_asked_for() -> None:
    book = Book(FULL, WINDOW, sees=False)
    leaves(book, *range(9, 41, 4))
    book.has(FULL, *range(10))
    book.has(WINDOW, 0, 1)
    book.arrive()
    assert book.ask() == [10, 12, 9 + 2, 8 + 2, 7 + 2] and book.looks == PLACES_ASKED
    assert book.offer("r", 0) == 0


def test_where_nobody_can_look_a_place_that_was_resumed_at_is_asked_for() -> None:
    book = Book(FULL, WINDOW, sees=False)
    loading(book)
    book.finished("r", 99)
    book.has(FULL, *range(10))
    book.arrive()
    assert book.ask() == [10, 12, 7 + 2] and book.offer("r", 0) == 28
