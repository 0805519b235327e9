"""Ten thousand hostile frames for each kind of actor; `tox -e fuzz` feeds a million."""

import random
from collections import Counter

import pytest

from pegaflow.wire.identities import Incarnation
from pegaflow.wire.message import declared
from pegaflow.wire.values import CLIENT, Address

from .cage import Cage
from .client import ClientCage
from .hostile import EVERY_KIND, Generator
from .kinds import CAGES
from .session import SessionCage

FRAMES = 10_000
PATIENCE = 10
"""How many times as many frames a cage may take to get deep.  When a seed gets there changes with
every message that is declared; that it gets there does not."""

DEEP = {
    "session": {"blocks_loaded": 20, "blocks_filled": 20, "answers": 1000, "blocks_hit_local": 20},
    "index": {"blocks_sealed": 200, "blocks_evicted": 200, "evictions_turned_back": 20},
    "index-ssd": {"blocks_evicted": 50, "blocks_hit_ssd": 50, "ssd_waits_cut": 10},
    "flusher": {"blocks_written": 100, "ssd_prefetch_success": 50, "ssd_blocks_corrupt": 10},
    "allocator": {"pages_granted": 1000, "answers": 500},
    "supervisor": {"engines_served": 100, "answers": 50},
    "gateway": {"reports_rendered": 20},
}
"""What has to happen at least so often among the rest: else nothing deep is tested."""


def lacking(counts: Counter[str], kind: str) -> dict[str, int]:
    """What has not happened often enough."""
    told = dict.fromkeys(("frames_bad", "frames_unwanted", "frames_of_other_lives"), 50)
    return {
        what: counts[what] for what, least in (told | DEEP[kind]).items() if counts[what] < least
    }


@pytest.mark.parametrize("kind", CAGES)
def test_the_actor_lives_on(kind: str) -> None:
    cage = CAGES[kind](seed=1)
    counts = cage.run(FRAMES)
    assert counts["frames"] == FRAMES
    while lacking(counts, kind) and counts["frames"] < PATIENCE * FRAMES:
        counts = cage.run(FRAMES)
    assert lacking(counts, kind) == {}


def test_every_declared_message_is_made() -> None:
    generator = Generator(random.Random(3))
    assert {kind.TAG for kind in EVERY_KIND} == set(declared())
    for kind in EVERY_KIND:
        assert type(generator.message(kind)) is kind


def test_a_seed_repeats() -> None:
    assert CAGES["session"](seed=4).run(500) == CAGES["session"](seed=4).run(500)


def test_a_table_without_a_limit_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pegaflow.actors.session.engine.CLIENTS_MAX", 1 << 30)
    monkeypatch.setattr("tests.fuzz.cage.ENTRIES_MAX", 100)
    cage = SessionCage(seed=5)
    monkeypatch.setattr(
        cage, "step", lambda: cage.senders.append(Address(CLIENT, Incarnation(cage.now)))
    )
    with pytest.raises(AssertionError, match="clients has"):
        cage.run(PATIENCE * FRAMES)


def test_an_assertion_that_an_outsider_triggers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "pegaflow.actors.index.publishing.Publishing._makes_sense", lambda self, msg: True
    )
    cage: Cage = CAGES["index"](seed=7)
    with pytest.raises((AssertionError, IndexError, OverflowError, ValueError)):
        cage.run(PATIENCE * FRAMES)


@pytest.mark.parametrize("seed", range(1, 5))
def test_the_client_lives_on(seed: int) -> None:
    counts = ClientCage(seed).run(FRAMES // 4)
    assert counts["frames_bad"] > 50 and counts["operations"] > 100 and counts["ended_ok"] > 5
