"""GPU memory of engines, moved from the session's process: see wire/gpu.py.

A device has a lane for loads and one for saves (lanes.py), whose threads alone call the runtime,
but for whoever opens memory and registers the pool.
"""

import threading
from collections.abc import Callable

from pegaflow.core.errors import UserError
from pegaflow.core.pool.fingerprints import U64
from pegaflow.wire.gpu import GpuMemory
from pegaflow.wire.jobs import Result
from pegaflow.wire.layout import Layout

from . import cuda
from .cuda import Runtime
from .lanes import Copy, Lane, Over, give_up
from .strides import pieces


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
        self._begin(self._gpu.saves, Copy(self, blocks, offsets, deadline=deadline, over=over))

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
        copy = Copy(self, blocks, offsets, deadline=deadline, over=over, check=check)
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

    def _begin(self, lane: Lane, copy: Copy) -> None:
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
            self.loads = Lane(runtime, device, pool, cuda.HOST_TO_DEVICE)
            self.saves = Lane(runtime, device, pool, cuda.DEVICE_TO_HOST)
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
            runtime = self._loaded()
            gpu = self._gpu(runtime, cuda.number_of(runtime, memory))
        return gpu.open(memory, layout)

    def warm(self, name: str) -> str:
        """Have a device's context before an engine needs it.

        Args:
            name: as of wire.gpu.

        Returns:
            The device, as wire.gpu.spelled.

        Raises:
            UserError: why there can be none.
        """
        with self._lock:
            runtime = self._loaded()
            number = cuda.number_named(runtime, name)
            self._gpu(runtime, number)
            return cuda.name_of(runtime, number)

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

    def _loaded(self) -> Runtime:
        if self._runtime is None:
            self._runtime = cuda.load()
        return self._runtime

    def _gpu(self, runtime: Runtime, number: int) -> Gpu:
        gpu = self._devices.get(number)
        if gpu is None:
            gpu = self._devices[number] = Gpu(runtime, number, self._pool)
        return gpu
