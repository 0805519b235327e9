"""The namespace changes with everything that changes bytes, and with nothing else."""

import os
from pathlib import Path

import pytest

from pegaflow.vllm import compat
from pegaflow.vllm.namespace import model_fingerprint, namespace, private
from pegaflow.vllm.settings import engine, facts, settings

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
        private(one, b"secret"),
    ]
    assert len({o.final for o in [one, *others]}) == 6


def test_engines_that_differ_in_their_seed_alone_can_be_told() -> None:
    one, other = namespace(FACTS, b"p" * 32), namespace(FACTS, b"q" * 32)
    assert one.base == other.base and one.probe != other.probe
    assert one.probe.hex()[:16] in one.describe()
    assert "PYTHONHASHSEED" in one.describe()


def checkpoint(path: Path) -> Path:
    path.mkdir()
    (path / "config.json").write_text('{"layers": 4}')
    (path / "model.safetensors.index.json").write_text("{}")
    (path / "model.safetensors").write_bytes(bytes(3 << 20))
    (path / "tokenizer.json").write_text("{}")
    return path


@pytest.mark.parametrize(
    ("name", "at"),
    [
        ("config.json", 3),
        ("model.safetensors.index.json", 0),
        ("model.safetensors", 100),
        ("model.safetensors", (3 << 20) - 1),
    ],
)
def test_a_model_changed_in_place_is_another_one(tmp_path: Path, name: str, at: int) -> None:
    path = checkpoint(tmp_path / "model")
    before = model_fingerprint(str(path))
    for file in path.iterdir():
        os.utime(file, (1, 1))
    (path / "tokenizer.json").write_text("{ }")
    assert (
        model_fingerprint(str(path))
        == before
        == model_fingerprint(str(checkpoint(tmp_path / "copy")))
    )
    content = bytearray((path / name).read_bytes())
    content[at] ^= 1
    (path / name).write_bytes(content)
    assert model_fingerprint(str(path)) != before


def test_a_longer_weight_file_is_another_model(tmp_path: Path) -> None:
    path = checkpoint(tmp_path / "model")
    before = model_fingerprint(str(path))
    (path / "model.safetensors").write_bytes(bytes((3 << 20) + 1))
    assert model_fingerprint(str(path)) != before


def test_a_model_that_is_not_local_has_no_fingerprint() -> None:
    assert model_fingerprint("org/model") == ""


def test_facts_of_an_engine() -> None:
    found = facts(config(), kv_cache_config())
    assert {"model files", "hash algorithm", "cache_config.cache_dtype"} <= found.keys()
    assert found["block tokens"] == "4"


def test_a_random_seed_makes_the_namespace_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    vllm_config = config()
    vllm_config.cache_config.prefix_caching_hash_algo = "xxhash"
    one, warnings = engine(vllm_config, kv_cache_config())
    assert any("PYTHONHASHSEED" in line for line in warnings)
    same, _ = engine(vllm_config, kv_cache_config())
    vllm_config.instance_id = "43"
    restarted, _ = engine(vllm_config, kv_cache_config())
    assert one.namespace(0) == same.namespace(0) != restarted.namespace(0)


def test_a_generation_is_new_with_every_start_and_reset() -> None:
    one, other = config(), config()
    other.instance_id = "43"
    generations = {compat.generation(c, epoch) for c in (one, other) for epoch in (0, 1)}
    assert len(generations) == 4
    assert compat.generation(one) == compat.generation(config())


def test_settings_name_the_right_key() -> None:
    chosen, warnings = settings({"pegaflow.timeout": 5, "other.key": 1}, {})
    assert (chosen.endpoint, chosen.mode, chosen.timeout_s) == (None, "read_write", 1.0)
    assert len(warnings) == 1 and "'pegaflow.timeout_ms'" in warnings[0]
    chosen, warnings = settings(
        {"pegaflow.mode": "off", "pegaflow.timeout_ms": "soon", "pegaflow.way": "fast"}, {}
    )
    assert (chosen.mode, chosen.timeout_s, chosen.way) == ("read_write", 1.0, "auto")
    assert len(warnings) == 3
    chosen, warnings = settings(
        {"pegaflow.mode": "read_only", "pegaflow.timeout_ms": 50, "pegaflow.endpoint": "x"}, {}
    )
    assert (chosen.endpoint, chosen.loads, chosen.saves) == ("x", True, False)
    assert chosen.timeout_s == 0.05 and warnings == []
