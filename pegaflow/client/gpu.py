"""GPU memory of this process, made known to the session that moves its blocks: see wire/gpu.py.

`export` asks the driver which allocation each region lies in and for a handle of it, by ctypes: an
engine that has GPU memory has libcuda loaded, and needs neither cupy nor a framework for this.  The
calling thread must have the device's context, as whoever allocated the memory has.

Memory that the driver has no handle for may lie in pieces that were created to be exported as file
descriptors: those of PyTorch's expandable segments were (c10/cuda/CUDACachingAllocator.cpp,
ExpandableSegment::map: descriptors since 2.5; in 2.11 fabric handles where the host has a fabric,
which no descriptor can stand for), and those of vLLM's sleep mode where the device knows
fabric handles and the host has none (csrc/cumem_allocator.cpp of 0.32 and 0.33, create_and_map;
elsewhere they are created to be shared with nobody).  `export` finds the pieces; their descriptors
are made for each Attach by the thread that says it, which needs no context for that.
"""

import ctypes
import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy.typing as npt

from pegaflow.wire.gpu import (
    HANDLE_BYTES,
    NO_FD,
    NO_HANDLE,
    PIECES_MAX,
    POSIX_FD,
    Backend,
    GpuMemory,
    GpuPiece,
    GpuRegion,
)
from pegaflow.wire.layout import Layout, fault, page_bytes
from pegaflow.wire.units import Constant, Count

from .buffers import Bytes, EngineMemory

DEVICE_ORDINAL: Constant = 9  # CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL
IPC_CAPABLE: Constant = 10  # CU_POINTER_ATTRIBUTE_IS_LEGACY_CUDA_IPC_CAPABLE
RANGE_START: Constant = 11  # CU_POINTER_ATTRIBUTE_RANGE_START_ADDR
RANGE_SIZE: Constant = 12  # CU_POINTER_ATTRIBUTE_RANGE_SIZE
HANDLE_TYPES: Constant = 14  # CU_POINTER_ATTRIBUTE_ALLOWED_HANDLE_TYPES
MEMPOOL: Constant = 17  # CU_POINTER_ATTRIBUTE_MEMPOOL_HANDLE
MAPPING_SIZE: Constant = 18  # CU_POINTER_ATTRIBUTE_MAPPING_SIZE
MAPPING_START: Constant = 19  # CU_POINTER_ATTRIBUTE_MAPPING_BASE_ADDR

FABRIC: Constant = 8  # CU_MEM_HANDLE_TYPE_FABRIC

BUS_BYTES: Constant = 32  # room for a PCI bus id, 0000:65:00.0, and its end

FILES_SPARE: Count = 256
"""Descriptors that pieces leave to the engine: it has that many open for its sockets and files."""

NOT_SHARED = (
    "the KV memory on the GPU cannot be shared with another process: it is of cudaMallocAsync "
    "(set backend:native in PYTORCH_ALLOC_CONF or PYTORCH_CUDA_ALLOC_CONF), or was created to be "
    "shared with nobody by expandable_segments (unset expandable_segments there) or for sleep mode "
    "(start without it)"
)
FABRIC_ALONE = (
    "the KV memory on the GPU is shared by fabric handles alone, which are not opened here: unset "
    "expandable_segments in PYTORCH_ALLOC_CONF or PYTORCH_CUDA_ALLOC_CONF, or start without sleep "
    "mode"
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
    def cuMemRetainAllocationHandle(self, handle: Any, pointer: Any, /) -> int: ...
    def cuMemExportToShareableHandle(
        self, shareable: Any, handle: Any, kind: int, flags: Any, /
    ) -> int: ...
    def cuMemRelease(self, handle: Any, /) -> int: ...


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


class Lender:
    """Descriptors of pieces, for the session that an Attach was said to."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._fds: list[int] = []  # open

    def lend(self, memory: GpuMemory, *, strict: bool = False) -> GpuMemory:
        """Export all pieces; if it cannot be done, the session hears that, and says so.

        Raises:
            Unexportable: it cannot be done; only if `strict`.
        """
        self.take_back()
        try:
            return replace(
                memory, pieces=tuple(replace(p, fd=self._export(p)) for p in memory.pieces)
            )
        except Unexportable:
            self.take_back()
            if strict:
                raise
            return memory

    def take_back(self) -> None:
        """Close them; no session may take any of them any more."""
        while self._fds:
            os.close(self._fds.pop())

    def _export(self, piece: GpuPiece) -> int:
        handle, fd = ctypes.c_uint64(), ctypes.c_int(-1)
        calls = self._driver
        if calls.cuMemRetainAllocationHandle(ctypes.byref(handle), ctypes.c_void_p(piece.address)):
            raise Unexportable(NOT_SHARED)
        flags = ctypes.c_uint64(0)
        failed = calls.cuMemExportToShareableHandle(ctypes.byref(fd), handle, POSIX_FD, flags)
        calls.cuMemRelease(handle)
        if failed:
            raise Unexportable(NOT_SHARED)
        self._fds.append(fd.value)
        os.set_inheritable(fd.value, False)
        return fd.value


@dataclass(frozen=True, slots=True)
class GpuBuffers:
    """Regions on one GPU, for `Client.register`; made by `export`.

    Nobody frees them, or the event, before `Client.unregister` has said True.
    """

    memory: GpuMemory  # NO_GPU: no other process can open it
    region_bytes: tuple[int, ...]
    copier: Copier | None = None  # for staged copies; None: there are none
    lender: Lender | None = None  # of its pieces, if it lies in some


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
        self._copier, self._lender = buffers.copier, buffers.lender

    def lend(self, memory: GpuMemory) -> GpuMemory:
        """What an Attach says of it, with descriptors that are open until `take_back`."""
        return memory if self._lender is None else self._lender.lend(memory)

    def take_back(self) -> None:
        """No session takes any of them any more."""
        if self._lender is not None:
            self._lender.take_back()

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
    found = dict[int, GpuPiece]()  # by address
    for address, size in regions:
        if not _attribute(calls, IPC_CAPABLE, address):
            _find_pieces(calls, address, size, found)
            named.append(GpuRegion(NO_HANDLE, address))
            continue
        start = _attribute(calls, RANGE_START, address)
        if address + size > start + _attribute(calls, RANGE_SIZE, address):
            raise Unexportable(NOT_SHARED)
        handle = ctypes.create_string_buffer(HANDLE_BYTES)
        if calls.cuIpcGetMemHandle(handle, ctypes.c_uint64(start)):
            raise Unexportable(NOT_SHARED)
        named.append(GpuRegion(handle.raw, address - start))
    _check_files(len(found))
    pieces = tuple(found[address] for address in sorted(found))
    bus, uuid = _device(calls, devices.pop())
    memory = GpuMemory(bus, uuid, tuple(named), event=event, backend=backend, pieces=pieces)
    lender = Lender(calls) if pieces else None
    if lender is not None:  # one of all: created alike, what holds for it holds for the others
        lender.lend(replace(memory, pieces=pieces[:1]), strict=True)
        lender.take_back()
    return GpuBuffers(memory, tuple(size for _, size in regions), lender=lender)


def _find_pieces(calls: Driver, address: int, size: int, found: dict[int, GpuPiece]) -> None:
    """Put what a region lies in into `found`.

    Raises:
        Unexportable: these are no pieces that another process can have.
    """
    at = address
    while at < address + size:
        kinds = _attribute(calls, HANDLE_TYPES, at)
        if not kinds & POSIX_FD or _attribute(calls, MEMPOOL, at):
            raise Unexportable(FABRIC_ALONE if kinds == FABRIC else NOT_SHARED)
        start = _attribute(calls, MAPPING_START, at)
        length = _attribute(calls, MAPPING_SIZE, at)
        if not start <= at < start + length:
            raise Unexportable(NOT_SHARED)
        found[start] = GpuPiece(start, length, fd=NO_FD)
        at = start + length


def _check_files(pieces: int) -> None:
    """Raises Unexportable if there are too many pieces to have a descriptor for each."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = limit == resource.RLIM_INFINITY
    most = PIECES_MAX if unlimited else min(PIECES_MAX, limit - FILES_SPARE)
    if pieces > max(0, most):
        raise Unexportable(
            f"the KV memory on the GPU lies in {pieces} pieces, each of which needs a descriptor, "
            f"and this process may have {max(0, most)} for them (ulimit -n, at most {PIECES_MAX}):"
            " raise that, or unset expandable_segments in PYTORCH_CUDA_ALLOC_CONF"
        )


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
