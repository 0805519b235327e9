"""Spares that have made their CUDA contexts before an engine asks, and who has none."""

import os
from collections.abc import Iterator

import pytest

from tests.fakes import gpus

from .gpu import GpuEngine, host
from .service import Service, eventually


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("spares")
        host(folder, patch)
        extra = ("--devices", "1,7", "--spares", "1")
        with Service(folder / "run", extra=extra) as made:
            yield made


def contexts(device: int) -> list[int]:
    """Processes of the service that have one; ours stands for the engine."""
    return [pid for pid in gpus.contexts(device) if pid != os.getpid()]


def test_contexts_are_where_devices_are_named_or_used_and_nowhere_else(service: Service) -> None:
    def ready() -> bool:
        sessions = service.processes("session")
        numbers = [{c.name: c.value for c in s.counters} for s in sessions]
        pinned = all(n.get("session_registered_bytes") for n in numbers)
        return pinned and contexts(1) == sorted(s.pid for s in sessions)

    eventually("the spare has a context, and the pool is registered", ready)
    assert contexts(0) == []
    assert "there is no GPU 7, but 2 GPUs" in service.log()
    (spare,) = service.processes("session")
    with GpuEngine(service, "first") as engine:
        assert engine.client.ways == ("cuda_ipc", "cuda_ipc", "")
        assert service.session_of("first").pid == spare.pid

        def both() -> bool:
            pids = sorted(s.pid for s in service.processes("session"))
            return len(pids) == 2 and contexts(0) == contexts(1) == pids

        eventually("the next spare has a context where the engine is, too", both)
