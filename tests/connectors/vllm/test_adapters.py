"""LoRA adapters are told apart by content, or their requests have no keys."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pegaflow.connectors.vllm.adapters import Adapters

from .test_identity import safetensors


@dataclass
class Named:
    """vLLM's LoRARequest."""

    lora_path: str
    lora_int_id: int = 1
    lora_name: str = "sql"


@dataclass
class Asked:
    """vLLM's Request."""

    lora_request: Named | None
    num_tokens: int = 100
    block_hashes: tuple[bytes, ...] = (b"1" * 32, b"2" * 32, b"3" * 32)


def adapter(path: Path, content: bytes = b"a") -> Named:
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text("{}")
    safetensors(path / "adapter_model.safetensors", {"lora_a": content * 100})
    return Named(str(path))


def adapters(later: float = 1e4, settings: str = "rank 8") -> tuple[Adapters, list[str]]:
    """Of an engine that was started so long after the files were made."""
    lines: list[str] = []
    made = Adapters(settings, lambda name, why: lines.append(f"{name}: {why}"))
    made.made_s += later
    return made, lines


def keys(made: Adapters, asked: Named | None) -> list[bytes]:
    return list(made.source(Asked(asked)).block_hashes)


def test_keys_of_an_adapter_hold_its_weights(tmp_path: Path) -> None:
    made, lines = adapters()
    one = keys(made, adapter(tmp_path / "one"))
    again, _ = adapters()
    assert keys(again, adapter(tmp_path / "copy")) == one, "another engine, another path"
    other = Named(str(tmp_path / "other"), 2)
    adapter(tmp_path / "other", b"b")
    two = keys(made, other)
    plain = keys(made, None)
    assert plain == list(Asked(None).block_hashes)
    assert len({tuple(one), tuple(two), tuple(plain)}) == 3 and lines == []
    through = made.source(Asked(other))
    assert [through.block_hashes[i] for i in range(3)] == two == through.block_hashes[0:3]
    assert through.num_tokens == 100
    settings, _ = adapters(settings="rank 16")
    assert keys(settings, Named(str(tmp_path / "one"))) != one


def replaced(path: Path) -> None:
    adapter(path, b"b")


def renamed(path: Path) -> None:
    adapter(path.parent / "trained", b"b")
    path.rename(path.parent / "old")
    (path.parent / "trained").rename(path)


def gone(path: Path) -> None:
    shutil.rmtree(path)


@pytest.mark.parametrize("change", [replaced, renamed, gone])
def test_an_adapter_changed_while_the_engine_runs_is_neither_read_nor_saved(
    tmp_path: Path, change: Callable[[Path], None]
) -> None:
    made, lines = adapters()
    asked = adapter(tmp_path / "sql")
    assert len(keys(made, asked)) == 3
    change(tmp_path / "sql")
    assert keys(made, asked) == [] == keys(made, asked)
    assert len(lines) == 1 and lines[0].startswith("sql: ")


def test_an_adapter_newer_than_the_engine_is_neither_read_nor_saved(tmp_path: Path) -> None:
    made, lines = adapters(later=0)
    assert keys(made, adapter(tmp_path / "sql")) == [] and "after this engine" in lines[0]
    assert keys(made, Named("/nowhere/at-all", 2)) == [] and len(lines) == 2


def test_an_id_that_stands_for_two_paths_has_no_keys(tmp_path: Path) -> None:
    made, lines = adapters()
    assert keys(made, adapter(tmp_path / "one")) and not keys(made, adapter(tmp_path / "two"))
    assert len(lines) == 1
