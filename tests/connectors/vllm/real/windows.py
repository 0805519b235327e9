"""What engines of models with windows are tested by, whatever the number of their ranks."""

from pathlib import Path

import pytest

from tests.connectors.vllm.engine import Options
from tests.procs.service import Service

from .conftest import PATIENT, VLLM, Start, Truth, fill
from .test_real import FAULTY, flip_all_pages

NEEDS_RESULTS = pytest.mark.skipif(
    VLLM < (0, 30), reason="before 0.30 vLLM cannot hear of a load that has failed as a whole"
)

BLOCK = Options().block_size
BLOCK_BYTES = 4 * BLOCK * 2 * 2 * 64 * 4
"""Of all four layers: keys and values of two heads of 64 numbers in float32."""
STORED = {"gemma": (1.0, 0.7), "gemma4": (1.5, 0.85), "mistral": (1.0, 0.3)}
"""How much longer a model's blocks are than that, and what is stored of them, at most. Half of the
layers of gemma4 have heads twice as wide, and all of their blocks are stored."""


def find_again(service: Service, start: Start, truth: Truth, model: str, ranks: int = 1) -> None:
    """One engine fills, is killed, and the next one finds it: as it is, where loads fail, and
    damaged."""
    assert len({token for tokens in truth() for token in tokens}) > 20, "the model says nothing"
    first = start(endpoint=service.endpoint, inproc=False, extra=PATIENT, tp=ranks)
    answer = first.run()
    assert answer["tokens"] == truth()
    assert answer["external"] == 0
    fill(first, truth)
    first.kill()
    service.settled()
    stored = service.counter("resident_bytes")
    longer, most = STORED[Path(model).name[:-1]]  # without the number of the folder
    blocks = sum((n + Options().tokens - 1) // BLOCK for n in Options().lengths)
    whole = blocks * BLOCK_BYTES * longer
    assert 0.1 < stored / whole < most, (stored, whole)

    second = start(endpoint=service.endpoint, module=FAULTY, extra=PATIENT, tp=ranks)
    again = second.run()
    assert again["tokens"] == truth() and again["left"] == [0, 0]
    assert again["external"] >= 0.95 * again["prompt"], "all but the last block of each"

    for fault in ("fail tail", "fail all", *(["fail one"] if ranks > 1 else [])):
        failed = second.run(fault, reset=True)
        assert failed["tokens"] == truth() and failed["left"] == [0, 0]
        assert set(failed["reasons"]) == {"length"}
    assert second.said("failed"), "no load has failed"
    assert second.run(reset=True)["tokens"] == truth(), "the failed steps have poisoned the cache"

    flip_all_pages(service)
    damaged = second.run(reset=True)
    assert damaged["external"] >= 0.95 * damaged["prompt"]
    assert damaged["tokens"] != truth(), "the loaded KV is not what the engine computes with"
    second.kill()
