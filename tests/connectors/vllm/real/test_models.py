"""Real engines of models that cannot be served: they start and answer as without us."""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.connectors.vllm import model as models

from .conftest import ON_CPU, Told

UNCACHED = {"enable_prefix_caching": False}  # then vLLM keeps no states at the ends of blocks
MEAN = {"runner": "pooling", "convert": "embed", "pooler_config": {"seq_pooling_type": "MEAN"}}
KINDS: dict[str, dict[str, Any]] = {
    "mean": {"model": "llama", **MEAN},
    "granite": UNCACHED,
    "lfm": {"max_num_batched_tokens": 128},
    "whisper": {"limit_mm_per_prompt": {"audio": 1}},
}
WHY = {
    "mean": "vLLM does not support prefix caching for this model",
    "granite": "--enable-prefix-caching",
    "lfm": "short convolutions",
    "whisper": "encoder-decoder",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """What one process sees of all of them."""
    folder = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        name = KINDS[kind].get("model", kind)
        models.make(str(folder / name), name)
    env = {**os.environ, **ON_CPU}
    command = [sys.executable, "-m", "tests.connectors.vllm.starts", str(folder), json.dumps(KINDS)]
    with Told(command, env, folder / "log", name="name") as made:
        yield made


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_cannot_be_served_runs_as_without_us(told: Told, kind: str) -> None:
    row = told[kind]
    assert row["ours"] == row["without"]
    if kind != "lfm":  # whose second answer is another one on vLLM 0.33, without us too
        assert all(answer == row["ours"][0] for answer in row["ours"])
    (line,) = row["said"]
    assert line.startswith("pegaflow: off: ") and WHY[kind] in line
