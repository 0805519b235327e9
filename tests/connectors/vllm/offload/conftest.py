"""A fake service, and engines on it."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pegaflow.connectors.vllm.offload import tier

from .fakes import Host, Pool, alike

Hosts = Callable[..., Host]


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Pool:
    """The service of all engines of a test, on devices of one kind."""
    made = Pool()
    monkeypatch.setattr(tier, "Client", made.client)
    alike(monkeypatch)
    return made


@pytest.fixture
def host(pool: Pool) -> Iterator[Hosts]:
    """Makes engines."""
    made: list[Host] = []

    def make(**options: Any) -> Host:
        made.append(Host(**options))
        return made[-1]

    yield make
    pool.holding = pool.clings = False
    pool.wake_all()
    for one in made:
        one.close()
