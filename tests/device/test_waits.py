"""What the scheduler says of processes that run, sleep, are stopped, or get no core."""

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from pegaflow.client.place import is_past_running, is_ready
from pegaflow.device.waits import Thread, Wait, Waits, threads
from pegaflow.wire.jobs import ThreadState
from tests.procs.service import eventually

READY, ASLEEP = ThreadState.RUNNING, ThreadState.SLEEPING
STOPPED, BLOCKED = ThreadState.STOPPED, ThreadState.BLOCKED_IN_KERNEL

BURNERS = 4
"""Processes of full weight on one core: an idle-class one beside them gets nothing for seconds."""

SPIN = "while True: pass"
SLEEP = "import time\nwhile True: time.sleep(0.01)"
PATIENCE_S = 30.0


def on_one_core() -> None:
    """Of a child: the first core of ours."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


@contextmanager
def process(code: str) -> Iterator[int]:
    with subprocess.Popen(
        [sys.executable, "-c", f"print(flush=True)\n{code}"],
        stdout=subprocess.PIPE,
        preexec_fn=on_one_core,  # noqa: PLW1509  (no thread of ours holds a lock)
    ) as child:
        assert child.stdout is not None and child.stdout.readline()
        try:
            yield child.pid
        finally:
            child.kill()


def watched(pid: int, enough: int) -> Wait:
    """Look until it ran or waited, or time passed, for so many nanoseconds."""
    waits, begun = Waits(pid), time.monotonic_ns()
    waits.look(begun)
    until = time.monotonic() + PATIENCE_S
    while True:
        select.select([], [], [], 0.02)
        now = time.monotonic_ns()
        wait = waits.look(now)
        if max(wait.ran_ns, wait.waited_ns) >= enough or now - begun >= 10 * enough:
            return wait
        assert time.monotonic() < until, wait


def test_who_gets_no_core_waits_all_the_time() -> None:
    with ExitStack() as stack:
        pid = stack.enter_context(process(SPIN))
        os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
        for _ in range(BURNERS):
            stack.enter_context(process(SPIN))
        wait = watched(pid, 500_000_000)
        assert wait.state is READY and wait.waited_ns > 9 * wait.ran_ns


def test_who_sleeps_waits_for_nothing() -> None:
    with process(SLEEP) as pid:
        wait = watched(pid, 50_000_000)
        assert wait.state in (ASLEEP, READY) and wait.waited_ns < 500_000_000


def test_who_is_stopped_waits_for_nothing() -> None:
    with process(SPIN) as pid:
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        assert watched(pid, 20_000_000) == Wait(0, 0, STOPPED)


def test_who_is_gone_has_not_waited() -> None:
    with process(SPIN) as pid:
        waits = Waits(pid)
        waits.look(time.monotonic_ns())
    assert threads(pid) == {}
    assert waits.look(time.monotonic_ns()) == Wait(0, 0, ThreadState.DEAD)


def test_a_client_sees_whether_a_process_would_run() -> None:
    with process("import sys; sys.stdout.close(); import signal; signal.pause()") as pid:
        eventually("it sleeps", lambda: not is_ready(pid))
    assert not is_ready(pid), "it is gone"
    with process(SPIN) as pid:
        assert is_ready(pid)
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        assert not is_ready(pid)


def test_who_was_killed_is_past_running_before_it_is_reaped() -> None:
    threads_too = (
        f"import threading, time\nthreading.Thread(target=time.sleep, args=(1e6,)).start()\n{SPIN}"
    )
    with process(threads_too) as pid:
        eventually("both threads are there", lambda: len(threads(pid)) == 2)
        assert not is_past_running(pid), "it runs"
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        assert not is_past_running(pid), "it may go on"
        os.kill(pid, signal.SIGKILL)
        eventually("no thread runs any more", lambda: is_past_running(pid))
    assert not is_past_running(pid), "it is gone, and its number may be another's"


def test_a_thread_that_the_list_lacks_may_run(monkeypatch: pytest.MonkeyPatch) -> None:
    with process(SPIN) as pid:
        os.kill(pid, signal.SIGKILL)
        eventually("no thread runs any more", lambda: is_past_running(pid))
        monkeypatch.setattr(os, "listdir", lambda folder: [])
        assert not is_past_running(pid)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> dict[int, Thread]:
    """Threads of process 7, and 70 of process 70, as the next look sees them."""
    found: dict[int, Thread] = {}

    def read(pid: int) -> dict[int, Thread]:
        return {tid: thread for tid, thread in found.items() if (tid == 70) == (pid == 70)}

    monkeypatch.setattr("pegaflow.device.waits.threads", read)
    return found


def test_a_wait_that_goes_on_counts_once(seen: dict[int, Thread]) -> None:
    waits = Waits(7)
    seen[7] = Thread(READY, 5, 1000, 40, slices=3)
    assert waits.look(100) == Wait(0, 0, READY)
    assert waits.look(200) == Wait(100, 0, READY)
    assert waits.look(350) == Wait(250, 0, READY)
    seen[7] = Thread(READY, 5, 1010, 315, slices=4)
    assert waits.look(400) == Wait(275, 10, READY), "275 is what the kernel counts, at last"
    assert waits.look(500) == Wait(375, 10, READY)


@pytest.mark.parametrize(
    "after",
    [
        Thread(READY, 6, 1000, 40, slices=3),  # on a core without a tick only `stat` is right
        Thread(READY, 5, 1001, 40, slices=3),
        Thread(ASLEEP, 5, 1000, 40, slices=3),
        Thread(STOPPED, 5, 1000, 40, slices=3),
        Thread(BLOCKED, 5, 1000, 40, slices=3),
    ],
)
def test_who_ran_or_is_not_ready_does_not_wait(seen: dict[int, Thread], after: Thread) -> None:
    waits = Waits(7)
    seen[7] = Thread(READY, 5, 1000, 40, slices=3)
    waits.look(100)
    seen[7] = after
    assert waits.look(200).waited_ns == 0


def test_waits_one_after_the_other_add_up_and_those_at_once_do_not(seen: dict[int, Thread]) -> None:
    waits = Waits(7)
    ready, asleep = Thread(READY, 1, 1, 0, slices=1), Thread(ASLEEP, 1, 1, 0, slices=1)
    seen.update({7: ready, 8: ready})
    waits.look(100)
    assert waits.look(200).waited_ns == 100
    seen[8] = asleep
    assert waits.look(300).waited_ns == 200, "7 alone"
    seen.update(
        {7: Thread(ASLEEP, 1, 2, 210, slices=2), 8: ready, 9: Thread(ASLEEP, 1, 1, 10**9, slices=1)}
    )
    assert waits.look(400).waited_ns == 210, "9 has waited before we saw it"
    assert waits.look(500).waited_ns == 310, "8, which 7 has woken"


def test_whoever_listens_may_be_the_one_that_waits(seen: dict[int, Thread]) -> None:
    waits = Waits(7, 70)
    seen.update({7: Thread(ASLEEP, 1, 5, 0, slices=1), 70: Thread(READY, 1, 1, 0, slices=1)})
    waits.look(100)
    seen[70] = Thread(ASLEEP, 1, 9, 60, slices=2)
    assert waits.look(200) == Wait(60, 0, ASLEEP)


def test_without_the_kernels_counts_long_waits_are_seen(seen: dict[int, Thread]) -> None:
    waits = Waits(7)
    seen[7] = Thread(READY, 5, 0, 0, slices=0)
    waits.look(100)
    assert waits.look(300).waited_ns == 200
    seen[7] = Thread(READY, 6, 0, 0, slices=0)
    assert waits.look(400).waited_ns == 200
