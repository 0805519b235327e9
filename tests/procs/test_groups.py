"""An engine with several KV cache groups, whose neighbours die or stand still at every stage of a
request.  Whenever it computes, it compares all that it attends to with what it must be, and a step
that reports failed blocks where vLLM would raise is an error (hybrid.py).

A part of all cases, in which each process meets each stage; PEGAFLOW_TEST_ALL=1 runs all of them.
"""

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from itertools import count, cycle, product
from typing import Any

import pytest

from pegaflow.wire.values import ALLOCATOR, FLUSHER, GATEWAY, INDEX, SESSION
from tests.connectors.vllm.fakes import BLOCK
from tests.connectors.vllm.hybrid import Hybrid

from .halves import stand_in
from .service import Service, eventually

WINDOWS = [None, 4 * BLOCK, 2 * BLOCK]
LONG = [2 * BLOCK, BLOCK, BLOCK]
"""Tokens of a block of each group, where they differ."""

LENGTH = 10 * BLOCK + 1
FOUND = 10 * BLOCK
FEW, FEW_S = 20, 1.0
"""Steps of an engine while somebody stands still, and how long it does at most, so that a busy
machine's watchdog does not kill it for its silence."""

WRITTEN = 20
"""Prompts that are on disk, and the older half of them not in memory, before anybody is struck."""

WARM = WRITTEN - 1
NEW = count(1000)

WHO = (SESSION, INDEX, ALLOCATOR, FLUSHER, GATEWAY)
MOMENTS = ("lookup", "load", "save")
HOW = {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}
POLICIES = ("recompute", "fail")
Case = tuple[str, str, str, str]  # who, moment, how, policy


def cases() -> list[Case]:
    """Those that are run."""
    whole = list(product(WHO, MOMENTS, HOW, POLICIES))
    if os.environ.get("PEGAFLOW_TEST_ALL"):
        return whole
    four = len(HOW) * len(POLICIES)
    part = {whole[four * place + place % four] for place in range(len(whole) // four)}
    part |= {(SESSION, "load", "killed", policy) for policy in POLICIES}
    return [case for case in whole if case in part]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of all processes, in whose memory there is room for few prompts."""
    folder = tmp_path_factory.mktemp("groups")
    flags = ("--ssd-cache-path", str(folder / "ssd"), "--extent-size", "1MiB")
    with Service(folder / "run", pool_size="3MiB", http_addr="127.0.0.1:0", extra=flags) as made:
        yield made


@pytest.fixture(scope="module")
def written(service: Service) -> Iterator[int]:
    """Prompts that are on disk alone, one after the other; who is asked for is soon evicted."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        engine = connect(service)
        found_again(engine)
        for seed in range(WRITTEN):
            ask(engine, seed)
        waiting = ("ssd_backlog_blocks", "ssd_in_flight_blocks")
        eventually("all is on disk", lambda: not sum(map(service.counter, waiting)))
        engine.close()
    return cycle(range(WRITTEN // 2))


def connect(service: Service, policy: str = "recompute", sizes: list[int] | None = None) -> Hybrid:
    """An engine that finds nothing in memory of its own."""
    extra = {"pegaflow.endpoint": service.endpoint}
    return Hybrid(None, WINDOWS, sizes=sizes, caches=False, extra=extra, policy=policy)


def text(seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1000) for _ in range(LENGTH)]


def drain(engine: Hybrid) -> None:
    """Until everything is answered, saved and given back."""

    def done() -> bool:
        if engine.busy:
            engine.step()
        return not engine.busy

    eventually("all is answered", done)


def ask(engine: Hybrid, seed: int) -> int:
    """A request; tokens found for it in the cache."""
    before = engine.external
    engine.ask("r", text(seed), [1])
    drain(engine)
    return engine.external - before


def found_again(engine: Hybrid) -> None:
    eventually("what was saved is a hit", lambda: ask(engine, WARM) == FOUND)


def struck(service: Service, name: str, number: int) -> int:
    """Send a signal to one process, once there is one; its pid."""
    if name == SESSION:
        pid = service.session_of("engine").pid
    else:
        pids: list[int] = []

        def there() -> bool:
            pids.extend(row.pid for row in service.processes(name) if row.pid)  # 0: not yet
            return pids != []

        eventually(f"there is a {name}", there)
        pid = pids[0]
    os.kill(pid, number)
    return pid


def before(engine: Hybrid, method: str, orders: str, act: Callable[[], object]) -> None:
    """Go on until a step has orders of this kind; act when its worker hears of them."""
    begin: Callable[..., None] = getattr(engine.worker, method)
    done: list[Any] = []

    def then(*args: Any) -> None:
        given = engine.worker._orders
        if not done and given is not None and getattr(given, orders):
            done.append(given)
            act()
        begin(*args)

    def stepped() -> bool:
        engine.step()
        return done != []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.worker, method, then)
        eventually(f"a step has {orders}", stepped)


@pytest.mark.parametrize("case", cases(), ids="-".join)
def test_whoever_is_struck_while_requests_with_groups_run(
    service: Service, written: Iterator[int], monkeypatch: pytest.MonkeyPatch, case: Case
) -> None:
    stand_in(monkeypatch)
    name, moment, how, policy = case
    engine = connect(service, policy)
    found_again(engine)
    pids: list[int] = []

    def act() -> None:
        pids.append(struck(service, name, HOW[how]))

    seed = {"lookup": next(written), "load": WARM, "save": next(NEW)}[moment]
    engine.ask("struck", text(seed), [1])
    if moment == "lookup":
        act()
    elif moment == "load":
        before(engine, "start_load_kv", "loads", act)
    else:
        before(engine, "wait_for_save", "saves", act)
    if how == "stopped":
        until = time.monotonic() + FEW_S
        for _ in range(FEW):
            engine.step()
            if time.monotonic() >= until:
                break
        os.kill(pids[0], signal.SIGCONT)
    drain(engine)
    fails = (name, moment, how) == (SESSION, "load", "killed")
    assert engine.failed == ["struck"] * fails
    eventually("the service is up", service.up)
    found_again(engine)
    eventually("and what was asked meanwhile", lambda: ask(engine, seed) == FOUND)
    assert engine.scheduler._errors == engine.worker._errors == 0
    engine.close()


def test_blocks_of_other_lengths_are_found_and_a_load_of_them_that_fails_is_computed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch)
    engine = connect(service, sizes=LONG)
    assert ask(engine, WARM) == 0, "others have blocks of other lengths under the same hashes"
    found_again(engine)
    engine.ask("struck", text(WARM), [1])
    before(engine, "start_load_kv", "loads", lambda: struck(service, SESSION, signal.SIGKILL))
    drain(engine)
    assert engine.failed == ["struck"]
    found_again(engine)
    assert engine.scheduler._errors == engine.worker._errors == 0
    engine.close()
