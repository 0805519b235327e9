"""What a host has of what GPU memory needs, read without a CUDA context.

`read` asks libcuda by ctypes, and of it only what answers before there is a context; whether the
driver stays loaded it asks libnvidia-ml; the rest is in /proc and /sys.  What is not to be had is
said as not known: nothing here raises, since whoever reads this wants to know what is wrong.
"""

import ctypes
import importlib
import importlib.metadata
import os
import resource
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pegaflow.wire.units import Constant

from . import hugepages
from .hugepages import HugePages

COMPUTE_MODE: Constant = 20  # CU_DEVICE_ATTRIBUTE_COMPUTE_MODE
NAME_BYTES: Constant = 128  # room for a device's name
BUS_ID_BYTES: Constant = 32  # room for a PCI bus id
PID_NAMESPACE: Constant = 0xEFFFFFFC  # of the host: PROC_PID_INIT_INO of Linux
TRACE_BIT: Constant = 19  # CAP_SYS_PTRACE

FILES = ("dev/nvidiactl", "dev/nvidia0", "dev/dxg")
"""One of them is there where there is a GPU; the last under WSL."""

CUPYS = ("cupy-cuda11x", "cupy-cuda12x", "cupy-cuda13x", "cupy")
"""All ways to install cupy: two of them at once break each other."""


@dataclass(frozen=True)
class Device:
    """One GPU, or the part of one that is shown to this process."""

    number: int
    name: str
    bus: str  # PCI bus id, in lower case
    uuid: str
    compute_mode: int = 0  # CUcomputemode: 2 is prohibited, 3 exclusive to one process
    numa_node: int = -1  # nearest to it; -1: not known
    stays: bool | None = None  # the driver's state, when no process has a context; None: not known


@dataclass(frozen=True)
class GpuFacts:
    """What the host has."""

    #: Whether there is a device file of a GPU's.
    files: bool = True
    #: The driver's own version; empty if there is none.
    driver: str = ""
    #: The newest CUDA that it runs; (0, 0) if it cannot be asked.
    cuda: tuple[int, int] = (0, 0)
    #: What the driver says instead of beginning; empty if it begins.
    error: str = ""
    devices: tuple[Device, ...] = ()
    #: Pairs of devices, by number, of which neither reaches the other's memory.
    apart: tuple[tuple[int, int], ...] = ()
    #: Distributions of cupy that are installed, with their versions.
    cupys: tuple[tuple[str, str], ...] = ()
    #: Why cupy cannot be imported; empty if it can.
    cupy_error: str = ""
    #: Why it could compile no kernel; empty if it could.
    nvrtc_error: str = ""
    #: What a process may lock; None: everything.
    memlock_bytes: int | None = None
    #: NUMA nodes of the host.
    nodes: int = 1
    #: Where a pool of huge pages could lie, and how many there are.
    hugetlb: tuple[HugePages, ...] = ()
    #: The mount option `huge` of /dev/shm; empty if it has none.
    shm_huge: str = ""
    #: All of /dev/shm, taken or not.
    shm_bytes: int = 0
    #: Whether other processes of the host are seen by other numbers than theirs, or not at all.
    own_pids: bool = False
    #: kernel.yama.ptrace_scope; 0 where there is no such thing.
    trace_scope: int = 0
    #: Whether this process may trace others whatever that says.
    may_trace: bool = False


class Driver(Protocol):
    """What we call of libcuda; each returns 0 or an error, and none makes a context."""

    def cuInit(self, flags: int, /) -> int: ...
    def cuDriverGetVersion(self, version: Any, /) -> int: ...
    def cuDeviceGetCount(self, count: Any, /) -> int: ...
    def cuDeviceGet(self, device: Any, ordinal: int, /) -> int: ...
    def cuDeviceGetName(self, name: Any, length: int, device: Any, /) -> int: ...
    def cuDeviceGetUuid_v2(self, uuid: Any, device: Any, /) -> int: ...
    def cuDeviceGetPCIBusId(self, bus: Any, length: int, device: Any, /) -> int: ...
    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any, /) -> int: ...
    def cuDeviceCanAccessPeer(self, can: Any, device: Any, peer: Any, /) -> int: ...


class Missing(Exception):
    """The driver cannot be asked; its text says why."""


def read(
    root: Path = Path("/"), driver: Driver | None = None, *, management: Any = None
) -> GpuFacts:
    """What this host has, for this process.

    Args:
        root: another tree for /proc, /sys and /dev, in tests.
        driver: libcuda; None: that of this process.
        management: libnvidia-ml; None: that of this process.
    """
    devices: list[Device] = []
    apart: list[tuple[int, int]] = []
    cuda, error = (0, 0), ""
    try:
        calls = driver or _libcuda()
        cuda = _version(calls)
        devices += _devices(calls, root, management or _library("libnvidia-ml.so.1"))
        apart += _apart(calls, len(devices))
    except Missing as missing:
        error = str(missing)
    cupys = tuple(_cupys())
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    return GpuFacts(
        files=any((root / name).exists() for name in FILES),
        driver=_driver_version(root),
        cuda=cuda,
        error=error,
        devices=tuple(devices),
        apart=tuple(apart),
        cupys=cupys,
        cupy_error=_import_error(),
        nvrtc_error=_nvrtc_error(),
        memlock_bytes=None if soft == resource.RLIM_INFINITY else soft,
        nodes=max(1, len(list(root.glob("sys/devices/system/node/node[0-9]*")))),
        hugetlb=tuple(hugepages.look(root)),
        shm_huge=_shm_huge(root),
        shm_bytes=_size(root / "dev/shm"),
        own_pids=_inode(root / "proc/self/ns/pid") not in (0, PID_NAMESPACE),
        trace_scope=int(_text(root / "proc/sys/kernel/yama/ptrace_scope") or 0),
        may_trace=bool(_capabilities(root) >> TRACE_BIT & 1),
    )


def _libcuda() -> Driver:
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # as the service does: it needs all of them
    found = _library("libcuda.so.1")
    if found is None:
        raise Missing("no libcuda.so.1")
    calls: Driver = found
    return calls


def _library(name: str) -> Any:
    with suppress(OSError):
        return ctypes.CDLL(name)
    return None


def _call(what: str, status: int) -> None:
    if status:
        raise Missing(f"{what} fails with error {status}")


def _version(calls: Driver) -> tuple[int, int]:
    """Begin, and say the newest CUDA."""
    _call("cuInit", calls.cuInit(0))
    number = ctypes.c_int()
    _call("cuDriverGetVersion", calls.cuDriverGetVersion(ctypes.byref(number)))
    return number.value // 1000, number.value % 1000 // 10


def _devices(calls: Driver, root: Path, management: Any) -> Iterator[Device]:
    count = ctypes.c_int()
    _call("cuDeviceGetCount", calls.cuDeviceGetCount(ctypes.byref(count)))
    for number in range(count.value):
        device = _device(calls, number)
        name = ctypes.create_string_buffer(NAME_BYTES)
        bus, named = ctypes.create_string_buffer(BUS_ID_BYTES), ctypes.create_string_buffer(16)
        mode = ctypes.c_int()
        _call("cuDeviceGetName", calls.cuDeviceGetName(name, NAME_BYTES, device))
        _call("cuDeviceGetPCIBusId", calls.cuDeviceGetPCIBusId(bus, BUS_ID_BYTES, device))
        _call("cuDeviceGetUuid", calls.cuDeviceGetUuid_v2(named, device))
        _call(
            "cuDeviceGetAttribute",
            calls.cuDeviceGetAttribute(ctypes.byref(mode), COMPUTE_MODE, device),
        )
        place = bus.value.decode().lower()
        node = _text(root / "sys/bus/pci/devices" / place / "numa_node")
        yield Device(
            number,
            name.value.decode(errors="replace"),
            place,
            f"GPU-{uuid.UUID(bytes=named.raw)}",
            compute_mode=mode.value,
            numa_node=int(node or -1),
            stays=_stays(management, bus.value),
        )


def _device(calls: Driver, number: int) -> ctypes.c_int:
    device = ctypes.c_int()
    _call("cuDeviceGet", calls.cuDeviceGet(ctypes.byref(device), number))
    return device


def _apart(calls: Driver, count: int) -> Iterator[tuple[int, int]]:
    for one in range(count):
        for other in range(one + 1, count):
            can = ctypes.c_int()
            devices = _device(calls, one), _device(calls, other)
            status = calls.cuDeviceCanAccessPeer(ctypes.byref(can), *devices)
            if status or not can.value:
                yield one, other


def _stays(management: Any, bus: bytes) -> bool | None:
    """Whether the device is kept ready while nobody uses it; None: nobody says so."""
    if management is None:
        return None
    handle, mode = ctypes.c_void_p(), ctypes.c_int()
    failed = (
        management.nvmlInit_v2()
        or management.nvmlDeviceGetHandleByPciBusId_v2(bus, ctypes.byref(handle))
        or management.nvmlDeviceGetPersistenceMode(handle, ctypes.byref(mode))
    )
    return None if failed else bool(mode.value)


def _driver_version(root: Path) -> str:
    """In `NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build ...`
    it is the first word that is a version."""
    words = _text(root / "proc/driver/nvidia/version").partition("\n")[0].split()
    numbers = (w for w in words if w[0].isdigit() and w.replace(".", "").isdigit() and "." in w)
    return next(numbers, "") or _text(root / "sys/module/nvidia/version")


def _cupys() -> Iterator[tuple[str, str]]:
    for name in CUPYS:
        with suppress(importlib.metadata.PackageNotFoundError):
            yield name, importlib.metadata.version(name)


def _import_error() -> str:
    try:
        importlib.import_module("cupy.cuda")
    except ImportError as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


def _nvrtc_error() -> str:
    try:
        cupy: Any = importlib.import_module("cupy.cuda")
        cupy.nvrtc.getVersion()
    except (ImportError, AttributeError, RuntimeError, OSError, AssertionError) as error:
        return str(error).strip().partition("\n")[0] or type(error).__name__
    return ""


def _capabilities(root: Path) -> int:
    for line in _text(root / "proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0


def _shm_huge(root: Path) -> str:
    for line in _text(root / "proc/self/mounts").splitlines():
        _, where, _, options, *_ = line.split()
        if where == "/dev/shm":
            named = dict(option.partition("=")[::2] for option in options.split(","))
            return named.get("huge", "")
    return ""


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text().strip()
    return ""


def _inode(path: Path) -> int:
    with suppress(OSError):
        return path.stat().st_ino
    return 0


def _size(path: Path) -> int:
    with suppress(OSError):
        found = os.statvfs(path)
        return found.f_blocks * found.f_frsize
    return 0
