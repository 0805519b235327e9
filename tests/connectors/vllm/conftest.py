"""A fake service for the connector, and one engine on it."""

from collections.abc import Iterator

import pytest

import pegaflow.connectors.vllm.scheduler
import pegaflow.connectors.vllm.worker

from .fakes import Store
from .pair import Pair, plain_memory


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    """The service of all engines of a test."""
    made = Store()
    monkeypatch.setattr(pegaflow.connectors.vllm.worker, "Client", made.make)
    monkeypatch.setattr(pegaflow.connectors.vllm.scheduler, "Client", made.make)
    plain_memory(monkeypatch)
    return made


@pytest.fixture
def pair(store: Store) -> Iterator[Pair]:
    """One engine of one rank."""
    made = Pair()
    yield made
    made.close()
