"""The tier, called as vLLM calls it, over a fake service."""

import logging
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from pegaflow.connectors.vllm.offload import carrier, tier, verdicts
from pegaflow.connectors.vllm.offload.contract import LookupResult
from tests.procs.service import eventually

from .conftest import Hosts
from .fakes import ROW, WINDOW, Core, Host, Pool, PoolClient, key

KEYS = [key(n) for n in range(4)]


def test_what_one_engine_stores_another_one_finds_and_loads(host: Hosts) -> None:
    one, other = host().ready(), host().ready()
    one.fill(3, 5, 7, 9)
    stored = one.result(one.store("r", KEYS, [3, 5, 7, 9]))
    assert (stored.success, stored.transfer_bytes) == (True, 4 * ROW)

    assert set(other.asked("q", KEYS)) == {LookupResult.RETRY}
    assert other.found("q", KEYS) == [True] * 4
    loaded = other.result(other.load("q", KEYS, [8, 1, 2, 0]))
    assert (loaded.success, loaded.successful_keys) == (True, None)
    assert loaded.transfer_bytes == 4 * ROW
    assert (other.memory[[8, 1, 2, 0]] == one.memory[[3, 5, 7, 9]]).all()
    assert not other.memory[[3, 4, 5, 6, 7, 9]].any(), "no other chunk was written"


def test_what_is_known_already_is_not_copied_again(host: Hosts) -> None:
    one = host().ready()
    one.result(one.store("r", KEYS, [0, 1, 2, 3]))
    again = one.result(one.store("s", KEYS, [4, 5, 6, 7]))
    assert (again.success, again.transfer_bytes) == (True, 0)


def test_of_full_attention_nothing_counts_beyond_a_gap(host: Hosts, pool: Pool) -> None:
    one = host().ready()
    one.result(one.store("r", [KEYS[0], KEYS[2], KEYS[3]], [0, 2, 3]))
    assert one.found("q", KEYS) == [True, False, False, False]
    assert pool.asked == [KEYS], "one question for all of them"


def test_of_a_window_all_counts(host: Hosts) -> None:
    one = host().ready()
    keys = [key(n, WINDOW) for n in range(4)]
    one.result(one.store("r", [keys[0], keys[2]], [0, 2]))
    assert one.found("q", keys[::-1]) == [False, True, False, True]


def test_boundaries_that_are_asked_from_the_last_to_the_first_count_each_by_itself(
    host: Hosts,
) -> None:
    one = host().ready()
    one.context("q", places={KEYS[n]: 16 * n for n in range(4)})
    one.result(one.store("r", [KEYS[0]], [0]))
    assert one.found("q", KEYS[::-1]) == [False, False, False, True]


def test_groups_are_apart(host: Hosts) -> None:
    one = host().ready()
    mixed = [key(1), key(1, WINDOW), key(2)]
    one.fill(0, 1, 2)
    assert one.result(one.store("r", [key(1, WINDOW), key(2)], [1, 2])).success
    assert one.found("q", mixed) == [False, True, False]
    loaded = one.result(one.load("q", [key(1, WINDOW), key(2)], [5, 6]))
    assert loaded.success
    assert (one.memory[[5, 6]] == one.memory[[1, 2]]).all()


def test_a_load_that_fails_names_what_is_there_and_is_not_asked_for_again(
    host: Hosts, pool: Pool
) -> None:
    one = host().ready()
    one.fill(0, 1, 2, 3)
    one.result(one.store("r", KEYS, [0, 1, 2, 3]))
    assert one.found("q", KEYS) == [True] * 4
    pool.failing = {KEYS[1]}
    del pool.blocks[next(name for name in pool.blocks if name[1] == KEYS[3])]
    loaded = one.result(one.load("q", KEYS, [4, 5, 6, 7]))
    assert (loaded.success, loaded.successful_keys) == (False, (KEYS[0], KEYS[2]))
    assert loaded.transfer_bytes == 2 * ROW
    assert one.found("q", KEYS) == [True, False, True, False], "vLLM would ask for ever else"
    assert one.found("another", KEYS[:2]) == [True, True]


def test_a_load_of_nothing_that_is_there_fails(host: Hosts) -> None:
    one = host().ready()
    loaded = one.result(one.load("q", KEYS, [0, 1, 2, 3]))
    assert (loaded.success, loaded.successful_keys) == (False, None)


def test_without_a_service_all_answers_come_at_once(host: Hosts, pool: Pool) -> None:
    pool.away = True
    one = host()
    assert one.asked("q", KEYS) == [LookupResult.MISS] * 4
    numbers = one.store("q", KEYS, [0, 1, 2, 3]), one.load("q", KEYS, [4, 5, 6, 7])
    one.step()
    assert [one.results[number].success for number in numbers] == [False, False]
    pool.away = False
    pool.wake_all()
    assert one.ready().result(one.store("q", KEYS, [0, 1, 2, 3])).success


def test_an_answer_that_does_not_come_is_a_miss(
    host: Hosts, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verdicts, "LATE_S", 0.0)
    one = host(options={"timeout_ms": 1}).ready()
    pool.holding = True
    assert one.found("q", KEYS) == [False] * 4


def test_leases_end_when_the_request_is_scheduled_or_has_ended(host: Hosts, pool: Pool) -> None:
    one = host().ready()
    one.result(one.store("r", KEYS, [0, 1, 2, 3]))
    ends: list[Callable[[str], None]] = [
        one.step,
        lambda request: one.step(preempted=[request]),
        lambda request: one.tier.on_request_finished(one.context(request)),
    ]
    for end in ends:
        assert one.found("q", KEYS) == [True] * 4
        assert len(pool.leases) == 1
        end("q")
        eventually("it is given back", lambda: not pool.leases)


def test_who_is_preempted_asks_anew(host: Hosts) -> None:
    one = host().ready()
    assert one.found("q", KEYS) == [False] * 4
    one.result(one.store("r", KEYS, [0, 1, 2, 3]))
    assert one.found("q", KEYS) == [False] * 4, "one answer for as long as it waits"
    one.step(preempted=["q"])
    assert one.found("q", KEYS) == [True] * 4


def test_a_lease_of_a_request_that_ended_meanwhile_is_given_back(host: Hosts, pool: Pool) -> None:
    one = host().ready()
    one.result(one.store("r", KEYS, [0, 1, 2, 3]))
    pool.holding = True
    one.asked("q", KEYS)
    one.step()
    eventually("the question is out", lambda: len(pool.leases) == 1)
    one.tier.on_request_finished(one.context("q"))
    thread = one.tier._carrier
    assert thread is not None
    eventually("that is known before the answer", lambda: not thread._jobs)
    pool.holding = False
    pool.wake_all()
    eventually("it is given back", lambda: not pool.leases)


@pytest.mark.parametrize("when", ["lookup", "store", "load"])
def test_a_client_that_fails_ends_nothing_but_the_tier(
    host: Hosts, pool: Pool, when: str, caplog: pytest.LogCaptureFixture
) -> None:
    one = host().ready()
    pool.broken = True
    number = 0
    if when == "lookup":
        assert one.found("q", KEYS) == [False] * 4
    elif when == "store":
        number = one.store("q", KEYS, [0, 1, 2, 3])
    else:
        number = one.load("q", KEYS, [0, 1, 2, 3])
    assert not number or not one.result(number).success
    eventually("it is off", lambda: not one.serves)
    assert one.asked("q", KEYS) == [LookupResult.MISS] * 4
    assert not one.result(one.store("q", KEYS, [0, 1, 2, 3])).success
    one.tier.drain_jobs()
    assert "broken on purpose" in caplog.text


def test_a_client_that_fails_keeps_a_load_open_until_the_memory_is_given_up(
    host: Hosts, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carrier, "LET_GO_S", 0.01)
    one = host().ready()
    pool.clings = pool.holding = True
    number = one.load("q", KEYS, [0, 1, 2, 3])
    pool.broken = True
    pool.wake_all()
    eventually("it was asked for again and again", lambda: pool.clung > 3)
    one.step()
    assert number not in one.results, "somebody may still write"
    pool.clings = False
    pool.wake_all()
    assert not one.result(number).success


def test_a_client_that_fails_at_the_end_too_leaves_the_memory_alone(
    host: Hosts, pool: Pool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    escaped: list[object] = []
    monkeypatch.setattr(threading, "excepthook", escaped.append)
    monkeypatch.setattr(tier, "_KEPT", [])

    def unregister(self: PoolClient, timeout: float) -> bool:
        raise RuntimeError("not even that")

    monkeypatch.setattr(PoolClient, "unregister", unregister)
    one = host().ready()
    pool.holding = True
    load, store = one.load("q", KEYS[:2], [0, 1]), one.store("r", KEYS[2:], [2, 3])
    pool.broken = True
    pool.wake_all()
    assert not one.result(store).success
    thread = one.tier._carrier
    assert thread and not thread.stop(5.0), "nobody knows who has the memory open"
    one.step()
    assert load not in one.results, "somebody may still write"
    assert escaped == [] and "not even that" in caplog.text
    one.close()
    assert len(tier._KEPT) == 1, "its pages are nobody else's for as long as the process lives"


def test_what_comes_to_a_thread_that_has_ended_has_its_result(host: Hosts, pool: Pool) -> None:
    one = host().ready()
    thread = one.tier._carrier
    assert thread is not None
    pool.broken = True
    pool.wake_all()
    eventually("the thread has ended", lambda: thread.dead)
    thread.attached = True  # as it was when the engine's thread looked
    assert not one.result(one.store("q", KEYS, [0, 1, 2, 3])).success


@pytest.mark.parametrize("method", ["lookup", "submit_load", "submit_store", "on_new_request"])
def test_nonsense_never_raises(host: Hosts, method: str) -> None:
    one = host().ready()
    arguments = (b"", None) if method == "lookup" else (None,)
    getattr(one.tier, method)(*arguments)


def test_a_job_that_makes_no_sense_is_reported(host: Hosts) -> None:
    one = host().ready()
    assert not one.result(one.store("q", KEYS, [0, 1])).success
    assert not one.result(one.load("q", KEYS, [0, 1])).success
    assert not one.result(one.store("q", KEYS, [0, 1, 2, 99])).success


def test_after_a_reset_nothing_is_found_under_the_old_name(host: Hosts, pool: Pool) -> None:
    one, other = host().ready(), host().ready()
    one.result(one.store("r", KEYS, [0, 1, 2, 3]))
    one.tier.drain_jobs()
    eventually("it goes on", lambda: len(pool.clients) == 3 and one.serves)
    assert one.found("q", KEYS) == [False] * 4
    new = [key(n) for n in range(10, 12)]
    assert one.result(one.store("q", new, [4, 5])).success
    assert one.found("p", new) == [True, True]
    assert other.found("q", new) == [False, False], "these may be of other weights"
    assert other.found("p", KEYS) == [True] * 4


def test_a_reset_ends_all_jobs_at_once(host: Hosts, pool: Pool) -> None:
    one = host().ready()
    pool.holding = True
    numbers = [one.store("r", [key(n)], [n]) for n in range(4)]
    eventually("all have begun", lambda: len(pool.clients[0].saves) == 4)
    one.asked("q", KEYS)
    one.step()
    one.tier.drain_jobs()
    one.step()
    assert [one.results[n].success for n in numbers] == [False] * 4
    assert not pool.blocks, "nothing that was dropped is published"
    pool.holding = False
    renewed(one, pool)
    assert one.result(one.store("q", KEYS, [0, 1, 2, 3])).success, "the tier goes on"


def test_a_reset_waits_for_a_load_and_no_longer_than_its_time(
    host: Hosts, pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tier, "DRAIN_S", 0.2)
    one = host().ready()
    one.result(one.store("r", KEYS, [0, 1, 2, 3]))
    pool.holding = True
    number = one.load("q", KEYS, [4, 5, 6, 7])
    begun = time.monotonic()
    one.tier.drain_jobs()
    assert time.monotonic() - begun >= 0.2
    one.step()
    assert not one.results[number].success
    assert "do not end" in caplog.text
    pool.holding = False
    assert one.asked("p", KEYS) == [LookupResult.MISS] * 4, "the tier is off"


def renewed(one: Host, pool: Pool) -> None:
    eventually("it has another client", lambda: len(pool.clients) == 2 and one.serves)


def test_once_weights_may_be_others_nothing_goes_either_way_until_a_reset(
    host: Hosts, pool: Pool, caplog: pytest.LogCaptureFixture
) -> None:
    one = host().ready()
    one.result(one.store("r", KEYS, [0, 1, 2, 3]))
    saved = dict(pool.blocks)
    assert one.core.collective_rpc("update_weights", timeout=1.0) == "done"
    assert one.found("q", KEYS) == [False] * 4
    assert not one.result(one.store("q", [key(8)], [4])).success
    assert not one.result(one.load("q", KEYS, [4, 5, 6, 7])).success
    assert pool.blocks == saved
    assert caplog.text.count("weights may have been exchanged") == 1
    one.tier.drain_jobs()
    renewed(one, pool)
    assert one.found("p", KEYS) == [False] * 4
    assert one.result(one.store("p", KEYS, [0, 1, 2, 3])).success
    assert {name[0] for name in pool.blocks} == {c.space for c in pool.clients}


def test_weights_that_come_before_any_work_make_another_cache(host: Hosts, pool: Pool) -> None:
    one = host().ready()
    one.core.collective_rpc(method="update_weights")
    renewed(one, pool)
    assert one.result(one.store("q", KEYS, [0, 1, 2, 3])).success
    assert host().ready().found("q", KEYS) == [False] * 4


def test_a_call_that_leaves_the_weights_alone_changes_nothing(host: Hosts, pool: Pool) -> None:
    one = host().ready()
    one.result(one.store("r", KEYS, [0, 1, 2, 3]))
    one.core.collective_rpc("compute_weight_checksums")
    assert one.found("q", KEYS) == [True] * 4
    one.core.collective_rpc(lambda worker: None)
    assert one.found("p", KEYS) == [False] * 4
    assert len(one.core.asked) == 2


def test_without_an_engine_core_it_is_said(
    host: Hosts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delattr(Core, "collective_rpc")
    host().ready()
    assert "other weights are noticed at resets only" in caplog.text


@pytest.mark.parametrize(("mode", "saves", "loads"), [("read_only", 0, 1), ("save_only", 1, 0)])
def test_a_mode_leaves_one_side_out(
    host: Hosts, pool: Pool, mode: str, saves: int, loads: int
) -> None:
    full = host().ready()
    full.result(full.store("r", KEYS[:2], [0, 1]))
    one = host(options={"mode": mode}).ready()
    assert one.found("q", KEYS[:2]) == [bool(loads)] * 2
    assert one.result(one.store("q", KEYS[2:], [2, 3])).success, "vLLM need not know"
    assert len(pool.blocks) == 2 + 2 * saves


@pytest.mark.parametrize("spelt", ["endpoint", "pegaflow.endpoint"])
def test_settings_are_the_connectors(host: Hosts, pool: Pool, spelt: str) -> None:
    host(options={spelt: "/there.sock"}, **{"pegaflow.endpoint": "/here", "pegaflow.way": "staged"})
    eventually("it has a client", lambda: len(pool.clients) == 1)
    said = pool.clients[0].said
    assert (said["endpoint"], said["way"]) == ("/there.sock", "staged")


def test_a_key_that_is_none_of_ours_is_named(host: Hosts, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        host(options={"mod": "read_only"})
    assert "'pegaflow.mod' is ignored; did you mean 'pegaflow.mode'?" in caplog.text


def test_the_memory_is_let_go_at_the_end(host: Hosts) -> None:
    one = host().ready()
    view = memoryview(one.memory)
    one.close()
    view.release()
    assert not tier._KEPT


def test_memory_into_which_somebody_may_write_stays(
    host: Hosts, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tier, "LET_GO_S", 0.05)
    kept: list[Any] = []
    monkeypatch.setattr(tier, "_KEPT", kept)
    one = host().ready()
    pool.clings = True
    one.close()
    assert [np.shares_memory(one.memory, memory) for memory in kept] == [True]


def test_a_view_that_is_not_the_whole_memory_turns_the_tier_off(
    host: Hosts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Host, "skipped", 2)
    one = host()
    assert one.asked("q", KEYS) == [LookupResult.MISS] * 4
    assert "vLLM's host memory" in caplog.text


def test_what_the_engine_never_says_is_no_harm(host: Hosts) -> None:
    one = host().ready()
    one.tier.on_request_finished(SimpleNamespace(req_id="never seen"))
    one.step("never seen either")
    assert list(one.tier.get_finished_jobs()) == []
