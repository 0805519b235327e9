"""What the connector knows of the vLLM that is installed here, beside that vLLM."""

import importlib.util
import inspect
from pathlib import Path

from tests.connectors.vllm import signatures
from tests.procs.service import Service

from .conftest import DRAWS_SEEDS, PATIENT, Start, Truth, fill


def test_what_is_recorded_of_this_vllm_is_what_it_declares() -> None:
    found = importlib.util.find_spec("vllm")
    assert found is not None and found.origin is not None
    folder = Path(found.origin).parents[1]
    recorded = signatures.record()[signatures.version(folder)]
    assert recorded == signatures.read(folder), "python -m tests.connectors.vllm.signatures FOLDER"


def test_vllm_takes_the_connector_for_whole() -> None:
    from pegaflow.connector import PegaKVConnector

    assert not inspect.isabstract(PegaKVConnector)


def test_hashes_that_no_other_process_has_are_named_once(
    service: Service, start: Start, truth: Truth
) -> None:
    engine = start(endpoint=service.endpoint, extra=PATIENT, seeded=False)
    fill(engine, truth)
    lines = engine.said("have a random seed")
    assert len(lines) == (1 if DRAWS_SEEDS else 0)
    for line in lines:
        assert "PYTHONHASHSEED" in line and "0.29" in line
    engine.kill()
