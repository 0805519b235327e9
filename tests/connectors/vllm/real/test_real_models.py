"""Real engines of models that cannot be served: they start and answer as without us."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.connectors.vllm import model as models

STATE = {"max_num_batched_tokens": 128}  # of Mamba layers, on the CPU
MEAN = {"runner": "pooling", "convert": "embed", "pooler_config": {"seq_pooling_type": "MEAN"}}
KINDS: dict[str, dict[str, Any]] = {
    "mean": {"model": "llama", **MEAN},
    "gemma": {},
    "granite": STATE,
    "falcon": STATE,
}
WHY = {
    "mean": "vLLM does not support prefix caching for this model",
    "gemma": "--disable-hybrid-kv-cache-manager",
    "granite": "KV cache groups",
    "falcon": "KV cache groups",
}


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process has seen of all of them."""
    folder = tmp_path_factory.mktemp("models")
    for kind in models.KINDS:
        models.make(str(folder / kind), kind)
    log = folder / "log"
    env = {**os.environ, "VLLM_TARGET_DEVICE": "cpu", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    command = [sys.executable, "-m", "tests.connectors.vllm.starts", str(folder), json.dumps(KINDS)]
    with log.open("w") as err:
        out = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=err, text=True)
    rows = [json.loads(line[7:]) for line in out.stdout.splitlines() if line.startswith("RESULT ")]
    assert out.returncode == 0, Path(log).read_text()[-4000:]
    return {row["name"]: row for row in rows}


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_cannot_be_served_runs_as_without_us(
    told: dict[str, dict[str, Any]], kind: str
) -> None:
    row = told[kind]
    assert row["ours"] == row["without"]
    assert all(answer == row["ours"][0] for answer in row["ours"])
    (line,) = row["said"]
    assert line.startswith("pegaflow: off: ") and WHY[kind] in line
