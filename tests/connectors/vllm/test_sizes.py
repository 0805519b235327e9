"""Models whose KV cache groups have blocks of different lengths: what is saved, found and refused.

A hash covers BLOCK tokens; a place, at which blocks of all groups end, is `step_tokens` of them.
"""

from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from pegaflow.client import Seen
from pegaflow.connector import PegaKVConnector
from pegaflow.connectors.common.requests import Requests
from pegaflow.connectors.common.tracked import LoadOrder
from pegaflow.connectors.vllm import compat, events, eventwords, kvgroups, sizes
from pegaflow.connectors.vllm.settings import engine as engine_of
from pegaflow.connectors.vllm.tables import Tables
from pegaflow.wire.layout import page_bytes

from .drafting import Drafting
from .fakes import BLOCK, Store, config, role
from .grouping import STATE, Chunk, kv_config
from .hybrid import Hybrid, names
from .recurrent import Recurrent
from .test_events import Spoken
from .test_hybrid import crowd, run, text, wrong


class Kind(NamedTuple):
    """Groups of a model."""

    windows: list[int | None]
    tokens: list[int]  # of a block of each


LONG_FULL = Kind([None, 4 * BLOCK], [2 * BLOCK, BLOCK])
LONG_WINDOW = Kind([4 * BLOCK, None], [2 * BLOCK, BLOCK])
ATTENTION = {
    "long blocks of full attention": LONG_FULL,
    "long blocks of windows": LONG_WINDOW,
    "none is a multiple of the other": Kind([4 * BLOCK, None, 9], [2 * BLOCK, 3 * BLOCK, BLOCK]),
    "windows alone": Kind([4 * BLOCK, 3 * BLOCK], [BLOCK, 2 * BLOCK]),
    "all of several hashes": Kind([4 * BLOCK, None], [2 * BLOCK, 4 * BLOCK]),
    "full attention alone": Kind([None, None], [2 * BLOCK, BLOCK]),
}
KINDS = {
    **ATTENTION,
    "states": Kind([None, STATE], [2 * BLOCK, BLOCK]),
    "all kinds": Kind([4 * BLOCK, None, STATE], [BLOCK, 3 * BLOCK, BLOCK]),
}
Start = Callable[..., Hybrid]


@pytest.fixture
def start(store: Store) -> Iterator[Start]:
    """Starts engines on one cache; as of test_hybrid.py, but for the blocks' sizes."""
    made: list[Hybrid] = []

    def start(kind: Kind, **how: Any) -> Hybrid:
        of = Recurrent if STATE in kind.windows else Hybrid
        made.append(of(store, kind.windows, sizes=kind.tokens, **how))
        return made[-1]

    yield start
    for engine in made:
        engine.close()


def of_kind(start: Start, kind: Kind) -> Start:
    """Starts engines of this kind, whose windows the caller names again."""
    return lambda windows, **how: start(kind, **how)


def saved(store: Store, engine: Hybrid, tokens: list[int]) -> list[list[int]]:
    """Blocks of this text in the cache, by group."""
    with store.lock:
        keys = {key[-32:] for key in store.pages}
    chain, groups = names(tokens), engine.groups
    return [
        [block for block, key in enumerate(groups.keys(group, chain, 0, len(chain))) if key in keys]
        for group in sorted(groups.full + groups.windows)
    ]


@pytest.mark.parametrize("kind", ATTENTION.values(), ids=ATTENTION)
def test_a_prompt_that_is_sent_again_is_found_to_the_last_place(
    start: Start, store: Store, kind: Kind
) -> None:
    for length in (41, 48, 400):
        first, second = start(kind), start(kind)
        step = first.step_tokens
        assert run(first, "a", text(length)) == 0
        assert run(second, "b", text(length)) == (length - 1) // step * step
        store.pages.clear()


def test_a_state_is_found_at_places_alone(start: Start, store: Store) -> None:
    kind = KINDS["states"]
    store.finds = True
    assert run(start(kind, chunk=12), "a", text(46)) == 0
    # Its steps end behind 12, 24, 36, 44 and 46 tokens.
    assert run(start(kind), "b", text(46)) == 24
    assert wrong(store, start(kind), [text(46)]) == []


def test_each_group_saves_blocks_of_its_own_length(start: Start, store: Store) -> None:
    run(start(LONG_FULL, chunk=24), "a", text(101))
    full, window = saved(store, start(LONG_FULL), text(101))
    assert full == list(range(12)), "blocks of eight tokens"
    assert window == [20, 21, 22, 23], "of four: those before token 96"


def test_the_rest_behind_the_last_place_is_not_saved(start: Start, store: Store) -> None:
    run(start(LONG_WINDOW), "a", text(46))
    window, full = saved(store, start(LONG_WINDOW), text(46))
    assert full == list(range(10)), "the eleventh ends within the other group's sixth"
    assert window == [3, 4]


@pytest.mark.parametrize("kind", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("common", [33, 36, 41, 45])
def test_prompts_that_part_within_a_block_never_share_it(
    start: Start, store: Store, kind: Kind, common: int
) -> None:
    """A block's first hash is the same in both. The engine compares all that it attends to."""
    other = start(kind)
    behind = other.step_tokens + 1  # the first leaves windows at the place behind what is common
    prompts = [text(common) + text(behind, seed) for seed in (1, 2)]
    run(start(kind), "a", prompts[0])
    assert run(other, "b", prompts[1]) <= common // other.step_tokens * other.step_tokens
    assert wrong(store, other, prompts) == []


@pytest.mark.parametrize("kind", [LONG_FULL, LONG_WINDOW], ids=["full", "window"])
def test_the_next_turn_of_a_conversation_finds_all_of_the_last(
    start: Start, store: Store, kind: Kind
) -> None:
    store.finds = True
    for length in range(20, 28):  # it ends anywhere behind a place
        engine = start(kind, caches=False)
        asked = engine.ask("a", text(101, length), text(length, seed=1))
        engine.drain()
        said, step = asked.all_token_ids, engine.step_tokens
        found = run(start(kind), "b", said + text(20, seed=2))
        away = kind is LONG_WINDOW and len(said) % step == step - 1  # of its last window
        assert found == (96 if away else len(said) // step * step)


@pytest.mark.parametrize("length", range(14, 20))
def test_the_next_turn_finds_an_answer_of_which_tokens_were_drafted(
    store: Store, length: int
) -> None:
    """Its steps end behind 105, 109 and 113 tokens, and its last place is at 112."""
    store.finds = True
    sizes = [4 * BLOCK, BLOCK]
    engine, other = (Drafting(store, [None, 4 * BLOCK], sizes=sizes, least=3) for _ in "ab")
    asked = engine.ask("a", text(101, length), text(length, seed=1))
    engine.drain()
    assert run(other, "b", asked.all_token_ids + text(20, seed=2)) == 112
    for one in (engine, other):
        one.close()


DRAFTED = {
    **ATTENTION,
    "chunks": Kind([None, Chunk(8 * BLOCK)], [BLOCK, BLOCK]),
    "chunks beside longer blocks": Kind([Chunk(8 * BLOCK), None], [BLOCK, 2 * BLOCK]),
    "chunks of longer blocks": Kind([Chunk(8 * BLOCK), None, 3], [2 * BLOCK, BLOCK, BLOCK]),
}


@pytest.mark.parametrize("kind", DRAFTED.values(), ids=DRAFTED)
def test_with_drafted_tokens_nothing_wrong_is_saved_or_loaded(store: Store, kind: Kind) -> None:
    def start(windows: list[int | None], **how: Any) -> Hybrid:
        return Drafting(store, windows, sizes=kind.tokens, **how)

    assert crowd(start, store, kind.windows, seed=1) > 0


def test_a_hit_is_the_largest_place_where_all_can_resume(start: Start, store: Store) -> None:
    kind = KINDS["none is a multiple of the other"]
    engine = start(kind, chunk=32)
    step, regular = engine.step_tokens, engine.groups.apart
    long = text(2 * regular * step + 5)
    run(engine, "a", long)
    (group,) = (one for one in engine.groups.windows if one.number == 2)
    gone = engine.groups.keys(group, names(long), 6 * 2 * regular - 1, 6 * 2 * regular)[0]
    with store.lock:
        for key in [key for key in store.pages if key.endswith(gone)]:
            del store.pages[key]
    store.finds = True
    assert run(start(kind), "b", [*long, 1, 2]) == regular * step
    store.finds = False
    assert run(start(kind), "c", [*long, 3, 4]) == 2 * regular * step, "b has saved it"


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_load_that_fails_is_named_by_its_request_and_not_tried_again(
    start: Start, store: Store, kind: Kind
) -> None:
    prompt, store.finds = text(100), True
    run(start(kind, chunk=24), "a", prompt)
    store.failing = 1
    engine = start(kind)
    assert run(engine, "b", prompt) == 0 and engine.failed == ["b"]
    store.failing = 0
    assert run(start(kind), "c", prompt) >= 72


def test_blocks_that_the_engine_has_itself_are_not_loaded(start: Start, store: Store) -> None:
    run(start(LONG_FULL), "a", text(101))
    engine = start(LONG_FULL)
    assert run(engine, "b", text(50)) == 0, "there is no window"
    loaded: list[int] = []
    half: Any = engine.worker._worker
    load = half._load

    def counted(order: LoadOrder) -> None:
        loaded.append(len(order.blocks))
        load(order)

    half._load = counted
    engine.ask("c", text(101), [1])
    engine.drain()
    assert engine.local == 48 and engine.external == 48
    assert loaded == [6 + 4]


def crowded(start: Start, store: Store, kind: Kind, seed: int = 1) -> int:
    return crowd(of_kind(start, kind), store, kind.windows, seed)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_whatever_happens_nothing_wrong_is_saved_or_loaded(
    start: Start, store: Store, kind: Kind
) -> None:
    assert crowded(start, store, kind) > 0


def test_steps_that_fail_save_and_load_nothing_wrong(
    start: Start, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = iter(range(1_000_000)), Requests.stale

    def stale(self: Requests, now_s: float) -> Any:
        if next(calls) % 31 == 7:
            raise RuntimeError("on purpose")
        return real(self, now_s)

    monkeypatch.setattr(Requests, "stale", stale)
    crowded(start, store, KINDS["all kinds"])


# what vLLM says


def said(kind: Kind, unit: int | None, **cache: Any) -> tuple[Any, Any]:
    """An engine's configuration."""
    seen, found = config(), kv_config(kind.windows, 64, kind.tokens)
    seen.cache_config.__dict__.update(cache)
    found.hash_block_size = unit
    return seen, found


@pytest.mark.parametrize(
    ("tokens", "match", "unit", "expected"),
    [
        ([16, 32], None, None, (32, 16)),
        ([32, 48], None, None, (96, 16)),
        ([32, 48], 8, None, (96, 8)),
        ([32, 48], 8, 16, (96, 16)),
        ([32, 32], None, None, (32, 32)),
    ],
    ids=["a multiple", "neither", "prefix_match_unit", "as vLLM says", "alike"],
)
def test_the_tokens_of_a_hash_and_from_place_to_place(
    tokens: list[int], match: int | None, unit: int | None, expected: tuple[int, int]
) -> None:
    seen, found = said(Kind([None, 64], tokens), unit, prefix_match_unit=match)
    assert (sizes.block_tokens(seen, found), sizes.hash_tokens(seen, found)) == expected
    made = kvgroups.groups(seen, found)
    assert made is not None and made.hashes == expected[0] // expected[1]
    assert [group.hashes * expected[1] for group in (*made.full, *made.windows)] == tokens
    assert kvgroups.unsupported(seen, found) == ""


def test_a_unit_that_a_block_is_no_multiple_of_is_refused() -> None:
    why = kvgroups.unsupported(*said(Kind([None, 64], [16, 24]), 16))
    assert "a block of 24 tokens is no multiple of the 16 tokens of a hash" in why


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Kind([None, STATE], [2 * BLOCK, BLOCK]), ""),
        (Kind([None, STATE], [BLOCK, 2 * BLOCK]), "other layers have shorter blocks"),
        (Kind([None, STATE], [2 * BLOCK, 2 * BLOCK]), "leave --prefix-match-unit unset"),
    ],
    ids=["as short as any", "longer", "of several hashes"],
)
def test_a_recurrent_layers_block_has_one_hash(kind: Kind, why: str) -> None:
    found = kvgroups.unsupported(*said(kind, BLOCK))
    assert why in found and bool(why) == bool(found)


def test_engines_whose_blocks_differ_are_apart() -> None:
    one, other = (
        kv_config([None, 64], 8, tokens) for tokens in ([BLOCK, 2 * BLOCK], [2 * BLOCK, BLOCK])
    )
    assert kvgroups.describe(one) != kvgroups.describe(other)
    assert sizes.block_tokens(config(), one) == sizes.block_tokens(config(), other)


def test_other_hashes_than_were_worked_out_are_noticed() -> None:
    request = SimpleNamespace(num_in_flight_tokens=0)
    seen, found = said(LONG_FULL, None)
    pool = partial(SimpleNamespace, get_num_free_blocks=lambda: 1)
    unit = sizes.hash_tokens(seen, found)
    assert compat.unlike(request, pool(hash_block_size=BLOCK), None, unit) == ""
    assert "8 tokens" in compat.unlike(request, pool(hash_block_size=2 * BLOCK), None, unit)


def test_blocks_of_all_lengths_lie_in_one_page(store: Store) -> None:
    cache = kv_config(LONG_FULL.windows, 8, LONG_FULL.tokens)
    worker = PegaKVConnector(config(), role("WORKER"), cache)
    memory = np.zeros((8, 64), np.uint8)
    worker.register_kv_caches({"a": memory.reshape(8, 2, 32), "b": memory.reshape(8, 4, 16)})
    half = worker._worker
    assert half is not None and half._memory is not None
    assert page_bytes(half._memory[0]) == 64
    worker.shutdown()


def test_routers_are_told_of_blocks_of_the_first_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eventwords, "are_wanted", lambda _: True)
    monkeypatch.setattr(events, "LOOK_EVERY_S", 0.0)
    made, _ = engine_of(config(), kv_config([16, None], 8, [2 * BLOCK, 3 * BLOCK]))
    told = events.Events(made, lambda keys: Seen((True,) * len(keys), None))
    request = Spoken("a", 14 * BLOCK)
    told.add(request, 0, 2)
    pool = SimpleNamespace(cached_block_hash_to_block={})
    (event,) = told.take(pool)
    assert event.block_hashes == [*map(eventwords.external, request.block_hashes[2:12:3])]
    assert event.token_ids == request.all_token_ids[: 12 * BLOCK]
    assert (event.block_size, event.group_idx) == (3 * BLOCK, 1)
    told.lost()
    (gone,) = told.take(pool)
    assert gone.group_idx == 1


def test_blocks_behind_so_many_tokens_are_counted_by_their_length() -> None:
    tables = Tables([BLOCK, 2 * BLOCK], True)
    given = [[1, 2, 3, 4], [5, 0, 6]]
    assert tables.ids(given, 2 * BLOCK) == [3, 4, 6]
    assert tables.ids(given, 3 * BLOCK) == [4, 6], "a block that they end in is written to"
    assert tables.ids(given) == [1, 2, 3, 4, 5, 6]


def test_layers_in_another_order_lie_elsewhere_in_a_page() -> None:
    names = []
    for order in (["layers.0", "layers.2"], ["layers.2", "layers.0"]):
        made = kv_config([None, 16], 8, [BLOCK, BLOCK])
        made.kv_cache_groups[0].layer_names = order
        names.append(kvgroups.layers(made))
    assert names[0] != names[1]
