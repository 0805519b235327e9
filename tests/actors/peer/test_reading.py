"""From Fetch to Fetched: stretches, links, loans, checksums, seals; who dies at each point."""

import pytest

from pegaflow.actors.peer import reading
from pegaflow.actors.peer.linking import AGAIN_NS, ENTER_NS
from pegaflow.actors.peer.pulls import stretches
from pegaflow.actors.peer.reading import PUBLISH_NS, PULLS
from pegaflow.core.pool.fingerprints import fingerprints
from pegaflow.wire.allocator import PagesHeld, Reserve, Return
from pegaflow.wire.control import BEAT_NS, Gone, Neighbour
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.flusher import Fetch, Fetched
from pegaflow.wire.identities import ClaimId, Incarnation, LeaseId
from pegaflow.wire.index import Seal, Sealed
from pegaflow.wire.peer import (
    AWAY_NS,
    NONE,
    PING_NS,
    Borrow,
    Cut,
    Elsewhere,
    Enter,
    Entered,
    GiveBack,
    Lent,
    Ping,
    Returned,
)
from pegaflow.wire.peerjobs import (
    AskOfReader,
    ConnectHost,
    LeaveHost,
    PagesRead,
    ReaderAsks,
    ReadPages,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import INDEX, Address
from tests.actors.rig import ALLOC, BOSS, IDX, MS, PAGE, one, pick, said

from .peers import ANNA, BERT, KEYS, NS, ROOT, Peer, have

PATIENCE_NS = 5000 * MS
INDEX_9 = Address(INDEX, Incarnation(9))
BOTH = 0b11


def reader(linked: bool = True) -> Peer:
    """Anna and Bert are there, and have said how their blocks are cut."""
    peer = Peer()
    for place, host in enumerate((ANNA, BERT)):
        follow = peer.meet(host, place)
        peer.rig.tell(host, have(follow, 1, 2))
        if linked:
            peer.actor.reading._sources[host].linked = True
    return peer


def fetch(peer: Peer, *masks: int, number: int = 1, engine: int = 4) -> list[Envelope]:
    keys = KEYS[: len(masks)]
    parents = (ROOT, *keys[:-1])
    msg = Fetch(ClaimId(number), NS, keys, parents, engine=Incarnation(engine), hosts=masks)
    return peer.rig.ask(IDX, msg, peer.rig.now + PATIENCE_NS)


def lend(
    peer: Peer, sent: list[Envelope], blocks: int, loan: int = 1, host: Address = ANNA
) -> list[Envelope]:
    """A host lends the first blocks of what it is asked for."""
    offsets = tuple(range(0, blocks * PAGE, PAGE))
    lent = Lent(Status.OK, LeaseId(loan), blocks, PAGE, shards=1, offsets=offsets)
    return peer.rig.answer(one(sent, Borrow, host), lent)


def read(peer: Peer, *sums: int, broken: bool = False) -> list[Envelope]:
    return peer.rig.done(ReadPages, PagesRead(sums, broken))


def give_back(peer: Peer, sent: list[Envelope], status: Status = Status.OK) -> list[Envelope]:
    return peer.rig.answer(one(sent, GiveBack), Returned(status))


def published(peer: Peer, sent: list[Envelope], *positions: int) -> list[Envelope]:
    seal = one(sent, Seal, IDX)
    assert isinstance(seal.message, Seal)
    got = positions or tuple(range(len(seal.message.keys)))
    return peer.rig.answer(seal, Sealed(Status.OK, got))


def test_blocks_are_borrowed_read_given_back_and_only_then_published() -> None:
    peer = reader()
    borrow = one(fetch(peer, 1, 1, 1), Borrow, ANNA)
    assert borrow.message == Borrow(NS, KEYS[:3], PATIENCE_NS) and borrow.deadline == 0
    peer.grant(lend(peer, [borrow], 3), 1)
    (job,) = peer.rig.wanted(ReadPages)
    assert (job.host, job.loan, tuple(job.remote)) == (ANNA.incarnation, 1, (0, PAGE, 2 * PAGE))
    assert tuple(job.local) == (0, PAGE, 2 * PAGE)
    sent = read(peer, 11, 12, 13)
    assert not pick(sent, Seal), "whether the loan stood is not known yet"
    sent = give_back(peer, sent)
    seal = said(sent, Seal, IDX)
    assert (seal.claim, seal.keys, seal.parents) == (1, KEYS[:3], (ROOT, *KEYS[:2]))
    sent = published(peer, sent)
    assert said(sent, Fetched, IDX) == Fetched(Status.OK, ())
    assert tuple(said(sent, Return, ALLOC).pages) == (0, 1, 2)


def test_a_loan_that_did_not_stand_publishes_nothing() -> None:
    peer = reader()
    peer.grant(lend(peer, fetch(peer, 1, 1), 2), 1)
    sent = give_back(peer, read(peer, 11, 12), Status.NO_SUCH_LEASE)
    assert not pick(sent, Seal)
    assert tuple(said(sent, Fetched, IDX).positions) == (0, 1)
    assert pick(sent, Return), "the pages are nobody's"


def test_a_page_that_is_not_what_was_sent_or_sealed_is_a_miss() -> None:
    peer = reader()
    borrow = one(fetch(peer, 1, 1, 1), Borrow, ANNA)
    lent = Lent(
        Status.OK, LeaseId(1), 3, PAGE, shards=1, offsets=(0, PAGE, 2 * PAGE), sums=(11, 99, 0)
    )
    peer.grant(peer.rig.answer(borrow, lent), 1)
    sent = give_back(peer, read(peer, 11, 12, 0))
    assert said(sent, Seal, IDX).keys == KEYS[:1]
    assert tuple(said(published(peer, sent), Fetched, IDX).positions) == (1, 2)


def test_what_a_host_has_not_is_a_miss_and_said_to_be_absent() -> None:
    peer = reader()
    sent = lend(peer, fetch(peer, 1, 1, 1), 1)
    assert pick(sent, Reserve)
    peer.grant(sent, 1)
    (first, last), absent = NONE, tuple(fingerprints(NS, KEYS[1:2]).tolist())
    assert said(sent, Elsewhere, IDX) == Elsewhere(0, first, last, (), added=(), removed=absent)
    sent = published(peer, give_back(peer, read(peer, 11)))
    assert said(sent, Fetched, IDX) == Fetched(Status.OK, (1, 2))
    peer = reader()
    sent = peer.rig.answer(one(fetch(peer, 1), Borrow, ANNA), Lent(Status.OK))
    assert said(sent, Fetched, IDX) == Fetched(Status.OK, (0,)) and pick(sent, Elsewhere, IDX)


def test_a_host_that_is_busy_is_a_miss_but_not_without_the_blocks() -> None:
    peer = reader()
    sent = peer.rig.answer(one(fetch(peer, 1), Borrow, ANNA), Lent(Status.BUSY))
    assert said(sent, Fetched, IDX) == Fetched(Status.OK, (0,))


@pytest.mark.parametrize(
    "lent",
    [
        Lent(Status.OK, LeaseId(1), 3, PAGE, shards=1, offsets=(0, PAGE, 2 * PAGE)),
        Lent(Status.OK, LeaseId(1), 2, 2 * PAGE, shards=1, offsets=(0, PAGE)),
        Lent(Status.OK, LeaseId(1), 2, PAGE, shards=2, offsets=(0, 1, 2, 3)),
        Lent(Status.OK, LeaseId(1), 2, PAGE, shards=1, offsets=(0,)),
        Lent(Status.OK, LeaseId(1), 2, PAGE, shards=1, offsets=(0, PAGE), sums=(5,)),
        Lent(Status.OK, LeaseId(0), 2, PAGE, shards=1, offsets=(0, PAGE)),
    ],
)
def test_an_answer_that_makes_no_sense_is_a_miss(lent: Lent) -> None:
    peer = reader()
    sent = peer.rig.answer(one(fetch(peer, 1, 1), Borrow, ANNA), lent)
    assert tuple(said(sent, Fetched, IDX).positions) == (0, 1)
    assert peer.rig.count("rdma_answers_malformed") == 1
    assert bool(pick(sent, GiveBack)) is bool(lent.number)


def test_what_nobody_has_any_more_is_a_miss_at_once() -> None:
    peer = reader()
    sent = fetch(peer, 0b100, 0)
    assert said(sent, Fetched, IDX) == Fetched(Status.OK, (0, 1))


def test_several_hosts_share_what_all_of_them_have() -> None:
    peer = reader()
    sent = fetch(peer, BOTH, BOTH, BOTH, BOTH)
    assert said(sent, Borrow, ANNA).keys == KEYS[:2]
    assert said(sent, Borrow, BERT).keys == KEYS[2:4]


@pytest.mark.parametrize(
    ("masks", "slots", "cut"),
    [
        ([1, 1, 2, 2], {0, 1}, [(0, [0, 1]), (1, [2, 3])]),
        ([3, 1, 3, 2], {0, 1}, [(0, [0, 1, 2]), (1, [3])]),
        ([3, 3], {1}, [(1, [0, 1])]),
        ([1, 0, 1], {0}, [(0, [0]), (0, [2])]),
        ([3, 3, 3], {0, 1}, [(0, [0, 1]), (1, [2])]),
        ([4], {0, 1}, []),
    ],
)
def test_stretches(masks: list[int], slots: set[int], cut: list[tuple[int, list[int]]]) -> None:
    assert list(stretches(masks, frozenset(slots))) == cut


def test_a_link_is_made_when_it_is_needed_and_once() -> None:
    peer = reader(linked=False)
    enter = one(fetch(peer, 1), Enter, ANNA)
    assert not pick(fetch(peer, 1, 1, number=2), Enter)
    assert not peer.rig.answer(enter, Entered(Status.OK, b"offer", b"token"))
    assert peer.rig.wanted(ConnectHost) == [
        ConnectHost(ANNA.incarnation, "anna", b"offer", b"token")
    ]
    assert len(pick(peer.rig.done(ConnectHost), Borrow, ANNA)) == 2


def test_no_link_is_a_miss_and_tried_again_later() -> None:
    peer = reader(linked=False)
    enter = one(fetch(peer, 1), Enter, ANNA)
    peer.rig.answer(enter, Entered(Status.OK, b"offer", b"token"))
    sent = peer.rig.done(ConnectHost, Status.DISCONNECTED, "no route")
    assert tuple(said(sent, Fetched, IDX).positions) == (0,)
    assert peer.rig.notes[-1].event == "peer_not_linked"
    assert tuple(said(fetch(peer, 1, number=2), Fetched, IDX).positions) == (0,)
    peer.rig.now += AGAIN_NS
    enter = one(fetch(peer, 1, number=3), Enter, ANNA)
    assert peer.rig.answer(enter, Entered(Status.BUSY))
    peer.rig.now += AGAIN_NS
    fetch(peer, 1, number=4)
    assert tuple(said(peer.rig.wait(ENTER_NS), Fetched, IDX).positions) == (0,)


def test_a_broken_link_is_made_anew() -> None:
    peer = reader()
    peer.grant(lend(peer, fetch(peer, 1), 1), 1)
    sent = give_back(peer, read(peer, 0, broken=True))
    assert tuple(said(sent, Fetched, IDX).positions) == (0,)
    peer.rig.now += AGAIN_NS
    assert pick(fetch(peer, 1, number=2), Enter, ANNA)


def test_engines_are_served_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "PULL_BYTES", PAGE)
    peer = reader()
    first = fetch(peer, *[1] * 6, engine=4)
    assert len(pick(first, Borrow, ANNA)) == PULLS
    assert not fetch(peer, 1, number=2, engine=6)
    seen = []
    for borrow in pick(first, Borrow, ANNA):
        sent = peer.rig.answer(borrow, Lent(Status.OK))
        seen += [e.message.keys for e in pick(sent, Borrow, ANNA)]  # type: ignore[attr-defined]
    assert seen == [KEYS[4:5], KEYS[:1], KEYS[5:6]]


def test_pings_name_what_is_being_read() -> None:
    peer = reader()
    peer.grant(lend(peer, fetch(peer, 1), 1, loan=9), 1)
    pings = [e.message for e in pick(peer.rig.wait(PING_NS), Ping, ANNA)]
    assert [(p.lent_upto, tuple(p.loans)) for p in pings] == [(9, (9,))]  # type: ignore[attr-defined]
    read(peer, 11)
    pings = [e.message for e in pick(peer.rig.wait(PING_NS), Ping, ANNA)]
    assert [(p.lent_upto, tuple(p.loans)) for p in pings] == [(9, ())]  # type: ignore[attr-defined]


def test_a_host_that_is_lost_is_a_miss_and_its_pages_come_back_when_nothing_is_read() -> None:
    peer = reader()
    peer.grant(lend(peer, fetch(peer, 1), 1), 1)
    sent = peer.rig.wait(AWAY_NS + 2 * PING_NS)
    assert len(peer.rig.wanted(LeaveHost)) == 2
    assert not pick(sent, Fetched) and not pick(sent, Return), "a thread may still write into them"
    sent = read(peer, 0, broken=True)
    assert tuple(said(sent, Fetched, IDX).positions) == (0,) and pick(sent, Return)


def test_a_host_that_does_not_answer_costs_the_patience_of_the_fetch() -> None:
    peer = reader()
    fetch(peer, 1)
    for _ in range(PATIENCE_NS // PING_NS):
        for host in (ANNA, BERT):
            peer.actor.places.hosts[host].heard_ns = peer.rig.now
        if peer.actor.reading.fetches:
            sent = peer.rig.wait(PING_NS)
    assert tuple(said(sent, Fetched, IDX).positions) == (0,)


def test_no_pages_is_a_miss_and_the_loan_goes_back() -> None:
    peer = reader()
    reserve = one(lend(peer, fetch(peer, 1), 1), Reserve, ALLOC)
    sent = peer.rig.wait(reserve.deadline - peer.rig.now)
    assert pick(sent, GiveBack, ANNA) and tuple(said(sent, Fetched, IDX).positions) == (0,)


def test_a_seal_without_an_answer_is_said_to_the_next_index() -> None:
    peer = reader()
    peer.grant(lend(peer, fetch(peer, 1), 1), 1)
    sent = give_back(peer, read(peer, 11))
    assert pick(sent, Seal, IDX)
    held = said(peer.rig.wait(BEAT_NS), PagesHeld, ALLOC)
    assert tuple(held.pages) == (0,)
    assert pick(peer.rig.wait(PUBLISH_NS), Seal, IDX), "and to this one, whose answer may be lost"
    peer.rig.tell(BOSS, Gone(IDX))
    sent = peer.rig.tell(BOSS, Neighbour(INDEX_9, "ipc://i", 3))
    seal = one(sent, Seal, INDEX_9)
    sent = peer.rig.answer(seal, Sealed(Status.STALE_CLAIM, ()))
    assert tuple(said(sent, Return, ALLOC).pages) == (0,)


def test_a_busy_host_is_linked_again_after_its_pause() -> None:
    peer = reader()
    peer.grant(lend(peer, fetch(peer, 1), 1), 1)
    give_back(peer, read(peer, 0, broken=True))
    entered = 0
    for number in range(2, 12):
        peer.rig.now += AGAIN_NS // 4
        entered += len(pick(fetch(peer, 1, number=number), Enter, ANNA))
    assert entered == 1, "each try that is too early does not put it off"


def test_many_pulls_whose_time_is_over_end_together() -> None:
    peer = reader(linked=False)
    enter = one(fetch(peer, 1), Enter, ANNA)
    for number in range(2, 600):
        fetch(peer, 1, number=number)
    peer.rig.answer(enter, Entered(Status.OK, b"offer", b"token"))
    peer.rig.now += PATIENCE_NS
    sent = peer.rig.done(ConnectHost)
    assert len(pick(sent, Fetched, IDX)) == 599 and not peer.actor.reading.fetches


def test_a_link_that_comes_after_its_host_was_lost_is_closed() -> None:
    peer = reader(linked=False)
    enter = one(fetch(peer, 1), Enter, ANNA)
    peer.rig.answer(enter, Entered(Status.OK, b"offer", b"token"))
    peer.rig.wait(AWAY_NS + 2 * PING_NS)
    before = len(peer.rig.wanted(LeaveHost))
    peer.rig.done(ConnectHost)
    assert len(peer.rig.wanted(LeaveHost)) == before + 1


def test_a_host_that_is_met_again_in_the_same_life_begins_with_nothing() -> None:
    peer = reader()
    peer.grant(lend(peer, fetch(peer, 1), 1), 1)
    peer.rig.wait(AWAY_NS + 2 * PING_NS)
    follow = peer.meet(ANNA)
    peer.rig.tell(ANNA, have(follow, 1, 2))
    peer.actor.reading._sources[ANNA].linked = True
    sent = read(peer, 0, broken=True)
    assert tuple(said(sent, Fetched, IDX).positions) == (0,)
    assert pick(fetch(peer, 1, number=2), Borrow, ANNA), "the new link has not broken"


def test_a_cut_that_makes_no_sense_is_not_believed() -> None:
    for cut in (Cut(NS, 0, 1), Cut(NS, PAGE, 0), Cut(NS, (1 << 64) - 1, 1)):
        peer = Peer()
        follow = peer.meet(ANNA)
        peer.rig.tell(ANNA, have(follow, 1, 2, cut=cut))
        assert tuple(said(fetch(peer, 1), Fetched, IDX).positions) == (0,)


def test_a_transport_that_could_not_be_opened_is_tried_again() -> None:
    peer = reader(linked=False)
    peer.actor.reading._linking._ask = None
    for number in range(1, 4):
        assert tuple(said(fetch(peer, 1, number=number), Fetched, IDX).positions) == (0,)
    assert len(peer.rig.wanted(AskOfReader)) == 1, "once in a while"
    peer.rig.done(AskOfReader, ReaderAsks(b""))
    peer.rig.now += AGAIN_NS
    assert pick(fetch(peer, 1, number=9), Enter, ANNA)
