"""What is asked, offered, loaded and saved for a request of several groups, step by step."""

import pytest

from pegaflow.client import Lease, Seen
from pegaflow.connectors.common.grouped import GroupedRequests, Tables
from pegaflow.connectors.common.groups import Group, Groups
from pegaflow.connectors.common.hints import Hints
from pegaflow.connectors.common.requests import KEEP_S
from pegaflow.connectors.common.tracked import GroupedRequest, Lookup, SaveOrder
from pegaflow.wire.identities import Incarnation, LeaseId
from pegaflow.wire.values import LIST_MAX
from tests.connectors.vllm.fakes import BLOCK, Request

FULL, WINDOW = Group(0), Group(1, 2)
LENGTH = 41
"""Tokens of ten full blocks, and one."""


class Book(GroupedRequests):
    """One request, and what the cache has of it."""

    def __init__(self, *groups: Group, sees: bool = True, patience_s: float = 0.0) -> None:
        self.here: set[bytes] = set()
        self.sees = sees
        self.looks = 0
        made = Groups(groups)
        step = made.hashes * BLOCK
        self.flying = self.processed = 0  # tokens of steps that are under way, and of those before
        super().__init__(
            step,
            BLOCK,
            patience_s=patience_s,
            groups=made,
            see=self._sight,
            processed=lambda _: self.processed,
        )

    def stepped(
        self, request: str, blocks: Tables, replace: bool, computed: int, *, scheduled: int
    ) -> list[SaveOrder]:
        self.processed = computed - self.flying
        return super().stepped(request, blocks, replace, computed, scheduled=scheduled)

    def _sight(self, keys: object) -> Seen | None:
        self.looks += 1
        assert isinstance(keys, list) and keys
        return Seen(tuple(key in self.here for key in keys), None) if self.sees else None

    def has(self, group: Group, *blocks: int) -> None:
        """Blocks of the request are in the cache."""
        chain = Request("r", LENGTH).block_hashes
        for block in blocks:
            self.here.update(self._groups.keys(group, chain, block, block + 1))

    def arrive(self, tokens: int = LENGTH, **hints: bool) -> GroupedRequest:
        """The request."""
        made = self.add("r", Request("r", tokens), Hints(**hints))
        assert isinstance(made, GroupedRequest)
        return made

    def ask(self, now_s: float = 0.0) -> list[int]:
        """All questions; how many keys each had."""
        asked = []
        while keys := self.wants("r", now_s):
            asked.append(len(keys))
            ticket = len(asked) + 100
            self.asked("r", ticket, now_s)
            blocks = next((n for n, key in enumerate(keys) if key not in self.here), len(keys))
            lease = Lease(Incarnation(1), LeaseId(ticket), blocks) if blocks else None
            unwanted = self.answered(ticket, lease, True, now_s)
            assert (unwanted or lease) is lease
        return asked


@pytest.fixture
def book() -> Book:
    """Full attention and a window of two blocks."""
    return Book(FULL, WINDOW)


def test_a_hit_takes_two_questions_where_the_windows_are_at_the_end(book: Book) -> None:
    book.has(FULL, *range(7))
    book.has(WINDOW, 5, 6)
    book.arrive()
    assert book.ask() == [10, 7 + 2] and book.looks == 0
    assert [book.offer("r", local) for local in (0, 5 * BLOCK, 7 * BLOCK)] == [28, 8, 0]


def test_else_the_cache_is_looked_at_for_the_next_place(book: Book) -> None:
    book.has(FULL, *range(7))
    book.has(WINDOW, 0, 2, 3, 5)
    tracked = book.arrive()
    assert book.ask() == [10, 9, 4 + 2]
    assert book.offer("r", 0) == 16
    assert tracked.parted == 7


def test_a_short_window_at_the_start_is_one(book: Book) -> None:
    book.has(FULL, *range(7))
    book.has(WINDOW, 0)
    book.arrive()
    assert book.ask() == [10, 9, 2]
    assert book.offer("r", 0) == 4


def test_without_full_attention_the_end_of_the_prompt_is_asked_for_first() -> None:
    book = Book(WINDOW)
    book.has(WINDOW, 4, 5)
    tracked = book.arrive()
    assert book.ask() == [2, 2]
    assert book.offer("r", 0) == 24
    assert tracked.parted == 0, "that others came so far is not known"


def test_no_window_is_no_hit_and_nothing_is_asked_twice(book: Book) -> None:
    book.has(FULL, *range(7))
    book.arrive()
    assert book.ask() == [10, 9] and book.offer("r", 0) == 0
    assert book.ask() == []


def test_between_two_questions_a_request_waits_unless_nobody_can_be_asked(book: Book) -> None:
    book.has(FULL, *range(7))
    tracked = book.arrive()
    book.wants("r", 0.0)
    book.asked("r", 1, 0.5)
    first = Lease(Incarnation(1), LeaseId(1), 7)
    assert book.answered(1, first, True, 0.6) is first
    assert book.offer("r", 0) is None
    book.wants("r", 2.0)
    book.asked("r", 2, 2.0)
    book.give_up(before_s=0.4)
    assert tracked.ticket == 2 and book.offer("r", 0) is None
    book.give_up(before_s=0.5)
    assert book.offer("r", 0) == 0, "the time counts from the first question"


def test_a_request_that_cannot_ask_its_next_question_is_a_miss(book: Book) -> None:
    book.arrive()
    book.wants("r", 0.0)
    book.asked("r", 1, 0.0)
    book.answered(1, Lease(Incarnation(1), LeaseId(1), 7), True, 0.0)
    book.settle("r", Lookup.EARLY)
    assert book.offer("r", 0) is None
    book.settle("r", Lookup.SHORT)
    assert book.offer("r", 0) == 0


def test_who_waits_for_the_full_prefix_waits_for_its_windows() -> None:
    book = Book(FULL, WINDOW, patience_s=1.0)
    book.has(FULL, *range(10))
    book.arrive(wait_for_full_prefix=True)
    assert book.ask(0.0) == [10, 12] and book.offer("r", 0) is None
    book.has(WINDOW, 8, 9)
    assert book.ask(0.5) == [10, 12] and book.offer("r", 0) == 40


def test_one_token_is_left_to_compute(book: Book) -> None:
    book.has(FULL, *range(10))
    book.has(WINDOW, *range(10))
    book.arrive(tokens=40)
    assert book.ask() == [9, 11] and book.offer("r", 0) == 36


def test_a_request_that_was_shortened_since_it_asked_is_offered_nothing_and_no_load_fails(
    book: Book,
) -> None:
    """Its last tokens go to another connector: one of the prompt, or as many as a window needs."""
    book.has(FULL, *range(10))
    book.has(WINDOW, *range(10))
    tracked = book.arrive()
    assert isinstance(tracked.source, Request)
    book.ask()
    assert book.offer("r", 0) == 40
    for tokens in (40, 38):
        tracked.source.num_tokens = tokens
        assert book.offer("r", 0) == 0
    assert book.allocated("r", [[11], [21]], 0) and tracked.limit is None
    assert len(book.ask()) == 2 and book.offer("r", 0) == 36, "it asks for less the next time"


def loading(book: Book) -> GroupedRequest:
    """A request that can resume at block 7."""
    book.has(FULL, *range(7))
    book.has(WINDOW, 5, 6)
    tracked = book.arrive()
    book.ask()
    return tracked


def test_only_what_each_group_needs_is_loaded(book: Book) -> None:
    tracked = loading(book)
    assert book.offer("r", 6 * BLOCK) == BLOCK
    tables = [[11, 12, 13, 14, 15, 16, 17], [0, 0, 0, 0, 0, 26, 27]]
    assert book.allocated("r", tables, BLOCK) == []
    order = tracked.loading
    assert order is not None and (order.first, order.blocks) == (7, (17, 27))


def test_the_windows_blocks_below_are_loaded_where_vllm_has_none(book: Book) -> None:
    tracked = loading(book)
    assert book.offer("r", 0) == 28
    tables = [[11, 12, 13, 14, 15, 16, 17], [0, 0, 0, 0, 0, 26, 27]]
    book.allocated("r", tables, 28)
    assert tracked.loading is not None
    assert tracked.loading.blocks == (11, 12, 13, 14, 15, 16, 26, 17, 27)


@pytest.mark.parametrize(
    ("tokens", "window"),
    [(24, [0, 0, 0, 0, 25, 26]), (27, [0, 0, 0, 0, 0, 26, 27]), (28, [0, 0, 0, 0, 0, 0, 27])],
    ids=["fewer", "a part of a block", "a block that is not there"],
)
def test_what_cannot_be_loaded_is_not_tried_again(
    book: Book, tokens: int, window: list[int]
) -> None:
    tracked = loading(book)
    book.offer("r", 0)
    (lease,) = book.allocated("r", [[11, 12, 13, 14, 15, 16, 17], window], tokens)
    assert lease.blocks == 9 and tracked.loading is None
    assert book.ask() == [] and book.offer("r", 0) == 0


def test_a_load_that_failed_is_not_tried_again_and_all_of_it_is_saved_again(book: Book) -> None:
    tracked = loading(book)
    book.offer("r", 0)
    book.allocated("r", [[11, 12, 13, 14, 15, 16, 17], [0, 0, 0, 0, 0, 26, 27]], 28)
    book.refused({"r"})
    book.loaded("r")
    assert book.ask() == [] and book.offer("r", 0) == 0
    tables = [list(range(1, 12)), list(range(21, 32))]
    full, window = book.stepped("r", tables, True, 0, scheduled=41)
    assert full.blocks == tuple(range(1, 11))
    assert window.blocks == (29, 30)
    assert tracked.kept == 10


def test_a_window_is_saved_in_the_step_that_reaches_the_end_of_the_prompt(book: Book) -> None:
    book.arrive()
    assert len(book.stepped("r", [[1, 2, 3, 4], [11, 12, 13, 14]], True, 0, scheduled=16)) == 1
    more = [[5, 6, 7, 8, 9, 10, 15], [16, 17, 18, 19, 20, 21, 22]]
    full, window = book.stepped("r", more, False, 16, scheduled=25)
    assert full.blocks == (5, 6, 7, 8, 9, 10) and full.first == 4
    chain = Request("r", LENGTH).block_hashes
    assert window.keys == tuple(book._groups.key(WINDOW, name) for name in chain[8:10])
    assert window.blocks == (20, 21) and window.parent == chain[9]
    assert book.saving(window).end == 40
    assert book.reused([20]) == (window.order,), "it may be taken away while the request runs"
    assert book.reused([5]) == ()


def test_a_window_that_was_there_and_is_no_more_is_saved_again(book: Book) -> None:
    """The request waited for longer than a hit is kept, and asked once more."""
    book.has(FULL, *range(10))
    book.has(WINDOW, 8, 9)
    book.arrive()
    book.ask()
    assert book.offer("r", 0) == 40 and len(book.stale(KEEP_S + 1)) == 1
    book.here.clear()
    book.ask(KEEP_S + 1)
    assert book.offer("r", 0) == 0 and book.allocated("r", [[], []], 0) == []
    tables = [list(range(1, 12)), list(range(21, 32))]
    full, window = book.stepped("r", tables, True, 0, scheduled=LENGTH)
    assert full.blocks == tuple(range(1, 11)) and window.blocks == (29, 30)


def test_a_step_that_turns_out_void_has_the_window_saved_at_the_next_place(book: Book) -> None:
    tracked = book.arrive()
    full, window = book.stepped(
        "r", [list(range(1, 12)), list(range(21, 32))], True, 0, scheduled=41
    )
    for saving in map(book.saving, (full, window)):
        book.void(saving.request, saving.first)
    assert (tracked.saved_to, tracked.kept) == (0, 0)


def test_a_request_that_ends_leaves_its_last_window(book: Book) -> None:
    book.add("r", Longer("r", 60, prompt=41))
    tables = [list(range(1, 16)), list(range(21, 36))]
    book.stepped("r", tables, True, 0, scheduled=60)
    tables[1][:12] = [0] * 12
    book.ends("r", tables, 59)
    held, _ = book.finished("r", 99)
    (late,) = book.late(())
    assert not held and late.blocks == (33, 34)
    assert book.late(()) == []


class Longer(Request):
    """A request with output."""

    def __init__(self, name: str, tokens: int, prompt: int) -> None:
        super().__init__(name, tokens)
        self.prompt = prompt

    @property
    def num_prompt_tokens(self) -> int:
        return self.prompt


def ended(book: Book, processed: int, begun: int = 0) -> None:
    """A request of which so much is computed by steps that are over."""
    book.add("r", Longer("r", 56, prompt=41))
    book.stepped("r", [list(range(1, 15)), list(range(21, 35))], True, begun, scheduled=1)
    book.ends("r", [list(range(1, 15)), list(range(21, 35))], processed)


def test_of_what_no_step_of_its_own_stands_behind_nothing_is_left(book: Book) -> None:
    ended(book, processed=56, begun=56)
    assert book.late(()) == []


def test_a_request_that_ends_while_another_connector_loads_leaves_nothing(book: Book) -> None:
    book.arrive()
    tables = [list(range(11, 18)), [0, 0, 0, 0, 0, 26, 27]]
    for processed in (28, 24):  # before it was ever computed, and again when it was preempted
        assert book.allocated("r", tables, 0) == []
        book.ends("r", tables, processed)
        assert book.late(()) == []
        book.stepped("r", [list(range(1, 12)), list(range(21, 32))], True, 0, scheduled=8)
        book.preempted("r")


def test_late_orders_whose_blocks_are_given_away_do_not_leave(book: Book) -> None:
    ended(book, processed=56)
    book.finished("r", 99)
    (order,) = (number for number in book._open if 34 in book._open[number].blocks)
    assert book.late(book.reused([34])) == []
    assert order not in book._open


def test_after_an_error_no_late_order_leaves(book: Book) -> None:
    ended(book, processed=56)
    book.drop_late()
    assert book.late(()) == [] and not book._open


def test_blocks_of_two_groups_of_full_attention_that_go_between_two_questions_are_a_miss() -> None:
    """A model without windows has no other place to look at."""
    second = Group(1)
    book = Book(FULL, second)
    for group in (FULL, second):
        book.has(group, *range(7))
    tracked = book.arrive()
    first = book.wants("r", 0.0)
    book.asked("r", 1, 0.0)
    one, other = (Lease(Incarnation(1), LeaseId(n), n) for n in (14, 13))
    assert len(first) == 20 and book.answered(1, one, True, 0.0) is one
    again = book.wants_next("r")
    book.asked("r", 2, 0.0)
    assert len(again) == 14
    assert book.answered(2, other, True, 0.0) is other, "evicted meanwhile: it goes back"
    assert tracked.lookup is Lookup.MISS


LONG = Group(0, hashes=2)
"""Full attention, whose blocks are as long as two of the windows'."""


def test_blocks_of_other_lengths_are_asked_for_found_and_loaded_to_a_place() -> None:
    book = Book(LONG, WINDOW)
    book.has(LONG, 0, 1, 2)
    book.has(WINDOW, 2, 3, 4, 5)
    tracked = book.arrive()
    assert book.ask() == [5, 3 + 2]
    assert [book.offer("r", local) for local in (0, 16, 24, 20)] == [24, 8, 0, 0]
    assert book.offer("r", 8) == 16
    assert book.allocated("r", [[11, 12, 13], [0, 0, 0, 0, 25, 26]], 16) == []
    assert tracked.loading is not None
    assert (tracked.loading.first, tracked.loading.blocks) == (1, (12, 13, 25, 26))


def test_a_block_that_one_group_lacks_ends_the_hit_at_the_place_before() -> None:
    book = Book(LONG, WINDOW)
    book.has(LONG, *range(5))
    book.has(WINDOW, 2, 3, 4, 5, 6, 7, 9)
    book.arrive()
    assert book.ask() == [5, 5 + 2, 4 + 2]
    assert book.offer("r", 0) == 32


def test_each_group_saves_blocks_of_its_own_up_to_the_last_place() -> None:
    book = Book(LONG, WINDOW)
    book.add("r", Request("r", 39))
    full, window = book.stepped("r", [[1, 2, 3, 4, 5], [*range(21, 31)]], True, 0, scheduled=39)
    chain = Request("r", 39).block_hashes
    assert full.keys == tuple(chain[1:8:2]) and full.blocks == (1, 2, 3, 4)
    assert window.keys == tuple(book._groups.key(WINDOW, name) for name in chain[6:8])
    assert window.blocks == (27, 28) and window.parent == chain[7]
    assert book.saving(window).end == book.saving(full).end == 32


def test_a_request_that_waits_needs_more_blocks_of_short_ones() -> None:
    book = Book(LONG, WINDOW)
    book.arrive()
    book.add("other", Request("other", 9))
    book.stepped("other", [[1, 2], [3, 4, 5]], True, 0, scheduled=9)
    # Six and twelve blocks wait to be taken, and two of each by the one that runs.
    held = {free: book._wanted(free) for free in (21, 22)}
    assert held == {21: True, 22: False}


def test_no_question_has_more_keys_than_a_message_holds() -> None:
    whole = Group(1, 4, hashes=2)
    book = Book(FULL, whole)
    long = Request("r", LIST_MAX * BLOCK + 1)
    book.add("r", long)
    places = (LIST_MAX - 4) // 2
    assert len(book.wants("r", 0.0)) == 2 * places
    assert len(book._groups.needed_keys(long.block_hashes, places)) == LIST_MAX


def test_windows_of_other_weights_are_saved_again_once_they_are_computed_anew(book: Book) -> None:
    book.has(FULL, *range(9))
    book.has(WINDOW, 7, 8)
    book.arrive()
    book.ask()
    assert book.offer("r", 0) == 36
    book.here.clear()
    assert book.clear_answers()
    tables = [[*range(1, 12)], [*range(21, 32)]]
    orders = book.stepped("r", tables, True, 0, scheduled=41)
    saved = [block for order in orders for block in order.blocks]
    assert {29, 30} <= {*saved}, "both that are needed at the tenth place"
