"""Models with recurrent layers: which of their states are saved, found, and never used."""

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from . import grouping
from .fakes import BLOCK, Store
from .grouping import STATE
from .hybrid import names
from .recurrent import Recurrent
from .states import BESIDE, NAMES, GatedSpec, KdaSpec
from .test_hybrid import run, text, wrong

BOTH = [STATE, None]
Start = Callable[..., Recurrent]


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    """Starts engines of a model with attention and states, on one cache."""
    made: list[Recurrent] = []

    def start(**how: Any) -> Recurrent:
        made.append(Recurrent(store, BOTH, **how))
        return made[-1]

    yield start
    for engine in made:
        engine.close()


def states(store: Store, engine: Recurrent, tokens: list[int]) -> list[int]:
    """Blocks of this text whose states are in the cache."""
    (group,) = engine.groups.states
    with store.lock:
        keys = {key[-32:] for key in store.pages}
    chain = enumerate(names(tokens))
    return [block for block, name in chain if engine.groups.key(group, name) in keys]


@pytest.mark.parametrize("lags", [False, True])
def test_states_are_saved_where_steps_end_and_blocks_do(
    start: Start, store: Store, lags: bool
) -> None:
    engine = start(chunk=40, lags=lags, caches=False)
    asked = engine.ask("a", text(101), text(12, seed=1))
    engine.drain()
    assert states(store, engine, asked.all_token_ids) == [9, 19, 24, 25, 26, 27]
    assert wrong(store, engine, [asked.all_token_ids]) == []


def test_blocks_longer_than_a_step_are_saved_when_they_are_full(start: Start, store: Store) -> None:
    engine = start(chunk=3, caches=False)
    run(engine, "a", text(22))
    assert states(store, engine, text(22)) == [0, 1, 2, 3, 4]
    assert run(start(chunk=3), "b", text(22)) == 20


def test_where_prompts_part_the_state_before_is_resumed(start: Start, store: Store) -> None:
    shared, store.finds = text(70), True
    run(start(chunk=20, caches=False), "a", shared + text(30, seed=1))
    assert run(start(caches=False), "b", shared + text(30, seed=2)) == 60


def test_a_state_that_is_given_to_others_before_it_is_copied_is_not_published(
    start: Start, store: Store
) -> None:
    engine = start(blocks=40, chunk=8, caches=False)
    run(engine, "warm", text(9))
    store.holding = True  # the movers copy nothing
    asked = engine.ask("a", text(110), [1])
    while engine.requests:
        engine.step()
    store.let_go()
    engine.drain()
    assert wrong(store, engine, [text(9), asked.all_token_ids]) == []
    kept = states(store, engine, asked.prompt)
    assert kept and kept[-1] == 26 and kept != [*range(1, 26, 2), 26], "some were used again"


def test_a_failed_load_leaves_no_state_behind(start: Start, store: Store) -> None:
    run(start(), "a", text(61))
    before = set(store.pages)
    engine = start(caches=False)
    store.failing = 1
    assert run(engine, "b", text(61)) == 0 and engine.failed == ["b"]
    assert wrong(store, engine, [text(61)]) == [] and before <= set(store.pages)
    store.failing = 0
    assert run(start(caches=False), "c", text(61)) == 60


@pytest.mark.parametrize("kind", BESIDE, ids=NAMES.get)
def test_states_are_found_by_engines_of_their_kind_alone(
    start: Start, kind: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "MambaSpec", kind)
    monkeypatch.setattr(grouping, "FullAttentionSpec", BESIDE[kind])
    run(start(), "a", text(61))
    assert run(start(), "b", text(61)) == 60
    monkeypatch.setattr(grouping, "MambaSpec", GatedSpec if kind is KdaSpec else KdaSpec)
    assert run(start(), "c", text(61)) == 0


@pytest.mark.parametrize("seed", range(2))
def test_engines_that_hear_of_states_late_save_and_load_nothing_wrong(
    start: Start, store: Store, seed: int
) -> None:
    draw, texts, found = random.Random(seed), [], 0
    stem = text(150, seed=seed)
    for life in range(2):
        engine = start(blocks=120, chunk=draw.choice([3, 16]), lags=True, seed=seed)
        for number in range(10):
            prompt = stem[: draw.randrange(BLOCK, len(stem))] + text(draw.randrange(9), number)
            asked = engine.ask(f"{life}.{number}", prompt, text(draw.randrange(1, 20), seed=9))
            texts.append(prompt + asked.output)
            engine.squeezed = draw.random() < 0.3
            for _ in range(draw.randrange(9)):
                engine.step()
            if draw.random() < 0.15:
                engine.abort(asked)
        engine.drain()
        found += engine.external
    assert wrong(store, engine, texts) == [] and found and store.leases == {}
