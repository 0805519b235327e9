"""Real engines of a model with Mamba layers: killed, started again, damaged; the tokens stay."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from tests.procs.service import Service

from .conftest import PATIENT, VLLM, Start, Truth, answers, fill
from .test_real import FAULTY, flip_all_pages

pytestmark = pytest.mark.skipif(VLLM < (0, 33), reason="not tried with older ones yet")

LENGTHS = [330, 490, 470]
"""Tokens of the prompts; the answer to the last fills a block."""

BLOCK = 160
"""Tokens of a block, which vLLM makes so long that a state fits into a page of attention."""

SETTINGS = {"max_num_batched_tokens": 128, "prefix_cache_retention_interval": BLOCK}
"""Of vLLM. With steps of 512 tokens its engine dies on the CPU, without us too. By the other it
keeps the states of all full blocks, those of answers too, and not that of a prompt's last alone."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two groups of Mamba layers, and one of attention, on disk."""
    path = str(tmp_path_factory.mktemp("granite"))
    command = [sys.executable, "-m", "tests.connectors.vllm.model", path, "granite"]
    subprocess.run(command, check=True)
    return path


@pytest.fixture(scope="module")
def truth(start: Start) -> Iterator[Truth]:
    """What an engine without us answers."""
    engine = start(more=SETTINGS, lengths=LENGTHS)
    yield answers(engine)
    engine.kill()


@pytest.fixture(scope="module")
def own_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for one model."""
    with Service(tmp_path_factory.mktemp("run"), pool_size="256MiB") as made:
        yield made


def test_an_engine_killed_and_started_again_resumes_from_states(
    own_service: Service, start: Start, truth: Truth
) -> None:
    assert len({token for tokens in truth() for token in tokens}) > 20, "the model says nothing"
    ours: dict[str, Any] = {"endpoint": own_service.endpoint, "extra": PATIENT}
    ours |= {"more": SETTINGS, "lengths": LENGTHS}
    first = start(inproc=False, **ours)
    answer = first.run()
    assert answer["tokens"] == truth() and answer["external"] == 0
    assert first.said("attached") and not first.said("pegaflow: off")
    fill(first, truth)
    first.kill()
    own_service.settled()

    second = start(module=FAULTY, **ours)
    again = second.run()
    assert again["tokens"] == truth() and again["left"] == [0, 0]
    assert again["external"] == sum((n - 1) // BLOCK * BLOCK for n in LENGTHS)

    turn = second.run(after=truth(), reset=True)
    alone = second.run(after=truth(), reset=True, params={"pegaflow.skip_load": True})
    assert turn["tokens"] == alone["tokens"] and alone["external"] == 0
    longer = [n + len(said) for n, said in zip(LENGTHS, truth(), strict=True)]
    assert turn["external"] == sum((n - 1) // BLOCK * BLOCK for n in longer)

    for fault in ("fail tail", "fail all"):
        failed = second.run(fault, reset=True)
        assert failed["tokens"] == truth() and failed["left"] == [0, 0]
        assert set(failed["reasons"]) == {"length"}
    assert second.said("failed"), "no load has failed"
    assert second.run(reset=True)["tokens"] == truth(), "the failed steps have poisoned the cache"

    flip_all_pages(own_service)
    damaged = second.run(reset=True)
    assert damaged["external"] == again["external"]
    assert damaged["tokens"] != truth(), "the loaded states are not what the engine computes with"
    second.kill()
