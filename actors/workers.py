"""Device threads: they take jobs from a queue and wake the loop when one is done.

A worker holds no lock of the loop, and its copies release the GIL, so a long copy never delays a
message.  Jobs of one worker are done in their order.
"""

import os
import queue
import threading
from collections import deque
from collections.abc import Callable

from pegaflow.wire.jobs import Done
from pegaflow.wire.message import Message


class Workers:
    """`count` threads that run `work(job)`; completions are collected from `fd`."""

    def __init__(self, count: int, work: Callable[[Message], Done]) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._work = work
        self._jobs: queue.SimpleQueue[tuple[int, Message]] = queue.SimpleQueue()
        self._done: deque[tuple[int, Done]] = deque()
        for n in range(count):
            threading.Thread(target=self._run, name=f"worker-{n}", daemon=True).start()

    def put(self, number: int, job: Message) -> None:
        """Do this some time."""
        self._jobs.put((number, job))

    def collect(self) -> list[tuple[int, Done]]:
        """What is done; call when `fd` is readable."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return []
        done = []
        while self._done:
            done.append(self._done.popleft())
        return done

    def _run(self) -> None:
        while True:
            number, job = self._jobs.get()
            self._done.append((number, self._work(job)))
            os.eventfd_write(self.fd, 1)
