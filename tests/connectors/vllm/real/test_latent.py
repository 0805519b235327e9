"""Real engines with latent attention (MLA), with one rank and two, which hold the same bytes.

On a CPU without AMX vLLM turns its own prefix cache off for latent attention, and the connector is
off. Behind found tokens a prompt is rounded otherwise there than as a whole, by as much as lets
this model say something else; a single token is computed as it is while vLLM answers. So each
prompt is asked again with the first token of its answer behind it: all but that token is found, and
the rest of the answer is to be the same.

Two ranks round sums otherwise than one, and this model answers otherwise then, without us too. So
of what other numbers of ranks have saved it is seen that it is found and loaded, not what is
answered.
"""

import pytest

from tests.procs.service import Service, eventually

from .conftest import PATIENT, VLLM, Engine, Start, make
from .test_real import flip_all_pages

pytestmark = pytest.mark.skipif(VLLM < (0, 32), reason="not tried with older ones yet")

BLOCK = 16
"""Tokens, of the only block that vLLM's kernel has."""
BLOCK_BYTES = 4 * BLOCK * (512 + 64) * 4
"""Of all four layers, in float32."""
LENGTHS = [160, 304, 400]
BLOCKS = sum(n // BLOCK for n in LENGTHS)
"""Of the prompts; their answers fill one more each, which is or is not saved when they end."""
HOW = {
    "module": "tests.connectors.vllm.real.whole",
    "lengths": LENGTHS,
    "block_size": BLOCK,
    "extra": PATIENT,
}
SEEDS = {2: 7, 1: 8}
"""Of the prompts that engines with so many ranks save."""
Answers = list[list[int]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """On disk."""
    return make("deepseek", tmp_path_factory)


@pytest.fixture(scope="module")
def truths(start: Start) -> dict[int, dict[int, Answers]]:
    """What engines without any connector answer, by their ranks and by seed."""
    found: dict[int, dict[int, Answers]] = {}
    for ranks in SEEDS:
        engine = start(tp=ranks, lengths=LENGTHS, block_size=BLOCK)
        found[ranks] = {seed: engine.run(seed=seed)["tokens"] for seed in SEEDS.values()}
        engine.kill()
    return found


def stored(service: Service, least: int) -> None:
    """Wait until there are so many bytes."""
    eventually("it is saved", lambda: service.counter("resident_bytes") >= least)


def goes_on(engine: Engine, seed: int, said: Answers) -> Answers:
    """The answers to prompts with the first token of what was said behind each; all else of them
    is found."""
    answer = engine.run(seed=seed, after=[tokens[:1] for tokens in said], tokens=23)
    assert (answer["external"], answer["left"]) == (answer["prompt"], [0, 0])
    return [first[:1] + rest for first, rest in zip(said, answer["tokens"], strict=True)]


def test_ranks_find_what_as_many_or_others_have_saved(
    service: Service, start: Start, truths: dict[int, dict[int, Answers]]
) -> None:
    assert len({token for tokens in truths[2][7] for token in tokens}) > 20
    before = 0
    for ranks, seed in SEEDS.items():
        engine = start(tp=ranks, endpoint=service.endpoint, **HOW)
        assert engine.run(seed=seed)["tokens"] == truths[ranks][seed]
        most = before + (BLOCKS + len(LENGTHS)) * BLOCK_BYTES
        before += BLOCKS * BLOCK_BYTES
        stored(service, before)
        engine.kill()
        service.settled()
        assert service.counter("resident_bytes") <= most, "two ranks have stored more than one"
        before = service.counter("resident_bytes")
    for ranks in SEEDS:
        engine = start(tp=ranks, endpoint=service.endpoint, **HOW)
        for seed in SEEDS.values():
            said = truths[ranks][seed]
            again = goes_on(engine, seed, said)
            assert again == said or seed != SEEDS[ranks]
        assert not [line for line in engine.said("failed") if "pegaflow" in line]
        engine.kill()


def test_damaged_blocks_are_heard(
    service: Service, start: Start, truths: dict[int, dict[int, Answers]]
) -> None:
    flip_all_pages(service)
    engine = start(tp=2, endpoint=service.endpoint, **HOW)
    assert goes_on(engine, 7, truths[2][7]) != truths[2][7]
    engine.kill()
