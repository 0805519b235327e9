"""What the connector knows of the vLLM that is installed here, beside that vLLM."""

import importlib.util
import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest

from pegaflow.connectors.vllm import contents
from tests.connectors.vllm import signatures
from tests.procs.service import Service

from .conftest import DRAWS_SEEDS, PATIENT, Start, Truth, fill


def test_what_is_recorded_of_this_vllm_is_what_it_declares() -> None:
    found = importlib.util.find_spec("vllm")
    assert found is not None and found.origin is not None
    folder = Path(found.origin).parents[1]
    recorded = signatures.record()[signatures.version(folder)]
    assert recorded == signatures.read(folder), "python -m tests.connectors.vllm.signatures FOLDER"


def test_backends_of_which_it_is_known_what_they_write_are_there() -> None:
    """As text: most of them cannot be imported on a CPU."""
    import vllm

    for name in " ".join(contents.PLAIN.values()).split():
        *modules, kind = f"{contents.BACKENDS}{name}".split(".")
        file = Path(vllm.__file__).parent.joinpath(*modules[1:]).with_suffix(".py")
        assert f"class {kind}(" in file.read_text(), name


def test_vllm_takes_the_connector_for_whole() -> None:
    from pegaflow.connector import PegaKVConnector

    assert not inspect.isabstract(PegaKVConnector)


def test_hashes_of_events_are_vllms_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm import envs

    from pegaflow.connectors.vllm import eventwords

    monkeypatch.setattr(envs, "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", False, raising=False)
    assert eventwords.external(b"\1" * 32) == b"\1" * 32
    monkeypatch.setattr(envs, "VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES", True, raising=False)
    assert eventwords.external(bytes(24) + b"\1" * 8) == 0x0101010101010101


def test_events_go_over_vllms_wire() -> None:
    import msgspec
    from vllm.distributed import kv_events

    from pegaflow.connectors.vllm import eventwords

    made = [
        eventwords.stored(
            [eventwords.external(bytes(31) + b"\1")],
            None,
            [1, 2, 3, 4],
            block_tokens=4,
            group=0,
            medium="DISK",
            lora=SimpleNamespace(adapter_id=3, name="an adapter"),
            extra=[("an adapter",)],
        ),
        eventwords.removed([eventwords.external(bytes(32))], "CPU", 0),
    ]
    batch = kv_events.KVEventBatch(ts=1.0, events=made)
    sent = msgspec.msgpack.encode(batch)
    again = msgspec.msgpack.Decoder(kv_events.KVEventBatch).decode(sent)
    assert again.events[0].lora_name == "an adapter" and again.events[0].medium == "DISK"
    assert [type(event) for event in again.events] == [
        kv_events.BlockStored,
        kv_events.BlockRemoved,
    ]


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
