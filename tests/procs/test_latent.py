"""The connector's halves of engines with latent attention over a real service: whatever the number
of their ranks, they find each other's blocks, of which there is one copy."""

from collections.abc import Iterator

import pytest

from tests.connectors.vllm.fakes import Request
from tests.connectors.vllm.pair import Pair

from .halves import FOUND, PROMPT, SAVED, connect, save, stand_in
from .service import Service, eventually

LOADED = [10, 11, 12, 13, 14, 15]
SLOT = 16384
"""What a block of a rank takes of the pool: its few bytes are far less than the smallest slot."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("run")) as made:
        yield made


@pytest.fixture(autouse=True)
def stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """See halves.py."""
    stand_in(monkeypatch)


def finds(pair: Pair, request: Request, tokens: int = FOUND) -> None:
    """What others have saved, in every rank."""
    pair.memories[:, :, LOADED] = 0
    seen = len(pair.received)
    assert pair.load(request, LOADED[: tokens // 4]) == tokens
    if tokens:
        pair.until(lambda: len(pair.received) == seen + 1)
        assert pair.errors == set() and pair.holds(LOADED, SAVED[:6])
    assert not pair.finish(request)


@pytest.mark.parametrize(("saver", "finder"), [(2, 1), (1, 2), (2, 2), (1, 4)])
def test_engines_of_any_number_of_ranks_share(service: Service, saver: int, finder: int) -> None:
    name, before = f"{saver} {finder}", service.counter("pool_sealed_bytes")
    first = connect(service.endpoint, saver, latent=True)
    save(first, Request("a", PROMPT, salt=name), SAVED)
    first.close()
    copy = before + 6 * SLOT
    eventually("there is one copy", lambda: service.counter("pool_sealed_bytes") == copy)
    second = connect(service.endpoint, finder, latent=True)
    finds(second, Request("b", PROMPT, salt=name))
    second.close()


def test_an_indexers_cache_of_other_pages_is_found_with_it(service: Service) -> None:
    """DeepSeek-V3.2: each layer has a cache of fewer bytes beside its latent vectors."""
    indexed = {"latent": True, "indexed": 5}
    first = connect(service.endpoint, 2, **indexed)
    save(first, Request("a", PROMPT, salt="indexed"), SAVED)
    first.close()
    for how, tokens in (({"latent": True}, 0), (indexed, FOUND)):
        other = connect(service.endpoint, 1, **how)
        other.indexes[:, :, LOADED] = 0
        finds(other, Request("b", PROMPT, salt="indexed"), tokens)
        other.close()


def test_engines_whose_heads_are_shared_out_are_apart(service: Service) -> None:
    first = connect(service.endpoint, 2)
    save(first, Request("a", PROMPT, salt="heads"), SAVED)
    first.close()
    for world, latent in ((1, False), (2, True)):
        other = connect(service.endpoint, world, latent=latent)
        finds(other, Request("b", PROMPT, salt="heads"), 0)
        other.close()
    same = connect(service.endpoint, 2)
    finds(same, Request("c", PROMPT, salt="heads"))
    same.close()
