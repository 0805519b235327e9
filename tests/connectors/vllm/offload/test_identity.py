"""Who may exchange chunks: whoever has the same bytes for sure."""

import importlib.metadata
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pegaflow.connectors.vllm.files import Unestablished
from pegaflow.connectors.vllm.offload import contract
from pegaflow.connectors.vllm.offload.contract import LookupResult
from tests.connectors.vllm import fakes

from .conftest import Hosts
from .fakes import (
    FullSpec,
    OffloadingGroup,
    Pool,
    WindowSpec,
    caches,
    key,
    offloading,
    tensors,
)

KEYS = [key(n) for n in range(2)]


def shared(host: Hosts, **other: Any) -> bool:
    """Whether an engine that differs in this finds what another one has stored."""
    one = host().ready()
    one.result(one.store("r", KEYS, [0, 1]))
    found = host(**other).ready().found("q", KEYS)
    assert len(set(found)) == 1
    return found[0]


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"cached": caches(blocks=64)},
        {"spec": offloading()},
        {"options": {"way": "staged", "mode": "read_only"}},
    ],
)
def test_engines_that_are_alike_share(host: Hosts, other: dict[str, Any]) -> None:
    assert shared(host, **other)


def flash_infer() -> Any:
    made = fakes.config("")
    made.attention_config = fakes.AttentionConfig(backend="FLASHINFER")
    return made


@pytest.mark.parametrize(
    "other",
    [
        {"config": flash_infer()},
        {"spec": offloading(kv_cache_layout="BLHNC")},
        {"spec": offloading(dtype="fp8")},
        {"spec": offloading(replicated_layout=True)},
        {"spec": offloading(worker_kv_bytes_per_block=8192)},
        {"spec": offloading(ranks={"world_size": 2})},
        {"spec": offloading(ranks={"is_parallelism_agnostic": True})},
        {"spec": offloading(groups=(OffloadingGroup(0), OffloadingGroup(1, 32)))},
        {"cached": caches(placed=tensors(32, layers=("b", "a")))},
        {"cached": caches(specs=(FullSpec(head_size=32), WindowSpec()))},
        {"cached": caches(specs=(WindowSpec(), WindowSpec()))},
        {"config": fakes.config("", dtype="fp8")},
        {"config": fakes.config("", world=2)},
    ],
)
def test_whatever_decides_the_bytes_parts_them(host: Hosts, other: dict[str, Any]) -> None:
    assert not shared(host, **other)


def change_version(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(importlib.metadata, "version", lambda package: "99")


def change_device(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(contract, "device", lambda: "another device")


def change_variable(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("VLLM_ATTENTION_BACKEND", "FLASHINFER")


@pytest.mark.parametrize("change", [change_version, change_device, change_variable])
def test_so_does_what_chooses_a_backend(
    host: Hosts, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    one = host().ready()
    one.result(one.store("r", KEYS, [0, 1]))
    change(monkeypatch)
    assert host().ready().found("q", KEYS) == [False, False]


def unknown_device() -> str:
    raise Unestablished("no device")


@pytest.mark.parametrize("lacking", ["device", "configuration"])
def test_an_engine_of_which_something_cannot_be_told_is_alone(
    host: Hosts, monkeypatch: pytest.MonkeyPatch, lacking: str, caplog: pytest.LogCaptureFixture
) -> None:
    if lacking == "device":
        monkeypatch.setattr(contract, "device", unknown_device)
        one, other = host().ready(), host().ready()
    else:
        odd = SimpleNamespace(**vars(offloading()))
        one, other = host(spec=odd).ready(), host(spec=odd).ready()
    one.result(one.store("r", KEYS, [0, 1]))
    assert one.found("q", KEYS) == [True, True]
    assert other.found("q", KEYS) == [False, False]
    assert "no other engine will find what this one caches" in caplog.text


def test_an_earlier_vllm_is_told_so(host: Hosts, caplog: pytest.LogCaptureFixture) -> None:
    earlier = offloading(groups=(SimpleNamespace(group_id=0, tokens_per_block=16),))
    host(spec=earlier)
    (line,) = [one.getMessage() for one in caplog.records if "tier: off" in one.getMessage()]
    assert "of a version before 0.33" in line
    assert "failed" not in caplog.text


def with_adapters() -> Any:
    made = fakes.config("")
    made.lora_config = SimpleNamespace(max_loras=1)
    return made


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (with_adapters(), "LoRA adapters"),
        (fakes.config("", is_encoder_decoder=True), "encoder-decoder"),
        (None, "not found among the callers"),
    ],
)
def test_where_keys_do_not_say_what_is_computed_the_tier_is_off(
    host: Hosts,
    pool: Pool,
    monkeypatch: pytest.MonkeyPatch,
    config: Any,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if config is None:
        monkeypatch.setattr(contract, "CALLERS", 0)
    one = host(config=config)
    assert f"tier: off: {why}" in caplog.text or why in caplog.text
    assert one.asked("q", KEYS) == [LookupResult.MISS] * 2
    assert not one.result(one.store("q", KEYS, [0, 1])).success
    one.tier.drain_jobs()
    assert not pool.clients


def test_what_has_no_effect_is_said(host: Hosts, caplog: pytest.LogCaptureFixture) -> None:
    host(options={"wait_for_full_prefix": True})
    assert "pegaflow.wait_for_full_prefix" in caplog.text and "no effect" in caplog.text
