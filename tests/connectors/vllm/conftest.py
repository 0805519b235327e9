"""A fake service for the connector, and one engine on it."""

from collections.abc import Iterator
from typing import Any

import pytest

import pegaflow.connectors.vllm.scheduler
import pegaflow.connectors.vllm.worker
from pegaflow.connectors.vllm.layout import Tensor

from .fakes import Store
from .pair import Pair


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """The service of all engines of a test."""
    made = Store()

    def numbers(caches: dict[str, Any]) -> list[Tensor]:
        arrays = {name: a.__array_interface__["data"][0] for name, a in caches.items()}
        return [
            Tensor(
                n,
                a.shape,
                a.strides,
                0,
                element=1,
                dtype="uint8",
                storage=arrays[n],
                storage_bytes=a.nbytes,
            )
            for n, a in caches.items()
        ]

    monkeypatch.setattr(pegaflow.connectors.vllm.worker, "Client", made.make)
    monkeypatch.setattr(pegaflow.connectors.vllm.scheduler, "Client", made.make)
    monkeypatch.setattr(pegaflow.connectors.vllm.worker, "tensors", numbers)
    monkeypatch.setattr(
        pegaflow.connectors.vllm.worker,
        "buffers",
        lambda caches, _: [a.reshape(-1) for a in caches.values()],
    )
    return made


@pytest.fixture
def pair(store: Store) -> Iterator[Pair]:
    """One engine of one rank."""
    made = Pair()
    yield made
    made.close()
