"""The tier for vLLM's own offloading over a real service, with a stand-in for vLLM's manager."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pegaflow.connectors.vllm.mover import LOAD_TIMEOUT_S
from tests.connectors.vllm.offload.fakes import CHUNKS, WINDOW, Host, alike, key

from .service import Service, eventually

Make = Callable[..., Host]
HALF = CHUNKS // 2


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with Service(tmp_path_factory.mktemp("run")) as made:
        yield made


@pytest.fixture
def host(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    alike(monkeypatch)
    made: list[Host] = []

    def make(**options: Any) -> Host:
        made.append(Host(options={"endpoint": service.endpoint, **options}))
        return made[-1].ready()

    yield make
    for one in made:
        one.close()


def fill(one: Host, request: str, group: int = 0) -> list[bytes]:
    """Half of the memory, saved; the keys."""
    keys = [key(n, group) for n in range(HALF)]
    one.fill(*range(HALF))
    assert one.result(one.store(request, keys, range(HALF))).success
    return keys


def load(one: Host, request: str, keys: list[bytes]) -> bool:
    """Load into the other half; whether all of it is there, and then it is right."""
    result = one.result(one.load(request, keys, range(HALF, CHUNKS)))
    if result.success:
        assert (one.memory[HALF:] == one.memory[:HALF]).all()
    return bool(result.success)


@pytest.mark.parametrize("way", ["process_vm", "staged"])
@pytest.mark.parametrize("group", [0, WINDOW])
def test_chunks_go_both_ways(host: Make, way: str, group: int) -> None:
    one, other = host(way=way), host(way=way)
    keys = fill(one, "r", group)
    assert other.found("q", [*keys, key(99, group)]) == [True] * HALF + [False]
    other.memory[:HALF] = one.memory[:HALF]
    assert load(other, "q", keys)


def test_the_pool_outlives_engine_and_service(host: Make, service: Service) -> None:
    one = host()
    keys = fill(one, "r")
    kept = one.memory.copy()
    one.close()
    other = host()
    os.kill(service.pid, signal.SIGKILL)
    eventually("it is seen", lambda: not other.serves)
    assert other.found("q", keys) == [False] * HALF, "and nobody waits"
    assert not other.result(other.store("q", [key(50)], [0])).success
    service.start()
    other.ready()
    other.memory[:HALF] = kept[:HALF]

    def all_found() -> bool:
        other.step(preempted=["q"])
        return all(other.found("q", keys))

    eventually("the pool is adopted", all_found)
    assert load(other, "q", keys)


@pytest.mark.parametrize("way", ["process_vm", "staged"])
def test_a_stopped_session_costs_no_more_than_the_time_of_a_job(
    host: Make, service: Service, way: str
) -> None:
    one = host(way=way)
    keys = fill(one, "r")
    made = one.tier._tenant
    assert made is not None
    begun = time.monotonic()
    os.kill(service.session_of(made.name).pid, signal.SIGSTOP)
    load(one, "q", keys)
    one.result(one.store("q", [key(60)], [0]))
    one.tier.drain_jobs()
    assert time.monotonic() - begun < 3 * LOAD_TIMEOUT_S
    eventually("another session serves it", lambda: one.serves)
    again = host()
    again.memory[:HALF] = one.memory[:HALF]
    assert again.found("p", keys) == [True] * HALF
    assert load(again, "p", keys)


def test_a_store_that_a_reset_ends_is_whole_or_not_there(host: Make) -> None:
    other = host()
    for turn in range(6):
        one = host()
        keys = [key(1000 + turn * HALF + n) for n in range(HALF)]
        one.fill(*range(HALF), salt=turn + 1)
        one.store("r", keys, range(HALF))
        other.memory[:HALF] = one.memory[:HALF]
        one.tier.drain_jobs()
        one.memory[:HALF] = 0  # vLLM gives the chunks to others
        found = other.found(f"q{turn}", keys).count(True)
        into = range(HALF, HALF + found)
        if found:
            assert other.result(other.load(f"q{turn}", keys[:found], into)).success
        assert (other.memory[into] == other.memory[:found]).all()
        one.close()
