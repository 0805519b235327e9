"""A CUDA runtime without a GPU, shared by processes: the calls of cupy.cuda.runtime that we use.

tests/fakes/site has a package `cupy` which is this module, so a process with that folder in its
PYTHONPATH runs on it unchanged; FAKE_CUDA names a folder for what processes share.  It is as strict
as CUDA is, and where CUDA calls something undefined, it is an error:

* A handle of memory is not opened in the process that made it, opened twice it is one mapping with
  a count, and memory that another living process has open is not freed.
* Memory that is not there any more, or never was, is an illegal address for the device: that error
  stays with the context, and every later call of it fails.  An event that is not there is an error.
* Whatever is asked of a stream runs later, in the order of that stream and in any order with other
  streams; only events order these, also those of another process.
* A copy touches memory of its stream's device alone.  Host memory that is registered is read and
  written by the device, later; other host memory within the call, as the driver's buffers do.  No
  copy crosses the end of a registration.  Other devices reach what is registered as portable,
  kernels what is registered as mapped.
* A thread that has named no device is on device 0; memory is opened and closed, events are recorded
  and kernels launched on their own.  CUDA_VISIBLE_DEVICES is read once.
* Memory in pieces has rules of its own: vmm.py.
* A call other than the three that look at devices makes a context (`gpus.contexts`).

Which test fails when our code breaks a rule: tests/fakes/test_cuda.py.
Beside the runtime's calls there are `memory`, `launch` and `fail` for tests.
"""

import ctypes
import mmap
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import numpy as np
import numpy.typing as npt

from . import gpus
from .gpus import (
    DONE,
    HEAD,
    ILLEGAL_ADDRESS,
    INVALID_HANDLE,
    INVALID_VALUE,
    LIVE,
    NOT_SAME_PROCESS,
    RECORDED,
    CUDARuntimeError,
    Machine,
    Shared,
    Stream,
    Task,
    lives,
)

memcpyHostToDevice, memcpyDeviceToHost = 1, 2
TOTAL = 16 << 30  # bytes of a device

_machine: Machine | None = None
_making = threading.Lock()


def machine() -> Machine:
    """This process's; made by the first call."""
    global _machine
    with _making:
        if _machine is None:
            _machine = Machine()
        return _machine


# devices


def getDeviceCount() -> int:
    return len(machine().devices)


def getDeviceProperties(device: int) -> dict[str, object]:
    """Cut as cupy 14.2 cuts it: see pegaflow/device/engine/cuda.py."""
    uuid = gpus.UUIDS[machine().devices[device]].partition(b"\0")[0]
    return {"uuid": uuid, "canUseHostPointerForRegisteredMem": 1}


def deviceGetPCIBusId(device: int) -> str:
    return gpus.BUSES[machine().devices[device]]


def setDevice(device: int) -> None:
    if not 0 <= device < len(machine().devices):
        raise CUDARuntimeError(101, f"no device {device}")
    machine().here.device = device
    machine().check()


# memory


def malloc(size: int) -> int:
    m = machine()
    shared = Shared(f"mem.{m.check()}.{os.getpid()}.{secrets.token_hex(6)}", size)
    shared.words[LIVE] = 1
    m.memory[shared.address] = shared
    return shared.address


def free(pointer: int) -> None:
    m = machine()
    m.check()
    shared = m.memory.get(pointer)
    if shared is None or shared.maker != os.getpid():
        raise CUDARuntimeError(INVALID_VALUE, "not allocated here")
    del m.memory[pointer]
    shared.words[LIVE] = 0
    if shared.elsewhere():
        raise CUDARuntimeError(INVALID_VALUE, f"freed while {shared.elsewhere()} have it open")


def memGetInfo() -> tuple[int, int]:
    m = machine()
    return TOTAL - gpus.taken(m.check()), TOTAL


def ipcGetMemHandle(pointer: int) -> bytes:
    m = machine()
    m.check()
    shared = m.owner(pointer, 1)
    if not isinstance(shared, Shared) or shared.maker != os.getpid():
        raise CUDARuntimeError(INVALID_VALUE, "not allocated here")
    return shared.name.encode().ljust(64, b"\0")


def ipcOpenMemHandle(handle: bytes, flags: int = 1) -> int:
    m = machine()
    device, name = m.check(), gpus.named(handle, "mem", INVALID_VALUE)
    with m.lock:
        for shared in m.memory.values():
            if shared.name == name and shared.users:
                shared.users += 1
                return shared.address
        try:
            shared = Shared(name)
        except OSError:
            raise CUDARuntimeError(INVALID_VALUE, "no such memory") from None
        if shared.maker == os.getpid():
            raise CUDARuntimeError(NOT_SAME_PROCESS, "made by this process")
        if not (shared.words[LIVE] and lives(shared.maker) and shared.device == device):
            raise CUDARuntimeError(INVALID_VALUE, "freed, or on another device")
        shared.users = 1
        shared.opened.touch()
        m.memory[shared.address] = shared
        return shared.address


def ipcCloseMemHandle(pointer: int) -> None:
    m = machine()
    device = m.check()
    with m.lock:
        shared = m.memory.get(pointer)
        if shared is None or not shared.users or shared.device != device:
            raise CUDARuntimeError(INVALID_VALUE, "not open, or on another device")
        shared.users -= 1
        if not shared.users:
            del m.memory[pointer]
            shared.opened.unlink()


def hostAlloc(size: int, flags: int) -> int:
    m = machine()
    device = m.check()
    if os.environ.get("FAKE_CUDA_HOST_ALLOC"):
        raise CUDARuntimeError(2, "cudaErrorMemoryAllocation")
    held = mmap.mmap(-1, size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(held))
    with m.lock:
        m.host.append(held)
        m.pinned.append(gpus.Pinned(address, size, device, flags))
    return address


def hostRegister(pointer: int, size: int, flags: int) -> None:
    m = machine()
    device = m.check()
    with m.lock:
        if any(one.touches(pointer, size) for one in m.pinned):
            raise CUDARuntimeError(712, "part or all of it is registered")
        if pointer % mmap.PAGESIZE or os.environ.get("FAKE_CUDA_MEMLOCK"):
            raise CUDARuntimeError(2, "cudaErrorMemoryAllocation")
        m.pinned.append(gpus.Pinned(pointer, size, device, flags))


# streams and events


def streamCreateWithFlags(flags: int) -> int:
    return streamCreateWithPriority(flags, 0)


def streamCreateWithPriority(flags: int, priority: int) -> int:
    m = machine()
    device = m.check()
    with m.lock:
        m.number += 1
        m.streams[m.number] = Stream(device, sorted([*gpus.PRIORITIES, priority])[1])
        return m.number


def streamDestroy(stream: int) -> None:
    m = machine()
    m.check()
    with m.lock:
        assert not m.stream(stream).tasks
        del m.streams[stream]


def eventCreateWithFlags(flags: int) -> int:
    m = machine()
    shared = Shared(f"event.{m.check()}.{os.getpid()}.{secrets.token_hex(6)}", 0)
    shared.words[LIVE] = 1
    return m.new(m.events, shared)


def eventDestroy(event: int) -> None:
    m = machine()
    m.check()
    shared = m.event(event)
    del m.events[event]
    if shared.maker == os.getpid():
        shared.words[LIVE] = 0
        with suppress(FileNotFoundError):
            shared.path.unlink()


def ipcGetEventHandle(event: int) -> bytes:
    return machine().event(event).name.encode().ljust(64, b"\0")


def ipcOpenEventHandle(handle: bytes) -> int:
    m = machine()
    m.check()
    name = gpus.named(handle, "event", INVALID_HANDLE)
    try:
        shared = Shared(name)
    except OSError:
        raise CUDARuntimeError(INVALID_HANDLE, "no such event") from None
    if shared.maker == os.getpid() or not lives(shared.maker):
        raise CUDARuntimeError(INVALID_HANDLE, "made by this process, or by a dead one")
    return m.new(m.events, shared)


def eventRecord(event: int, stream: int) -> None:
    m = machine()
    m.check()
    shared = m.event(event)
    if m.stream(stream).device != shared.device:
        raise CUDARuntimeError(INVALID_HANDLE, "event and stream are on two devices")
    shared.words[RECORDED] += np.uint64(1)
    number = shared.words[RECORDED]

    def over() -> None:
        shared.words[DONE] = number

    m.add(stream, Task(over))


def streamWaitEvent(stream: int, event: int, flags: int = 0) -> None:
    m = machine()
    m.check()
    shared = m.event(event)
    number = int(shared.words[RECORDED])
    m.add(stream, Task(lambda: None, lambda: int(shared.words[DONE]) >= number))


def eventSynchronize(event: int) -> None:
    m = machine()
    device, shared = m.check(), m.event(event)
    number = int(shared.words[RECORDED])
    m.wait(device, lambda: int(shared.words[DONE]) >= number)


def streamSynchronize(stream: int) -> None:
    m = machine()
    m.wait(m.check(), lambda: not m.stream(stream).tasks)


# copies


def memcpyAsync(dst: int, src: int, size: int, kind: int, stream: int) -> None:
    machine().calls.append("memcpyAsync")
    _copy([(dst, src, size)], (dst, size), (src, size), kind, stream=stream)


def memcpy2DAsync(
    dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: int, stream: int
) -> None:
    machine().calls.append("memcpy2DAsync")
    if width > min(dpitch, spitch) or max(dpitch, spitch) >= 1 << 31:
        raise CUDARuntimeError(12, "cudaErrorInvalidPitchValue")
    rows = [(dst + r * dpitch, src + r * spitch, width) for r in range(height)]
    to, start = dpitch * (height - 1) + width, spitch * (height - 1) + width
    _copy(rows, (dst, to), (src, start), kind, stream=stream)


Span = tuple[int, int]


def _copy(
    pieces: list[tuple[int, int, int]], to: Span, start: Span, kind: int, *, stream: int
) -> None:
    m = machine()
    m.check()
    device = m.stream(stream).device
    inward = kind == memcpyDeviceToHost
    there, here = (start, to) if inward else (to, start)
    if m.owner(*there) is None or m.owner(*here) is not None:
        raise CUDARuntimeError(INVALID_VALUE, "not from host to device, or not back")
    pinned = m.is_pinned(device, *here)
    if not pinned:
        m.unpinned += 1
    if not pinned and not inward:
        streamSynchronize(stream)
    kept = [None if pinned or inward else ctypes.string_at(src, size) for _, src, size in pieces]

    def work() -> None:
        m.touch(device, *there)
        for (dst, src, size), bytes_ in zip(pieces, kept, strict=True):
            ctypes.memmove(dst, src if bytes_ is None else bytes_, size)

    m.add(stream, Task(work))
    if not pinned and inward:
        streamSynchronize(stream)


# for tests


def memory(pointer: int, size: int) -> npt.NDArray[np.uint8]:
    """What is there now, whatever is still to come: no kernel or copy is waited for."""
    shared = machine().owner(pointer, size)
    assert shared is not None
    if not isinstance(shared, Shared):  # of pieces, from one into the next
        return np.frombuffer(memoryview((ctypes.c_char * size).from_address(pointer)), np.uint8)
    return np.frombuffer(shared.map, np.uint8)[HEAD:][pointer - shared.address :][:size]


def launch(stream: int, work: Callable[[], None], ready: Callable[[], bool] = lambda: True) -> None:
    """A kernel; it is not run before `ready`."""
    machine().add(stream, Task(work, ready))


def fail(device: int, status: int = ILLEGAL_ADDRESS) -> None:
    """An error that stays with the context."""
    m = machine()
    with m.lock:
        m.errors[m.devices[device]] = status
        m.lock.notify_all()


def handles() -> Iterator[str]:
    """Names of what this process has open of others."""
    return (shared.name for shared in machine().memory.values() if shared.users)
