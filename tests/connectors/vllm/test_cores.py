"""Which cores a thread of ours takes in an engine's process, and how it yields."""

import multiprocessing
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection

import pytest

from pegaflow.connectors.vllm.cores import left_over, step_aside

ALL = sorted(os.sched_getaffinity(0))
several = pytest.mark.skipif(len(ALL) < 2, reason="one core leaves nothing to choose")
Answer = tuple[set[int], int]


def in_thread(call: Callable[[], object]) -> Answer:
    """Affinity and class of a thread once it has called this."""
    found: list[Answer] = []

    def run() -> None:
        call()
        found.append((os.sched_getaffinity(0), os.sched_getscheduler(0)))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return found[0]


def worker(bound: list[int], pipe: Connection) -> None:
    """A rank: its threads are bound, then one of ours is started when we are told to."""
    os.sched_setaffinity(0, bound)
    pipe.send("up")
    pipe.recv()
    pipe.send(in_thread(step_aside))
    pipe.recv()


def ranks(*bindings: list[int]) -> list[Answer]:
    """What a thread of ours has in each of these ranks of one engine."""
    context = multiprocessing.get_context("spawn")
    pipes, processes = [], []
    for bound in bindings:
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=worker, args=(bound, theirs), daemon=True))
        processes[-1].start()
        pipes.append(ours)
    for pipe in pipes:
        assert pipe.recv() == "up"
    found: list[Answer] = []
    for pipe in pipes:
        pipe.send("go")
        found.append(pipe.recv())
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send("end")
        process.join()
    return found


@several
def test_a_bound_worker_leaves_the_other_cores() -> None:
    assert ranks(ALL[:1]) == [(set(ALL[1:]), os.SCHED_BATCH)]


@several
def test_ranks_that_are_bound_to_all_cores_leave_none() -> None:
    half = len(ALL) // 2
    assert ranks(ALL[:half], ALL[half:]) == [(set(ALL), os.SCHED_BATCH)] * 2


@several
def test_the_cores_of_another_rank_are_not_free() -> None:
    last = ALL[-1:]
    free = set(ALL) - {ALL[0]} - set(last)
    assert [cores for cores, _ in ranks(ALL[:1], last)] == [free or set(ALL)] * 2


def test_an_unbound_worker_leaves_all_to_the_scheduler() -> None:
    assert ranks(ALL) == [(set(ALL), os.SCHED_BATCH)]


@several
def test_what_the_user_took_away_is_not_taken_back() -> None:
    where = "pegaflow.connectors.vllm.cores"
    code = f"import os; from {where} import left_over; print(sorted(left_over()))"
    run = subprocess.run(
        ["taskset", "-c", str(ALL[0]), sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == str(ALL[:1])


def test_only_the_calling_thread_steps_aside() -> None:
    before = os.sched_getaffinity(0), os.sched_getscheduler(0)
    assert in_thread(step_aside) == (set(ALL), os.SCHED_BATCH)
    assert (os.sched_getaffinity(0), os.sched_getscheduler(0)) == before
    assert left_over() == set(ALL)
