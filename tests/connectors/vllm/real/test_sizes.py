"""Real engines of a model whose KV cache groups have blocks of different lengths (Gemma 4)."""

import pytest

from tests.procs.service import Service, eventually

from .conftest import PATIENT, VLLM, Answer, Engine, Start, Truth, make
from .windows import find_again

pytestmark = pytest.mark.skipif(VLLM < (0, 30), reason="was run on 0.30, 0.32 and 0.33")

LONG, HASH = 64, 16
"""Tokens of a window's block, which is twice as long as others, and of a hash, if told so."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Full attention and windows."""
    return make("gemma4", tmp_path_factory)


def test_an_engine_killed_and_started_again_finds_blocks_of_both_lengths(
    own_service: Service, start: Start, truth: Truth, model: str
) -> None:
    find_again(own_service, start, truth, model)


def test_prompts_that_part_within_a_long_block_do_not_share_it(
    own_service: Service, start: Start, model: str
) -> None:
    """They part within the last hash of the seventh; the others of each group's are the same."""
    common, more = 7 * LONG - HASH // 2, {"more": {"prefix_match_unit": HASH}}
    without = start()
    answers = [ask(without, common, last) for last in (3, 4)]
    assert answers[0]["tokens"] != answers[1]["tokens"]
    first = start(endpoint=own_service.endpoint, extra=PATIENT, **more)
    assert ask(first, common, 3)["tokens"] == answers[0]["tokens"]
    eventually("it is saved", lambda: ask(first, common, 3)["external"] >= common)
    other = ask(start(endpoint=own_service.endpoint, extra=PATIENT, **more), common, 4)
    assert other["tokens"] == answers[1]["tokens"]
    assert other["external"] in (0, 6 * LONG)


def ask(engine: Engine, common: int, last: int) -> Answer:
    """A prompt that ends with twenty tokens of this kind, behind the place in question."""
    return engine.run(lengths=[common], after=[[last] * 20], seed=11, reset=True)
