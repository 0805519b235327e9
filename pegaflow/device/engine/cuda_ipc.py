"""GPU memory of engines, moved from the session's process: see wire/gpu.py.

Each device that an engine of ours uses has two *lanes*, one for loads and one for saves, so that a
save which waits for the engine's kernels holds no load up.  A lane is a stream, a thread that fills
it and a thread that sees what is done.  The first takes all copies that have come since its last
turn, and gives the device the pieces of all of them at once; each copy ends in an event of its own,
so each request is over when its own bytes are there.  Nobody else calls the runtime, but for
whoever opens memory and registers the pool.

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
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from pegaflow.core.errors import UserError
from pegaflow.core.pool.fingerprints import U64
from pegaflow.wire.gpu import GpuMemory
from pegaflow.wire.jobs import Done, Result
from pegaflow.wire.layout import Layout
from pegaflow.wire.status import Status

from . import cuda
from .cuda import Runtime
from .strides import pieces

Over = Callable[[Result], None]
"""What a copy calls when it has ended; by any thread."""


class Opened:
    """The memory of one rank, open in this process; made by `Gpu.open`.

    Args:
        gpu: the device that it is on.
        bases: where each region lies in this process.
        event: the engine's.
        handles: of the allocations that were opened for it.
    """

    def __init__(
        self,
        gpu: "Gpu",
        layout: Layout,
        bases: list[int],
        *,
        event: int,
        handles: list[bytes],
    ) -> None:
        self.event = event
        self.handles = handles
        self.pieces = [(bases[p.region] + p.offset, p) for p in pieces(layout)]
        self.closed = False  # set once, by any thread: what was not begun is not done
        self._gpu = gpu
        self._lock = threading.Lock()  # held for a few instructions
        self._running = 0  # copies that have not ended
        self._then: Callable[[], None] | None = None  # for when none runs any more

    def read(self, blocks: U64, offsets: U64, deadline: int, over: Over) -> None:
        """Copy blocks of the engine into the pool.

        Args:
            blocks: the engine's numbers.
            offsets: byte of the pool at which the page of each block begins.
            deadline: CLOCK_MONOTONIC, in nanoseconds; what was begun before is still waited for.
            over: told OK, or what stopped the copy, once the device is done with all of it.
        """
        self._begin(self._gpu.saves, _Copy(self, blocks, offsets, deadline=deadline, over=over))

    def write(
        self,
        blocks: U64,
        offsets: U64,
        deadline: int,
        over: Over,
        *,
        check: Callable[[], Result | None],
    ) -> None:
        """Copy pages of the pool into blocks of the engine; arguments as of `read`.

        Args:
            check: asked by the lane's thread before anything moves; what it returns ends the copy.
        """
        copy = _Copy(self, blocks, offsets, deadline=deadline, over=over, check=check)
        self._begin(self._gpu.loads, copy)

    def close(self, then: Callable[[], None]) -> None:
        """Close the handles as soon as no copy runs; nothing may be asked of it any more.

        Args:
            then: called when they are, by any thread.
        """
        with self._lock:
            self.closed, self._then = True, then
            idle = not self._running
        if idle:
            self._gpu.close(self, then)

    def _begin(self, lane: "_Lane", copy: "_Copy") -> None:
        with self._lock:
            self._running += 1
        lane.put(copy)

    def ended(self) -> None:
        """A copy is over: the last one closes what was to be closed."""
        with self._lock:
            self._running -= 1
            then = self._then if not self._running else None
        if then is not None:
            self._gpu.close(self, then)


@dataclass(slots=True)
class _Copy:
    """Blocks to move, in either direction."""

    memory: Opened
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


class _Lane:
    """Copies in one direction, on one device, whose context the calling thread has; raises what
    the runtime does."""

    def __init__(self, runtime: Runtime, device: int, pool: int, kind: int) -> None:
        self._runtime, self._device, self._pool = runtime, device, pool
        self._kind = kind  # of memcpy
        self._stream = runtime.streamCreateWithFlags(cuda.NON_BLOCKING)
        self._asked: queue.SimpleQueue[_Copy] = queue.SimpleQueue()
        self._begun: queue.SimpleQueue[tuple[int, _Copy]] = queue.SimpleQueue()
        for work in (self._submit, self._await):
            threading.Thread(target=self._run, args=(work,), daemon=True).start()

    def put(self, copy: _Copy) -> None:
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

    def _issue(self, copy: _Copy, stream: int) -> None:
        for block, offset in zip(copy.blocks.tolist(), copy.offsets.tolist(), strict=True):
            if copy.memory.closed:
                copy.result = Done(Status.COPY_FAILED, "the engine has gone")
                return
            if time.monotonic_ns() >= copy.deadline:
                copy.result = Done(Status.EXPIRED, "the deadline has passed")
                return
            self._move(copy.memory, block, self._pool + offset, stream)

    def _move(self, memory: Opened, block: int, page: int, stream: int) -> None:
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


class Gpu:
    """One device, from the first engine on that uses it.

    Args:
        device: this process's number of it.
        pool: address at which the pool is mapped here.

    Raises:
        UserError: it cannot be used: mostly an engine has left no memory for a context.
    """

    def __init__(self, runtime: Runtime, device: int, pool: int) -> None:
        self._runtime, self._device = runtime, device
        self._lock = threading.Lock()  # of `_allocations`, held while one is opened or closed
        self._allocations: dict[bytes, tuple[int, int]] = {}  # handle -> (address, users)
        cuda.make_context(device)
        try:
            runtime.setDevice(device)
            self.loads = _Lane(runtime, device, pool, cuda.HOST_TO_DEVICE)
            self.saves = _Lane(runtime, device, pool, cuda.DEVICE_TO_HOST)
        except RuntimeError as error:
            raise UserError(f"no context on GPU {device}: {cuda.first_line(error)}") from None

    def open(self, memory: GpuMemory, layout: Layout) -> Opened:
        """Open a rank's memory.

        Raises:
            UserError: a handle cannot be opened.
        """
        handles: list[bytes] = []
        runtime = self._runtime
        try:
            runtime.setDevice(self._device)
            with self._lock:
                bases = [self._base(r.handle, handles) + r.offset for r in memory.regions]
            event = runtime.ipcOpenEventHandle(memory.event)
        except RuntimeError as error:
            self._release(handles)
            why = cuda.first_line(error)
            raise UserError(f"cannot open the engine's memory on GPU {memory.bus}: {why}") from None
        return Opened(self, layout, bases, event=event, handles=handles)

    def close(self, opened: Opened, then: Callable[[], None]) -> None:
        """Close what no copy uses any more."""
        try:
            self._runtime.setDevice(self._device)
            self._release(opened.handles)
            self._runtime.eventDestroy(opened.event)
        except RuntimeError as error:
            give_up(error)
        then()

    def _base(self, handle: bytes, handles: list[bytes]) -> int:
        """Where an allocation is, opened if it was not; noted in `handles`, once for each use."""
        address, users = self._allocations.get(handle, (0, 0))
        if not users:
            address = self._runtime.ipcOpenMemHandle(handle, cuda.LAZY_PEER_ACCESS)
        self._allocations[handle] = address, users + 1
        handles.append(handle)
        return address

    def _release(self, handles: list[bytes]) -> None:
        with self._lock:
            for handle in handles:
                address, users = self._allocations[handle]
                self._allocations[handle] = address, users - 1
                if users == 1:
                    del self._allocations[handle]
                    self._runtime.ipcCloseMemHandle(address)


class Gpus:
    """All devices of one session's process.

    Args:
        pool: address at which the pool is mapped here.
    """

    def __init__(self, pool: int) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._runtime: Runtime | None = None
        self._devices: dict[int, Gpu] = {}  # by this process's number

    def open(self, memory: GpuMemory, layout: Layout) -> Opened:
        """Open a rank's memory; the first of a device makes its context, which takes a while.

        Raises:
            UserError: why it cannot be had.
        """
        with self._lock:
            if self._runtime is None:
                self._runtime = cuda.load()
            number = cuda.number_of(self._runtime, memory)
            gpu = self._devices.get(number)
            if gpu is None:
                gpu = self._devices[number] = Gpu(self._runtime, number, self._pool)
        return gpu.open(memory, layout)

    def pin(self, offset: int, length: int) -> None:
        """Register a part of the pool with the driver, for all devices.

        Raises:
            UserError: it refuses.
        """
        with self._lock:
            runtime, number = self._runtime, min(self._devices, default=-1)
        assert runtime is not None, "no engine uses a GPU"
        try:
            runtime.setDevice(number)
            runtime.hostRegister(self._pool + offset, length, cuda.PORTABLE)
        except RuntimeError as error:
            raise UserError(cuda.first_line(error)) from None


def give_up(error: BaseException) -> NoReturn:
    """An error stays with the context, and nobody knows what the device still does: end."""
    print(f"the GPU has failed, the session ends: {cuda.first_line(error)}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)
