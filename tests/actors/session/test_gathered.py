"""What is sealed under no claim goes together, of whichever orders it is."""

from collections.abc import Sequence

import pytest

from pegaflow.actors.session.actor import Session
from pegaflow.wire.control import Gone, Neighbour
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import NO_CLAIM, NO_KEY, Incarnation, Key
from pegaflow.wire.index import Seal, Sealed
from pegaflow.wire.jobs import DrawProof, MapEngine, ProofDrawn, ReadBlocks
from pegaflow.wire.session import BatchCopied, Commit, Keep, Proven, Save, Saved
from pegaflow.wire.status import Status
from tests.actors.rig import ALLOC, BOSS, CLIENT_7, IDX, Rig, one, pick, said
from tests.actors.session.test_ranks import DIRECT, PROOF, idle
from tests.actors.sessions import KEYS, grant, note, serving
from tests.actors.shared import Shared

NEXT = IDX._replace(incarnation=Incarnation(30))
ALL = Sealed(Status.OK, tuple(range(len(KEYS))))


def session() -> tuple[Rig, Session]:
    """It reads an only rank's blocks itself, and has a page for each of KEYS."""
    rig, actor = serving(Shared())
    rig.ask(CLIENT_7, DIRECT)
    rig.done(DrawProof, ProofDrawn(PROOF))
    rig.ask(CLIENT_7, Proven())
    note(rig, rig.done(MapEngine))
    rig.tell(ALLOC, grant(1, len(KEYS)))
    return rig, actor


def save(rig: Rig, number: int, keys: Sequence[Key], *, commits: bool = False) -> list[Envelope]:
    """A save whose blocks are in place; what is said then."""
    order = number if commits else 0
    blocks = tuple(range(len(keys)))
    msg = Save(number, 0, tuple(keys), NO_KEY, order=order, blocks=blocks, commits=commits)
    rig.ask(CLIENT_7, msg)
    copied = said(rig.done(ReadBlocks), BatchCopied)
    return rig.tell(CLIENT_7, Keep(number, copied.batch))


def four_saves(rig: Rig) -> list[Envelope]:
    """Of one block each: Seals of the first two, and two more blocks that wait."""
    seals = [one(save(rig, n, KEYS[n : n + 1]), Seal) for n in (0, 1)]
    for n in (2, 3):
        assert not pick(save(rig, n, KEYS[n : n + 1]), Seal)
    return seals


def ended(sent: list[Envelope]) -> list[tuple[int, int]]:
    """Of each save that has ended, how many of its blocks were saved, and how many known."""
    return [(m.saved, m.known) for e in pick(sent, Saved) if isinstance(m := e.message, Saved)]


def test_saves_that_wait_are_sealed_together() -> None:
    rig, actor = session()
    first, second = four_saves(rig)
    sent = rig.answer(first, Sealed(Status.OK, (0,)))
    both = one(sent, Seal)
    assert isinstance(both.message, Seal)
    assert (both.message.claim, both.message.keys) == (NO_CLAIM, KEYS[2:4])
    assert both.message.parents == (bytes(32), bytes(32))
    assert ended(sent) == [(1, 0)]
    assert ended(rig.answer(both, Sealed(Status.OK, (0, 1)))) == [(1, 0), (1, 0)]
    assert ended(rig.answer(second, Sealed(Status.OK, (0,)))) == [(1, 0)] and idle(actor)


@pytest.mark.parametrize(
    ("answer", "saves"),
    [
        (Sealed(Status.OK, (1,), known=1), [(0, 1), (1, 0)]),
        (Sealed(Status.OK, (), known=2), [(0, 1), (0, 1)]),
        (Sealed(Status.STALE_CLAIM, (0,)), [(1, 0), (0, 0)]),
    ],
)
def test_each_save_hears_of_its_own_blocks(answer: Sealed, saves: list[tuple[int, int]]) -> None:
    rig, _ = session()
    first, _ = four_saves(rig)
    both = one(rig.answer(first, Sealed(Status.OK, (0,))), Seal)
    assert ended(rig.answer(both, answer)) == saves


def test_a_seal_of_several_saves_goes_to_the_next_index_as_it_was() -> None:
    rig, actor = session()
    first, second = four_saves(rig)
    both = one(rig.answer(first, Sealed(Status.OK, (0,))), Seal)
    assert not pick(rig.tell(BOSS, Gone(IDX)), Saved)
    again = pick(rig.tell(BOSS, Neighbour(NEXT, "ipc://n", 3)), Seal)
    assert [e.message for e in again] == [second.message, both.message]
    assert ended(rig.answer(again[1], Sealed(Status.OK, (0, 1)))) == [(1, 0), (1, 0)]
    assert ended(rig.answer(again[0], Sealed(Status.OK, (0,)))) == [(1, 0)] and idle(actor)


def test_what_an_engine_commits_at_once_is_sealed_at_once() -> None:
    rig, actor = session()
    for n in range(1, 5):
        assert not pick(save(rig, n, KEYS[n : n + 1], commits=True), Seal)
    seal = one(rig.tell(CLIENT_7, Commit((1, 2, 3, 4))), Seal)
    assert isinstance(seal.message, Seal) and seal.message.keys == KEYS[1:5]
    assert ended(rig.answer(seal, ALL)) == [(1, 0)] * 4 and idle(actor)


def test_keys_of_two_lengths_go_apart() -> None:
    rig, actor = session()
    first, second = four_saves(rig)
    short = tuple(Key(key[:16]) for key in KEYS[4:5])
    assert not pick(save(rig, 4, short), Seal)
    both = one(rig.answer(first, ALL), Seal)
    assert isinstance(both.message, Seal) and both.message.keys == KEYS[2:4]
    alone = one(rig.answer(second, ALL), Seal)
    assert isinstance(alone.message, Seal) and alone.message.keys == short
    rig.answer(both, ALL)
    assert ended(rig.answer(alone, ALL)) == [(1, 0)] and idle(actor)
