"""Ten thousand hostile frames for each kind of actor; `tox -e fuzz` feeds a million."""

import random
from collections import Counter

import pytest

from pegaflow.wire.message import declared
from pegaflow.wire.values import CLIENT, Address

from .cage import Cage
from .hostile import EVERY_KIND, Generator
from .kinds import CAGES, SessionCage

FRAMES = 10_000


@pytest.mark.parametrize("kind", CAGES)
def test_the_actor_lives_on(kind: str) -> None:
    counts = CAGES[kind](seed=1).run(FRAMES)
    assert counts["frames"] == FRAMES
    for what in ("frames_bad", "frames_unwanted", "frames_of_other_lives", "answers"):
        assert counts[what] > FRAMES / 200, f"{what}: the fuzzer does not reach what it should"


def test_the_fuzzer_gets_behind_the_first_check() -> None:
    """Sound things happen among the unsound ones: else nothing deep is tested."""
    sessions = [CAGES["session"](seed).run(FRAMES) for seed in (2, 3, 4)]
    session = sum(sessions, Counter())  # a batch that is kept and filled is a rare accident
    index = CAGES["index"](seed=2).run(FRAMES)
    allocator = CAGES["allocator"](seed=2).run(FRAMES)
    supervisor = CAGES["supervisor"](seed=2).run(FRAMES)
    assert session["blocks_loaded"] > 50 and session["blocks_filled"] > 20
    assert index["blocks_sealed"] > 200 and index["blocks_evicted"] > 200
    assert allocator["pages_granted"] > 1000
    assert supervisor["engines_served"] > 20


def test_every_declared_message_is_made() -> None:
    generator = Generator(random.Random(3))
    assert {kind.TAG for kind in EVERY_KIND} == set(declared())
    for kind in EVERY_KIND:
        assert type(generator.message(kind)) is kind


def test_a_seed_repeats() -> None:
    assert CAGES["session"](seed=4).run(2000) == CAGES["session"](seed=4).run(2000)


def test_a_table_without_a_limit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegaflow.actors.session.CLIENTS_MAX", 1 << 30)
    monkeypatch.setattr("tests.fuzz.cage.ENTRIES_MAX", 100)
    cage = SessionCage(seed=5)
    monkeypatch.setattr(cage, "step", lambda: cage.senders.append(Address(CLIENT, cage.now)))
    with pytest.raises(AssertionError, match="clients has"):
        cage.run(FRAMES)


def test_an_assertion_that_an_outsider_triggers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegaflow.actors.index.Index._makes_sense", lambda self, msg: True)
    cage: Cage = CAGES["index"](seed=6)
    with pytest.raises((AssertionError, IndexError, ValueError)):
        cage.run(FRAMES)
