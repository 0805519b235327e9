"""A real vLLM engine on the CPU, and a real service: killed, damaged, restarted; the tokens stay.

What counts as "from the cache" is vLLM's own metric of external prefix cache hits.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pegaflow.service.serve import shm_stem
from tests.connectors.vllm.engine import Options
from tests.procs.service import Service, eventually

from .conftest import PATIENT, TELLS_SOURCES, Engine, Start, Truth, fill

FAULTY = "tests.connectors.vllm.real.faulty"
BLOCK_TOKENS = Options().block_size


def flip_all_pages(service: Service) -> None:
    """Damage every byte of the pool that holds anything."""
    report = service.report()
    pool = np.memmap(report.pool_path, np.uint8, "r+")
    pool[pool != 0] ^= 0x15


def test_an_engine_killed_and_started_again_finds_its_cache(
    service: Service, start: Start, truth: Truth
) -> None:
    first = start(endpoint=service.endpoint, inproc=False)
    answer = first.run()
    assert answer["tokens"] == truth()
    assert answer["external"] == 0
    fill(first, truth)
    first.kill()

    second = start(endpoint=service.endpoint, inproc=False, extra=PATIENT)
    again = second.run()
    assert again["tokens"] == truth()
    assert again["external"] >= 0.85 * again["prompt"]
    assert again["queries"] == again["prompt"]
    if TELLS_SOURCES:
        assert again["sources"]["host"] == again["external"]
        assert not again["sources"].get("external_unspecified")
    second.kill()

    flip_all_pages(service)
    third = start(endpoint=service.endpoint, extra=PATIENT)
    damaged = third.run()
    assert damaged["external"] >= 0.85 * damaged["prompt"]
    assert damaged["tokens"] != truth(), "the loaded KV is not what the engine computes with"
    third.kill()


@pytest.fixture(scope="module")
def own_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service whose pool nobody has damaged."""
    run_dir = tmp_path_factory.mktemp("own")
    with Service(run_dir, pool_size="256MiB", http_addr="127.0.0.1:0") as made:
        yield made


@pytest.fixture(scope="module")
def patient(own_service: Service, start: Start) -> Iterator[Engine]:
    """An engine whose client can be made to fail."""
    engine = start(endpoint=own_service.endpoint, module=FAULTY)
    yield engine
    engine.kill()


@pytest.fixture
def warm(own_service: Service, patient: Engine, truth: Truth) -> Engine:
    """The faulty engine, with all prompts in the cache and none in vLLM's own."""
    if not own_service.left_over():
        own_service.start()
    fill(patient, truth)
    return patient


@pytest.mark.parametrize("fault", ["fail tail", "fail all"])
def test_blocks_that_cannot_be_loaded_are_computed(warm: Engine, truth: Truth, fault: str) -> None:
    answer = warm.run(fault, reset=True)
    assert answer["tokens"] == truth()
    assert set(answer["reasons"]) == {"length"}
    assert answer["external"] >= 0.85 * answer["prompt"], "vLLM counts what was claimed"
    assert answer["left"] == [0, 0]
    assert warm.run(reset=True)["tokens"] == truth(), "the failed step has poisoned the cache"


def test_a_request_that_asks_for_it_is_not_saved_and_not_loaded(warm: Engine, truth: Truth) -> None:
    ask: dict[str, Any] = {"seed": 60, "reset": True}
    expected = truth(seed=60)
    unsaved = warm.run(**ask, params={"pegaflow.skip_save": True, "pegaflow.keep": 1})
    first = warm.run(**ask)
    assert [unsaved["tokens"], first["tokens"]] == [expected] * 2
    assert [unsaved["external"], first["external"]] == [0, 0]

    def hits() -> bool:
        found = warm.run(**ask)
        return bool(found["external"] >= 0.85 * found["prompt"])

    eventually("the second one is saved", hits, patience=60)
    unloaded = warm.run(**ask, params={"pegaflow.skip_load": True})
    assert (unloaded["tokens"], unloaded["external"]) == (expected, 0)


def test_a_request_aborted_while_it_loads(warm: Engine, truth: Truth) -> None:
    answer = warm.run("slow load", reset=True, abort_after=3)
    assert answer["requests"] == [1, 2, 3]
    assert answer["tokens"] == truth()[1:]
    assert answer["left"] == [0, 0]
    assert warm.run(reset=True)["tokens"] == truth()


def test_vllms_own_cache_can_be_reset_right_after_a_batch(warm: Engine, truth: Truth) -> None:
    for seed in range(40, 44):
        answer = warm.run(seed=seed, tokens=1, reset=True, reset_after=True)
        assert answer["reset"], "blocks of finished requests are held"
        assert answer["left"] == [0, 0]

    def saved() -> bool:
        again = warm.run(seed=43, tokens=1, reset=True)
        return bool(again["external"] >= 0.85 * again["prompt"])

    eventually("what ended while it was saved is saved", saved, patience=60)


def test_a_session_killed_while_it_serves_a_load(
    own_service: Service, warm: Engine, truth: Truth
) -> None:
    (before,) = (row.pid for row in own_service.processes("session") if row.engine)
    answer = warm.run("kill session", reset=True)
    assert answer["tokens"] == truth()
    assert answer["left"] == [0, 0]

    def replaced() -> bool:
        rows = [row for row in own_service.processes("session") if row.engine]
        assert warm.run(reset=True)["tokens"] == truth()
        return bool(rows) and rows[0].pid != before

    eventually("the engine has another session", replaced, patience=60)


def test_a_service_killed_while_an_engine_works(
    own_service: Service, warm: Engine, truth: Truth
) -> None:
    other = warm.run(f"kill service {own_service.pid}", seed=8, reset=True)
    assert set(other["reasons"]) == {"length"} and other["left"] == [0, 0]
    assert own_service.left_over() == [], "the service was not killed in the middle"
    answer = warm.run(reset=True)
    assert answer["tokens"] == truth() and answer["left"] == [0, 0]
    own_service.kill()
    own_service.start()
    assert warm.run(seed=8, reset=True)["tokens"] == other["tokens"]


VICTIMS = ("index", "allocator", "gateway", "supervisor")


@pytest.mark.parametrize("moment", ["load", "save"])
@pytest.mark.parametrize("name", VICTIMS)
def test_whoever_dies_while_requests_run_no_token_differs(
    own_service: Service, warm: Engine, truth: Truth, name: str, moment: str
) -> None:
    (victim,) = own_service.processes(name)
    seed = 7 if moment == "load" else 20 + VICTIMS.index(name)
    answer = warm.run(f"kill {victim.pid} at {moment}", seed=seed, reset=True)
    assert answer["tokens"] == truth(seed=seed)
    assert set(answer["reasons"]) == {"length"} and answer["left"] == [0, 0]
    if name == "supervisor":
        eventually("its children have followed it", lambda: own_service.left_over() == [])
        own_service.start()
    else:
        rows = own_service.processes
        eventually(
            "it was killed and replaced",
            lambda: victim.address not in {row.address for row in rows(name)},
        )
        eventually("the service is up", own_service.up)

    def hits() -> bool:
        again = warm.run(reset=True)
        assert again["tokens"] == truth()
        return bool(again["external"] >= 0.85 * again["prompt"])

    eventually("what was sealed is a hit again", hits, patience=60)


def test_with_verify_damaged_blocks_are_misses_and_counted(
    tmp_path: Path, start: Start, truth: Truth
) -> None:
    with Service(tmp_path / "run", pool_size="256MiB", extra=("--verify",)) as service:
        engine = start(endpoint=service.endpoint, extra=PATIENT)
        fill(engine, truth)
        assert service.counter("blocks_corrupt") == 0
        flip_all_pages(service)
        damaged = engine.run(reset=True)
        assert damaged["tokens"] == truth() and damaged["left"] == [0, 0]
        eventually("it is counted", lambda: service.counter("blocks_corrupt") > 0)
        fill(engine, truth)
        engine.kill()


def all_written(service: Service) -> bool:
    """Whether every block in memory is in the log, by one report."""
    index = service.processes("index")
    now = {c.name: c.value for r in index for c in r.counters}
    waiting = now.get("ssd_backlog_blocks", 1) + now.get("ssd_in_flight_blocks", 1)
    return not waiting and now["ssd_stored_blocks"] >= now["blocks_resident"] > 0


def test_after_a_reboot_the_same_prompts_are_hits_from_ssd(
    tmp_path: Path, start: Start, truth: Truth
) -> None:
    flags = ("--ssd-cache-path", str(tmp_path / "ssd"))
    with Service(tmp_path / "run", pool_size="256MiB", extra=flags) as service:
        engine = start(endpoint=service.endpoint, extra=PATIENT)
        fill(engine, truth)
        eventually("all of it is in the log", lambda: all_written(service))
        stored = service.counter("ssd_stored_blocks")
        assert service.stop() == 0
        for path in Path("/dev/shm").glob(f"{shm_stem(service.run_dir)}.*"):
            path.unlink()
        service.start()
        eventually("it knows its log", lambda: service.counter("ssd_stored_blocks") >= stored)

        def served() -> bool:
            """It looks for a session when it works, and before all ranks have one nothing hits."""
            return bool(engine.run(seed=99, reset=True)["external"])  # other prompts

        eventually("the engine is served again", served, patience=60)
        again = engine.run(reset=True)
        assert again["tokens"] == truth() and again["left"] == [0, 0]
        assert again["external"] >= 0.85 * again["prompt"]
        if TELLS_SOURCES:
            assert again["sources"]["disk"] >= 0.85 * again["prompt"]
        blocks = 0.85 * again["prompt"] // BLOCK_TOKENS
        eventually("all from SSD", lambda: service.counter("blocks_hit_ssd") >= blocks)
        engine.kill()


def test_preempted_requests_are_right(own_service: Service, start: Start, truth: Truth) -> None:
    if not own_service.left_over():
        own_service.start()
    engine = start(endpoint=own_service.endpoint, kv_blocks=78)
    answer = engine.run(tokens=70)
    assert answer["preemptions"] > 0, "there was memory enough"
    assert answer["tokens"] == truth(70)
    assert answer["left"] == [0, 0]
    again = engine.run(tokens=70, reset=True)
    assert again["tokens"] == truth(70)
    assert again["external"] > 0
    engine.kill()
