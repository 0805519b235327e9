"""A real engine with another connector beside ours, whose loads fail."""

from tests.procs.service import Service, eventually

from .conftest import PATIENT, Start, Truth

LIAR = "tests.connectors.vllm.real.liar"


def test_what_a_failed_load_of_another_connector_has_spoiled_is_not_published(
    service: Service, start: Start, truth: Truth
) -> None:
    first = start(endpoint=service.endpoint, beside=LIAR)
    answer = first.run()
    assert (answer["tokens"], answer["left"]) == (truth(), [0, 0])
    assert answer["external"] > 0, "nothing was claimed, so nothing has failed"
    assert first.said("kv_load_failure_policy is") == [], "it is the outer connector's"
    eventually("it is saved", lambda: service.counter("blocks_sealed") > 60)
    first.kill()

    alone = start(endpoint=service.endpoint, extra=PATIENT)
    hit = alone.run()
    assert hit["tokens"] == truth()
    assert hit["external"] >= 0.85 * hit["prompt"]
    alone.kill()
