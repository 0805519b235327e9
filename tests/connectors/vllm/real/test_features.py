"""What a request or an engine may ask for beside plain prompts, on real engines.

For each way an engine fills the cache and is killed; a fresh one is to find most of it, and to
answer as one without us that was asked for the same batch.
"""

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.procs.service import Service, eventually

from .conftest import PATIENT, VLLM, Answer, Engine, Start, make

WHOLE = {"pegaflow.wait_for_full_prefix": True}
NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
SAMPLED = {"temperature": 1.0, "seed": 3, "n": 3}


class Way(NamedTuple):
    """An engine, and what it is asked for."""

    model: str = ""  # another one than `llama`
    more: dict[str, Any] = {}  # of vLLM's settings
    extra: dict[str, Any] = {}  # of ours
    policy: str = "recompute"
    needs: str = ""  # a flag of the CPU
    since: tuple[int, int] = (0, 0)  # the first vLLM that does it without Triton
    asked: tuple[dict[str, Any], ...] = ({},)  # batches: of none anything was saved before


WAYS = {
    "plain": Way(
        more={"async_scheduling": False},
        policy="fail",
        asked=({}, {"salt": "one"}, {"salt": "two"}, {"seed": 8, "sampling": SAMPLED}),
    ),
    "asynchronous": Way(
        more={"async_scheduling": True, "enable_prompt_embeds": True},
        asked=({"seed": 9}, {"seed": 9, "embedded": True}, {"seed": 10, "embedded": True}),
    ),
    "speculation": Way(
        more={"speculative_config": NGRAM},
        extra=WHOLE,
        policy="fail",
        since=(0, 32),
        asked=({"seed": 11},),
    ),
    "pictures": Way(
        model="blip",
        more={"skip_tokenizer_init": False},
        asked=({"pictures": 10}, {"pictures": 20}),
    ),
    "eight bits": Way(more={"kv_cache_dtype": "fp8"}, needs="avx512f"),
}


class Lives(NamedTuple):
    """What was answered, by batch."""

    way: Way
    without: list[Answer]
    first: list[Answer]  # by the engine that filled the cache
    fresh: list[Answer]


def found(engine: Engine, asked: dict[str, Any]) -> Answer:
    """Ask until most of a batch comes from the cache: a busy machine may drop a save, and the first
    batch may come before the session is there."""
    answer: Answer = {}

    def hits() -> bool:
        answer.update(engine.run(reset=True, **asked))
        return bool(answer["external"] >= 0.85 * answer["prompt"])

    eventually(f"{asked} is answered from the cache", hits, patience=90)
    return answer


@pytest.fixture(scope="module", params=WAYS)
def lives(
    request: pytest.FixtureRequest,
    service: Service,
    start: Start,
    tmp_path_factory: pytest.TempPathFactory,
) -> Lives:
    """Three engines, one after the other."""
    way = WAYS[request.param]
    if way.needs not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"on the CPU vLLM does this with {way.needs} alone")
    if way.since > VLLM:
        pytest.skip("what samples drafted tokens in this vLLM needs Triton, which a CPU has not")
    theirs = {"of": make(way.model, tmp_path_factory) if way.model else "", "more": way.more}
    extra = {**PATIENT, **way.extra}
    ours = {**theirs, "endpoint": service.endpoint, "extra": extra, "policy": way.policy}

    engine = start(**theirs)
    without = [engine.run(reset=True, **asked) for asked in way.asked]
    engine.kill()
    engine = start(**ours)
    first = [engine.run(reset=True, **asked) for asked in way.asked]
    for asked in way.asked:
        found(engine, asked)
    engine.kill()
    engine = start(**ours)
    fresh = [found(engine, asked) for asked in way.asked]
    engine.kill()
    return Lives(way, without, first, fresh)


def test_nothing_of_another_batch_is_found(lives: Lives) -> None:
    assert [answer["external"] for answer in lives.first] == [0] * len(lives.first)


def test_tokens_are_those_of_an_engine_without_us(lives: Lives) -> None:
    for without, *ours in zip(lives.without, lives.first, lives.fresh, strict=True):
        assert all(answer["tokens"] == without["tokens"] for answer in ours)
        assert all(set(answer["reasons"]) == {"length"} for answer in ours)
        assert all(answer["left"] == [0, 0] for answer in ours)


def test_what_is_another_prompt_has_another_answer(lives: Lives) -> None:
    """Or the tokens would say nothing.  A salt changes the names of blocks alone."""
    prompts = {str({**asked, "salt": ""}) for asked in lives.way.asked}
    assert len({str(answer["tokens"]) for answer in lives.without}) == len(prompts)
