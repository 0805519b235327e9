"""Real engines of models with windows: killed, started again, damaged; the tokens stay."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.connectors.vllm.engine import Options
from tests.procs.service import Service

from .conftest import PATIENT, VLLM, Start, Truth, fill
from .test_real import FAULTY, flip_all_pages

pytestmark = pytest.mark.skipif(
    VLLM < (0, 30), reason="before 0.30 vLLM cannot hear of a load that has failed as a whole"
)


@pytest.fixture(scope="module", params=["gemma", "mistral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Full attention and windows, or windows alone."""
    path = str(tmp_path_factory.mktemp(str(request.param)))
    command = [sys.executable, "-m", "tests.connectors.vllm.model", path, request.param]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="module")
def own_service(model: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for one model."""
    with Service(tmp_path_factory.mktemp("run"), pool_size="256MiB") as made:
        yield made


BLOCK = Options().block_size
BLOCK_BYTES = 4 * BLOCK * 2 * 2 * 64 * 4
"""Of all four layers: keys and values of two heads of 64 numbers in float32."""


def test_an_engine_killed_and_started_again_finds_its_windows(
    own_service: Service, start: Start, truth: Truth, model: str
) -> None:
    assert len({token for tokens in truth() for token in tokens}) > 20, "the model says nothing"
    first = start(endpoint=own_service.endpoint, inproc=False, extra=PATIENT)
    answer = first.run()
    assert answer["tokens"] == truth()
    assert answer["external"] == 0
    fill(first, truth)
    first.kill()
    own_service.settled()
    stored = own_service.counter("resident_bytes")
    whole = sum((n + Options().tokens - 1) // BLOCK for n in Options().lengths) * BLOCK_BYTES
    assert 0.1 < stored / whole < (0.7 if "gemma" in model else 0.3), (stored, whole)

    second = start(endpoint=own_service.endpoint, module=FAULTY, extra=PATIENT)
    again = second.run()
    assert again["tokens"] == truth() and again["left"] == [0, 0]
    assert again["external"] >= 0.95 * again["prompt"], "all but the last block of each"

    for fault in ("fail tail", "fail all"):
        failed = second.run(fault, reset=True)
        assert failed["tokens"] == truth() and failed["left"] == [0, 0]
        assert set(failed["reasons"]) == {"length"}
    assert second.said("failed"), "no load has failed"
    assert second.run(reset=True)["tokens"] == truth(), "the failed steps have poisoned the cache"

    flip_all_pages(own_service)
    damaged = second.run(reset=True)
    assert damaged["external"] >= 0.95 * damaged["prompt"]
    assert damaged["tokens"] != truth(), "the loaded KV is not what the engine computes with"
    second.kill()
