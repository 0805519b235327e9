"""The namespace changes with everything that changes bytes, and with nothing else."""

from types import SimpleNamespace
from typing import Any

import pytest

from pegaflow.connectors.vllm import compat, sizes
from pegaflow.connectors.vllm.namespace import namespace
from pegaflow.connectors.vllm.settings import engine, settings
from pegaflow.wire.gpu import Backend

from .fakes import config, kv_cache_config

FACTS = {"model": "m", "dtype": "bfloat16"}


def test_every_fact_and_the_probe_count() -> None:
    one = namespace(FACTS, b"p")
    assert len(one.final) >= 16 and one == namespace(dict(reversed(FACTS.items())), b"p")
    others = [
        namespace({**FACTS, "dtype": "float16"}, b"p"),
        namespace({**FACTS, "more": ""}, b"p"),
        namespace({"model": "mdtype", "": "bfloat16"}, b"p"),
        namespace(FACTS, b"q"),
    ]
    assert len({o.final for o in [one, *others]}) == 5


def test_engines_that_differ_in_their_seed_alone_can_be_told() -> None:
    one, other = namespace(FACTS, b"p" * 32), namespace(FACTS, b"q" * 32)
    assert one.base == other.base and one.probe != other.probe
    assert one.probe.hex()[:16] in one.describe()
    assert "PYTHONHASHSEED" in one.describe()


def test_a_random_seed_makes_the_namespace_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    vllm_config = config()
    vllm_config.cache_config.prefix_caching_hash_algo = "xxhash"
    one, warnings = engine(vllm_config, kv_cache_config())
    assert any("PYTHONHASHSEED" in line for line in warnings)
    same, _ = engine(vllm_config, kv_cache_config())
    vllm_config.instance_id = "43"
    restarted, _ = engine(vllm_config, kv_cache_config())
    assert one.space.final == same.space.final != restarted.space.final


class MultiConnector:
    """vLLM's: it gives each of its connectors a configuration of its own."""

    def __init__(self, vllm_config: Any, one: Any) -> None:
        self.made = engine(one, kv_cache_config())


class Derived(MultiConnector):
    """Somebody's."""


@pytest.mark.parametrize("several", [MultiConnector, Derived])
@pytest.mark.parametrize("policy", ["fail", "recompute"])
def test_the_policy_of_loads_that_fail_is_that_of_the_outer_connector(
    several: type[MultiConnector], policy: str
) -> None:
    other = {"fail": "recompute", "recompute": "fail"}[policy]
    for made, warnings in (
        engine(config(policy=policy), kv_cache_config()),
        several(config(policy=policy), config(policy=other)).made,
    ):
        assert made.careful == (policy == "fail")
        assert any("kv_load_failure_policy" in line for line in warnings) == made.careful


@pytest.mark.parametrize(
    ("sleeps", "device", "tells", "served"),
    [
        (True, "cuda", False, False),
        (True, "cuda", True, True),
        (True, "cpu", False, True),
        (False, "cuda", False, True),
    ],
)
def test_sleep_on_a_gpu_needs_a_vllm_that_tells_of_it(
    monkeypatch: pytest.MonkeyPatch, sleeps: bool, device: str, tells: bool, served: bool
) -> None:
    monkeypatch.setattr(compat, "TELLS_SLEEP", tells)
    vllm_config = config(enable_sleep_mode=sleeps)
    vllm_config.device_config = SimpleNamespace(device_type=device)
    why = compat.unsupported(vllm_config, kv_cache_config())
    assert why == "" if served else "before 0.33" in why


NEW = SimpleNamespace(resolve_none_hash_seed=lambda _: "")
CURES = [
    ("sha256", SimpleNamespace(), "vLLM 0.29"),
    ("xxhash", NEW, "or use sha256"),
    ("xxhash", SimpleNamespace(), "for all engines"),
]


@pytest.mark.parametrize(("algorithm", "hashes", "cure"), CURES)
def test_the_line_on_a_random_seed_says_once_what_helps(
    monkeypatch: pytest.MonkeyPatch, algorithm: str, hashes: Any, cure: str
) -> None:
    vllm_config = config()
    vllm_config.cache_config.prefix_caching_hash_algo = algorithm
    monkeypatch.setattr(compat, "_hashes", hashes)
    monkeypatch.setattr(compat, "_hash_function", lambda _: lambda value: b"")
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    _, warnings = engine(vllm_config, kv_cache_config())
    (line,) = [line for line in warnings if "seed" in line]
    assert line.startswith(algorithm) and "PYTHONHASHSEED" in line and cure in line
    assert algorithm == "xxhash" or "use sha256" not in line
    monkeypatch.setattr(compat, "_hashes", NEW)
    assert compat.seed_is_fixed(algorithm) == (algorithm == "sha256")


def test_a_generation_is_new_with_every_start_and_epoch() -> None:
    one, other = config(), config()
    other.instance_id = "43"
    generations = {compat.generation(c, epoch) for c in (one, other) for epoch in (0, 1)}
    assert len(generations) == 4
    assert compat.generation(one) == compat.generation(config())


def test_settings_name_the_right_key() -> None:
    chosen, warnings = settings({"pegaflow.wait_for_full_prefix": "no"}, {})
    assert len(warnings) == 1 and not chosen.hints.wait_for_full_prefix
    chosen, warnings = settings({"pegaflow.timeout": 5, "other.key": 1}, {})
    assert (chosen.endpoint, chosen.mode, chosen.timeout_s) == (None, "read_write", 1.0)
    assert len(warnings) == 1 and "'pegaflow.timeout_ms'" in warnings[0]
    chosen, warnings = settings(
        {"pegaflow.mode": "off", "pegaflow.timeout_ms": "soon", "pegaflow.way": "fast"}, {}
    )
    assert (chosen.mode, chosen.timeout_s, chosen.way) == ("read_write", 1.0, "auto")
    assert len(warnings) == 3
    chosen, warnings = settings({"pegaflow.transfer_backend": "gdr"}, {})
    assert chosen.backend is Backend.AUTO
    assert warnings == [
        "pegaflow.transfer_backend 'gdr' is none of auto, direct, kernel; using auto"
    ]
    chosen, warnings = settings({"pegaflow.transfer_backend": "kernel"}, {})
    assert chosen.backend is Backend.KERNEL and warnings == []
    chosen, warnings = settings(
        {"pegaflow.mode": "read_only", "pegaflow.timeout_ms": 50, "pegaflow.endpoint": "x"}, {}
    )
    assert (chosen.endpoint, chosen.loads, chosen.saves) == ("x", True, False)
    assert chosen.timeout_s == 0.05 and warnings == []


def test_prefill_context_parallelism_is_refused_in_one_line() -> None:
    vllm_config = config()
    vllm_config.parallel_config.prefill_context_parallel_size = 2
    assert "prefill context" in compat.unsupported(vllm_config, kv_cache_config())


@pytest.mark.parametrize(("sharded", "tokens"), [(True, 8), (False, 4), (None, 8)])
def test_decode_context_parallelism_makes_sharded_blocks_larger(
    sharded: bool | None, tokens: int
) -> None:
    vllm_config, cache = config(), kv_cache_config()
    vllm_config.parallel_config.decode_context_parallel_size = 2
    if sharded is not None:
        cache.kv_cache_groups[0].kv_cache_spec.dcp_sharded = sharded
    assert sizes.block_tokens(vllm_config, cache) == tokens
