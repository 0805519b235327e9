"""A save by process_vm of an only rank: read, and sealed under no claim."""

from dataclasses import replace

import pytest

from pegaflow.actors.session.actor import Session
from pegaflow.actors.session.publish import INDEX_NS
from pegaflow.wire.allocator import Return
from pegaflow.wire.control import BEAT_NS, Gone, Neighbour
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import NO_CLAIM, NO_KEY, Incarnation
from pegaflow.wire.index import Claim, Seal, Sealed
from pegaflow.wire.jobs import DrawProof, MapEngine, ProofDrawn, ReadBlocks
from pegaflow.wire.session import BatchCopied, Commit, Drop, Keep, Leave, Left, Proven, Save, Saved
from pegaflow.wire.status import Status
from tests.actors.rig import ALLOC, BOSS, CLIENT_7, IDX, Rig, one, pick, said
from tests.actors.session.test_ranks import DIRECT, PROOF, idle
from tests.actors.sessions import KEYS, grant, note, serving
from tests.actors.shared import Shared

NEXT = IDX._replace(incarnation=Incarnation(30))
BLOCKS = (20, 21, 22, 23)


def saving(known: int = 0, **asked: bool | int) -> tuple[Rig, Session]:
    """A save of four blocks.

    Args:
        known: of KEYS, in memory.
    """
    shared = Shared()
    rig, actor = serving(shared)
    rig.ask(CLIENT_7, DIRECT)
    rig.done(DrawProof, ProofDrawn(PROOF))
    rig.ask(CLIENT_7, Proven())
    note(rig, rig.done(MapEngine))
    shared.seal(actor, KEYS[:known], tuple(range(4, 4 + known)))
    rig.tell(ALLOC, grant(1, 4))
    msg = replace(Save(1, 0, KEYS[:4], NO_KEY, blocks=BLOCKS), **asked)  # type: ignore[arg-type]
    assert not pick(rig.ask(CLIENT_7, msg), Claim)
    return rig, actor


def copy(rig: Rig) -> list[Envelope]:
    """All of it is read, and kept."""
    batch = said(rig.done(ReadBlocks), BatchCopied)
    return rig.tell(CLIENT_7, Keep(1, batch.batch))


def test_nobody_is_asked_before_it_is_read() -> None:
    rig, actor = saving()
    assert rig.wanted(ReadBlocks)[0].blocks == BLOCKS
    seal = one(copy(rig), Seal)
    assert isinstance(seal.message, Seal)
    assert (seal.message.claim, seal.message.keys) == (NO_CLAIM, KEYS[:4])
    assert said(rig.answer(seal, Sealed(Status.OK, (0, 1, 2, 3))), Saved) == Saved(Status.OK, 4, 0)
    assert idle(actor)
    assert len(said(rig.wait(BEAT_NS), Return).pages) == 4


def test_only_what_is_not_in_memory_is_read() -> None:
    rig, _ = saving(2)
    assert rig.wanted(ReadBlocks)[0].blocks == BLOCKS[2:]
    seal = one(copy(rig), Seal)
    assert isinstance(seal.message, Seal) and seal.message.keys == KEYS[2:4]
    assert said(rig.answer(seal, Sealed(Status.OK, (0, 1))), Saved) == Saved(Status.OK, 2, 2)


def test_what_somebody_else_has_saved_meanwhile_is_known() -> None:
    rig, actor = saving()
    seal = one(copy(rig), Seal)
    answer = Sealed(Status.OK, (1, 3), known=2)
    assert said(rig.answer(seal, answer), Saved) == Saved(Status.OK, 2, 2)
    assert idle(actor)
    assert len(said(rig.wait(BEAT_NS), Return).pages) == 4


@pytest.mark.parametrize("known", [1, 5, 1 << 40])
def test_the_index_may_say_what_it_likes_of_the_others(known: int) -> None:
    rig, actor = saving()
    answer = Sealed(Status.STALE_CLAIM, (0, 1), known=known)
    ended = said(rig.answer(one(copy(rig), Seal), answer), Saved)
    assert (ended.saved, ended.known) == (2, min(known, 2)) and idle(actor)
    assert (ended.status is Status.OK) == (known >= 2)


def test_without_an_index_nothing_is_begun() -> None:
    rig, actor = saving()
    assert not pick(rig.tell(BOSS, Gone(IDX)), Saved), "what was begun goes on"
    again = Save(2, 0, KEYS[4:8], NO_KEY, blocks=BLOCKS)
    assert said(rig.ask(CLIENT_7, again), Saved) == Saved(Status.PEER_GONE, 0, 0)
    assert not pick(copy(rig), Seal)
    seal = one(rig.tell(BOSS, Neighbour(NEXT, "ipc://n", 3)), Seal)
    assert said(rig.answer(seal, Sealed(Status.OK, (0, 1, 2, 3))), Saved).saved == 4
    assert idle(actor)


def test_a_seal_without_an_answer_is_asked_again() -> None:
    rig, actor = saving()
    seal = one(copy(rig), Seal)
    again = one(rig.wait(INDEX_NS), Seal)
    assert again.message == seal.message
    assert said(rig.answer(again, Sealed(Status.OK, (0, 1, 2, 3))), Saved).saved == 4
    assert idle(actor)


@pytest.mark.parametrize("when", ["reading", "copied"])
def test_a_drop_ends_what_has_no_keep(when: str) -> None:
    rig, actor = saving()
    if when == "copied":
        assert said(rig.done(ReadBlocks), BatchCopied)
        sent = rig.tell(CLIENT_7, Drop(1))
    else:
        assert not pick(rig.tell(CLIENT_7, Drop(1)), Saved), "it is being read"
        sent = rig.done(ReadBlocks)
    assert said(sent, Saved) == Saved(Status.DROPPED, 0, 0)
    assert len(said(sent, Return).pages) == 4 and idle(actor)


def test_what_the_engine_does_not_stand_by_waits_for_its_word() -> None:
    rig, _ = saving(order=3, commits=True)
    assert not pick(copy(rig), Seal)
    assert len(said(rig.tell(CLIENT_7, Commit((3,))), Seal).keys) == 4


def test_a_client_that_leaves_waits_for_what_is_being_read() -> None:
    rig, actor = saving()
    assert not pick(rig.ask(CLIENT_7, Leave()), Left)
    assert said(rig.done(ReadBlocks), Left)
    assert idle(actor)
