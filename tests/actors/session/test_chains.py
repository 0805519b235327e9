"""A save that brings several chains, each under an order of its own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import NO_KEY, ClaimId, Key
from pegaflow.wire.index import Claim, Claimed, Seal, Sealed
from pegaflow.wire.jobs import FillPages, ReadBlocks
from pegaflow.wire.session import (
    ORDER_NS,
    BatchCopied,
    Commit,
    CopyBatch,
    Drop,
    Keep,
    Save,
    Saved,
    Skip,
)
from pegaflow.wire.status import Status
from tests.actors.rig import CLIENT_7, CLIENT_8, MS, Rig, one, pick, said
from tests.actors.sessions import KEYS

from .test_gathered import session
from .test_orders import RANKS, pair
from .test_ranks import idle

ROOT = Key(bytes(32))
PARENT = Key(b"p" * 32)
THREE = Save(
    1,
    0,
    KEYS[:6],
    NO_KEY,
    order=11,
    blocks=(20, 21, 22, 23, 24, 25),
    commits=True,
    starts=(1, 3),
    parents=(PARENT, ROOT),
    orders=(12, 13),
)
"""Chains of one block, of two and of three."""


def copied(rig: Rig, msg: Save = THREE) -> BatchCopied:
    """The save is read."""
    rig.ask(CLIENT_7, msg)
    return said(rig.done(ReadBlocks), BatchCopied)


def sealed(envelope: Envelope) -> Sequence[Key]:
    """What is to be published."""
    assert isinstance(envelope.message, Seal)
    return envelope.message.keys


def test_all_chains_are_one_read_one_word_and_one_seal() -> None:
    rig, actor = session()
    batch = copied(rig)
    assert batch.positions == tuple(range(6))
    assert rig.tell(CLIENT_7, Keep(1, batch.batch)) == []
    seal = one(rig.tell(CLIENT_7, Commit((11, 12, 13))), Seal)
    assert isinstance(seal.message, Seal) and seal.message.keys == KEYS[:6]
    assert seal.message.parents == (ROOT, PARENT, KEYS[1], ROOT, KEYS[3], KEYS[4])
    sent = rig.answer(seal, Sealed(Status.OK, tuple(range(6))))
    assert said(sent, Saved) == Saved(Status.OK, 6, 0) and idle(actor)


def test_each_chain_waits_for_a_word_of_its_own() -> None:
    rig, actor = session()
    rig.tell(CLIENT_7, Keep(1, copied(rig).batch))
    first = one(rig.tell(CLIENT_7, Commit((12,))), Seal)
    assert sealed(first) == KEYS[1:3]
    second = one(rig.tell(CLIENT_7, Commit((13, 12))), Seal)
    assert sealed(second) == KEYS[3:6], "what was named is not named again"
    assert not pick(rig.answer(first, Sealed(Status.OK, (0, 1))), Saved)
    assert not pick(rig.answer(second, Sealed(Status.OK, (0, 1, 2))), Saved)
    third = one(rig.tell(CLIENT_7, Commit((11,))), Seal)
    assert said(rig.answer(third, Sealed(Status.OK, (0,))), Saved) == Saved(Status.OK, 6, 0)
    assert idle(actor)


@pytest.mark.parametrize("moment", ["first", "copying", "copied", "kept"])
def test_a_chain_that_is_given_up_costs_the_others_nothing(moment: str) -> None:
    rig, actor = session()
    if moment == "first":
        rig.tell(CLIENT_7, Skip(12))
    rig.ask(CLIENT_7, THREE)
    if moment == "copying":
        rig.tell(CLIENT_7, Skip(12))
    batch = said(rig.done(ReadBlocks), BatchCopied)
    if moment == "copied":
        rig.tell(CLIENT_7, Skip(12))
    rig.tell(CLIENT_7, Keep(1, batch.batch))
    if moment == "kept":
        rig.tell(CLIENT_7, Skip(12))
    seal = one(rig.tell(CLIENT_7, Commit((11, 12, 13))), Seal)
    assert sealed(seal) == (KEYS[0], *KEYS[3:6])
    sent = rig.answer(seal, Sealed(Status.OK, (0, 1, 2, 3)))
    assert said(sent, Saved) == Saved(Status.DROPPED, 4, 0, (1, 2)) and idle(actor)


def test_the_word_on_some_may_come_first() -> None:
    rig, _ = session()
    rig.tell(CLIENT_7, Commit((11, 13)))
    seal = one(rig.tell(CLIENT_7, Keep(1, copied(rig).batch)), Seal)
    assert sealed(seal) == (KEYS[0], *KEYS[3:6])
    assert sealed(one(rig.tell(CLIENT_7, Commit((12,))), Seal)) == KEYS[1:3]


def test_when_all_are_given_up_before_it_begins_nothing_is_read() -> None:
    rig, actor = session()
    for number in (13, 11, 12):
        rig.tell(CLIENT_7, Skip(number))
    assert said(rig.ask(CLIENT_7, THREE), Saved) == Saved(Status.DROPPED, 0, 0)
    assert idle(actor)


def test_what_no_word_comes_for_is_given_up_in_time_and_the_rest_stands() -> None:
    rig, actor = session()
    rig.tell(CLIENT_7, Keep(1, copied(rig).batch))
    seal = one(rig.tell(CLIENT_7, Commit((11,))), Seal)
    assert not pick(rig.answer(seal, Sealed(Status.OK, (0,))), Saved)
    sent = [e for _ in range(0, ORDER_NS + 2_000 * MS, 500 * MS) for e in rig.wait(500 * MS)]
    assert said(sent, Saved) == Saved(Status.EXPIRED, 1, 0, (1, 2, 3, 4, 5))
    assert idle(actor) and rig.tell(CLIENT_7, Commit((12, 13))) == []
    assert not actor.orders._early


def test_all_of_it_may_be_dropped() -> None:
    rig, actor = session()
    copied(rig)
    sent = rig.tell(CLIENT_7, Drop(1))
    assert said(sent, Saved) == Saved(Status.DROPPED, 0, 0, tuple(range(6))) and idle(actor)


def test_a_worse_fate_than_to_be_given_up_is_what_is_said() -> None:
    rig, actor = session()
    rig.ask(CLIENT_7, THREE)
    rig.tell(CLIENT_7, Skip(12))
    sent = rig.done(ReadBlocks, Status.COPY_FAILED)
    assert said(sent, Saved) == Saved(Status.COPY_FAILED, 0, 0, tuple(range(6))) and idle(actor)


def test_what_the_index_refuses_is_named() -> None:
    rig, _ = session()
    rig.tell(CLIENT_7, Commit((11, 12, 13)))
    seal = one(rig.tell(CLIENT_7, Keep(1, copied(rig).batch)), Seal)
    sent = rig.answer(seal, Sealed(Status.STALE_CLAIM, (0, 1, 2, 4, 5)))
    assert said(sent, Saved) == Saved(Status.STALE_CLAIM, 5, 0, (3,))


@pytest.mark.parametrize(
    "change",
    [
        {"starts": (1,)},
        {"orders": (12,)},
        {"parents": (PARENT,)},
        {"parents": (b"short", b"SHORT")},
        {"starts": (0, 3)},
        {"starts": (3, 1)},
        {"starts": (1, 6)},
        {"starts": (1, 1 << 40)},
        {"orders": (12, 0)},
        {"orders": (12, 11)},
        {"order": 0},
        {"keys": ()},
        {"blocks": (20, 21)},
    ],
)
def test_lists_that_do_not_fit_are_refused(change: dict[str, Any]) -> None:
    rig, actor = session()
    assert said(rig.ask(CLIENT_7, replace(THREE, **change)), Saved).status is Status.BAD_REQUEST
    assert idle(actor) and not actor.orders.chains


def test_an_order_is_in_one_save_at_a_time() -> None:
    rig, _ = session()
    rig.ask(CLIENT_7, THREE)
    for again in (
        replace(THREE, save=2, order=10),
        replace(THREE, save=3, order=12, orders=(14, 15)),
    ):
        assert said(rig.ask(CLIENT_7, again), Saved).status is Status.BAD_REQUEST


def test_without_a_word_to_wait_for_it_is_sealed_at_once() -> None:
    rig, actor = session()
    seal = one(rig.tell(CLIENT_7, Keep(1, copied(rig, replace(THREE, commits=False)).batch)), Seal)
    assert sealed(seal) == KEYS[:6]
    assert said(rig.answer(seal, Sealed(Status.OK, tuple(range(6)))), Saved).saved == 6
    assert idle(actor)


# several ranks

OF_RANKS = replace(THREE, keys=KEYS[:4], starts=(1, 2), blocks=())


def both(rig: Rig) -> dict[Any, CopyBatch]:
    """Both ranks save the same; their batches."""
    claim = one(rig.ask(CLIENT_7, OF_RANKS), Claim)
    first = said(rig.answer(claim, Claimed(ClaimId(1), tuple(range(4)))), CopyBatch, CLIENT_7)
    second = said(rig.ask(CLIENT_8, replace(OF_RANKS, save=5, rank=1)), CopyBatch, CLIENT_8)
    return {CLIENT_7: first, CLIENT_8: second}


def test_a_chain_that_one_rank_gives_up_is_saved_by_none() -> None:
    rig, actor = pair()
    batches = both(rig)
    rig.tell(CLIENT_7, Keep(1, batches[CLIENT_7].batch))
    rig.done(FillPages)
    rig.tell(CLIENT_7, Commit((11, 12, 13)))
    rig.tell(CLIENT_8, Skip(13))
    rig.tell(CLIENT_8, Keep(5, batches[CLIENT_8].batch))
    seal = one(rig.done(FillPages), Seal)
    assert sealed(seal) == KEYS[:2]
    sent = rig.answer(seal, Sealed(Status.OK, (0, 1)))
    ended = Saved(Status.DROPPED, 2, 0, (2, 3))
    assert [said(sent, Saved, rank) for rank in RANKS] == [ended] * 2
    assert not actor.orders.open and not actor.orders.chains


@pytest.mark.parametrize(
    "change", [{"starts": (1, 3)}, {"parents": (ROOT, ROOT)}, {"orders": (12, 14)}]
)
def test_ranks_save_the_same_chains(change: dict[str, Any]) -> None:
    rig, _ = pair()
    rig.ask(CLIENT_7, OF_RANKS)
    other = replace(OF_RANKS, save=5, rank=1, **change)
    assert said(rig.ask(CLIENT_8, other), Saved, CLIENT_8).status is Status.BAD_REQUEST


def test_a_rank_that_comes_when_some_are_given_up_saves_the_others() -> None:
    rig, _ = pair()
    claim = one(rig.ask(CLIENT_7, OF_RANKS), Claim)
    rig.tell(CLIENT_8, Skip(11))
    sent = rig.answer(claim, Claimed(ClaimId(1), tuple(range(4))))
    assert said(sent, CopyBatch, CLIENT_7).positions == (1, 2, 3)
    sent = rig.ask(CLIENT_8, replace(OF_RANKS, save=5, rank=1))
    assert said(sent, CopyBatch, CLIENT_8).positions == (1, 2, 3)
