"""The lanes of a device: threads that give it copies, and threads that see what is done.

Each device that an engine of ours uses has two lanes, one for loads and one for saves, so that a
save which waits for the engine's kernels holds no load up.  A lane is a stream, a thread that fills
it and a thread that sees what is done.  The first takes all copies that have come since its last
turn, and gives the device the pieces of all of them at once; each copy ends in an event of its own,
so each request is over when its own bytes are there.

A copy is a loop of asynchronous calls, one per piece of a block (strides.py).  Where the pool is
registered with the driver the device reads and writes it by itself.  Where it is not yet, the same
calls go through a pinned buffer of the driver's, as the first ones after an attach do: slower, and
right.  A call does not cross from one registration to another, which CUDA refuses, because no
page does: the pool is registered by whole extents.

The streams have the lowest priority that there is, which is the one they have by default; copies
take none of the device's multiprocessors anyway.

An error of a copy is the context's from then on, so the process ends (`give_up`).
"""

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol

from pegaflow.core.pool.fingerprints import U64
from pegaflow.wire.jobs import Done, Result
from pegaflow.wire.status import Status

from . import cuda
from .cuda import Runtime
from .strides import Rows

Over = Callable[[Result], None]
"""What a copy calls when it has ended; by any thread."""


class Memory(Protocol):
    """An engine's memory, as a lane sees it."""

    event: int  # the engine's
    closed: bool  # set once, by any thread: what was not begun is not done

    @property
    def pieces(self) -> Sequence[tuple[int, Rows]]:
        """The pieces of each block, with the address of block 0's."""

    def ended(self) -> None:
        """A copy is over."""


@dataclass(slots=True)
class Copy:
    """Blocks to move, in either direction."""

    memory: Memory
    blocks: U64
    offsets: U64
    deadline: int
    over: Over
    check: Callable[[], Result | None] = lambda: None
    result: Result = Done(Status.OK)  # unless something has stopped it

    def end(self) -> None:
        """All that was begun of it is done."""
        self.over(self.result)
        self.memory.ended()


class Lane:
    """Copies in one direction, on one device, whose context the calling thread has; raises what
    the runtime does."""

    def __init__(self, runtime: Runtime, device: int, pool: int, kind: int) -> None:
        self._runtime, self._device, self._pool = runtime, device, pool
        self._kind = kind  # of memcpy
        self._stream = runtime.streamCreateWithFlags(cuda.NON_BLOCKING)
        self._asked: queue.SimpleQueue[Copy] = queue.SimpleQueue()
        self._begun: queue.SimpleQueue[tuple[int, Copy]] = queue.SimpleQueue()
        for work in (self._submit, self._await):
            threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def put(self, copy: Copy) -> None:
        """Do a copy some time."""
        self._asked.put(copy)

    def _run(self, work: Callable[[], None]) -> None:
        try:
            self._runtime.setDevice(self._device)
            work()
        except BaseException as error:
            give_up(error)

    def _submit(self) -> None:
        runtime, stream = self._runtime, self._stream
        while True:
            step = [self._asked.get()]
            while not self._asked.empty():
                step.append(self._asked.get())
            for copy in step:
                copy.result = copy.check() or copy.result
                if copy.result.ok:
                    runtime.streamWaitEvent(stream, copy.memory.event, 0)
                    self._issue(copy, stream)
                event = runtime.eventCreateWithFlags(cuda.DISABLE_TIMING | cuda.BLOCKING_SYNC)
                runtime.eventRecord(event, stream)
                self._begun.put((event, copy))

    def _issue(self, copy: Copy, stream: int) -> None:
        for block, offset in zip(copy.blocks.tolist(), copy.offsets.tolist(), strict=True):
            if copy.memory.closed:
                copy.result = Done(Status.COPY_FAILED, "the engine has gone")
                return
            if time.monotonic_ns() >= copy.deadline:
                copy.result = Done(Status.EXPIRED, "the deadline has passed")
                return
            self._move(copy.memory, block, self._pool + offset, stream)

    def _move(self, memory: Memory, block: int, page: int, stream: int) -> None:
        runtime, kind = self._runtime, self._kind
        for start, rows in memory.pieces:
            there, here = start + block * rows.block_stride, page + rows.page_at
            inward = kind == cuda.DEVICE_TO_HOST
            target, source = (here, there) if inward else (there, here)
            if rows.rows == 1:
                runtime.memcpyAsync(target, source, rows.width, kind, stream)
                continue
            pitches = (rows.page_pitch, rows.pitch) if inward else (rows.pitch, rows.page_pitch)
            runtime.memcpy2DAsync(
                target, pitches[0], source, pitches[1], rows.width, rows.rows, kind, stream
            )

    def _await(self) -> None:
        while True:
            event, copy = self._begun.get()
            self._runtime.eventSynchronize(event)
            self._runtime.eventDestroy(event)
            copy.end()


def give_up(error: BaseException) -> NoReturn:
    """An error stays with the context, and nobody knows what the device still does: end."""
    print(f"the GPU has failed, the session ends: {cuda.first_line(error)}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
