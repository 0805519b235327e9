"""Models with windows: what is saved, what is found, and that nothing else is ever loaded."""

import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest

from pegaflow.connector import PegaKVConnector
from pegaflow.connectors.common.groups import APART
from pegaflow.connectors.common.requests import Requests
from pegaflow.connectors.vllm import worker as worker_half
from pegaflow.connectors.vllm.layout import Unrepresentable
from pegaflow.wire.identities import Key

from .fakes import BLOCK, FullAttentionSpec, Store, config, role
from .grouping import STATE, Chunk, both_forms
from .hybrid import SHAPE, Hybrid, kv, names
from .recurrent import Recurrent
from .specs import SlidingWindowSpec
from .test_weights import Said

FULL_AND_WINDOW = [None, 4 * BLOCK]
FULL_AND_STATES = [None, STATE]
KINDS = {
    "full and window": FULL_AND_WINDOW,
    "windows alone": [4 * BLOCK],
    "many": [3 * BLOCK + 1, None, 2, 7 * BLOCK, None],
    "full and states": [STATE, None, STATE],
    "states alone": [STATE],
    "all kinds": [4 * BLOCK, STATE, None],
    "full and chunks": [None, Chunk(8 * BLOCK)],
    "chunks and windows": [Chunk(5 * BLOCK), None, 4 * BLOCK],
}


class Large(NamedTuple):
    """A model of docs/versions.md: a group of full attention, and some of windows that are alike
    (real/test_managers.py)."""

    window: int  # blocks
    groups: int  # of windows
    slots: int  # for layers in each group, not all of them used
    layers: int  # of the model
    percent: int  # stored, of all blocks of all layers


LARGE = {
    "Gemma 3 27B": Large(window=64, groups=6, slots=10, layers=62, percent=28),
    "gpt-oss-20b": Large(window=8, groups=1, slots=12, layers=24, percent=56),
}
Start = Callable[..., Hybrid]


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    """Starts engines on one cache."""
    made: list[Hybrid] = []

    def run(windows: list[int | None], **how: Any) -> Hybrid:
        kind = Recurrent if STATE in windows else Hybrid
        made.append(kind(store, windows, **how))
        return made[-1]

    yield run
    for engine in made:
        engine.close()


def text(length: int, seed: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1000) for _ in range(length)]


def run(engine: Hybrid, name: str, prompt: list[int], output: int = 1) -> int:
    """One request; tokens found in the cache."""
    before = engine.external
    engine.ask(name, prompt, text(output, seed=len(prompt)))
    engine.drain()
    return engine.external - before


def saved(store: Store, engine: Hybrid, tokens: list[int]) -> list[list[int]]:
    """Blocks of this text in the cache, by group."""
    with store.lock:
        keys = {key[-32:] for key in store.pages}
    chain = names(tokens)
    return [
        [block for block, name in enumerate(chain) if engine.groups.key(group, name) in keys]
        for group in sorted(engine.groups.full + engine.groups.windows)
    ]


def wrong(store: Store, engine: Hybrid, texts: list[list[int]]) -> list[Any]:
    """Pages that do not hold what their key says, or whose key says nothing."""
    groups = engine.groups.full + engine.groups.windows + engine.groups.states
    right = {
        engine.groups.key(group, name): kv(group.number, name)
        for tokens in texts
        for name in names(tokens)
        for group in groups
    }
    with store.lock:
        pages = {Key(key[-32:]): parts[0] for key, parts in store.pages.items()}
    return [
        key
        for key, page in pages.items()
        if key not in right or (np.frombuffer(page, np.uint8).reshape(SHAPE) != right[key]).any()
    ]


@pytest.mark.parametrize("windows", KINDS.values(), ids=KINDS)
def test_a_prompt_that_is_sent_again_is_found_but_for_its_last_block(
    start: Start, store: Store, windows: list[int | None]
) -> None:
    for length in (41, 44, 400):
        prompt = text(length)
        assert run(start(windows), "a", prompt) == 0
        assert run(start(windows), "b", prompt) == (length - 1) // BLOCK * BLOCK
        store.pages.clear()


@pytest.mark.parametrize("windows", KINDS.values(), ids=KINDS)
def test_the_next_turn_of_a_conversation_finds_all_of_the_last(
    start: Start, windows: list[int | None]
) -> None:
    engine = start(windows, caches=False)
    asked = engine.ask("a", text(101), text(31, seed=1))
    engine.drain()
    said = asked.all_token_ids
    # A window whose first block was just taken away when the request ended is not found.
    found = run(start(windows), "b", said + text(20, seed=2))
    assert len(said) - found in range(BLOCK + 1) or found == 100


def test_only_what_windows_need_is_saved(start: Start, store: Store) -> None:
    engine = start(FULL_AND_WINDOW, chunk=24)
    run(engine, "a", text(8 * BLOCK * APART + 45))
    full, window = saved(store, engine, text(8 * BLOCK * APART + 45))
    assert full == list(range(8 * APART + 11))
    regular = [b for n in (1, 2) for b in range(4 * APART * n - 4, 4 * APART * n)]
    end = range(8 * APART + 11 - 4, 8 * APART + 11)
    assert window == [*regular, *end]


@pytest.mark.parametrize("large", LARGE.values(), ids=LARGE)
def test_what_is_stored_beside_all_blocks_of_all_layers(
    start: Start, store: Store, large: Large
) -> None:
    blocks = 512
    prompt = text(blocks * BLOCK)
    engine = start([None, large.window * BLOCK], blocks=2 * blocks, chunk=512)
    run(engine, "a", prompt)
    full, windows = saved(store, engine, prompt)
    stored = large.slots * (len(full) + large.groups * len(windows))
    assert round(100 * stored / (large.layers * blocks)) == large.percent


def test_where_prompts_part_the_third_finds_what_the_second_did_not(start: Start) -> None:
    shared = text(60)
    prompts = [shared + text(30, seed=n) for n in (1, 2, 3)]
    assert [run(start(FULL_AND_WINDOW), str(n), p) for n, p in enumerate(prompts)] == [0, 0, 60]


def test_a_hit_is_the_largest_place_where_all_can_resume(start: Start, store: Store) -> None:
    engine = start(FULL_AND_WINDOW, chunk=32)
    long = text(8 * BLOCK * APART)
    run(engine, "a", long)
    last = engine.groups.windows[0]
    gone = engine.groups.key(last, names(long)[-2])
    with store.lock:
        for key in [key for key in store.pages if key.endswith(gone)]:
            del store.pages[key]
    store.finds = True
    assert run(start(FULL_AND_WINDOW), "b", [*long, 1, 2]) == 4 * APART * BLOCK
    store.finds = False
    assert run(start(FULL_AND_WINDOW), "c", [*long, 3, 4]) == 8 * APART * BLOCK, "b has saved it"


def test_a_window_that_is_given_to_others_before_it_is_copied_is_not_published(
    start: Start, store: Store
) -> None:
    engine = start(FULL_AND_WINDOW, blocks=76, chunk=16, caches=False)
    run(engine, "warm", text(9))
    store.holding = True  # the movers copy nothing
    asked = text(4 * BLOCK * APART + 101)
    engine.ask("a", asked, [1])
    while engine.requests:
        engine.step()
    store.let_go()
    engine.drain()
    assert wrong(store, engine, [text(9), [*asked, 1]]) == []
    full, window = saved(store, engine, asked)
    assert full == list(range(57))
    assert window[-4:] == [53, 54, 55, 56]
    assert not {28, 29, 30, 31} & {*window}, "they were used again meanwhile"


@pytest.mark.parametrize("failing", [1, 100])
def test_a_load_that_fails_is_named_by_its_request_and_not_tried_again(
    start: Start, store: Store, failing: int
) -> None:
    prompt = text(100)
    run(start(FULL_AND_WINDOW), "a", prompt)
    store.failing = min(failing, 24)
    engine = start(FULL_AND_WINDOW)
    assert run(engine, "b", prompt) == 0 and engine.failed == ["b"]
    store.failing = 0
    assert run(start(FULL_AND_WINDOW), "c", prompt) == 96


def test_blocks_of_every_group_are_counted_where_they_are(start: Start, store: Store) -> None:
    prompt = text(100)
    run(start(FULL_AND_WINDOW), "a", prompt)
    store.on_disk = {key[-32:] for key in store.pages}
    engine = start(FULL_AND_WINDOW)
    assert run(engine, "b", prompt) == 96
    counted = engine.scheduler.get_kv_connector_stats()
    assert counted is not None and counted.data["hit_blocks_disk"] == 24 + 4
    assert "hit_blocks_host" not in counted.data


def test_a_connector_that_shortens_the_hit_gets_nothing_loaded(start: Start, store: Store) -> None:
    prompt = text(100)
    run(start(FULL_AND_WINDOW), "a", prompt)
    engine = start(FULL_AND_WINDOW)
    honest = engine.scheduler.get_num_new_matched_tokens

    def shorter(request: Any, computed: int) -> tuple[int | None, bool]:
        found, late = honest(request, computed)
        return (found - BLOCK, late) if found else (found, late)

    engine.scheduler.get_num_new_matched_tokens = shorter  # type: ignore[assignment,method-assign]
    assert run(engine, "b", prompt) == 0 and engine.failed == ["b"]
    assert store.leases == {}


@pytest.mark.parametrize("windows", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_request_that_another_connector_shortens_is_computed(
    start: Start, store: Store, windows: list[int | None], tokens: int
) -> None:
    """vLLM tells its connectors of a request one after the other, and ours has asked by then."""
    store.finds = True
    run(start(windows), "a", text(65))
    engine = start(windows, caches=False, policy="fail")
    run(engine, "warm", text(9, seed=5))
    asked = engine.ask("b", text(65), [1])
    del asked.prompt[-tokens:]
    engine.drain()
    assert engine.failed == [] and engine.external == 0 and store.leases == {}
    assert run(engine, "c", text(65)) == 64


def test_a_last_window_that_a_failed_step_has_not_begun_is_over(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(FULL_AND_WINDOW, chunk=200)
    engine.ask("a", text(97), text(20))
    while engine.requests:
        engine.step()
    book: Any = engine.scheduler._scheduler._requests  # type: ignore[union-attr]
    ((late,), half) = ([order.order for order in book._late], engine.worker._worker)
    with monkeypatch.context() as patch:
        patch.setattr(half, "_collect", lambda: 1 / 0)
        engine.step()
    assert late not in book._open
    engine.drain()


def test_a_last_window_is_not_saved_as_one_of_other_weights(start: Start, store: Store) -> None:
    engine = start(FULL_AND_WINDOW, chunk=200)
    engine.ask("a", text(97), text(20))
    while engine.requests:
        engine.step()
    half: Any = engine.scheduler._scheduler
    (late,), worker = half._requests._late, engine.worker._worker
    half._pool.cached_block_hash_to_block = {}
    half._pool.num_gpu_blocks = len(engine.free) + 1
    assert worker is not None and worker._watch is not None
    worker._watch.weights = Said(digest=b"other", original=False, sames=[False])
    engine.scheduler.reset_cache()
    engine.step()
    engine.drain()
    assert worker._watch.epoch == 1
    assert not [key for key in store.pages if key[-32:] in late.keys]


@pytest.mark.parametrize("policy", ["recompute", "fail"])
def test_a_scheduler_asks_nothing_whose_worker_cannot_describe_its_memory(
    start: Start, store: Store, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    """As where heads are outermost in memory (LHBNC), and a state is one run of bytes."""
    run(start(FULL_AND_STATES), "a", text(100))
    with monkeypatch.context() as patch:
        patch.setattr(worker_half, "sound_plan", unrepresentable)
        engine = start(FULL_AND_STATES, policy=policy)
    asked = store.number
    for name in ("b", "c"):
        assert run(engine, name, text(100)) == 0
    assert store.number == asked + 1 and engine.failed == [], "it hears of it in the first step"
    assert wrong(store, engine, [text(100) + text(1, seed=100)]) == []


def test_a_worker_says_why_it_is_off_where_its_scheduler_is_not(
    start: Start, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    run(start(FULL_AND_WINDOW), "a", text(100))
    engine = start(FULL_AND_WINDOW)
    _, whole = both_forms([FullAttentionSpec(), SlidingWindowSpec()], [SlidingWindowSpec()])
    engine.worker.shutdown()
    engine.worker = PegaKVConnector(config(), role("WORKER"), whole)
    caplog.clear()
    assert run(engine, "b", text(100)) == 0 and run(engine, "c", text(100)) == 0
    lines = [r.getMessage() for r in caplog.records if "pegaflow: off" in r.getMessage()]
    assert len(lines) == 1 and "differ in what they keep" in lines[0]


def unrepresentable(*_: Any) -> Any:
    raise Unrepresentable("a block of a layer is not one run of bytes")


def test_an_engine_that_only_reads_saves_no_windows(start: Start, store: Store) -> None:
    run(start(FULL_AND_WINDOW, mode="read_only"), "a", text(100), 20)
    assert store.pages == {}


@pytest.mark.parametrize("windows", KINDS.values(), ids=KINDS)
def test_whatever_happens_nothing_wrong_is_saved_or_loaded(
    start: Start, store: Store, windows: list[int | None]
) -> None:
    seeds = [1] if STATE in windows else range(3)  # test_recurrent.py has more of those
    assert sum(crowd(start, store, windows, seed) for seed in seeds) > 0


def crowd(start: Start, store: Store, windows: list[int | None], seed: int) -> int:
    """Three engines, one after the other, with too little memory; tokens found in the cache."""
    store.pages.clear()
    draw = random.Random(seed)
    store.finds = bool(seed % 2)
    stems = [text(draw.randrange(20, 300), seed=n) for n in range(3)]
    texts: list[list[int]] = []
    external = crowded = 0
    for life in range(3):
        chunk, blocks = draw.choice([5, 16, 64]), 32 * len(windows) + 93 * windows.count(None)
        engine = start(windows, blocks=blocks, chunk=chunk, seed=seed, caches=bool(life % 2))
        engine.squeezed = True
        for number in range(12):
            stem = draw.choice(stems)
            cut = draw.choice([len(stem), draw.randrange(1, len(stem))])
            prompt = stem[:cut] + text(draw.randrange(1, 40), number)
            asked = engine.ask(f"{life}.{number}", prompt, text(draw.randrange(1, 30), seed=9))
            texts.append(prompt + asked.output)
            store.failing = draw.choice([0, 0, 0, 1])
            for _ in range(draw.randrange(12)):
                engine.step()
            if draw.random() < 0.15:
                engine.abort(asked)
            if len(texts[-1]) < 300:
                stems.append(texts[-1])
        engine.drain()
        external += engine.external
        crowded += engine.preemptions
        engine.close()
    assert wrong(store, engine, texts) == []
    assert store.leases == {} and crowded
    return external


@pytest.mark.parametrize("windows", KINDS.values(), ids=KINDS)
def test_steps_that_fail_save_and_load_nothing_wrong(
    start: Start, store: Store, monkeypatch: pytest.MonkeyPatch, windows: list[int | None]
) -> None:
    draw, real = random.Random(1), Requests.stale

    def stale(self: Requests, now_s: float) -> Any:
        if draw.random() < 0.03:
            raise RuntimeError("on purpose")
        return real(self, now_s)

    monkeypatch.setattr(Requests, "stale", stale)
    crowd(start, store, windows, 1)
