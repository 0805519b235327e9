"""Real engines: one computes prompts, the other answers them and has nothing of them to compute."""

from tests.procs.service import Service, eventually

from .conftest import PATIENT, Start
from .test_real import flip_all_pages
from .windows import BLOCK, BLOCK_BYTES

LENGTHS = [300, 514, 777, 641]
TAILS = 3
"""Prompts that end with more than one token behind their full blocks."""


def test_an_engine_that_answers_finds_prompts_to_their_ends(service: Service, start: Start) -> None:
    alone = start(lengths=LENGTHS)
    truth = alone.run()["tokens"]
    alone.kill()
    role, saves = "kv_producer", {**PATIENT, "pegaflow.pd_tail_save": True}
    first = start(lengths=LENGTHS, endpoint=service.endpoint, role=role, extra=saves)
    assert first.run(tokens=1)["tokens"] == [tokens[:1] for tokens in truth]
    copy = (sum(length // BLOCK for length in LENGTHS) + TAILS) * BLOCK_BYTES
    eventually("all is saved", lambda: service.counter("pool_sealed_bytes") == copy)
    first.kill()

    role, loads = "kv_consumer", {**PATIENT, "pegaflow.pd_tail_load": True}
    second = start(lengths=LENGTHS, endpoint=service.endpoint, role=role, extra=loads)
    answer = second.run()
    assert answer["tokens"] == truth and answer["left"] == [0, 0]
    assert answer["external"] == sum(LENGTHS) - 1, "all but the last token of the last one"
    longer = second.run(after=[[5]] * len(LENGTHS), reset=True)
    full = sum(length // BLOCK for length in LENGTHS)
    assert longer["external"] == full * BLOCK, "these tails have a token more"
    flip_all_pages(service)
    damaged = second.run(reset=True)
    assert damaged["external"] == sum(LENGTHS) - 1
    assert damaged["tokens"] != truth, "the loaded KV is not what the engine computes with"
    second.kill()
