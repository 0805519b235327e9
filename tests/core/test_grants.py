"""Numbered grants: a granter's book, a holder's, and words that are lost between them."""

from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.grants import Grants, Holdings, omitted


def test_a_statement_mends_what_was_lost() -> None:
    book: Grants[int, str] = Grants(int)
    for name in "abc":
        book.add("h", book.next("h"), name)
    found = book.statement("h", 2, [2])  # the end of 1 was lost, and the grant of 3
    assert found == ([(1, "a")], [(3, "c")])
    assert book.held("h") == [(2, "b"), (3, "c")]
    book.check()


def test_what_a_statement_omits_was_given_back_up_to_the_number_that_was_heard() -> None:
    granted = {"a": 1, "b": 1, "c": 2, "d": 3}
    assert omitted(granted, 2, ["b", "of nobody"]) == ["a", "c"]
    assert omitted(granted, 0, ()) == []


def test_numbers_are_never_used_again_while_the_holder_lives() -> None:
    book: Grants[int, str] = Grants(int)
    book.add("h", book.next("h"), "a")
    assert book.end("h", 1) == "a" and book.end("h", 1) is None
    assert book.next("h") == 2
    after: Grants[int, str] = Grants(int)
    after.go_on_from("h", 2)
    after.add("h", 7, "restated")
    assert after.next("h") == 8
    assert after.fence("h") == [(7, "restated")] and after.last("h") == 0


def test_a_grant_that_is_sent_again_is_not_heard_twice() -> None:
    mine: Holdings[int, str] = Holdings(int)
    assert mine.hear(1) and not mine.hear(1)
    mine.hold(2, "b")
    assert (mine.upto, mine.numbers(), mine.end(2), len(mine)) == (2, (2,), "b", 0)


EVENT = st.tuples(st.sampled_from(["grant", "end", "state"]), st.booleans(), st.integers(0, 9))


@given(st.lists(EVENT, max_size=60))
def test_both_books_agree_after_a_statement_that_arrives(
    events: list[tuple[str, bool, int]],
) -> None:
    book: Grants[int, int] = Grants(int)
    mine: Holdings[int, int] = Holdings(int)
    for what, arrives, pick in [*events, ("state", True, 0), ("state", True, 0)]:
        if what == "grant":
            number = book.next("h")
            book.add("h", number, number)
            if arrives:
                mine.hold(number, number)
        elif what == "end" and len(mine):
            number = mine.numbers()[pick % len(mine)]
            mine.end(number)
            if arrives:
                book.end("h", number)
        elif arrives:
            for number, grant in book.statement("h", mine.upto, mine.numbers()).resend:
                if mine.hear(number):
                    mine.hold(number, grant)
        book.check()
    assert [n for n, _ in book.held("h")] == sorted(mine.numbers())
