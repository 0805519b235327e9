"""Saves that wait for the engine's word: copied at once, sealed only once their order is named."""

import pytest

import pegaflow.actors.session.orders
from pegaflow.actors.session.actor import Session
from pegaflow.wire.allocator import Return
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import NO_CLAIM, NO_KEY, ClaimId
from pegaflow.wire.index import Claim, Claimed, EndClaim, Seal, Sealed
from pegaflow.wire.jobs import FillPages
from pegaflow.wire.session import ORDER_NS, Commit, CopyBatch, Keep, Ping, Save, Saved, Skip
from pegaflow.wire.status import Status
from tests.actors.rig import ALLOC, CLIENT_7, CLIENT_8, IDX, MS, Rig, one, pick, said
from tests.actors.sessions import KEYS

from .test_orders import RANKS, pair
from .test_saves import idle, with_pages

SCHEDULER = CLIENT_8


def served() -> tuple[Rig, Session]:
    """An attached rank with eight pages, and the scheduler's client beside it."""
    rig, actor = with_pages()
    rig.ask(SCHEDULER, Ping())
    return rig, actor


def begin(rig: Rig, order: int) -> CopyBatch:
    claim = one(
        rig.ask(CLIENT_7, Save(1, 0, KEYS[:3], NO_KEY, order=order, commits=True)), Claim, IDX
    )
    return said(rig.answer(claim, Claimed(ClaimId(1), (0, 1, 2))), CopyBatch, CLIENT_7)


def copied(rig: Rig, order: int) -> list[Envelope]:
    """A save of three new blocks, kept and in the pool; what follows from that."""
    take = begin(rig, order)
    rig.tell(CLIENT_7, Keep(1, take.batch))
    return rig.done(FillPages)


def test_what_is_copied_waits_for_the_word() -> None:
    rig, actor = served()
    assert not pick(copied(rig, 7), Seal)
    assert rig.tell(SCHEDULER, Commit((6, 8))) == []
    seal = one(rig.tell(SCHEDULER, Commit((7,))), Seal, IDX)
    assert rig.tell(SCHEDULER, Commit((7,))) == []
    sent = rig.answer(seal, Sealed(Status.OK, (0, 1, 2)))
    assert said(sent, Saved, CLIENT_7) == Saved(Status.OK, 3, 0)
    assert idle(actor)


def test_the_word_may_come_before_the_save_and_counts_for_one() -> None:
    rig, actor = served()
    assert rig.tell(SCHEDULER, Commit((7,))) == []
    rig.answer(one(copied(rig, 7), Seal, IDX), Sealed(Status.OK, (0, 1, 2)))
    assert idle(actor) and not actor.orders._early


def test_early_words_are_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pegaflow.actors.session.orders, "EARLY_MAX", 2)
    rig, actor = served()
    rig.tell(SCHEDULER, Commit((7, 8, 9)))
    assert list(actor.orders._early) == [8, 9]
    assert not pick(copied(rig, 7), Seal), "forgotten, so not published"


def test_an_order_that_turned_out_void_is_never_sealed() -> None:
    rig, actor = served()
    copied(rig, 7)
    sent = rig.tell(SCHEDULER, Skip(7))
    assert said(sent, Saved, CLIENT_7) == Saved(Status.DROPPED, 0, 0)
    assert len(said(sent, Return, ALLOC).pages) == 3 and said(sent, EndClaim).number == 1
    assert rig.tell(SCHEDULER, Commit((7,))) == [] and idle(actor)


def test_a_void_order_that_begins_late_is_never_sealed() -> None:
    rig, actor = served()
    rig.tell(SCHEDULER, Skip(7))
    again = said(rig.ask(CLIENT_7, Save(1, 0, KEYS[:3], NO_KEY, order=7, commits=True)), Saved)
    assert again.status is Status.DROPPED and idle(actor)


def test_without_a_word_nothing_is_published() -> None:
    rig, actor = served()
    copied(rig, 7)
    sent = [e for _ in range(0, ORDER_NS + 2_000 * MS, 500 * MS) for e in rig.wait(500 * MS)]
    assert said(sent, Saved, CLIENT_7).status is Status.EXPIRED
    assert not pick(sent, Seal) and idle(actor)


def test_a_word_on_what_has_ended_is_forgotten() -> None:
    rig, actor = served()
    claim = one(rig.ask(CLIENT_7, Save(1, 0, KEYS[:3], NO_KEY, order=7, commits=True)), Claim, IDX)
    assert said(rig.answer(claim, Claimed(NO_CLAIM, ())), Saved) == Saved(Status.OK, 0, 3)
    rig.tell(SCHEDULER, Commit((7,)))
    assert idle(actor) and not actor.orders._early


def test_a_stranger_has_no_say() -> None:
    rig, actor = with_pages()
    copied(rig, 7)
    rig.tell(SCHEDULER, Commit((7,)))
    rig.tell(SCHEDULER, Skip(7))
    assert not actor.orders._early and len(actor.orders.open) == 1


def test_a_save_that_waits_for_a_word_names_its_order() -> None:
    rig, _ = served()
    answer = said(rig.ask(CLIENT_7, Save(1, 0, KEYS[:3], NO_KEY, commits=True)), Saved)
    assert answer.status is Status.BAD_REQUEST


def test_several_ranks_wait_for_each_other_and_for_the_word() -> None:
    rig, actor = pair()
    claim = one(rig.ask(CLIENT_7, Save(1, 0, KEYS[:2], NO_KEY, order=1, commits=True)), Claim, IDX)
    first = said(rig.answer(claim, Claimed(ClaimId(1), (0, 1))), CopyBatch, CLIENT_7)
    second = said(
        rig.ask(CLIENT_8, Save(5, 1, KEYS[:2], NO_KEY, order=1, commits=True)), CopyBatch, CLIENT_8
    )
    rig.tell(CLIENT_7, Keep(1, first.batch))
    rig.done(FillPages)
    assert rig.tell(CLIENT_7, Commit((1,))) == [], "one rank's part is missing"
    rig.tell(CLIENT_8, Keep(5, second.batch))
    seal = one(rig.done(FillPages), Seal, IDX)
    sent = rig.answer(seal, Sealed(Status.OK, (0, 1)))
    assert [said(sent, Saved, rank) for rank in RANKS] == [Saved(Status.OK, 2, 0)] * 2
    assert not actor.orders.open
