"""The threads that copy: parts of one job, outcomes, and an error that nobody expected."""

import os
import select
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from pegaflow.actors.runtime.workers import YIELDING_NICE, Workers
from pegaflow.core.errors import UserError
from pegaflow.wire.jobs import Done, PagesDiffer, Result
from pegaflow.wire.status import Status

OK = Done(Status.OK)


def finished(workers: Workers) -> list[tuple[int, Result]]:
    """Wait for at least one job."""
    done: list[tuple[int, Result]] = []
    while not done:
        assert select.select([workers.fd], [], [], 30)[0]
        done = workers.collect()
    return done


def test_a_job_is_done_when_its_last_part_is() -> None:
    workers = Workers()
    workers.grow(2)
    both = threading.Barrier(2, timeout=30)

    def part() -> Done:
        both.wait()
        return OK

    workers.put(1, part, part)
    assert finished(workers) == [(1, OK)]


def test_the_outcome_is_that_of_the_part_that_failed() -> None:
    workers = Workers()

    def fails() -> Done:
        raise UserError("no room")

    workers.put(1, lambda: OK, fails, lambda: OK)
    assert finished(workers) == [(1, Done(Status.COPY_FAILED, "no room"))]


def test_any_result_may_be_that_of_a_failure() -> None:
    workers = Workers()
    parts = (OK, PagesDiffer((4096,)), Done(Status.COPY_FAILED, "too late"), OK)
    workers.put(1, *(lambda part=part: part for part in parts))
    assert finished(workers) == [(1, PagesDiffer((4096,)))]


def test_an_unexpected_error_ends_the_process() -> None:
    program = (
        "import time\n"
        "from pegaflow.actors.runtime.workers import Workers\n"
        "Workers().put(1, lambda: 1 // 0)\n"
        "time.sleep(30)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ended.returncode == 1 and "ZeroDivisionError" in ended.stderr


@pytest.mark.parametrize("own", [0, YIELDING_NICE + 5])
def test_threads_that_can_wait_yield(own: int) -> None:
    """A thread takes over the niceness of the one that starts it, which may be higher already."""

    def look() -> Done:
        me = threading.get_native_id()
        seen.append((os.sched_getscheduler(me), os.getpriority(os.PRIO_PROCESS, me)))
        return OK

    def at_this_niceness() -> None:
        me = threading.get_native_id()
        nice = max(own, os.getpriority(os.PRIO_PROCESS, me))
        os.setpriority(os.PRIO_PROCESS, me, nice)
        wanted = [(os.SCHED_BATCH, max(YIELDING_NICE, nice)), (os.sched_getscheduler(me), nice)]
        for yielding in (True, False):
            workers = Workers(yielding)
            workers.put(1, look)
            finished(workers)
        assert seen == wanted

    seen: list[tuple[int, int]] = []
    with ThreadPoolExecutor(1) as pool:
        pool.submit(at_this_niceness).result()
