"""Saves of an engine with two ranks: orders, and what becomes of them when a rank does not join."""

from dataclasses import replace

from pegaflow.actors.session.actor import Session
from pegaflow.wire.allocator import Reserve
from pegaflow.wire.identities import NO_KEY, ClaimId
from pegaflow.wire.index import Claim, Claimed, Seal, Sealed
from pegaflow.wire.jobs import BounceOpened, FillPages, OpenBounce
from pegaflow.wire.session import CopyBatch, Keep, Save, Saved
from pegaflow.wire.status import Status
from tests.actors.rig import ALLOC, CLIENT_7, CLIENT_8, IDX, Rig, one, pick, said
from tests.actors.sessions import ATTACH, KEYS, grant, serving

RANKS = (CLIENT_7, CLIENT_8)


def pair() -> tuple[Rig, Session]:
    """A session with both ranks of an engine, and eight pages."""
    rig, actor = serving()
    assert rig.ask(CLIENT_7, replace(ATTACH, world=2)) == []
    rig.done(OpenBounce, BounceOpened("bounce 0", ()))
    assert rig.ask(CLIENT_8, replace(ATTACH, rank=1, world=2)) == []
    sent = rig.done(OpenBounce, BounceOpened("bounce 1", ()))
    rig.answer(one(sent, Reserve, ALLOC), grant(1, 8))
    return rig, actor


def test_a_block_is_sealed_with_the_shards_of_both_ranks() -> None:
    rig, _ = pair()
    claim = one(rig.ask(CLIENT_7, Save(1, 0, KEYS[:2], NO_KEY, order=1)), Claim, IDX)
    first = said(rig.answer(claim, Claimed(ClaimId(1), (0, 1))), CopyBatch, CLIENT_7)
    second = said(rig.ask(CLIENT_8, Save(5, 1, KEYS[:2], NO_KEY, order=1)), CopyBatch, CLIENT_8)
    rig.tell(CLIENT_7, Keep(1, first.batch))
    assert not pick(rig.done(FillPages), Seal)
    rig.tell(CLIENT_8, Keep(5, second.batch))
    seal = one(rig.done(FillPages), Seal, IDX)
    assert isinstance(seal.message, Seal) and seal.message.shards == 2
    sent = rig.answer(seal, Sealed(Status.OK, (0, 1)))
    assert [said(sent, Saved, rank) for rank in RANKS] == [Saved(Status.OK, 2, 0)] * 2


def test_a_rank_that_joins_before_the_claim_is_answered_has_its_part_to_do() -> None:
    rig, _ = pair()
    claim = one(rig.ask(CLIENT_7, Save(1, 0, KEYS[:2], NO_KEY, order=1)), Claim, IDX)
    assert rig.ask(CLIENT_8, Save(5, 1, KEYS[:2], NO_KEY, order=1)) == []
    sent = rig.answer(claim, Claimed(ClaimId(1), (0, 1)))
    assert [said(sent, CopyBatch, rank).positions for rank in RANKS] == [(0, 1), (0, 1)]
    assert not pick(sent, Saved)
