"""Who shares with whom, by a real vLLM: its configuration classes, and engines in a row."""

import dataclasses
import importlib
import os
import pkgutil
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pegaflow.connectors.vllm import identity
from pegaflow.connectors.vllm.fields import UNREAD, judged
from tests.procs.service import Service

from .conftest import ON_CPU, Told
from .lives import HIT


def configuration_classes() -> dict[str, type]:
    """Every dataclass of vllm.config."""
    import vllm.config

    found: dict[str, type] = {}
    for module in pkgutil.iter_modules(vllm.config.__path__):
        for value in vars(importlib.import_module(f"vllm.config.{module.name}")).values():
            if isinstance(value, type) and value.__module__.startswith("vllm.config"):
                if dataclasses.is_dataclass(value):
                    found[value.__name__] = value
    return found


def test_every_field_of_this_vllm_is_judged() -> None:
    classes = configuration_classes()
    assert len(classes) > 40
    missing = {
        name: sorted({f.name for f in dataclasses.fields(kind)} - judged(name))
        for name, kind in classes.items()
        if name not in UNREAD
    }
    assert not {name: fields for name, fields in missing.items() if fields}, (
        "pegaflow/connectors/vllm/fields.py: does each of these change the bytes of a KV block?"
    )


def said(model: str, **more: Any) -> tuple[dict[str, str], str]:
    """What an engine of this configuration says of itself; no engine is started."""
    from vllm.engine.arg_utils import EngineArgs

    how = {"max_model_len": 1024, "dtype": "float32", "skip_tokenizer_init": True, **more}
    config = EngineArgs(model=model, **how).create_engine_config()
    found = identity.facts(config, None)
    memory, why = identity.in_memory(config)
    assert not found.private and not why
    return found.base, memory


@pytest.fixture(scope="module")
def plain(model: str) -> tuple[dict[str, str], str]:
    """Of an engine without further settings."""
    return said(model)


SAME: list[dict[str, Any]] = [
    {"max_num_seqs": 3, "max_num_batched_tokens": 2048, "enable_chunked_prefill": True},
    {"max_model_len": 512},
    {"seed": 5, "served_model_name": "another", "enforce_eager": True},
    {"gpu_memory_utilization": 0.3, "enable_prefix_caching": False, "enable_lora": True},
    {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"},
    {"attention_config": {"backend": "CPU_ATTN"}},
]
OTHER: list[dict[str, Any]] = [
    {"dtype": "bfloat16"},
    {"kv_cache_dtype": "fp8_e5m2"},
    {"hf_overrides": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}},
    {"hf_overrides": {"num_hidden_layers": 2}},
    {"hf_overrides": lambda config: config.update({"rms_norm_eps": 0.1}) or config},
    {"model_impl": "transformers"},
    {"load_format": "pt"},
    {"disable_sliding_window": True},
]


@pytest.mark.parametrize("more", SAME)
def test_settings_that_change_no_byte_are_not_told_apart(
    model: str, plain: tuple[dict[str, str], str], more: dict[str, Any]
) -> None:
    assert said(model, **more) == plain


@pytest.mark.parametrize("more", OTHER)
def test_settings_that_change_bytes_are_told_apart(
    model: str, plain: tuple[dict[str, str], str], more: dict[str, Any]
) -> None:
    assert said(model, **more) != plain


def test_the_same_files_elsewhere_are_not_told_apart(
    model: str, plain: tuple[dict[str, str], str], tmp_path: Path
) -> None:
    shutil.copytree(model, tmp_path / "copy")
    (tmp_path / "link").symlink_to(tmp_path / "copy")
    assert said(str(tmp_path / "copy")) == plain == said(str(tmp_path / "link"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """What lives.py does, over a service of its own."""
    with Service(tmp_path_factory.mktemp("run"), pool_size="256MiB") as service:
        folder = tmp_path_factory.mktemp("lives")
        env = {**os.environ, **ON_CPU}
        command = [
            sys.executable,
            "-m",
            "tests.connectors.vllm.real.lives",
            service.endpoint,
            str(folder),
        ]
        with Told(command, env, folder / "log", name="what") as told:
            yield told


def test_equal_engines_share(runs: Told) -> None:
    first = runs["the first"]
    assert first["external"] == 0 and runs["the first, again"]["external"] >= HIT
    for what in ("the first, again", "the same files elsewhere"):
        assert runs[what]["tokens"] == first["tokens"], what
        assert runs[what]["external"] >= HIT, what


UNLIKE = [
    "random weights",
    "a field overridden",
    "a field edited on disk",
    "a tensor replaced in place",
    "longrope at 512",
    "longrope at 1024",
]


@pytest.mark.parametrize("what", UNLIKE)
def test_engines_that_compute_otherwise_share_nothing(runs: Told, what: str) -> None:
    assert runs[what]["external"] == 0
    assert runs[what]["tokens"] != runs["the first"]["tokens"], "blocks could be shared, then"


def test_the_factors_of_longrope_are_not_mixed(runs: Told) -> None:
    assert runs["longrope at 512"]["tokens"] != runs["longrope at 1024"]["tokens"]
    for length in (512, 1024):
        again = runs[f"longrope at {length}, again"]
        assert (
            again["external"] >= HIT and again["tokens"] == runs[f"longrope at {length}"]["tokens"]
        )


def test_the_same_override_and_edit_are_the_same_model_with_other_files(runs: Told) -> None:
    assert runs["a field overridden"]["tokens"] == runs["a field edited on disk"]["tokens"]


@pytest.mark.parametrize("what", ["a living engine", "after sleep", "after a reset"])
def test_sleep_and_reset_cost_nothing(runs: Told, what: str) -> None:
    assert runs[what]["tokens"] == runs["the first"]["tokens"]
    assert runs[what]["external"] >= HIT


def test_weights_replaced_in_a_living_engine_share_nothing(runs: Told) -> None:
    told, untold = runs["other weights, told"], runs["other weights, untold"]
    assert told["tokens"] == runs["a tensor replaced in place"]["tokens"]
    assert untold["tokens"] == runs["the first"]["tokens"]
    assert told["external"] == 0
    # Of the untold: vLLM counts a hit when it is promised, and the step that looks fails its load.
    assert runs["other weights, told, again"]["tokens"] == told["tokens"]
    assert runs["other weights, told, again"]["external"] >= HIT, "its first saves are kept"


def test_adapters_are_told_apart_by_their_weights(runs: Told) -> None:
    one, plain = runs["adapter, engine 0"], runs["without an adapter"]
    assert plain["tokens"] == runs["the first"]["tokens"]
    assert one["tokens"] != plain["tokens"] and one["external"] == 0
    for what in ("adapter, engine 0, again", "adapter, engine 1"):
        assert runs[what]["tokens"] == one["tokens"] and runs[what]["external"] >= HIT, what
    other = runs["adapter of other weights"]
    assert other["tokens"] != one["tokens"] and other["external"] == 0
    assert runs["adapter of other weights, again"]["external"] >= HIT
    for what in ("adapter reloaded", "adapter reloaded, again"):
        assert runs[what]["tokens"] == other["tokens"] and runs[what]["external"] == 0, what
