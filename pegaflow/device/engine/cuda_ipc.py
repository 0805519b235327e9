"""GPU memory of engines, moved from the session's process: see wire/gpu.py.

A device has a lane for loads and one for saves (lanes.py), whose threads alone call the runtime,
but for whoever opens memory and registers the pool.
"""

import ctypes
import threading
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

from pegaflow.core.errors import UserError
from pegaflow.core.pool.fingerprints import U64
from pegaflow.wire.gpu import NO_HANDLE, Backend, GpuMemory, GpuRegion
from pegaflow.wire.jobs import Result
from pegaflow.wire.layout import Layout, page_bytes, page_size

from . import cuda, kernel
from .cuda import Runtime
from .lanes import Copy, Lane, Over, give_up, say, stream
from .mapped import Mapped
from .methods import Name, Plan, plan
from .ring import Registered
from .strides import Placed, pieces


class Opened:
    """The memory of one rank, open in this process; made by `Gpu.open`.

    Args:
        gpu: the device that it is on.
        event: the engine's.
        handles: of the allocations that were opened for it.
        mapped: what of it lies in pieces, if any does.
        plan: how its blocks are moved where the device reaches the pages.
        plain: and where it does not.
    """

    def __init__(
        self,
        gpu: "Gpu",
        layout: Layout,
        *,
        event: int,
        handles: list[bytes],
        mapped: Mapped | None,
        plan: Plan,
        plain: Plan,
    ) -> None:
        self.event, self.handles, self.mapped = event, handles, mapped
        self.plan, self.plain = plan, plain
        self.payload_bytes, self.page_size = page_bytes(layout), page_size(layout)
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
        registered: what of the pool the device reaches.

    Raises:
        UserError: it cannot be used: mostly an engine has left no memory for a context.
    """

    def __init__(self, runtime: Runtime, device: int, pool: int, *, registered: Registered) -> None:
        self._runtime, self._device = runtime, device
        self._making = threading.Lock()  # of the kernel, held while it is made
        self._kernel: bool | None = None  # whether there is one; None: nobody has asked for it
        self._lock = threading.Lock()  # of `_allocations`, held while one is opened or closed
        self._allocations: dict[bytes, tuple[int, int]] = {}  # handle -> (address, users)
        cuda.make_context(device)
        try:
            runtime.setDevice(device)
            with ExitStack() as undo:
                lane = partial(Lane, runtime, device, pool, registered=registered, undo=undo)
                self._stream = stream(runtime, undo)  # of proofs
                self.loads = lane(kind=cuda.HOST_TO_DEVICE)
                self.saves = lane(kind=cuda.DEVICE_TO_HOST)
                undo.pop_all()  # nothing of it has failed
        except RuntimeError as error:
            raise UserError(f"no context on GPU {device}: {cuda.first_line(error)}") from None
        self.loads.start()
        self.saves.start()

    def warm(self) -> None:
        """Have the kernel as well before an engine needs it, which takes NVRTC up to a second where
        cupy has not kept an earlier one."""
        try:
            self._runtime.setDevice(self._device)
        except RuntimeError as error:
            give_up(error)
        self._has_kernel()

    def open(self, memory: GpuMemory, layout: Layout, *, pid: int, started_ticks: int) -> Opened:
        """Open a rank's memory.

        Args:
            pid: of its process, out of which pieces are taken.
            started_ticks: its start, in clock ticks since boot.

        Raises:
            UserError: a handle cannot be opened, or what it opens cannot be read.
        """
        handles: list[bytes] = []
        events: list[int] = []
        mapped: Mapped | None = None
        runtime = self._runtime
        try:
            runtime.setDevice(self._device)
            if memory.pieces:
                number, parts = self._device, memory.pieces
                mapped = Mapped(number, parts, pid=pid, started_ticks=started_ticks)
            with self._lock:
                bases = [self._base(region, mapped, handles) for region in memory.regions]
            events.append(runtime.ipcOpenEventHandle(memory.event))
            placed = [(bases[p.region] + p.offset, p) for p in pieces(layout)]
            self._prove(placed, layout.blocks)
        except (RuntimeError, UserError) as error:
            self._close(handles, events, mapped)
            why = cuda.first_line(error)
            raise UserError(f"cannot open the engine's memory on GPU {memory.bus}: {why}") from None
        return Opened(
            self,
            layout,
            event=events[0],
            handles=handles,
            mapped=mapped,
            plan=self._plan(placed, memory.backend),
            plain=plan(placed, Backend.DIRECT, with_kernel=False),
        )

    def _prove(self, placed: list[Placed], blocks: int) -> None:
        """Read the first and the last byte of every region; raises what the runtime does."""
        ends: dict[int, tuple[int, int]] = {}
        for start, rows in placed:
            last = start + (blocks - 1) * rows.block_stride
            last += (rows.rows - 1) * rows.pitch + rows.width - 1
            lowest, highest = ends.get(rows.region, (start, last))
            ends[rows.region] = min(lowest, start), max(highest, last)
        byte = ctypes.create_string_buffer(1)
        for address in (end for both in ends.values() for end in both):
            kind, target = cuda.DEVICE_TO_HOST, ctypes.addressof(byte)
            self._runtime.memcpyAsync(target, address, 1, kind, self._stream)
        self._runtime.streamSynchronize(self._stream)

    def _plan(self, placed: list[Placed], backend: Backend) -> Plan:
        """How pieces are moved; the first that ask for the kernel have it made."""
        wished = plan(placed, backend, with_kernel=True)
        if all(name is not Name.KERNEL for name, _ in wished) or self._has_kernel():
            return wished
        return plan(placed, backend, with_kernel=False)

    def _has_kernel(self) -> bool:
        with self._making:
            if self._kernel is None:
                try:
                    if not cuda.reaches(self._runtime, self._device):
                        raise UserError("it knows registered memory by another address")
                    for lane in (self.loads, self.saves):
                        lane.launches(kernel.compiled())
                    self._kernel = True
                except (UserError, RuntimeError) as error:
                    self._kernel = False
                    say(f"GPU {self._device} moves all by copies: {cuda.first_line(error)}")
            return self._kernel

    def close(self, opened: Opened, then: Callable[[], None]) -> None:
        """Close what no copy uses any more."""
        self._close(opened.handles, [opened.event], opened.mapped)
        then()

    def _base(self, region: GpuRegion, mapped: Mapped | None, handles: list[bytes]) -> int:
        """Where a region is; its allocation is opened if it was not, and noted in `handles`, once
        for each use."""
        handle = region.handle
        if mapped is not None and handle == NO_HANDLE:
            return mapped.place(region.offset)
        address, users = self._allocations.get(handle, (0, 0))
        if not users:
            address = self._runtime.ipcOpenMemHandle(handle, cuda.LAZY_PEER_ACCESS)
        self._allocations[handle] = address, users + 1
        handles.append(handle)
        return address + region.offset

    def _close(self, handles: list[bytes], events: list[int], mapped: Mapped | None) -> None:
        """Close what was opened; that it cannot be means that the context has met an error."""
        try:
            self._runtime.setDevice(self._device)
            with self._lock:
                for handle in handles:
                    address, users = self._allocations[handle]
                    self._allocations[handle] = address, users - 1
                    if users == 1:
                        del self._allocations[handle]
                        self._runtime.ipcCloseMemHandle(address)
            for event in events:
                self._runtime.eventDestroy(event)
            if mapped is not None:
                mapped.close()
        except RuntimeError as error:
            give_up(error)


class Gpus:
    """All devices of one session's process.

    Args:
        pool: address at which the pool is mapped here.
    """

    def __init__(self, pool: int) -> None:
        self._pool = pool
        self._loading = threading.Lock()  # of the runtime, held while it is loaded
        self._runtime: Runtime | None = None
        self._lock = threading.Lock()  # of both dicts, held for a few instructions
        self._making: dict[int, threading.Lock] = {}  # by number, held while a device is made
        self._devices: dict[int, Gpu] = {}  # by this process's number
        self._registered = Registered()

    def open(
        self, memory: GpuMemory, layout: Layout, *, pid: int = 0, started_ticks: int = 0
    ) -> Opened:
        """Open a rank's memory; the first of a device makes its context, which takes a while, and
        which other devices do not wait for.

        Args:
            pid: of its process; needed for memory in pieces.
            started_ticks: its start, in clock ticks since boot.

        Raises:
            UserError: why it cannot be had.
        """
        runtime = self._loaded()
        gpu = self._gpu(runtime, cuda.number_of(runtime, memory))
        return gpu.open(memory, layout, pid=pid, started_ticks=started_ticks)

    def warm(self, name: str) -> tuple[str, int]:
        """Have a device's context and kernel before an engine needs them.

        Args:
            name: as of wire.gpu.

        Returns:
            The device, as wire.gpu.spelled, and its number, from 1 on in the order of the bus.

        Raises:
            UserError: why there can be none.
        """
        runtime = self._loaded()
        number = cuda.number_named(runtime, name)
        cuda.refuse_exclusive(number)
        self._gpu(runtime, number).warm()
        return cuda.name_of(runtime, number), number + 1

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
            flags = cuda.PORTABLE | cuda.MAPPED
            runtime.hostRegister(self._pool + offset, length, flags)
        except RuntimeError as error:
            raise UserError(cuda.not_locked(error)) from None
        self._registered.add(offset, length)

    def _loaded(self) -> Runtime:
        with self._loading:
            if self._runtime is None:
                self._runtime = cuda.load()
            return self._runtime

    def _gpu(self, runtime: Runtime, number: int) -> Gpu:
        with self._lock:
            making = self._making.setdefault(number, threading.Lock())
        with making:
            gpu = self._devices.get(number)
            if gpu is None:
                gpu = Gpu(runtime, number, self._pool, registered=self._registered)
                with self._lock:
                    self._devices[number] = gpu
            return gpu
