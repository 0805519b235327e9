"""Publisher and copies over a bad network: once it is quiet, the copy is what the publisher has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.directory import journal
from pegaflow.core.directory.copies import (
    ASK_AGAIN_NS,
    GONE_NS,
    HIDDEN_NS,
    REFUSED_MOST,
    REFUSED_NS,
    Copies,
)
from pegaflow.core.directory.held import LAST_NAME
from pegaflow.core.directory.journal import WHOLE, Ask, Chunk, Publisher, Standing
from pegaflow.core.pool.fingerprints import U64
from tests.core.directory.link import HOST, MOST, Link, chunks, settled
from tests.core.directory.test_held import names_of, spread


@pytest.fixture(autouse=True)
def small_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "CHUNK_BLOCKS", 8)
    monkeypatch.setattr(journal, "JOURNAL_BLOCKS", 30)
    monkeypatch.setattr(journal, "ANSWER_BLOCKS", 12)


numbers = st.lists(st.integers(1, 60), max_size=20)
events = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "take", "take and put", "fetch"]), numbers),
        st.tuples(
            st.sampled_from(["tell", "stand", "arrive", "ask", "wait", "publisher", "follower"]),
            st.just(list[int]()),
        ),
        st.tuples(st.sampled_from(["lose", "late", "twice"]), st.just([1])),
    ),
    max_size=60,
)


def happen(link: Link, what: str, names: U64) -> None:
    if what == "put":
        link.put(names)
    elif what == "take":
        link.take(names)
    elif what == "take and put":
        some = names[[name in link.owned for name in names.tolist()]]
        link.take(some)
        link.fetch(some)
        link.put(some)
    elif what == "fetch":
        link.fetch(names)
    elif what == "tell":
        link.tell()
    elif what == "stand":
        link.there.append(link.publisher.standing)
    elif what == "arrive" and link.there:
        link.arrive(link.there.pop(0))
    elif what == "ask" and link.back:
        link.asked(link.back.pop(0))
    elif what == "wait":
        link.now += ASK_AGAIN_NS
        link.wake()
    elif what == "publisher":
        link.restart_publisher()
    elif what == "follower":
        link.copies = Copies(2, MOST)
    elif what == "lose" and link.there:
        link.there.pop(0)
    elif what == "late" and link.there:
        link.there.append(link.there.pop(0))
    elif what == "twice" and link.there:
        link.there.append(link.there[0])


@given(events)
def test_once_it_is_quiet_the_copy_is_what_the_publisher_has(
    some: list[tuple[str, list[int]]],
) -> None:
    link = Link()
    for what, which in some:
        happen(link, what, names_of(sorted(set(which))))
        link.check()
    link.settle()
    link.check()
    assert link.known == link.owned


def test_a_snapshot_goes_on_while_changes_do() -> None:
    link, names = Link(), spread(200)
    link.put(names[:150])
    link.tell()
    link.there = [link.publisher.standing]
    count = 0
    for n, chunk in enumerate(chunks(link)):
        assert len(chunk.names) <= journal.CHUNK_BLOCKS
        link.put(names[150 + n : 151 + n])
        link.take(names[3 * n : 3 * n + 1])
        link.tell()
        count += 1
        if count == 15:
            break
    for _ in chunks(link):
        count += 1
    assert link.copies.of(HOST).whole and link.known == link.owned
    assert count < 60


def test_one_lost_change_is_not_a_snapshot() -> None:
    link, names = settled(50)
    for n in range(3):
        link.take(names[n : n + 1])
        link.tell()
    del link.there[0]
    assert list(chunks(link)) == [] and link.known == link.owned


def test_who_has_missed_more_than_the_journal_has_gets_a_snapshot() -> None:
    link, names = settled(50)
    link.take(names[:40])
    link.tell()
    link.there = [link.publisher.standing]
    assert list(chunks(link)) != [] and link.known == link.owned


def test_the_last_change_is_missed_only_until_the_next_standing() -> None:
    link, names = settled(20)
    link.take(names[:1])
    link.tell()
    link.there = [link.publisher.standing]
    assert list(chunks(link)) == [] and link.known == link.owned


def test_what_is_told_of_another_life_is_a_hint_until_it_is_replaced() -> None:
    link, names = settled(60)
    link.take(names[:30])
    link.restart_publisher()
    link.tell()
    link.there = [link.publisher.standing]
    for chunk in chunks(link):
        known = link.known
        assert {n for n in known if n <= chunk.last} == {n for n in link.owned if n <= chunk.last}
        assert {n for n in known if n > chunk.last} == {n for n in names.tolist() if n > chunk.last}
    assert link.known == link.owned


def test_a_table_that_has_to_grow_does_so_before_the_snapshot(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journal, "CHUNK_BLOCKS", 400)
    link = Link(Copies(2, 30_000), Publisher(1, 30_000))
    link.put(spread(10_000))
    link.settle()
    assert link.known == link.owned and link.copies.of(HOST).ignored == 0
    assert link.copies._held.expect(HOST, 0)
    link.check()


def test_large_changes_are_spread_over_a_small_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "CHUNK_BLOCKS", 1000)
    monkeypatch.setattr(journal, "JOURNAL_BLOCKS", 30_000)
    link = Link(Copies(2, 30_000), Publisher(1, 30_000))
    link.settle()
    link.put(spread(10_000))
    link.settle()
    assert link.known == link.owned and link.copies.of(HOST).ignored == 0


def test_a_host_that_has_too_much_is_known_in_part() -> None:
    link = Link(Copies(2, 100), Publisher(1, 500))
    link.put(spread(300))
    link.settle()
    assert len(link.known) == 100 and link.copies.of(HOST).ignored == 200


def test_silence_hides_a_host_and_its_word_brings_it_back() -> None:
    link, names = settled(20)
    heard = link.copies.of(HOST).heard_at
    assert heard is not None
    assert link.copies.owners_of(names, heard + HIDDEN_NS - 1).all()
    link.now = heard + HIDDEN_NS
    assert not link.copies.owners_of(names, link.now).any()
    link.copies.heard(HOST, link.now)
    assert link.copies.owners_of(names, link.now).all()


def test_a_long_silence_drops_a_host_which_then_begins_anew() -> None:
    link, names = settled(20)
    wake_at = link.copies.wake_at()
    assert wake_at is not None and wake_at > link.now
    link.now = wake_at
    assert link.copies.wake(link.now) == []
    assert link.copies.blocks(HOST) == 0 and not link.copies.owners_of(names, 0).any()
    assert (link.copies.wake_at(), link.copies.of(HOST).incarnation) == (0, 0)
    link.wake()
    assert link.copies.wake_at() is None
    link.settle()
    assert link.known == link.owned


def test_a_lost_question_is_asked_again_and_only_one_is_open() -> None:
    link = Link()
    link.put(spread(5))
    link.tell()
    standing = link.publisher.standing
    first = link.copies.receive(HOST, standing, 5)
    assert first is not None and link.copies.receive(HOST, standing, 6) is None
    assert link.copies.wake_at() == 5 + ASK_AGAIN_NS
    assert link.copies.wake(4 + ASK_AGAIN_NS) == []
    [(host, again)] = link.copies.wake(5 + ASK_AGAIN_NS)
    assert host == HOST and again.serial != first.serial
    late, right = link.publisher.answer(first), link.publisher.answer(again)
    assert link.copies.receive(HOST, late[0], 7 + ASK_AGAIN_NS) is None and link.known == set()
    link.copies.receive(HOST, right[0], 7 + ASK_AGAIN_NS)
    assert link.known == link.owned


def test_a_silent_host_is_not_asked_again_and_again() -> None:
    link = Link()
    assert link.copies.receive(HOST, Standing(1, 1), 0) is not None
    assert len(link.copies.wake(ASK_AGAIN_NS)) == len(link.copies.wake(2 * ASK_AGAIN_NS)) == 1
    assert link.copies.wake(HIDDEN_NS) == []
    assert link.copies.wake_at() == GONE_NS


def test_a_slot_that_is_forgotten_is_free_for_another_host() -> None:
    link, names = settled(20)
    link.copies.forget(HOST)
    assert not link.copies.owners_of(names, link.now).any()
    assert link.copies.of(HOST).whole is False and link.copies.of(HOST).heard_at is None


def test_what_a_host_refused_is_not_brought_back_by_what_is_older() -> None:
    link, names = settled(20)
    gone = names[:1]
    link.take(gone)
    link.tell()
    link.put(gone)
    link.tell()
    late = link.there
    link.there = []
    link.take(gone)  # it is still to be told
    assert link.copies.missing(HOST, gone, link.publisher.standing, link.now) is None
    for said in late:
        link.arrive(said)
    assert not link.copies.owners_of(gone, link.now).any()
    link.put(gone)
    link.settle()
    assert link.known == link.owned and gone.item() in link.known


def test_what_a_snapshot_on_its_way_names_is_not_brought_back_either() -> None:
    link, names = settled(5)
    link.copies = Copies(2, MOST)
    asked = link.copies.receive(HOST, link.publisher.standing, link.now)
    assert asked is not None
    [chunk] = link.publisher.answer(asked)
    link.take(names[:1])
    link.copies.missing(HOST, names[:1], link.publisher.standing, link.now)
    for _ in range(2):
        link.copies.receive(HOST, chunk, link.now)
    assert not link.copies.owners_of(names[:1], link.now).any()


def test_a_refusal_that_is_older_than_the_copy_is_ignored() -> None:
    link, names = settled(20)
    gone = names[:1]
    link.take(gone)
    as_of = link.publisher.standing
    link.put(gone)
    link.settle()
    assert link.copies.missing(HOST, gone, as_of, link.now) is None
    assert link.known == link.owned


def test_refusals_are_remembered_briefly_and_not_without_bound() -> None:
    link, names = settled(20)
    many = names_of(list(range(1, REFUSED_MOST + 100)))
    link.copies.missing(HOST, many, link.publisher.standing, link.now)
    link.copies.check()
    assert len(link.copies.of(HOST).refused) == REFUSED_MOST
    link.put(many[:5])
    link.tell()
    link.now += REFUSED_NS
    link.settle()
    assert not link.copies.of(HOST).refused
    assert link.known == link.owned


def test_an_ask_that_nobody_could_have_said_is_answered_with_a_snapshot() -> None:
    link, _ = settled(50)
    asks = Ask(1, 1, LAST_NAME, WHOLE), Ask(2, 77, 1, 5), Ask(3, 1, 0, WHOLE), Ask(4, 0, 0, WHOLE)
    for ask in asks:
        [said] = link.publisher.answer(ask)
        assert isinstance(said, Chunk) and (said.first, said.serial) == (0, ask.serial)


def test_the_publisher_tells_of_no_more_than_it_may() -> None:
    publisher = Publisher(1, 10)
    assert publisher.add(spread(25)) == 15 and publisher.blocks == 10
    told = [change for change in iter(publisher.changes, None)]
    assert sum(len(change.added) for change in told) == 10
    publisher.check()


def test_what_comes_and_goes_before_it_is_told_is_not_told() -> None:
    publisher, names = Publisher(1, 100), spread(5)
    publisher.add(names)
    publisher.remove(names)
    assert publisher.changes() is None and publisher.standing == Standing(1, 0)


def test_a_refusal_of_another_life_costs_a_snapshot_and_no_block() -> None:
    link, names = settled(20)
    before = link.publisher.standing
    link.restart_publisher()
    link.settle()
    ask = link.copies.missing(HOST, names[:3], before, link.now)
    assert ask is not None and ask.at == 0
    assert not link.copies.owners_of(names[:3], link.now).any()
    link.back = [ask]
    link.settle()
    assert link.known == link.owned


def test_a_chunk_that_a_change_has_overtaken_does_not_take_the_copy_back() -> None:
    link = Link()
    link.put(spread(40))
    link.tell()
    link.there = [link.publisher.standing]
    next(chunks(link))
    link.asked(link.back.pop())
    [late] = link.there
    assert isinstance(late, Chunk) and late.first > 0
    link.take(late.names)
    link.tell()
    *_, change = link.there
    number = link.copies.of(HOST).number
    link.arrive(change)
    link.arrive(late)
    assert link.copies.of(HOST).number == number + 1 and not link.known & set(late.names.tolist())
    link.there = []
    link.settle()
    assert link.known == link.owned
