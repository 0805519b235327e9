"""What the tier tells routers, by way of vLLM, and what it is asked for single requests."""

from types import SimpleNamespace
from typing import Any

import pytest

from pegaflow.connectors.vllm.offload import told
from pegaflow.connectors.vllm.offload.contract import LookupResult, Medium
from tests.procs.service import eventually

from .conftest import Hosts
from .fakes import WINDOW, Host, Pool, key

KEYS = [key(n) for n in range(4)]
ON = {"enable_kv_events": True}


def known(one: Host) -> dict[Any, set[bytes]]:
    """What a router knows of the tier by now."""
    found: dict[Any, set[bytes]] = {Medium.CPU: set(), Medium.STORAGE: set()}
    for event in one.told:
        keys = set(event.keys)
        assert event.ownership == "PegaTier" and event.removal_expected
        if event.removed:
            assert keys <= found[event.medium], "only what was told is taken back"
            found[event.medium] -= keys
        else:
            assert not keys & found[event.medium], "nothing is told twice"
            found[event.medium] |= keys
    return found


def hears(one: Host, cpu: list[bytes], disk: list[bytes]) -> None:
    """After some steps that is what a router knows."""

    def heard() -> bool:
        one.step()
        return known(one) == {Medium.CPU: set(cpu), Medium.STORAGE: set(disk)}

    eventually("routers know it", heard)


@pytest.fixture
def one(host: Hosts, monkeypatch: pytest.MonkeyPatch) -> Host:
    """An engine that tells, with chunks in the pool."""
    monkeypatch.setattr(told, "LOOK_EVERY_S", 0.0)
    made = host(options=ON).ready()
    made.result(made.store("r", [*KEYS, key(9, WINDOW)], [0, 1, 2, 3, 4]))
    return made


def test_what_was_stored_is_told_with_its_result(one: Host) -> None:
    assert known(one)[Medium.CPU] == {*KEYS, key(9, WINDOW)}


def test_what_is_evicted_is_taken_back_and_what_goes_to_disk_is_told(one: Host, pool: Pool) -> None:
    pool.on_disk = {KEYS[0], KEYS[1]}
    hears(one, [*KEYS, key(9, WINDOW)], KEYS[:2])
    for name in [name for name in pool.blocks if name[1] in KEYS[1:]]:
        del pool.blocks[name]
    hears(one, [KEYS[0], key(9, WINDOW)], KEYS[:2])
    one.result(one.store("s", KEYS[2:], [5, 6]))
    hears(one, [KEYS[0], *KEYS[2:], key(9, WINDOW)], KEYS[:2])


def test_what_another_engine_saves_is_told_once_it_is_there(host: Hosts, pool: Pool) -> None:
    other = host().ready()
    other.result(other.store("r", KEYS, [0, 1, 2, 3]))
    one = host(options=ON).ready()
    theirs, pool.blocks = pool.blocks, dict(pool.blocks)
    number = one.store("r", KEYS, [0, 1, 2, 3])
    eventually("it is known", lambda: bool(one.tier._carrier and one.tier._carrier.done))
    pool.blocks = {}  # the other engine has not published it yet
    assert one.result(number).success
    hears(one, [], [])
    pool.blocks = theirs
    hears(one, KEYS, [])


def test_a_job_that_stored_a_part_tells_what_is_there(host: Hosts, pool: Pool) -> None:
    one = host(options=ON).ready()
    thread: Any = one.tier._carrier
    job = told_of(one, pool, KEYS[:2])
    assert job.there == 1 and not one.told
    hears(one, KEYS[:1], [])
    assert thread.attached


def told_of(one: Host, pool: Pool, keys: list[bytes]) -> Any:
    """A job of which the first chunk alone is in the pool."""
    from pegaflow.connectors.vllm.offload.carrier import Run, Store

    job = Store(7, [Run(keys, [0, 1])], there=1)
    pool.blocks[pool.clients[0].space, keys[0]] = b""
    one.tier._report(job)
    return job


@pytest.mark.parametrize("how", ["reset", "weights", "errors", "nobody to ask"])
def test_what_cannot_be_found_any_more_is_taken_back(
    one: Host, pool: Pool, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "reset":
        one.tier.drain_jobs()
    elif how == "weights":
        one.core.collective_rpc("update_weights")
    elif how == "errors":
        one.tier._errors = 10
    else:
        monkeypatch.setattr(told, "BLIND_S", 0.0)
        pool.away = True
    hears(one, [], [])


def test_what_is_stored_while_weights_may_be_others_is_not_told(one: Host, pool: Pool) -> None:
    pool.holding = True
    number = one.store("s", [key(8)], [5])
    eventually("the job has begun", lambda: len(pool.clients[0].saves) == 1)
    one.core.collective_rpc("update_weights")
    pool.holding = False
    pool.wake_all()
    assert one.result(number).success
    hears(one, [], [])


def test_nothing_is_told_unless_both_want_it(
    host: Hosts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    silent = host().ready()
    silent.result(silent.store("r", KEYS, [0, 1, 2, 3]))
    monkeypatch.setattr(Host, "publishes", False)
    other = host(options=ON).ready()
    other.result(other.store("r", KEYS, [0, 1, 2, 3]))
    saves = host(options={**ON, "mode": "save_only"}).ready()
    saves.result(saves.store("r", KEYS, [0, 1, 2, 3]))
    assert not silent.told and not other.told and not saves.told
    assert caplog.text.count("vLLM publishes no KV events") == 2


def test_an_event_that_cannot_be_made_ends_nothing_but_the_telling(
    one: Host, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(told, "OffloadingEvent", None)
    one.tier._told._said = list(one.tier._told._announcer.lost())  # type: ignore[union-attr]
    one.step()
    one.step()
    assert caplog.text.count("take_events failed") == 1
    assert one.found("q", KEYS) == [True] * 4


def test_a_request_may_have_nothing_saved(host: Hosts, pool: Pool) -> None:
    one = host().ready()
    one.context("r", params={"pegaflow.skip_save": True})
    skipped = one.result(one.store("r", KEYS, [0, 1, 2, 3]))
    assert (skipped.success, skipped.transfer_bytes, pool.blocks) == (True, 0, {})
    assert one.result(one.store("s", KEYS, [0, 1, 2, 3])).transfer_bytes


def test_a_request_may_not_ask(host: Hosts, pool: Pool) -> None:
    one = host().ready()
    one.result(one.store("r", KEYS, [0, 1, 2, 3]))
    context = one.context("q", params={"pegaflow.skip_load": True})
    assert one.asked("q", KEYS) == [LookupResult.MISS] * 4 and not pool.asked
    one.tier.on_request_finished(context)
    assert not one.tier._asked


def test_what_a_router_hints_counts_too(host: Hosts, pool: Pool) -> None:
    action = SimpleNamespace(
        action_type="pegaflow", action_version="1", payload={"skip_save": True}
    )
    one = host().ready()
    one.tier.on_new_request(
        SimpleNamespace(
            req_id="r", kv_transfer_params=None, kv_hints=SimpleNamespace(actions=[action])
        )
    )
    assert one.result(one.store("r", KEYS, [0, 1, 2, 3])).success and not pool.blocks


def test_what_is_not_understood_is_named(host: Hosts, caplog: pytest.LogCaptureFixture) -> None:
    one = host().ready()
    for name in ("a", "b"):
        one.context(name, params={"pegaflow.skip_sav": True})
    assert caplog.text.count("'skip_sav' is unknown") == 1
