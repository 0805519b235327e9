"""What other hosts read of us: loans, their ends, and whose word ends them."""

import pytest

from pegaflow.actors.peer import lending
from pegaflow.actors.peer.actor import PeerActor
from pegaflow.wire.control import BEAT_NS, Gone, Neighbour
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import NO_LEASE, Incarnation, LeaseId
from pegaflow.wire.index import Find, Held, LeasesHeld, LeasesLost, Release
from pegaflow.wire.peer import (
    AWAY_NS,
    LOAN_NS,
    PING_NS,
    Borrow,
    Enter,
    Entered,
    Follow,
    GiveBack,
    Lent,
    Ping,
    Returned,
)
from pegaflow.wire.peerjobs import (
    AdmitReader,
    DismissReader,
    LendPages,
    ReaderAdmitted,
    RecallPages,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import INDEX, Address
from tests.actors.rig import BOSS, EXTENT, HELLO, IDX, PAGE, Rig, one, pick, said
from tests.naming import as_leases, as_pages

from .peers import ANNA, BERT, DONE, KEYS, NS, OTHER, PEER_5, US, Peer

INDEX_9 = Address(INDEX, Incarnation(9))
BUDGET_NS = 500_000_000


def owner() -> Peer:
    peer = Peer()
    peer.hold(1, 2)
    return peer


def asked(peer: Peer, budget_ns: int = BUDGET_NS) -> Envelope:
    """Somebody borrows; what our index is asked."""
    return one(peer.rig.ask(BERT, Borrow(NS, KEYS[:4], budget_ns)), Find, IDX)


def lent(peer: Peer, lease: int, *pages: int) -> Lent:
    """The index lends us these, and we lend them."""
    held = Held(LeaseId(lease), 1, as_pages(*pages))
    assert not peer.rig.answer(asked(peer), held), "not before the transport knows of it"
    return said(peer.rig.done(LendPages), Lent, BERT)


def ping(peer: Peer, upto: int, *loans: int) -> list[Envelope]:
    return peer.rig.tell(BERT, Ping(0, 0, LeaseId(upto), as_leases(*loans)))


def test_a_host_is_admitted_by_the_transport() -> None:
    peer = owner()
    assert not peer.rig.ask(BERT, Enter(b"ask"))
    assert peer.rig.wanted(AdmitReader) == [AdmitReader(BERT.incarnation, b"ask")]
    sent = peer.rig.done(AdmitReader, ReaderAdmitted(b"offer", b"token"))
    assert said(sent, Entered, BERT) == Entered(Status.OK, b"offer", b"token")
    peer.rig.ask(BERT, Enter(b"nonsense"))
    assert said(peer.rig.done(AdmitReader, Status.BUSY), Entered, BERT) == Entered(Status.BUSY)


def test_blocks_are_lent_under_a_lease_of_our_index() -> None:
    peer = owner()
    find = asked(peer)
    assert find.message == Find(NS, KEYS[:4], near=True), "no other host is asked in turn"
    assert find.deadline == peer.rig.now + BUDGET_NS
    per_extent = EXTENT // PAGE
    peer.rig.answer(find, Held(LeaseId(7), 1, as_pages(0, 1, per_extent)))
    (job,) = peer.rig.wanted(LendPages)
    assert (job.reader, tuple(job.offsets)) == (BERT.incarnation, (0, PAGE, EXTENT))
    answer = said(peer.rig.done(LendPages), Lent, BERT)
    assert (answer.status, answer.blocks, answer.payload_bytes) == (Status.OK, 3, PAGE)
    assert answer.number == job.loan
    statement = said(peer.rig.wait(BEAT_NS), LeasesHeld, IDX)
    assert (statement.lease_upto, tuple(statement.leases)) == (7, (7,))


def test_a_lease_ends_only_when_nothing_is_read_under_it_any_more() -> None:
    peer = owner()
    loan = lent(peer, 7, 0)
    sent = peer.rig.ask(BERT, GiveBack(loan.number))
    assert said(sent, Returned, BERT).status is Status.OK
    assert not pick(sent, Release) and peer.rig.wanted(RecallPages) == [RecallPages(loan.number)]
    again = peer.rig.ask(BERT, GiveBack(loan.number))
    assert said(again, Returned, BERT).status is Status.NO_SUCH_LEASE, "it was given back"
    assert said(peer.rig.done(RecallPages), Release, IDX).number == 7
    assert not said(peer.rig.wait(BEAT_NS), LeasesHeld, IDX).leases


def test_nothing_found_is_nothing_lent() -> None:
    peer = owner()
    answer = said(peer.rig.answer(asked(peer), Held(NO_LEASE, 0, ())), Lent, BERT)
    assert (answer.status, answer.blocks) == (Status.OK, 0)
    sent = peer.rig.ask(BERT, Borrow(OTHER, KEYS, BUDGET_NS))
    assert said(sent, Lent, BERT).status is Status.NOT_READY, "we have nothing of that name"


def test_an_index_that_does_not_answer_ends_in_a_miss_within_the_budget() -> None:
    peer = owner()
    find = asked(peer)
    assert said(peer.rig.wait(BUDGET_NS), Lent, BERT).blocks == 0
    late = peer.rig.answer(find, Held(LeaseId(7), 1, as_pages(0)))
    assert said(late, Release, IDX).number == 7, "nobody waits for it any more"


def test_what_a_ping_leaves_out_is_over_and_what_it_names_stays() -> None:
    peer = owner()
    one_, two = lent(peer, 7, 0), lent(peer, 8, 1)
    for _ in range(10):
        peer.rig.wait(PING_NS)
        ping(peer, two.number, one_.number, two.number)
    assert not peer.rig.wanted(RecallPages)
    ping(peer, two.number, two.number)
    assert peer.rig.wanted(RecallPages) == [RecallPages(one_.number)]


def test_a_loan_that_nobody_ever_names_ends() -> None:
    peer = owner()
    loan = lent(peer, 7, 0)
    for _ in range(LOAN_NS // PING_NS + 2):
        peer.rig.wait(PING_NS)
        ping(peer, 0)
    assert peer.rig.wanted(RecallPages) == [RecallPages(loan.number)]


def test_a_silent_host_has_nothing_any_more() -> None:
    peer = owner()
    loan = lent(peer, 7, 0)
    ping(peer, loan.number, loan.number)
    peer.rig.wait(AWAY_NS + PING_NS)
    assert peer.rig.wanted(RecallPages)
    assert peer.rig.wanted(DismissReader)
    assert said(peer.rig.done(RecallPages), Release, IDX).number == 7
    sent = peer.rig.ask(BERT, GiveBack(loan.number))
    assert said(sent, Returned, BERT).status is Status.NO_SUCH_LEASE


def test_a_host_that_is_gone_before_our_index_answers_is_lent_nothing() -> None:
    peer = owner()
    find = asked(peer, AWAY_NS * 2)
    peer.rig.wait(AWAY_NS - PING_NS)
    held = peer.rig.answer(find, Held(LeaseId(7), 1, as_pages(0)))
    assert not pick(held, Lent), "it waits for the transport"
    peer = owner()
    find = asked(peer)
    del peer.actor.lending.visitors[BERT]
    sent = peer.rig.answer(find, Held(LeaseId(7), 1, as_pages(0)))
    assert said(sent, Release, IDX).number == 7
    assert said(sent, Lent, BERT).status is Status.NOT_READY


def test_a_new_index_hears_of_every_lease_and_a_lost_one_is_no_loan() -> None:
    peer = owner()
    loan = lent(peer, 7, 3)
    peer.rig.tell(BOSS, Gone(IDX))
    sent = peer.rig.ask(BERT, Borrow(NS, KEYS, BUDGET_NS))
    assert said(sent, Lent, BERT).status is Status.NOT_READY
    sent = peer.rig.tell(BOSS, Neighbour(INDEX_9, "ipc://i", 3))
    assert said(sent, Held, INDEX_9) == Held(LeaseId(7), 1, as_pages(3))
    peer.rig.tell(INDEX_9, LeasesLost(as_leases(7)))
    assert peer.rig.wanted(RecallPages)
    sent = peer.rig.ask(BERT, GiveBack(loan.number))
    assert said(sent, Returned, BERT).status is Status.NO_SUCH_LEASE, "it may have read others"
    assert tuple(said(peer.rig.wait(BEAT_NS), LeasesHeld, INDEX_9).leases) == (7,), "it is read"
    peer.rig.done(RecallPages)
    assert not said(peer.rig.wait(BEAT_NS), LeasesHeld, INDEX_9).leases


def test_no_host_has_more_loans_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "LOANS_MAX", 2)
    peer = owner()
    asked(peer)
    asked(peer)
    sent = peer.rig.ask(BERT, Borrow(NS, KEYS, BUDGET_NS))
    assert said(sent, Lent, BERT).status is Status.BUSY
    monkeypatch.setattr(lending, "LOANS_MAX", 99)
    monkeypatch.setattr(lending, "LOAN_BYTES", 4 * PAGE)
    peer = owner()
    lent(peer, 7, 0)
    sent = peer.rig.ask(BERT, Borrow(NS, KEYS, BUDGET_NS))
    assert said(sent, Lent, BERT).status is Status.BUSY


def test_a_transport_that_refuses_ends_the_lease() -> None:
    peer = owner()
    peer.rig.answer(asked(peer), Held(LeaseId(7), 1, as_pages(0)))
    assert said(peer.rig.done(LendPages, Status.BAD_REQUEST), Lent, BERT).blocks == 0
    assert said(peer.rig.done(RecallPages, DONE), Release, IDX).number == 7


def test_no_host_borrows_more_at_once_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "LOAN_BYTES", 5 * PAGE)
    peer = owner()
    asked(peer)
    sent = peer.rig.ask(BERT, Borrow(NS, KEYS[:2], BUDGET_NS))
    assert said(sent, Lent, BERT).status is Status.BUSY, "four are asked for already"
    assert pick(peer.rig.ask(BERT, Borrow(NS, KEYS[:1], BUDGET_NS)), Find, IDX)


def test_who_is_one_too_many_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "VISITORS_MAX", 1)
    peer = owner()
    asked(peer)
    sent = peer.rig.ask(ANNA, Enter(b""))
    assert said(sent, Entered, ANNA).status is Status.BUSY
    assert not peer.rig.tell(ANNA, Follow(1))
    sent = peer.rig.ask(ANNA, Borrow(NS, KEYS, BUDGET_NS))
    assert said(sent, Lent, ANNA).status is Status.BUSY


def test_a_lease_that_the_index_says_again_goes_back() -> None:
    peer = owner()
    assert said(peer.rig.tell(IDX, Held(LeaseId(7), 1, as_pages(0))), Release, IDX).number == 7
    assert not peer.rig.tell(IDX, Held(LeaseId(7), 1, as_pages(0)))


def test_nobody_is_heard_before_we_know_our_pool() -> None:
    actor = PeerActor(PEER_5, BOSS, HELLO, life=US.incarnation, name="us", places=())
    rig = Rig(actor)
    rig.start()
    assert not rig.ask(BERT, Enter(b"")) and not rig.jobs
