"""GPU memory of this process, made known to the session that moves its blocks: see wire/gpu.py.

`export` asks the driver which allocation each region lies in and for a handle of it, by ctypes: an
engine that has GPU memory has libcuda loaded, and needs neither cupy nor a framework for this.  The
calling thread must have the device's context, as whoever allocated the memory has.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

from pegaflow.wire.gpu import HANDLE_BYTES, Backend, GpuMemory, GpuRegion
from pegaflow.wire.layout import Layout, fault, page_bytes
from pegaflow.wire.units import Constant

from .buffers import Bytes, EngineMemory

DEVICE_ORDINAL: Constant = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
IPC_CAPABLE: Constant = 10  # CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE
RANGE_START: Constant = 11  # CU_POINTER_ATTRIBUTE_RANGE_START_ADDR
RANGE_SIZE: Constant = 12  # CU_POINTER_ATTRIBUTE_RANGE_SIZE

BUS_BYTES: Constant = 32  # room for a PCI bus id, 0000:65:00.0, and its end

NOT_SHARED = (
    "the KV memory on the GPU cannot be shared with another process: it is of expandable segments "
    "(unset expandable_segments in PYTORCH_ALLOC_CONF or PYTORCH_CUDA_ALLOC_CONF), of "
    "cudaMallocAsync (set backend:native there), or of sleep mode (start without it)"
)


class Unexportable(ValueError):
    """Memory that no other process can open; one line for people says why."""


class Driver(Protocol):
    """What we call of libcuda; each returns 0 or an error."""

    def cuPointerGetAttribute(self, data: Any, attribute: int, pointer: Any, /) -> int: ...
    def cuIpcGetMemHandle(self, handle: Any, pointer: Any, /) -> int: ...
    def cuDeviceGet(self, device: Any, ordinal: int, /) -> int: ...
    def cuDeviceGetUuid_v2(self, uuid: Any, device: Any, /) -> int: ...
    def cuDeviceGetPCIBusId(self, bus: Any, length: int, device: Any, /) -> int: ...


class Copier(Protocol):
    """Copies blocks of GPU memory in the engine's process, for where no session may open it; used
    by the thread that polls the client."""

    def wait(self, deadline: int) -> bool:
        """Until what was launched before the newest order is done; False if the deadline (as of
        CLOCK_MONOTONIC, in nanoseconds) came first."""

    def load(self, page: Bytes, block: int) -> None:
        """Write a page into a block; done when it returns."""

    def save(self, page: Bytes, block: int) -> None:
        """Write a block into a page; done when it returns."""


@dataclass(frozen=True, slots=True)
class GpuBuffers:
    """Regions on one GPU, for `Client.register`; made by `export`.

    Nobody frees them, or the event, before `Client.unregister` has said True.
    """

    memory: GpuMemory  # NO_GPU: no other process can open it
    region_bytes: tuple[int, ...]
    copier: Copier | None = None  # for staged copies; None: there are none


class GpuRegions:
    """The same under its layout: to a client what EngineMemory is.

    Raises:
        ValueError: the layout does not fit the regions.
    """

    addresses = ()  # which mean nothing to a session
    writable = True

    def __init__(self, layout: Layout, buffers: GpuBuffers) -> None:
        why = fault(layout, buffers.region_bytes)
        if why:
            raise ValueError(why)
        self.layout = layout
        self.gpu = buffers.memory
        self.region_bytes = buffers.region_bytes
        self.payload_bytes = page_bytes(layout)
        self.staged = buffers.copier is not None
        self._copier = buffers.copier

    @property
    def _copies(self) -> Copier:
        assert self._copier is not None, "a client that is served staged has one"
        return self._copier

    def wait(self, deadline: int) -> bool:
        """Until the engine's kernels are done with the blocks; False if the deadline came first."""
        return self._copies.wait(deadline)

    def load(self, page: Bytes, block: int) -> None:
        """As EngineMemory.load."""
        self._copies.load(page, block)

    def save(self, page: Bytes, block: int) -> None:
        """As EngineMemory.save."""
        self._copies.save(page, block)


Buffers = Sequence[npt.NDArray[Any] | memoryview | bytearray] | GpuBuffers
"""What a rank may register: region i of its layout, or all of them on a GPU."""


def registered(layout: Layout, buffers: Buffers) -> EngineMemory | GpuRegions:
    """Regions under a layout.

    Raises:
        ValueError: it does not fit them.
    """
    if isinstance(buffers, GpuBuffers):
        return GpuRegions(layout, buffers)
    return EngineMemory(layout, buffers)


def export(
    regions: Sequence[tuple[int, int]],
    event: bytes,
    driver: Driver | None = None,
    *,
    backend: Backend = Backend.AUTO,
) -> GpuBuffers:
    """Make regions of GPU memory known to other processes.

    Args:
        regions: address and bytes of each, on one device.
        event: CUDA IPC handle of an event of this process on that device, which the caller records
            on the stream of its kernels before each start_load and start_save.
        driver: libcuda; None: the one of this process.
        backend: what shall move the blocks: the device's copy engines, a kernel, or, as the session
            chooses, either.

    Raises:
        Unexportable: some of it cannot be shared.
    """
    calls = driver or _libcuda()
    devices = {_attribute(calls, DEVICE_ORDINAL, address) for address, _ in regions}
    if len(devices) != 1:
        raise Unexportable(f"the regions lie on {len(devices)} devices")
    named: list[GpuRegion] = []
    for address, size in regions:
        if not _attribute(calls, IPC_CAPABLE, address):
            raise Unexportable(NOT_SHARED)
        start = _attribute(calls, RANGE_START, address)
        if address + size > start + _attribute(calls, RANGE_SIZE, address):
            raise Unexportable(NOT_SHARED)
        handle = ctypes.create_string_buffer(HANDLE_BYTES)
        if calls.cuIpcGetMemHandle(handle, ctypes.c_uint64(start)):
            raise Unexportable(NOT_SHARED)
        named.append(GpuRegion(handle.raw, address - start))
    bus, uuid = _device(calls, devices.pop())
    memory = GpuMemory(bus, uuid, tuple(named), event=event, backend=backend)
    return GpuBuffers(memory, tuple(size for _, size in regions))


def _libcuda() -> Driver:
    try:
        driver: Any = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise Unexportable(f"there is no CUDA driver: {error}") from None
    found: Driver = driver
    return found


def _attribute(calls: Driver, which: int, pointer: int) -> int:
    found = ctypes.c_uint64()
    if calls.cuPointerGetAttribute(ctypes.byref(found), which, ctypes.c_uint64(pointer)):
        raise Unexportable(f"the driver does not know the memory at {pointer:#x}")
    return found.value


def _device(calls: Driver, ordinal: int) -> tuple[str, bytes]:
    device = ctypes.c_int()
    bus, uuid = ctypes.create_string_buffer(BUS_BYTES), ctypes.create_string_buffer(16)
    failed = (
        calls.cuDeviceGet(ctypes.byref(device), ordinal)
        or calls.cuDeviceGetPCIBusId(bus, BUS_BYTES, device)
        or calls.cuDeviceGetUuid_v2(uuid, device)
    )
    if failed:
        raise Unexportable(f"the driver does not name device {ordinal} (error {failed})")
    return bus.value.decode().lower(), uuid.raw
