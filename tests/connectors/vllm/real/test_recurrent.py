"""Real engines of models with recurrent layers: killed, started again, damaged; the tokens stay.

Gated delta nets compute in bfloat16 on the CPU, where a token depends on what shares its step: an
engine without us, too, answers otherwise once it has found a prompt in its own cache, if several
prompts run at once. So of that model one prompt runs at a time, and what was found is compared with
what an engine without us answers that has found as much.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.procs.service import Service, eventually

from .conftest import PATIENT, VLLM, Answer, Engine, Start, make
from .test_real import FAULTY, flip_all_pages

pytestmark = pytest.mark.skipif(VLLM < (0, 32), reason="not tried with older ones yet")

BLOCK = 160
"""Tokens of a block, which vLLM makes so long that a state fits into a page of attention."""

SETTINGS = {"max_num_batched_tokens": 128, "prefix_cache_retention_interval": BLOCK}
"""Of vLLM. With steps of 512 tokens its engine dies on the CPU, without us too. By the other it
keeps the states of all full blocks, those of answers too, and not that of a prompt's last alone."""


@dataclass(frozen=True)
class Kind:
    """A model, and what is asked of it."""

    name: str
    dtype: str
    lengths: list[int]  # tokens of the prompts; the answer to the last fills a block

    @property
    def options(self) -> dict[str, Any]:
        """How an engine is started."""
        return {"more": {**SETTINGS, "dtype": self.dtype}, "lengths": self.lengths}


KINDS = [Kind("granite", "float32", [330, 490, 470]), Kind("qwen", "bfloat16", [940])]
"""Mamba2, and gated delta nets, for which vLLM's kernel on the CPU takes that dtype alone."""


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Which model."""
    found: Kind = request.param
    return found


@pytest.fixture(scope="module")
def model(kind: Kind, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two groups of recurrent layers, and one of attention, on disk."""
    return make(kind.name, tmp_path_factory)


@pytest.fixture(scope="module")
def alone(kind: Kind, start: Start) -> Iterator[Engine]:
    """An engine without us."""
    engine = start(**kind.options)
    yield engine
    engine.kill()


@pytest.fixture(scope="module")
def own_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service for one model."""
    with Service(tmp_path_factory.mktemp("run"), pool_size="256MiB") as made:
        yield made


def findable(lengths: list[int]) -> int:
    """Tokens that are found of prompts of which all was saved."""
    return sum((n - 1) // BLOCK * BLOCK for n in lengths)


def both(engine: Engine) -> tuple[list[list[int]], list[list[int]]]:
    """What an engine without us answers: computed as a whole, and with what its own cache has."""
    cold = engine.run(reset=True)["tokens"]
    return cold, engine.run()["tokens"]


def goes_on(engine: Engine, said: list[list[int]]) -> Answer:
    """What an engine without us answers to the next turn of each conversation, whose states it has
    kept while it answered."""
    assert engine.run(reset=True)["tokens"] == said
    return engine.run(after=said)


def fill(engine: Engine, matches: Callable[[Answer], bool], most: int) -> None:
    """Run the prompts until all is found: a busy machine may drop a save."""

    def found() -> bool:
        answer = engine.run(reset=True)
        assert matches(answer) and answer["left"] == [0, 0]
        return bool(answer["external"] == most)

    eventually("a batch is answered from the cache", found, patience=90)


def test_an_engine_killed_and_started_again_resumes_from_states(
    own_service: Service, kind: Kind, start: Start, alone: Engine
) -> None:
    cold, resumed = both(alone)
    most = findable(kind.lengths)
    assert len({token for tokens in cold for token in tokens}) > 20, "the model says nothing"

    def matches(answer: Answer) -> bool:
        """As without us; of a part that was found there is nothing to compare with."""
        expected: dict[int, list[list[int]]] = {0: cold, most: resumed}
        return bool(answer["tokens"] == expected.get(answer["external"], answer["tokens"]))

    ours = {**kind.options, "endpoint": own_service.endpoint, "extra": PATIENT}
    first = start(inproc=False, **ours)
    answer = first.run()
    assert answer["tokens"] == cold and answer["external"] == 0
    assert first.said("attached") and not first.said("pegaflow: off")
    fill(first, matches, most)
    first.kill()
    own_service.settled()

    second = start(module=FAULTY, **ours)
    again = second.run()
    assert again["tokens"] == resumed and again["left"] == [0, 0]
    assert again["external"] == most

    turn, own = second.run(after=cold, reset=True), goes_on(alone, cold)
    assert (turn["tokens"], turn["cached"]) == (own["tokens"], own["cached"])
    longer = [n + len(said) for n, said in zip(kind.lengths, cold, strict=True)]
    assert turn["external"] == findable(longer) > most

    for fault in ("fail tail", "fail all"):
        failed = second.run(fault, reset=True)
        assert failed["tokens"] == cold and failed["left"] == [0, 0]
        assert set(failed["reasons"]) == {"length"}
    assert second.said("failed"), "no load has failed"
    assert matches(second.run(reset=True)), "the failed steps have poisoned the cache"

    flip_all_pages(own_service)
    damaged = second.run(reset=True)
    assert damaged["external"] == most
    assert damaged["tokens"] != resumed, "the loaded states are not what the engine computes with"
    second.kill()
