"""From Save to Saved: claims, slots, Keep and Drop, pages, seals."""

from dataclasses import replace

import pytest

from pegaflow.actors.session.actor import Session
from pegaflow.actors.session.publish import INDEX_NS, SEALS_MAX
from pegaflow.actors.session.saves import SAVE_NS
from pegaflow.wire.allocator import Reserve, Reserved, Return
from pegaflow.wire.control import BEAT_NS, Gone, Neighbour
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import (
    NO_CLAIM,
    NO_GRANT,
    NO_KEY,
    ClaimId,
    GrantId,
    Incarnation,
    Key,
)
from pegaflow.wire.index import Claim, Claimed, EndClaim, Seal, Sealed
from pegaflow.wire.jobs import FillPages
from pegaflow.wire.session import CopyBatch, Drop, Keep, Leave, Left, Ping, Save, Saved
from pegaflow.wire.status import Status
from tests.actors.rig import ALLOC, BOSS, CLIENT_7, CLIENT_8, IDX, MS, PAGE, Rig, one, pick, said
from tests.actors.sessions import KEYS, attached, grant
from tests.naming import as_pages, as_stamps

NEXT = IDX._replace(incarnation=Incarnation(30))
NO_SPACE = Reserved(Status.NO_SPACE, NO_GRANT, (), ())


def with_pages() -> tuple[Rig, Session]:
    """An attached session with eight pages ready."""
    rig, actor, reserve = attached()
    rig.answer(reserve, grant(1, 8))
    return rig, actor


def begin(rig: Rig, save: int = 1, keys: tuple[Key, ...] = KEYS[:3]) -> CopyBatch:
    """A save whose keys are all new."""
    claim = one(rig.ask(CLIENT_7, Save(save, 0, keys, NO_KEY)), Claim, IDX)
    sent = rig.answer(claim, Claimed(ClaimId(save), tuple(range(len(keys)))))
    take = said(sent, CopyBatch, CLIENT_7)
    assert (take.save, take.positions) == (save, tuple(range(len(keys))))
    return take


def fill(rig: Rig, take: CopyBatch) -> Envelope:
    """Keep and copy a batch; its Seal."""
    rig.tell(CLIENT_7, Keep(take.save, take.batch))
    return one(rig.done(FillPages), Seal, IDX)


def idle(actor: Session) -> bool:
    """Whether no slot is in use and no save open."""
    rank, used = actor.engine.ranks[0], actor.reservation.used
    return not actor.orders.open and not used and len(rank.free_slots) == rank.slots


def test_a_save() -> None:
    rig, actor = with_pages()
    take = begin(rig)
    seal = fill(rig, take)
    msg = seal.message
    assert isinstance(msg, Seal)
    assert (msg.claim, msg.keys, msg.parents) == (1, KEYS[:3], (bytes(32), *KEYS[:2]))
    assert set(msg.pages) <= set(grant(1, 8).pages)
    assert all(stamp == 1000 + page for page, stamp in zip(msg.pages, msg.stamps, strict=True))
    sent = rig.answer(seal, Sealed(Status.OK, (0, 1, 2)))
    assert said(sent, Saved, CLIENT_7) == Saved(Status.OK, 3, 0)
    assert said(sent, EndClaim, IDX).number == 1
    assert idle(actor) and not pick(sent, Return), "they are few"
    assert said(rig.wait(BEAT_NS), Return, ALLOC).pages == msg.pages


def test_bytes_are_filled_from_the_slots_that_were_taken() -> None:
    rig, _ = with_pages()
    take = begin(rig)
    assert not rig.wanted(FillPages)
    rig.tell(CLIENT_7, Keep(1, take.batch))
    (job,) = rig.wanted(FillPages)
    assert (job.slots, job.payload_bytes, job.page_size) == (take.slots, PAGE, PAGE)


def test_known_keys_are_not_copied() -> None:
    rig, actor = with_pages()
    claim = one(rig.ask(CLIENT_7, Save(1, 0, KEYS[:3], NO_KEY)), Claim)
    sent = rig.answer(claim, Claimed(NO_CLAIM, ()))
    assert said(sent, Saved) == Saved(Status.OK, 0, 3)
    assert not pick(sent, CopyBatch) and idle(actor)


def test_bad_saves() -> None:
    rig, _ = with_pages()
    begin(rig, 1)
    bad = Saved(Status.BAD_REQUEST, 0, 0)
    assert said(rig.ask(CLIENT_7, Save(1, 0, KEYS, NO_KEY)), Saved) == bad
    assert said(rig.ask(CLIENT_7, Save(2, 0, (), NO_KEY)), Saved) == bad
    assert said(rig.ask(CLIENT_7, Save(3, 0, KEYS, Key(b"short"))), Saved) == bad
    assert said(rig.ask(CLIENT_8, Save(4, 0, KEYS, NO_KEY)), Saved).status is Status.NOT_ATTACHED


def test_drop_before_keep_frees_the_slots_and_publishes_nothing() -> None:
    rig, actor = with_pages()
    take = begin(rig)
    sent = rig.tell(CLIENT_7, Drop(1))
    assert said(sent, Saved) == Saved(Status.DROPPED, 0, 0)
    assert said(sent, EndClaim).number == 1
    assert idle(actor) and not rig.wanted(FillPages)
    assert rig.tell(CLIENT_7, Keep(1, take.batch)) == []
    assert not rig.wanted(FillPages)


def test_drop_before_the_claim_is_answered() -> None:
    rig, actor = with_pages()
    claim = one(rig.ask(CLIENT_7, Save(1, 0, KEYS[:3], NO_KEY)), Claim)
    assert rig.tell(CLIENT_7, Drop(1)) == []
    sent = rig.answer(claim, Claimed(ClaimId(1), (0, 1, 2)))
    assert said(sent, Saved).status is Status.DROPPED
    one(sent, EndClaim, IDX)
    assert not pick(sent, CopyBatch) and idle(actor)


def test_drop_after_keep_is_too_late_and_harmless() -> None:
    rig, actor = with_pages()
    take = begin(rig)
    rig.tell(CLIENT_7, Keep(1, take.batch))
    assert rig.tell(CLIENT_7, Drop(1)) == []
    seal = one(rig.done(FillPages), Seal)
    sent = rig.answer(seal, Sealed(Status.OK, (0, 1, 2)))
    assert said(sent, Saved).saved == 3
    assert idle(actor)


def test_keep_and_drop_of_somebody_else_are_ignored() -> None:
    rig, actor = with_pages()
    take = begin(rig)
    assert rig.tell(CLIENT_8, Keep(1, take.batch)) == []
    assert rig.tell(CLIENT_8, Drop(1)) == []
    assert not rig.wanted(FillPages) and len(actor.orders.open) == 1


def test_an_unanswered_seal_is_asked_again_and_its_pages_stay_ours() -> None:
    rig, actor = with_pages()
    first = fill(rig, begin(rig))
    again = one(rig.wait(INDEX_NS + MS), Seal, IDX)
    assert again.message == first.message and again.question != first.question
    held = set(actor.reservation.used)
    assert isinstance(first.message, Seal) and held == set(first.message.pages)
    assert held <= set(actor.reservation.statement().pages)
    sent = rig.answer(again, Sealed(Status.OK, (0, 1, 2)))
    assert said(sent, Saved) == Saved(Status.OK, 3, 0)


def test_refused_blocks_give_their_pages_back() -> None:
    rig, actor = with_pages()
    seal = fill(rig, begin(rig))
    sent = rig.answer(seal, Sealed(Status.STALE_CLAIM, (0,)))
    assert said(sent, Saved) == Saved(Status.STALE_CLAIM, 1, 0)
    assert idle(actor)
    assert len(said(rig.wait(BEAT_NS), Return, ALLOC).pages) == 3


def test_a_failed_fill_seals_nothing() -> None:
    rig, actor = with_pages()
    take = begin(rig)
    rig.tell(CLIENT_7, Keep(1, take.batch))
    sent = rig.done(FillPages, Status.COPY_FAILED)
    assert said(sent, Saved) == Saved(Status.COPY_FAILED, 0, 0)
    assert len(said(sent, Return).pages) == 3
    assert not pick(sent, Seal) and idle(actor)


def refused(rig: Rig, sent: list[Envelope], room: int = 0) -> list[Envelope]:
    """What is said when the allocator has so many pages, and refuses whoever asks for more."""
    every: list[Envelope] = []
    first = 0
    while pick(sent, Reserve):
        question = one(sent, Reserve, ALLOC)
        assert isinstance(question.message, Reserve)
        pages = range(first, first + question.message.count)
        answer = NO_SPACE
        if pages.stop <= room:
            first, stamps = pages.stop, as_stamps(*(1000 + page for page in pages))
            answer = Reserved(Status.OK, GrantId(first), as_pages(*pages), stamps)
        sent = rig.answer(question, answer)
        every += sent
    return every


def test_no_space_ends_kept_batches_and_waits_for_the_others() -> None:
    rig, actor, reserve = attached()
    kept, open_ = begin(rig, 1), begin(rig, 2, KEYS[3:5])
    rig.tell(CLIENT_7, Keep(1, kept.batch))
    sent = refused(rig, [reserve])
    assert said(sent, Saved) == Saved(Status.NO_SPACE, 0, 0)
    assert said(sent, EndClaim).number == 1
    free = actor.engine.ranks[0].free_slots
    assert set(kept.slots) <= set(free)
    assert not set(open_.slots) & set(free), "the client may be writing there"
    sent = refused(rig, rig.tell(CLIENT_7, Keep(2, open_.batch)))
    assert said(sent, Saved).status is Status.NO_SPACE
    assert idle(actor)


@pytest.mark.parametrize("room", range(8))
def test_what_the_pool_has_room_for_is_saved_of_a_larger_batch(room: int) -> None:
    rig, actor, reserve = attached()
    take = begin(rig, 1, KEYS[:8])
    rig.tell(CLIENT_7, Keep(1, take.batch))
    sent = refused(rig, [reserve], room)
    while rig.wanted(FillPages):
        sent += rig.done(FillPages)
    keys: tuple[Key, ...] = ()
    for envelope in sent:
        if isinstance(envelope.message, Seal):
            keys += (new := tuple(envelope.message.keys))
            sent += rig.answer(envelope, Sealed(Status.OK, tuple(range(len(new)))))
    assert keys == KEYS[:room], "its head"
    assert said(sent, Saved) == Saved(Status.NO_SPACE, room, 0)
    assert idle(actor)


def test_a_silent_allocator_ends_the_save_too() -> None:
    rig, actor, _ = attached()
    take = begin(rig)
    rig.tell(CLIENT_7, Keep(1, take.batch))
    assert said(rig.wait(INDEX_NS), Saved).status is Status.EXPIRED
    assert idle(actor)


def test_a_silent_index_ends_the_save_and_a_late_claim_is_ended() -> None:
    rig, actor = with_pages()
    claim = one(rig.ask(CLIENT_7, Save(1, 0, KEYS[:3], NO_KEY)), Claim)
    assert said(rig.wait(INDEX_NS), Saved).status is Status.EXPIRED
    assert said(rig.answer(claim, Claimed(ClaimId(9), (0,))), EndClaim, IDX).number == 9
    assert idle(actor)


def test_more_blocks_than_slots_take_turns() -> None:
    rig, actor = with_pages()
    rank = actor.engine.ranks[0]
    rank.slots, rank.free_slots = 2, [0, 1]
    claim = one(rig.ask(CLIENT_7, Save(1, 0, KEYS[:3], NO_KEY)), Claim)
    first = said(rig.answer(claim, Claimed(ClaimId(1), (0, 1, 2))), CopyBatch)
    assert first.positions == (0, 1)
    rig.tell(CLIENT_7, Keep(1, first.batch))
    sent = rig.done(FillPages)
    second = said(sent, CopyBatch)
    assert second.positions == (2,) and second.batch != first.batch
    sent = rig.answer(one(sent, Seal), Sealed(Status.OK, (0, 1)))
    assert not pick(sent, Saved)
    sent = rig.answer(fill(rig, second), Sealed(Status.OK, (0,)))
    assert said(sent, Saved) == Saved(Status.OK, 3, 0)
    assert idle(actor)


def two_seals(rig: Rig, actor: Session) -> tuple[list[Envelope], CopyBatch]:
    """A save of all KEYS in batches of two, of which two are being sealed, and the next batch."""
    rank = actor.engine.ranks[0]
    rank.slots, rank.free_slots = 2, [0, 1]
    claim = one(rig.ask(CLIENT_7, Save(1, 0, KEYS, NO_KEY)), Claim)
    take = said(rig.answer(claim, Claimed(ClaimId(1), tuple(range(len(KEYS))))), CopyBatch)
    seals = []
    for _ in range(SEALS_MAX):
        rig.tell(CLIENT_7, Keep(1, take.batch))
        sent = rig.done(FillPages)
        seals.append(one(sent, Seal))
        take = said(sent, CopyBatch)
    return seals, take


def test_what_is_whole_while_two_seals_are_unanswered_goes_with_the_next() -> None:
    rig, actor = with_pages()
    (first, second), take = two_seals(rig, actor)
    rig.tell(CLIENT_7, Keep(1, take.batch))
    sent = rig.done(FillPages)
    assert not pick(sent, Seal)
    rig.tell(CLIENT_7, Keep(1, said(sent, CopyBatch).batch))
    assert not pick(rig.done(FillPages), Seal)
    third = one(rig.answer(second, Sealed(Status.OK, (0, 1))), Seal)
    assert isinstance(third.message, Seal) and third.message.keys == KEYS[4:8]
    assert not pick(rig.answer(third, Sealed(Status.OK, (0, 1, 2, 3))), Saved)
    sent = rig.answer(first, Sealed(Status.OK, (0,)))
    assert said(sent, Saved) == Saved(Status.STALE_CLAIM, 7, 0)
    assert idle(actor)
    assert len(said(rig.wait(BEAT_NS), Return).pages) == 8


def test_both_seals_that_an_index_has_not_answered_go_to_the_next() -> None:
    rig, actor = with_pages()
    seals, take = two_seals(rig, actor)
    rig.tell(CLIENT_7, Drop(1))
    assert not pick(rig.tell(BOSS, Gone(IDX)), Saved)
    held = {page for e in seals if isinstance(e.message, Seal) for page in e.message.pages}
    assert held <= set(actor.reservation.statement().pages)
    again = pick(rig.tell(BOSS, Neighbour(NEXT, "ipc://n", 3)), Seal)
    assert [e.message for e in again] == [e.message for e in seals]
    assert not pick(rig.answer(again[1], Sealed(Status.OK, (0, 1))), Saved)
    sent = rig.answer(again[0], Sealed(Status.OK, (0, 1)))
    assert said(sent, Saved) == Saved(Status.DROPPED, 4, 0) and idle(actor)


def test_pages_ahead_that_the_pool_cannot_give_do_not_end_a_small_save() -> None:
    rig, _, reserve = attached()
    take = begin(rig, 1, KEYS[:1])
    rig.tell(CLIENT_7, Keep(1, take.batch))
    sent = rig.answer(reserve, Reserved(Status.TOO_LARGE, NO_GRANT, (), ()))
    assert not pick(sent, Saved) and said(sent, Reserve).count == 1


def test_what_waits_for_pages_goes_with_its_client() -> None:
    rig, actor, reserve = attached()
    rig.ask(CLIENT_8, Ping())
    take = begin(rig)
    rig.tell(CLIENT_7, Keep(1, take.batch))
    sent = rig.ask(CLIENT_7, Leave())
    assert said(sent, Saved).status is Status.DROPPED
    said(sent, Left, CLIENT_7)
    rig.answer(reserve, grant(1, 8))
    assert not rig.wanted(FillPages) and not actor.orders.open


def bound(actor: Session, bytes_: int) -> None:
    """Pages of open saves may be so many bytes."""
    assert actor.engine.space is not None
    actor.engine.space = replace(actor.engine.space, used_bytes_max=bytes_)


def test_pages_of_open_saves_are_bounded_and_the_next_save_waits_for_them() -> None:
    rig, actor = with_pages()
    bound(actor, 4 * PAGE)
    first = fill(rig, begin(rig, 1, KEYS[:3]))
    second = begin(rig, 2, KEYS[3:6])
    sent = rig.tell(CLIENT_7, Keep(second.save, second.batch))
    assert not rig.wanted(FillPages) and not pick(sent, Reserve), "nobody else's pages either"
    assert len(actor.reservation.used) == 3
    rig.answer(first, Sealed(Status.OK, (0, 1, 2)))
    assert said(rig.done(FillPages), Seal).keys == KEYS[3:6]


def test_a_save_larger_than_the_bound_is_served_alone() -> None:
    rig, actor = with_pages()
    bound(actor, PAGE)
    seal = fill(rig, begin(rig, 1, KEYS[:6]))
    assert said(rig.answer(seal, Sealed(Status.OK, tuple(range(6)))), Saved).saved == 6


def test_a_save_that_its_engine_never_ends_is_given_up() -> None:
    rig, actor = with_pages()
    take = begin(rig)
    rig.wait(SAVE_NS)
    assert take.batch and actor.orders.open
    rig.wait(2 * BEAT_NS)
    sent = rig.tell(CLIENT_7, Keep(take.save, take.batch))
    assert said(sent, Saved).status is Status.EXPIRED
    assert not actor.orders.open and not actor.reservation.used
