"""A real engine with two tensor parallel ranks: killed whole or in part; the tokens stay."""

from collections.abc import Iterator

import pytest

from tests.procs.service import Service

from .conftest import PATIENT, Engine, Start, Truth, answers, fill

FAULTY = "tests.connectors.vllm.real.faulty"


@pytest.fixture(scope="module")
def pair_truth(start: Start) -> Truth:
    """What two ranks answer without any connector: the sums round otherwise than in one."""
    engine = start(tp=2)
    tokens = answers(engine)
    tokens(seed=7)
    tokens(seed=8)
    engine.kill()
    return tokens


@pytest.fixture(scope="module")
def reader(service: Service, start: Start, pair_truth: Truth) -> Iterator[Engine]:
    """An engine that has found in the cache what others saved and died after."""
    first = start(endpoint=service.endpoint, tp=2)
    answer = first.run()
    assert (answer["tokens"], answer["external"]) == (pair_truth(), 0)
    fill(first, pair_truth)
    first.kill()

    second = start(endpoint=service.endpoint, tp=2, extra=PATIENT)
    again = second.run()
    assert again["tokens"] == pair_truth()
    assert again["external"] >= 0.85 * again["prompt"]
    died = second.run(seed=8, kill_rank_after=3)
    assert "died" in died, "vLLM goes on without a rank"
    second.kill()

    third = start(endpoint=service.endpoint, tp=2, extra=PATIENT, module=FAULTY)
    yield third
    third.kill()


def test_ranks_killed_together_or_alone_leave_the_cache_to_the_next_engine(
    service: Service, reader: Engine, pair_truth: Truth
) -> None:
    before = service.counter("pool_sealed_bytes")
    answer = reader.run()
    assert answer["tokens"] == pair_truth()
    assert answer["external"] >= 0.85 * answer["prompt"]
    assert answer["left"] == [0, 0]
    assert service.counter("pool_sealed_bytes") >= before
    torn = reader.run(seed=8)
    assert torn["tokens"] == pair_truth(seed=8), "blocks of a killed rank were published"


@pytest.mark.parametrize("fault", ["fail one", "kill session"])
def test_a_load_that_ranks_do_not_end_alike(reader: Engine, pair_truth: Truth, fault: str) -> None:
    answer = reader.run(fault, reset=True)
    assert answer["tokens"] == pair_truth()
    assert answer["left"] == [0, 0]
    fill(reader, pair_truth)


def test_a_reset_that_changed_no_weights_costs_nothing(reader: Engine, pair_truth: Truth) -> None:
    fill(reader, pair_truth)
    answer = reader.run(reset=True, reset_connector=True)
    assert answer["tokens"] == pair_truth()
    assert answer["external"] >= 0.85 * answer["prompt"]
