"""Windows of an answer of which tokens are drafted: steps go past places, and may be taken back."""

import pytest

from pegaflow.connectors.common.groups import Group

from .test_grouped import LONG, Book, Longer

SPARE = Group(1, 2, spare=3)
"""A window of eight tokens."""


def answering(book: Book) -> tuple[Longer, list[list[int]]]:
    """A request whose prompt of 20 tokens is computed and saved up to the second place."""
    request, tables = Longer("r", 21, prompt=20), [list(range(1, 9)), list(range(21, 37))]
    book.add("r", request)
    orders = book.stepped("r", tables, True, 0, scheduled=20)
    assert [order.blocks for order in orders] == [(1, 2), (23, 24)]
    return request, tables


@pytest.mark.parametrize(("processed", "found"), [(23, True), (24, True), (26, True), (27, False)])
def test_a_place_that_drafted_tokens_step_over_is_saved_while_its_window_is_there(
    processed: int, found: bool
) -> None:
    """vLLM takes the first block of the window at 24 away when 27 tokens are computed."""
    book = Book(LONG, SPARE)
    request, _ = answering(book)
    request.num_tokens = processed + 1
    full, *windows = book.stepped("r", [[], []], False, processed, scheduled=4)
    assert full.blocks == (3,)
    assert [window.blocks for window in windows] == [(25, 26)] * found
    for window in windows:
        assert window.keys == tuple(
            book._groups.key(SPARE, name) for name in request.block_hashes[4:6]
        )
        assert book.saving(window).end == max(24, processed + 1), "it stands if the step does"


@pytest.mark.parametrize("processed", [23, 24, 26])
def test_tokens_in_steps_under_way_are_not_yet_computed(processed: int) -> None:
    """They may be taken back, and vLLM takes no block away for them."""
    book = Book(LONG, SPARE)
    request, _ = answering(book)
    request.num_tokens, book.flying = processed + 1, 4
    _, window = book.stepped("r", [[], []], False, processed + 4, scheduled=4)
    assert window.blocks == (25, 26)
    assert book.saving(window).end == max(24, processed + 1), "of the drafted ones none may stay"


def test_steps_of_a_request_that_was_preempted_do_not_put_it_back() -> None:
    """They are under way when it is computed anew, from a place whose window alone it has."""
    book = Book(LONG, SPARE)
    _, tables = answering(book)
    book.preempted("r")
    tables[1][:2], book.flying = [0, 0], 5
    full, window = book.stepped("r", tables, True, 16, scheduled=4)
    assert window.blocks == (23, 24) and full.blocks == (1, 2)
    assert book.saving(window).end == 17
