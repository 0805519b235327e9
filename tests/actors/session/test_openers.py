"""The threads of a session's device that open GPU memory: nothing there waits in a queue."""

import select
import threading
from collections.abc import Callable
from typing import Any

from pegaflow.actors.runtime.workers import Part
from pegaflow.actors.session.device import SessionDevice
from pegaflow.wire.gpujobs import MapGpu, WarmGpu
from pegaflow.wire.jobs import Done, Result
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from tests.actors.sessions import LAYOUT

from .test_gpu import GPU


class Loop:
    """Where jobs are completed."""

    def __init__(self) -> None:
        self.calls: dict[int, Callable[[], None]] = {}
        self.poll = select.poll()
        self.done: list[int] = []

    def watch(self, fd: int, call: Callable[[], None]) -> None:
        self.calls[fd] = call
        self.poll.register(fd, select.POLLIN)

    def complete(self, number: int, result: Result) -> None:
        assert result.ok, f"job {number} has waited in vain"
        self.done.append(number)

    def turn(self) -> None:
        able = self.poll.poll(20_000)
        assert able, "nothing is done"
        for fd, _ in able:
            self.calls[fd]()


class Gpus:
    """A context that takes until `go_on`, and memory of two ranks that is opened together."""

    def __init__(self) -> None:
        self.go_on, self.both = threading.Event(), threading.Barrier(2, timeout=2)

    def by_gpu(self, job: Message, over: Callable[[Result], None]) -> bool:
        return False

    def parts(self, job: Message) -> list[Part]:
        def part() -> Done:
            if isinstance(job, WarmGpu):
                return Done(Status.OK if self.go_on.wait(2) else Status.COPY_FAILED)
            try:
                self.both.wait()
            except threading.BrokenBarrierError:
                return Done(Status.COPY_FAILED)
            return Done(Status.OK)

        return [part]


def test_memory_is_opened_beside_a_context_and_beside_that_of_other_ranks() -> None:
    loop, gpus = Loop(), Gpus()
    made: Any = SessionDevice
    device = made(None, None)
    device.attach(loop)
    device._copies = gpus
    for number, job in enumerate((WarmGpu("0"), MapGpu(1, LAYOUT, GPU), MapGpu(2, LAYOUT, GPU))):
        assert device.work(number, job) is None
    while len(loop.done) < 2:
        loop.turn()
    assert sorted(loop.done) == [1, 2]
    gpus.go_on.set()
    while len(loop.done) < 3:  # a turn may find that both were collected by one before
        loop.turn()
    assert loop.done[2:] == [0]
