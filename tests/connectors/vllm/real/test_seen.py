"""A real engine shows what the connector does, by vLLM's own types and on its own /metrics."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pegaflow.connector import PegaKVConnector
from pegaflow.connectors.vllm import metrics
from tests.connectors.vllm.engine import Options
from tests.procs.service import Service

from .conftest import PATIENT, Start, Truth, fill

LIAR = "tests.connectors.vllm.real.liar"


def front_end(name: str, **more: Any) -> Any:
    """What vLLM's front end makes of a configuration, for engine 0."""
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import KVConnectorProm
    from vllm.v1.metrics.prometheus import unregister_vllm_metrics

    unregister_vllm_metrics()
    ours = {"kv_connector": "PegaKVConnector", "kv_connector_module_path": "pegaflow.connector"}
    extra = {"connectors": [{**ours, "kv_role": "kv_both"}]}
    transfer = SimpleNamespace(
        kv_connector=name, kv_connector_module_path=None, kv_connector_extra_config=extra, **more
    )
    transfer.engine_id = "engine"
    config = SimpleNamespace(kv_transfer_config=transfer)
    return KVConnectorProm(config, ["engine"], {0: ["0"]})


def shown(name: str, **labels: str) -> float | None:
    from prometheus_client import REGISTRY

    return REGISTRY.get_sample_value(f"vllm:pega_{name}", {"engine": "0", **labels})


def test_vllm_finds_what_shows_them_by_the_connectors_name() -> None:
    made = front_end("PegaKVConnector")
    made.observe({"load_success": 2, "load_blocks": [3, 5], "hit_blocks_disk": 4})
    assert (shown("load_success_total"), shown("load_blocks_sum")) == (2, 8)
    assert shown("hit_blocks_total", source="disk") == 4


def test_a_multi_connector_carries_them_between_processes() -> None:
    from vllm.distributed.kv_transfer.kv_connector.v1.multi_connector import (
        MultiConnector,
        MultiKVConnectorStats,
    )

    name = PegaKVConnector.__name__
    one, other = metrics.Tally(), metrics.Tally()
    one.moved("save", 0.5, 7)
    other.count("save_failure")
    ranks = [MultiKVConnectorStats({name: tally.take()}) for tally in (one, other)]
    sent = ranks[0].aggregate(ranks[1]).to_dict()
    assert sent == {
        name: {
            "save_success": 1,
            "save_duration_seconds": [0.5],
            "save_blocks": [7],
            "save_failure": 1,
        }
    }
    again = MultiConnector.build_kv_connector_stats(sent)
    assert not again.is_empty() and again.reduce()[name]["mean save_blocks"] == 7
    made = front_end("MultiConnector")
    made.observe(sent)
    assert (shown("save_success_total"), shown("save_failure_total")) == (1, 1)


class Listener:
    """A router's end of vLLM's events."""

    def __init__(self, endpoint: str) -> None:
        import msgspec
        import zmq
        from vllm.distributed.kv_events import KVEventBatch

        self._decoder = msgspec.msgpack.Decoder(KVEventBatch)
        self._socket: Any = zmq.Context.instance().socket(zmq.SUB)
        self._socket.setsockopt(zmq.SUBSCRIBE, b"")
        self._socket.connect(endpoint)

    def hear(self) -> list[Any]:
        """What has been said since, up to the first quiet half second."""
        heard: list[Any] = []
        while self._socket.poll(500):
            heard += self._decoder.decode(self._socket.recv_multipart()[-1]).events
        return heard

    def close(self) -> None:
        self._socket.close(0)


def test_routers_hear_of_what_is_in_memory(
    service: Service, start: Start, truth: Truth, tmp_path: Path
) -> None:
    endpoint = f"ipc://{tmp_path}/events"
    listener = Listener(endpoint)
    engine = start(endpoint=service.endpoint, extra=PATIENT, events=endpoint)
    fill(engine, truth)
    listener.hear()
    engine.run(reset=True)  # routers have forgotten all
    said: dict[str, dict[Any, Any]] = {"GPU": {}, "CPU": {}}
    for event in listener.hear():
        if type(event).__name__ == "AllBlocksCleared":
            said = {"GPU": {}, "CPU": {}}
        elif type(event).__name__ == "BlockStored":
            known, size = said[event.medium], event.block_size
            assert size == Options().block_size and len(event.token_ids) == size * len(
                event.block_hashes
            )
            assert event.medium == "GPU" or event.parent_block_hash in {None, *known}
            for place, one in enumerate(event.block_hashes):
                known[one] = event.token_ids[place * size : (place + 1) * size]
    whole = sum(length // Options().block_size for length in Options().lengths)
    assert len(said["GPU"]) >= whole <= len(said["CPU"])
    same = said["GPU"].keys() & said["CPU"].keys()
    assert len(same) >= whole and all(said["GPU"][one] == said["CPU"][one] for one in same)
    listener.close()
    engine.kill()


def test_its_metrics_are_vllms(service: Service, start: Start, truth: Truth) -> None:
    engine = start(endpoint=service.endpoint, extra=PATIENT)
    fill(engine, truth)
    answer = engine.run(reset=True)
    seen, found = answer["seen"], answer["sources"]["host"]
    assert (seen["hit_blockshost"] * Options().block_size, seen["hit_blocksdisk"]) == (found, 0)
    assert seen["load_blocks"] == seen["hit_blockshost"] > 0
    assert seen["load_success"] >= len(Options().lengths) and seen["load_duration_seconds"] > 0
    assert seen["save_success"] > 0 and seen["save_blocks"] > 0
    assert seen["save_failure"] == seen["load_failure"] == seen["pending_prefetches"] == 0
    engine.kill()


def test_beside_another_connector_they_are_the_same(service: Service, start: Start) -> None:
    engine = start(endpoint=service.endpoint, extra=PATIENT, beside=LIAR)
    first = engine.run(seed=8, tokens=64)
    assert first["seen"]["save_success"] > 0 and first["seen"]["save_blocks"] > 0
    engine.kill()
