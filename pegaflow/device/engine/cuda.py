"""The calls of the CUDA runtime that we use, under the names that cupy gives them.

`load` returns `cupy.cuda.runtime`, and nothing else in the service knows of cupy.  It is imported
when a GPU is named, by an engine or by --devices: everything else installs and runs without it.
Its runtime is linked into it, so there is no library that could be put in its place; what stands in
for a GPU in tests is a package called cupy (tests/fakes/cuda.py).

Each call raises cupy's CUDARuntimeError, a RuntimeError, where CUDA returns an error.

The first call of a process initializes the driver, the first for a device makes its context: each
takes from a fraction of a second to several, the longer the more devices there are and where no
persistence daemon runs.  cupy keeps the interpreter's lock meanwhile, and a session that is silent
for so long is taken for one that hangs.  So `load` and `make_context` have it done before, by
libcuda itself, through ctypes, which gives the lock back.

cupy has no calls of virtual memory, by which memory in pieces is mapped (mapped.py): these are
libcuda's too, and `libcuda` is the seam for them.
"""

import ctypes
import os
import resource
from contextlib import suppress
from typing import Any, Protocol

from pegaflow.core.errors import UserError
from pegaflow.device.gpufacts import COMPUTE_MODE
from pegaflow.wire.gpu import GpuMemory, is_meant, spelled
from pegaflow.wire.units import Constant

HOST_TO_DEVICE: Constant = 1  # cudaMemcpyHostToDevice
DEVICE_TO_HOST: Constant = 2  # cudaMemcpyDeviceToHost
NON_BLOCKING: Constant = 1  # cudaStreamNonBlocking: no order with the legacy default stream
BLOCKING_SYNC: Constant = 1  # cudaEventBlockingSync: who waits for it sleeps
DISABLE_TIMING: Constant = 2  # cudaEventDisableTiming
PORTABLE: Constant = 1  # cudaHostRegisterPortable, and of HostAlloc: for all of the process
MAPPED: Constant = 2  # cudaHostRegisterMapped, and of HostAlloc: for kernels, too
LOWEST_PRIORITY: Constant = 1 << 20  # of a stream: clamped to the lowest that there is
LAZY_PEER_ACCESS: Constant = 1  # cudaIpcMemLazyEnablePeerAccess: the only flag there is
SCHED_BLOCKING_SYNC: Constant = 4  # CU_CTX_SCHED_BLOCKING_SYNC: who waits for the device sleeps
ON_DEVICE: Constant = 1  # CU_MEM_LOCATION_TYPE_DEVICE
READ_WRITE: Constant = 3  # CU_MEM_ACCESS_FLAGS_PROT_READWRITE


class Runtime(Protocol):
    """What we call; all of it is for the calling thread's current device."""

    def getDeviceCount(self) -> int: ...
    def getDeviceProperties(self, device: int, /) -> dict[str, Any]: ...
    def deviceGetPCIBusId(self, device: int, /) -> str: ...
    def setDevice(self, device: int, /) -> None: ...
    def ipcOpenMemHandle(self, handle: bytes, flags: int, /) -> int: ...
    def ipcCloseMemHandle(self, pointer: int, /) -> None: ...
    def ipcOpenEventHandle(self, handle: bytes, /) -> int: ...
    def hostRegister(self, pointer: int, size: int, flags: int, /) -> None: ...
    def hostAlloc(self, size: int, flags: int, /) -> int: ...
    def malloc(self, size: int, /) -> int: ...
    def streamCreateWithPriority(self, flags: int, priority: int, /) -> int: ...
    def streamDestroy(self, stream: int, /) -> None: ...
    def streamSynchronize(self, stream: int, /) -> None: ...
    def streamWaitEvent(self, stream: int, event: int, flags: int, /) -> None: ...
    def eventCreateWithFlags(self, flags: int, /) -> int: ...
    def eventRecord(self, event: int, stream: int, /) -> None: ...
    def eventSynchronize(self, event: int, /) -> None: ...
    def eventDestroy(self, event: int, /) -> None: ...

    def memcpyAsync(self, dst: int, src: int, size: int, kind: int, stream: int, /) -> None: ...

    def memcpy2DAsync(
        self,
        dst: int,
        dpitch: int,
        src: int,
        spitch: int,
        width: int,
        height: int,
        kind: int,
        stream: int,
        /,
    ) -> None: ...


class Access(ctypes.Structure):
    """CUmemAccessDesc (cuda.h): who may touch mapped memory, and how."""

    _fields_ = (("kind", ctypes.c_int), ("device", ctypes.c_int), ("flags", ctypes.c_int))


class Driver(Protocol):
    """What we call of libcuda for memory in pieces; each returns 0 or an error, and none is about
    the calling thread's context."""

    def cuMemImportFromShareableHandle(self, handle: Any, fd: Any, kind: int, /) -> int: ...
    def cuMemAddressReserve(
        self, start: Any, size: Any, alignment: Any, wished: Any, flags: Any, /
    ) -> int: ...
    def cuMemMap(self, address: Any, size: Any, offset: Any, handle: Any, flags: Any, /) -> int: ...
    def cuMemSetAccess(self, address: Any, size: Any, access: Any, count: Any, /) -> int: ...
    def cuMemUnmap(self, address: Any, size: Any, /) -> int: ...
    def cuMemRelease(self, handle: Any, /) -> int: ...
    def cuMemAddressFree(self, address: Any, size: Any, /) -> int: ...


def libcuda() -> Driver:
    """The driver of this process.

    Raises:
        UserError: there is none.
    """
    try:
        driver: Any = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise UserError(f"there is no CUDA driver: {first_line(error)}") from None
    found: Driver = driver
    return found


def load() -> Runtime:
    """The CUDA runtime of this process, in which all devices of the host are to be seen.

    Raises:
        UserError: there is no cupy, or it cannot be imported.
    """
    # An engine may be shown other devices than the service, and people number them as nvidia-smi
    # does; the driver reads both once.
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    with suppress(OSError):  # what is wrong without libcuda, cupy says
        ctypes.CDLL("libcuda.so.1").cuInit(0)
    try:
        from cupy.cuda import runtime
    except ImportError as error:
        how = "pip install 'pegaflow[gpu]' (CUDA 12) or 'pegaflow[gpu-cu13]' where serve runs"
        raise UserError(f"GPU memory needs cupy: {how} ({first_line(error)})") from None
    found: Runtime = runtime
    return found


def make_context(device: int) -> None:
    """Make this device's context, if it has none in this process, and keep it for good; an error
    is found by the next call of the runtime.

    Whoever waits for the device sleeps: CUDA's default where there are more cores than contexts is
    to spin, for each of our waits on a core that the engine has use for.

    Args:
        device: this process's number of it.
    """
    context, found = ctypes.c_void_p(), ctypes.c_int()
    with suppress(OSError):
        driver = ctypes.CDLL("libcuda.so.1")
        if not driver.cuDeviceGet(ctypes.byref(found), device):
            driver.cuDevicePrimaryCtxSetFlags_v2(found, SCHED_BLOCKING_SYNC)
            driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), found)


def refuse_exclusive(device: int) -> None:
    """Make no context ahead of an engine where the engine's would then be refused.

    Args:
        device: this process's number of it.

    Raises:
        UserError: it does not take contexts of several processes.
    """
    mode, found = ctypes.c_int(), ctypes.c_int()
    with suppress(OSError):
        driver = ctypes.CDLL("libcuda.so.1")
        if not driver.cuDeviceGet(ctypes.byref(found), device):
            driver.cuDeviceGetAttribute(ctypes.byref(mode), COMPUTE_MODE, found)
    if mode.value:
        raise UserError(
            f"GPU {device} takes one process or none (compute mode {mode.value}), and that is the"
            " engine's; nvidia-smi -c DEFAULT"
        )


def number_of(runtime: Runtime, memory: GpuMemory) -> int:
    """What this process calls the device that the memory is on.

    Raises:
        UserError: it sees none such.
    """
    found, count = _numbers(runtime, spelled(memory.bus, memory.uuid))
    if len(found) != 1:
        raise UserError(
            f"the service does not see the engine's GPU {memory.bus}, but {count} GPUs (of a GPU in"
            " parts, MIG, a process sees one part)"
        )
    return found[0]


def number_named(runtime: Runtime, name: str) -> int:
    """What this process calls the device of this name, as `wire.gpu.device_name` or `spelled`.

    Raises:
        UserError: it sees none such.
    """
    found, count = _numbers(runtime, name)
    if len(found) != 1:
        raise UserError(f"there is no GPU {name}, but {count} GPUs; `nvidia-smi -L` lists them")
    return found[0]


def name_of(runtime: Runtime, device: int) -> str:
    """A device, as processes name it to each other.

    Args:
        device: this process's number of it.
    """
    uuid = runtime.getDeviceProperties(device)["uuid"]
    return spelled(runtime.deviceGetPCIBusId(device).lower(), uuid)


def reaches(runtime: Runtime, device: int) -> bool:
    """Whether a kernel there finds registered memory under the host's address."""
    return bool(runtime.getDeviceProperties(device).get("canUseHostPointerForRegisteredMem"))


def not_locked(error: BaseException) -> str:
    """What an error says of memory that was not registered, what limit it may have met, and what to
    set, in one line for people."""
    limit_bytes, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit_bytes != resource.RLIM_INFINITY:
        met = f"a process may lock {limit_bytes >> 20} MiB here (RLIMIT_MEMLOCK, ulimit -l)"
        todo = "set memlock to unlimited in limits.conf, LimitMEMLOCK=infinity in the unit, or"
        return f"{first_line(error)}; {met}: {todo} docker run --ulimit memlock=-1"
    return f"{first_line(error)}; RLIMIT_MEMLOCK is unlimited: leave more memory free for the host"


def first_line(error: BaseException) -> str:
    """What an error says, in one line for people."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _numbers(runtime: Runtime, name: str) -> tuple[list[int], int]:
    """The devices of this name, and how many there are in all."""
    try:
        count = runtime.getDeviceCount()
        found = [n for n in range(count) if _is_meant(runtime, n, name)]
    except RuntimeError as error:
        raise UserError(f"no GPU can be used: {first_line(error)}") from None
    return found, count


def _is_meant(runtime: Runtime, device: int, name: str) -> bool:
    uuid = runtime.getDeviceProperties(device)["uuid"]
    return is_meant(name, device, runtime.deviceGetPCIBusId(device).lower(), uuid)
