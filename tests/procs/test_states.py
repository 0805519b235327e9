"""Models with recurrent layers that no real engine was run with, over a real service: from what one
engine has saved of their states the next one resumes. Whenever an engine computes, it compares all
that it goes on from with what it must be (recurrent.py)."""

import random
from collections.abc import Iterator

import pytest

from tests.connectors.vllm import grouping
from tests.connectors.vllm.fakes import BLOCK
from tests.connectors.vllm.grouping import STATE
from tests.connectors.vllm.recurrent import Recurrent
from tests.connectors.vllm.states import BESIDE, NAMES, KdaSpec, Mamba1Spec

from .halves import stand_in
from .service import PATIENCE_S, Service, eventually

LENGTH = 10 * BLOCK + 1


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("run")) as made:
        yield made


@pytest.fixture(params=(KdaSpec, Mamba1Spec), ids=NAMES.get)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type:
    """Two groups of such layers, and one of attention."""
    stand_in(monkeypatch)
    monkeypatch.setattr(grouping, "MambaSpec", request.param)
    monkeypatch.setattr(grouping, "FullAttentionSpec", BESIDE[request.param])
    found: type = request.param
    return found


def connect(service: Service, mode: str) -> Recurrent:
    extra = {"pegaflow.endpoint": service.endpoint, "pegaflow.timeout_ms": 1000 * PATIENCE_S}
    return Recurrent(None, [STATE, STATE, None], caches=False, mode=mode, extra=extra)


def ask(engine: Recurrent, seed: int) -> int:
    """A request; tokens found for it."""
    draw, before = random.Random(seed), engine.external
    engine.ask("r", [draw.randrange(1000) for _ in range(LENGTH)], [1])

    def done() -> bool:
        if engine.busy:
            engine.step()
        return not engine.busy

    eventually("all is answered", done)
    return engine.external - before


def test_states_are_found_by_the_next_engine(service: Service, kind: type) -> None:
    seed = list(BESIDE).index(kind)
    first = connect(service, "read_write")
    assert ask(first, seed) == 0
    eventually("it is saved", lambda: ask(first, seed) == LENGTH - 1)
    first.close()
    second = connect(service, "read_only")
    eventually("it is found", lambda: ask(second, seed) == LENGTH - 1)
    second.close()
