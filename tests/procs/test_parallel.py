"""The connector's halves of engines that no CPU runs, over a real service which checks each page:
pipeline stages of unequal size or with several KV cache groups, decode context parallel ranks, data
parallel ranks."""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from typing import Any

import pytest

from tests.connectors.vllm.fakes import BLOCK, Request
from tests.connectors.vllm.grouping import Chunk
from tests.connectors.vllm.hybrid import Hybrid
from tests.connectors.vllm.pair import Pair
from tests.connectors.vllm.test_hybrid import text

from .halves import PROMPT, SAVED, connect, save, stand_in
from .service import Service, eventually

LOADED = [10, 11, 12, 13, 14, 15]

WAYS: dict[str, dict[str, Any]] = {
    "stages of a model with 7 layers": {"world": 2, "stages": (3, 4)},
    "a draft model in the last stage": {"world": 2, "stages": (3, 9)},
    "decode context parallel": {"world": 2, "decode": 2},
    "both ranks have all layers": {"world": 2},
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("run"), extra=("--verify",)) as made:
        yield made


@pytest.fixture(autouse=True)
def stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """See halves.py."""
    stand_in(monkeypatch)


def finds(pair: Pair, request: Request, tokens: int, block: int = 4) -> None:
    """So many tokens, in blocks of `block`, in every rank."""
    count, seen = tokens // block, len(pair.received)
    pair.memories[:, :, LOADED] = 0
    assert pair.load(request, LOADED[:count]) == tokens
    if tokens:
        pair.until(lambda: len(pair.received) == seen + 1)
        assert pair.errors == set() and pair.holds(LOADED[:count], SAVED[:count])
    assert not pair.finish(request)


@pytest.mark.parametrize(("name", "other"), [*pairwise([*WAYS, next(iter(WAYS))])])
def test_the_next_engine_of_its_kind_finds_it_and_one_of_another_does_not(
    service: Service, name: str, other: str
) -> None:
    how, block = WAYS[name], 4 * WAYS[name].get("decode", 1)
    saved = SAVED[: -(-PROMPT // block)]
    first = connect(service.endpoint, **how)
    save(first, Request("a", PROMPT, salt=name), saved)
    first.close()
    for kind in (other, name):
        pair = connect(service.endpoint, **WAYS[kind])
        found = PROMPT // block * block if kind == name else 0
        finds(pair, Request("b", PROMPT, salt=name), found, block)
        pair.close()


GROUPS: dict[str, list[int | None]] = {
    "full attention and windows": [None, 4 * BLOCK, 2 * BLOCK],
    "chunks": [Chunk(4 * BLOCK), None],
}


@pytest.mark.parametrize("kind", GROUPS)
def test_stages_of_a_model_with_several_groups_find_their_part_of_all(
    service: Service, kind: str
) -> None:
    """Whatever an engine has loaded is compared, in both stages (hybrid.py)."""
    prompt, extra = text(10 * BLOCK + 1, seed=len(kind)), {"pegaflow.endpoint": service.endpoint}
    for stages, found in ((2, 0), (2, 10 * BLOCK), (1, 0)):
        engine = Hybrid(None, GROUPS[kind], stages=stages, caches=False, extra=extra)
        attached(engine)
        engine.ask("a", prompt, [1])
        eventually("it is answered", partial(stepped, engine))
        assert engine.external == found and engine.failed == []
        engine.close()


def attached(engine: Hybrid) -> None:
    """Wait until each of its ranks is served."""
    halves = [one._worker for one in getattr(engine.worker, "workers", [engine.worker])]

    def served() -> bool:
        engine.step()
        movers = [half._mover for half in halves]
        return all(mover._client and mover._client.attached for mover in movers)

    eventually("its ranks are served", served)


def stepped(engine: Hybrid) -> bool:
    """Go on; whether there is nothing left to do."""
    if engine.busy:
        engine.step()
    return not engine.busy


def test_data_parallel_ranks_find_what_each_other_has_saved(service: Service) -> None:
    first, second = (connect(service.endpoint, 1, name=f"engine_dp{n}") for n in range(2))
    save(first, Request("a", PROMPT, salt="data"), SAVED)
    finds(second, Request("b", PROMPT, salt="data"), 24)
    for pair in (first, second):
        pair.close()
