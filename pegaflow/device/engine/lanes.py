"""The lanes of a device: threads that give it copies, and threads that see what is done.

Each device that an engine of ours uses has two lanes, one for loads and one for saves, so that a
save which waits for the engine's kernels holds no load up.  A lane is a stream, a thread that fills
it and a thread that sees what is done.  The first takes all copies that have come since its last
turn, waits until what the engine has launched before them is done, and gives the device the pieces
of all of them at once; each copy ends in an event of its own, so each request is over when its own
bytes are there.

The thread waits for the engine's event, and not the stream: the driver takes a limited number of
calls for work that waits, and holds up who calls it for more, also for other streams, until that
work is done.  Nothing that is given to the device waits for anybody's kernels.

A copy goes in parts of some MiB, each behind an event: blocks whose pages are registered with the
driver, which the device reads and writes by itself, or blocks whose pages are not, which go through
the lane's ring (ring.py).  By which method the pieces of a part are moved, methods.py says.  Where
there is no ring, since the host refuses it or a block is larger, the same copies go through a
pinned buffer of the driver's: slower, and right.  No copy crosses from one registration to another,
which CUDA refuses, because no page does: the pool is registered by whole extents.

No lane grows without bound: of copies that wait so many may, of parts that the device has, too;
what comes beyond that is refused, and what has waited past its deadline is not begun.

The interpreter's lock is free while a thread waits: cupy gives it back in eventSynchronize, in all
calls of copies and launches, in hostAlloc and in hostRegister (14.2,
cupy_backends/cuda/api/runtime.pyx and driver.pyx).  It does not in setDevice, in calls that make,
record or destroy events, and in those of ipc: they are fast while no queue of the driver's is full,
and the last are made once for each attach.

The streams have the lowest priority that there is: a number beyond the range is clamped to it
(cudaStreamCreateWithPriority), and cupy has no call that says the range.  It is 0, that of a stream
for which nobody chose one, so kernels of the same process would not be behind those of the engine,
either; of another process they are in time slices of their own anyway (kernel.py).  For copies it
has no effect (same page).

An error of a copy is the context's from then on, so the process ends (`give_up`).
"""

import ctypes
import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NoReturn, Protocol

import numpy as np

from pegaflow.core.pool.fingerprints import U64
from pegaflow.wire.jobs import Done, Result
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Count

from . import cuda, kernel
from .cuda import Runtime
from .methods import Copies, Gather, Method, Name, Plan
from .ring import RING_BYTES, Registered, Ring, pinned_ring

PART_BYTES: Bytes = 8 << 20
"""Of a part of a copy, unless a block has more: 150 us of a bus of 55 GB/s, which is long beside
the event that it ends in, and short for a launch of the kernel."""

PART_BLOCKS: Count = 256
"""Of a part at most: what is to be told of them is 4 KiB, and their calls take a millisecond."""

LANE_MAX: Count = 1024
"""Copies that wait in a lane: an engine's orders have a few batches each, and a session that is so
far behind its engine saves nothing in time."""

BEGUN_MAX: Count = 64
"""Parts that the device has and has not done: half a GiB, some milliseconds of work."""

Over = Callable[[Result], None]
"""What a copy calls when it has ended; by any thread."""


class Memory(Protocol):
    """An engine's memory, as a lane sees it."""

    event: int  # the engine's
    closed: bool  # set once, by any thread: what was not begun is not done
    payload_bytes: int  # of a block
    page_size: int  # of what holds one
    plan: Plan
    plain: Plan  # for pages that the device does not reach

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


@dataclass(frozen=True, slots=True)
class Part:
    """Some blocks of a copy, whose pages the device reaches, or none of them."""

    blocks: list[int]
    offsets: list[int]
    reached: bool


class Lane:
    """Copies in one direction, on one device, whose context the calling thread has; raises what
    the runtime does.

    Args:
        pool: address of the pool.
        registered: what of the pool the device reaches.
        kind: of memcpy.
        undo: takes back what is made on the device, should something more there fail.
    """

    def __init__(
        self,
        runtime: Runtime,
        device: int,
        pool: int,
        *,
        registered: Registered,
        kind: int,
        undo: ExitStack,
    ) -> None:
        self._runtime, self._device, self._pool = runtime, device, pool
        self._registered, self._kind = registered, kind
        self._stream = stream(runtime, undo)
        self._gate = stream(runtime, undo)
        self._opened = runtime.eventCreateWithFlags(cuda.DISABLE_TIMING | cuda.BLOCKING_SYNC)
        undo.callback(runtime.eventDestroy, self._opened)
        self._methods: dict[Name, Method] = {
            name: Copies(runtime, self._stream, kind, strided=name is Name.STRIDED)
            for name in (Name.LOOP, Name.STRIDED)
        }
        self._ring: Ring | None = None
        self._ringless = False  # the host has refused one
        self._asked: deque[Copy] = deque()
        self._changed = threading.Condition()  # of `_asked`
        self._begun: queue.Queue[tuple[int, list[Callable[[], None]]]] = queue.Queue(BEGUN_MAX)

    def start(self) -> None:
        """Begin to take copies; called once, when nothing of the device can fail any more."""
        for work in (self._submit, self._await):
            threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def launches(self, launch: kernel.Launch) -> None:
        """There is a kernel; called once, by a thread that has the device's context."""
        self._methods[Name.KERNEL] = Gather(self._runtime, self._stream, self._kind, launch=launch)

    def put(self, copy: Copy) -> None:
        """Do a copy some time, unless too many wait."""
        late: list[Copy] = []
        with self._changed:
            if len(self._asked) >= LANE_MAX:
                now = time.monotonic_ns()
                late = [one for one in self._asked if one.deadline <= now]
                self._asked = deque(one for one in self._asked if one.deadline > now)
            full = len(self._asked) >= LANE_MAX
            if not full:
                self._asked.append(copy)
                self._changed.notify()
        for one in late:
            one.result = _expired()
            one.end()
        if full:
            copy.result = Done(Status.BUSY, f"{LANE_MAX} copies wait for the GPU")
            copy.end()

    def _run(self, work: Callable[[], None]) -> None:
        try:
            self._runtime.setDevice(self._device)
            work()
        except BaseException as error:
            give_up(error)

    def _step(self) -> list[Copy]:
        """All copies that have come since the last; waits for one."""
        with self._changed:
            while not self._asked:
                self._changed.wait()
            step = list(self._asked)
            self._asked.clear()
        return step

    def _submit(self) -> None:
        while True:
            for copy in self._step():
                self._await_engine(copy.memory)
                copy.result = copy.check() or copy.result
                if copy.result.ok:
                    self._issue(copy)
                self._mark([copy.end])

    def _await_engine(self, memory: Memory) -> None:
        """Until what it has launched before its newest order is done."""
        runtime = self._runtime
        runtime.streamWaitEvent(self._gate, memory.event, 0)
        runtime.eventRecord(self._opened, self._gate)
        runtime.eventSynchronize(self._opened)

    def _issue(self, copy: Copy) -> None:
        for part in self._parts(copy):
            if copy.memory.closed:
                copy.result = Done(Status.COPY_FAILED, "the engine has gone")
                return
            if time.monotonic_ns() >= copy.deadline:
                copy.result = _expired()
                return
            ring = None if part.reached else self._ring_for(copy.memory)
            if ring is None:
                plan = copy.memory.plan if part.reached else copy.memory.plain
                pages = [self._pool + offset for offset in part.offsets]
                self._mark(self._move(plan, part.blocks, pages))
            else:
                self._bounce(copy.memory, part, ring)

    def _parts(self, copy: Copy) -> Iterator[Part]:
        memory = copy.memory
        most = max(1, min(PART_BLOCKS, PART_BYTES // memory.page_size))
        reached = self._registered.hold(copy.offsets, memory.payload_bytes)
        turns = np.flatnonzero(reached[1:] != reached[:-1]) + 1
        for run in np.split(np.arange(len(copy.blocks)), turns):
            for first in range(0, len(run), most):
                mine = run[first : first + most]
                blocks, offsets = copy.blocks[mine].tolist(), copy.offsets[mine].tolist()
                yield Part(blocks, offsets, bool(reached[mine[0]]))

    def _ring_for(self, memory: Memory) -> Ring | None:
        if memory.page_size > RING_BYTES:
            return None
        if self._ring is None and not self._ringless:
            try:
                self._ring = pinned_ring(self._runtime, RING_BYTES)
            except RuntimeError as error:
                self._ringless = True
                why = cuda.first_line(error)
                say(f"no pinned memory for GPU {self._device}, copies are slower: {why}")
        return self._ring

    def _bounce(self, memory: Memory, part: Part, ring: Ring) -> None:
        """Move a part through the ring."""
        size = memory.page_size
        at = ring.address + ring.take(len(part.blocks) * size)
        slots = [at + n * size for n in range(len(part.blocks))]
        pages = [self._pool + offset for offset in part.offsets]

        def copy_all(targets: list[int], sources: list[int]) -> None:
            for target, source in zip(targets, sources, strict=True):
                ctypes.memmove(target, source, memory.payload_bytes)

        if self._kind == cuda.HOST_TO_DEVICE:
            copy_all(slots, pages)
            self._mark([*self._move(memory.plan, part.blocks, slots), ring.give])
            return
        done = self._move(memory.plan, part.blocks, slots)
        self._mark([*done, lambda: copy_all(pages, slots), ring.give])

    def _move(self, plan: Plan, blocks: list[int], pages: list[int]) -> list[Callable[[], None]]:
        moved = (self._methods[name].move(pieces, blocks, pages) for name, pieces in plan)
        return [done for done in moved if done is not None]

    def _mark(self, then: list[Callable[[], None]]) -> None:
        """Have something called when all is done that the device has been given so far."""
        runtime = self._runtime
        event = runtime.eventCreateWithFlags(cuda.DISABLE_TIMING | cuda.BLOCKING_SYNC)
        runtime.eventRecord(event, self._stream)
        self._begun.put((event, then))

    def _await(self) -> None:
        while True:
            event, then = self._begun.get()
            self._runtime.eventSynchronize(event)
            self._runtime.eventDestroy(event)
            for call in then:
                call()


def stream(runtime: Runtime, undo: ExitStack) -> int:
    """A stream of the calling thread's device; raises what the runtime does.

    Args:
        undo: destroys it, should something more fail.
    """
    made = runtime.streamCreateWithPriority(cuda.NON_BLOCKING, cuda.LOWEST_PRIORITY)
    undo.callback(runtime.streamDestroy, made)
    return made


def _expired() -> Done:
    return Done(Status.EXPIRED, "the deadline has passed")


def say(line: str) -> None:
    """A line for whoever runs the service."""
    print(line, file=sys.stderr, flush=True)


def give_up(error: BaseException) -> NoReturn:
    """An error stays with the context, and nobody knows what the device still does: end."""
    say(f"the GPU has failed, the session ends: {cuda.first_line(error)}")
    os._exit(1)
