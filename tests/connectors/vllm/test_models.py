"""Which engines are served, and which ways."""

from types import SimpleNamespace
from typing import Any

import pytest

from pegaflow.connector import PegaKVConnector
from pegaflow.connectors.vllm import compat, kvgroups
from pegaflow.connectors.vllm.orders import StepOrders
from pegaflow.connectors.vllm.settings import engine as engine_of

from .fakes import (
    BLOCK,
    FullAttentionSpec,
    Request,
    Store,
    config,
    kv_cache_config,
    output,
    role,
)
from .grouping import STATE, Chunk, both_forms, kv_config, seen_as
from .latent import MLAAttentionSpec
from .pair import Pair
from .specs import (
    ChunkedLocalAttentionSpec,
    CrossAttentionSpec,
    CutSpec,
    DenseSpec,
    DraftedSpec,
    LeftSpec,
    MambaSpec,
    OddSpec,
    PrefixLMSpec,
    PrivateSpec,
    ShortConvSpec,
    SlidingWindowSpec,
)


@pytest.mark.parametrize(("mode", "loads", "saves"), [("save_only", 0, 6), ("read_only", 24, 0)])
def test_modes(pair: Pair, store: Store, mode: str, loads: int, saves: int) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    one_way = Pair(mode)
    assert one_way.load(Request("b", 25), [1, 2, 3, 4, 5, 6]) == loads
    other = Request("c", 25, salt="c")
    one_way.scheduler.on_new_request(other)
    orders = one_way.compute(other, [11, 12, 13, 14, 15, 16, 17])
    assert sum(len(o.keys) for o in orders.saves) == saves
    one_way.close()


@pytest.mark.parametrize(
    ("kv_role", "mode", "loads", "saves", "said"),
    [
        ("kv_producer", "", 0, 6, ""),
        ("kv_consumer", "", 24, 0, ""),
        ("kv_producer", "save_only", 0, 6, ""),
        ("kv_consumer", "read_only", 24, 0, ""),
        ("kv_producer", "read_write", 0, 6, "nothing is loaded"),
        ("kv_consumer", "read_write", 24, 0, "nothing is saved"),
        ("kv_consumer", "save_only", 0, 0, "nothing is saved"),
        ("kv_producer", "read_only", 0, 0, "nothing is loaded"),
    ],
)
def test_vllms_role_is_honoured(
    pair: Pair,
    store: Store,
    caplog: pytest.LogCaptureFixture,
    kv_role: str,
    mode: str,
    loads: int,
    saves: int,
    said: str,
) -> None:
    pair.save(store, Request("a", 25), [1, 2, 3, 4, 5, 6, 7])
    caplog.clear()
    one_way = Pair(mode, kv_role=kv_role)
    lines = [r.getMessage() for r in caplog.records if "contradict" in r.getMessage()]
    assert len(lines) == bool(said) and all(said in line for line in lines)
    assert one_way.load(Request("b", 25), [1, 2, 3, 4, 5, 6]) == loads
    other = Request("c", 25, salt="c")
    one_way.scheduler.on_new_request(other)
    orders = one_way.compute(other, [11, 12, 13, 14, 15, 16, 17])
    assert sum(len(o.keys) for o in orders.saves) == saves
    one_way.close()


def test_an_engine_that_cannot_be_served_works_without() -> None:
    hybrid = kv_cache_config(kinds=(FullAttentionSpec, CrossAttentionSpec))
    connector = PegaKVConnector(config(), role("SCHEDULER"), hybrid)
    request = Request("a", 25)
    assert connector.get_num_new_matched_tokens(request, 0) == (0, False)
    assert connector.build_connector_meta(output()) == StepOrders()
    assert connector.request_finished(request, []) == (False, None)
    assert connector.request_finished_all_groups(request, ([1], [2])) == (False, None)
    assert list(connector.take_events()) == []


UNSERVED = [
    ({}, (FullAttentionSpec, LeftSpec), "--disable-hybrid-kv-cache-manager"),
    ({}, (FullAttentionSpec, LeftSpec), "keep more than they attend to"),
    ({}, (FullAttentionSpec, PrivateSpec), "may not be stored"),
    ({}, (FullAttentionSpec, CutSpec), "end within a block"),
    ({}, (ChunkedLocalAttentionSpec,), "without layers of full attention"),
    ({"decode": 2}, (FullAttentionSpec, SlidingWindowSpec), "decode context parallelism"),
    ({}, (FullAttentionSpec, CrossAttentionSpec), "the KV cache kind CrossAttentionSpec"),
    ({}, (), "0 KV cache groups"),
    ({}, (FullAttentionSpec, DenseSpec), "--enable-prefix-caching"),
    ({}, (DenseSpec,), "--enable-prefix-caching"),
    ({}, (FullAttentionSpec, DraftedSpec), "without --speculative-config"),
    ({}, (FullAttentionSpec, ShortConvSpec), "short convolutions"),
    ({"decode": 2}, (FullAttentionSpec, MambaSpec), "decode context parallelism"),
    ({}, (FullAttentionSpec, OddSpec), "no multiple"),
    ({}, (PrefixLMSpec,), "later tokens"),
    ({"is_encoder_decoder": True}, (FullAttentionSpec,), "encoder-decoder"),
    ({"executor": "external_launcher", "world": 2}, (FullAttentionSpec,), "must decide alike"),
    ({"is_prefix_caching_supported": False}, (FullAttentionSpec,), "does not support prefix"),
    (
        {
            "is_prefix_caching_supported": False,
            "pooler_config": SimpleNamespace(seq_pooling_type="MEAN", tok_pooling_type=None),
        },
        (FullAttentionSpec,),
        "(MEAN pooling)",
    ),
]


@pytest.mark.parametrize(("model", "kinds", "why"), UNSERVED, ids=lambda value: str(value)[:40])
def test_a_model_that_cannot_be_served_is_said_in_one_line(
    model: dict[str, Any], kinds: tuple[type, ...], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = [
        PegaKVConnector(config(**model), role(name), kv_cache_config(kinds=kinds))
        for name in ("SCHEDULER", "WORKER", "WORKER")
    ]
    (line,) = [record.getMessage() for record in caplog.records if "off" in record.getMessage()]
    assert why in line
    assert made[0]._off
    for worker in made[1:]:
        worker.register_kv_caches({})
        assert worker._worker is not None and worker._worker._mover is None


def test_windows_are_off_where_vllm_cannot_hear_of_a_failed_load(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compat, "Results", None)
    windowed = kv_cache_config(kinds=(FullAttentionSpec, SlidingWindowSpec))
    worker = PegaKVConnector(config(), role("WORKER"), windowed)._worker
    assert worker is not None and worker._engine is None
    connector = PegaKVConnector(config(), role("SCHEDULER"), windowed)
    assert connector._off and connector.get_transfer_results(set()) is None
    (line,) = [record.getMessage() for record in caplog.records if "off" in record.getMessage()]
    assert "vLLM 0.30" in line


def recurrent(**how: Any) -> str:
    """Why an engine with recurrent layers is off; '' if it is served."""
    seen = config()
    seen.speculative_config = how.get("speculates")
    seen.cache_config.use_replayssm = how.get("replays", False)
    groups = kv_cache_config(kinds=(FullAttentionSpec, MambaSpec))
    groups.hash_block_size = how.get("hashed", BLOCK)
    return kvgroups.unsupported(seen, groups)


def test_what_recurrent_layers_are_served_with(monkeypatch: pytest.MonkeyPatch) -> None:
    assert recurrent() == ""
    assert "--speculative-config" in recurrent(speculates=SimpleNamespace(method="ngram"))
    assert "--use-replayssm" in recurrent(replays=True)
    assert "--prefix-match-unit" in recurrent(hashed=BLOCK // 2)
    monkeypatch.setattr(compat, "Results", None)
    assert "0.30" in recurrent()


def test_latent_attention_that_cannot_go_on_behind_found_tokens_is_off() -> None:
    made = config(use_mla=True)
    cache = kv_cache_config(kinds=(MLAAttentionSpec,))
    assert kvgroups.unsupported(made, cache) == ""
    made.cache_config.enable_prefix_caching = False
    assert kvgroups.unsupported(made, cache) == "", "somebody has turned vLLM's own cache off"
    made.scheduler_config = SimpleNamespace(enable_chunked_prefill=False)
    assert "from a prompt's first token on alone" in kvgroups.unsupported(made, cache)
    made.model_config.use_mla = False
    assert kvgroups.unsupported(made, cache) == ""


def test_states_of_other_shapes_are_apart() -> None:
    one, other = kv_cache_config(kinds=(MambaSpec,)), kv_cache_config(kinds=(MambaSpec,))
    assert kvgroups.describe(one) == kvgroups.describe(other)
    other.kv_cache_groups[0].kv_cache_spec.shapes = ((8, 3), (2, 4, 4))
    assert kvgroups.describe(one) != kvgroups.describe(other)


def other(kind: type, **fields: Any) -> Any:
    """A layer of this kind that keeps something else."""
    made = kind()
    made.__dict__.update(fields)
    return made


ALIKE = [
    [[FullAttentionSpec(), MLAAttentionSpec()], [SlidingWindowSpec()]],
    [[MambaSpec(), other(MambaSpec, shapes=((3, 8), (4, 4, 4)))], [FullAttentionSpec()]],
    [[FullAttentionSpec(), other(FullAttentionSpec, head_size=8)]],
]


@pytest.mark.parametrize("layers", ALIKE, ids=["kinds", "states", "one group"])
def test_scheduler_and_worker_say_the_same_of_a_group_whose_layers_differ(
    layers: list[list[Any]],
) -> None:
    said, whole = both_forms(*layers)
    seen = config()
    ours, theirs = engine_of(seen, said)[0], engine_of(seen, whole)[0]
    assert kvgroups.unsupported(seen, said) == kvgroups.unsupported(seen, whole) == ""
    assert ours.space == theirs.space
    both = [one.groups.all if one.groups else None for one in (ours, theirs)]
    assert both[0] == both[1] and bool(both[0]) == (len(layers) > 1)
    assert kvgroups.are_several(said) == kvgroups.are_several(whole) == bool(both[0])


def test_what_the_other_layers_of_a_group_keep_is_part_of_the_layouts_name() -> None:
    """The scheduler cannot know it."""
    one, same, others = (
        both_forms([MambaSpec(), other(MambaSpec, shapes=shapes)], [FullAttentionSpec()])[1]
        for shapes in (((3, 8),), ((3, 8),), ((8, 3),))
    )
    assert kvgroups.layers(one) == kvgroups.layers(same) != kvgroups.layers(others)


@pytest.mark.parametrize("tokens", [BLOCK, 2 * BLOCK])
def test_groups_are_what_the_models_of_vllms_manager_take_them_for(tokens: int) -> None:
    """Those compare what is needed with what vLLM keeps, and must not have an idea of their own."""
    windows = [None, *range(2, 20), *map(Chunk, (8 * BLOCK, 10 * BLOCK)), STATE]
    sizes = [*[tokens] * (len(windows) - 1), BLOCK]
    made = kvgroups.groups(config(), kv_config(windows, 8, sizes))
    expected = map(seen_as, range(len(windows)), windows, sizes)
    assert made is not None and sorted(made.all) == sorted(expected)


def test_a_window_among_full_attention_is_refused_where_it_is_seen() -> None:
    said, whole = both_forms([FullAttentionSpec(), SlidingWindowSpec()])
    assert kvgroups.unsupported(config(), said) == ""
    assert "differ in what they keep" in kvgroups.unsupported(config(), whole)
    assert not kvgroups.are_several(said) and not kvgroups.are_several(whole)


def test_the_engine_of_an_encoder_decoder_has_no_connector(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen = config(is_encoder_decoder=True)
    assert PegaKVConnector.get_required_kvcache_layout(seen) is None
    assert seen.kv_transfer_config is None and len(caplog.records) == 1
    for other in (config(), config(is_encoder_decoder=True, executor="mp")):
        assert PegaKVConnector.get_required_kvcache_layout(other) is None
        assert other.kv_transfer_config is not None, "the workers have theirs"


def test_who_merely_turned_vllms_own_cache_off_is_served(store: Store) -> None:
    seen = config(is_prefix_caching_supported=True)
    seen.cache_config.enable_prefix_caching = False
    connector = PegaKVConnector(seen, role("SCHEDULER"), kv_cache_config())
    assert not connector._off
    connector.shutdown()
