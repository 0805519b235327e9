"""The GPU that is not there is as strict as CUDA: a test on it is worth what these rules are.

Each rule was broken by our own code once, and then a test failed: of tests/device/engine, where no
other folder is named.

    broken                                           found by
    memory of this process is opened                 test_cuda_ipc.py: of_this_very_process
    a handle is opened for each region               test_cuda_ipc.py: opened_once_and_closed
    handles, or the engine's event, are never closed test_cuda_ipc.py: opened_once_and_closed
    they are closed while a copy runs                test_cuda_ipc.py: when_its_last_copy_is_over
    it is said that they are before they are         test_cuda_ipc.py: opened_once_and_closed
    Left is said before they are                     tests/sim/mutants/left_before_closed.mutant
    an error of a copy ends nothing                  test_cuda_ipc.py: of_a_copy_ends_the_process
    the end of a copy is not waited for              test_cuda_ipc.py: end_one_by_one
    its event is recorded in another stream          test_cuda_ipc.py: end_one_by_one
    the ring is read, or used again, before that     test_lanes.py: go_through_the_ring
    a copy does not wait for the engine's event      test_cuda_ipc.py: waits_for_the_kernels
    or waits after it                                test_cuda_ipc.py: waits_for_the_kernels
    a page beyond the end of a registration counts   test_ring.py: has_all_of_it
    the pool is not registered for all devices       test_cuda_ipc.py: reach_the_pool_and_the_rings
    pool or rings are not mapped for kernels         test_cuda_ipc.py: reach_the_pool_and_the_rings
    a kernel is to reach what is not registered      test_lanes.py: refuses_a_ring
    a thread opens, closes, registers on no device   test_cuda_ipc.py: on_the_device_of_what_it
    a lane's threads are on no device                test_cuda_ipc.py: whatever_it_is_called_here
    CUDA_VISIBLE_DEVICES is left as it was           test_cuda_ipc.py: whatever_it_is_called_here
    rows of a copy lie too far apart                 test_strides.py: too_far_apart
"""

import ctypes
import mmap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from . import cuda, gpus
from .engines import Foreign, fresh
from .gpus import CUDARuntimeError

SIZE = 4096


class Host:
    """Memory of the host, three pages."""

    def __init__(self) -> None:
        self.map = mmap.mmap(-1, 3 * SIZE)
        self.bytes = np.frombuffer(self.map, np.uint8)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self.map))


@pytest.fixture(autouse=True)
def _gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fresh(tmp_path, monkeypatch)
    yield


def opened(foreign: Foreign) -> int:
    cuda.setDevice(foreign.device)
    return cuda.ipcOpenMemHandle(foreign.named(0).regions[0].handle)


def refused(status: int, call: Callable[..., object], *args: int | bytes) -> None:
    with pytest.raises(CUDARuntimeError) as error:
        call(*args)
    assert error.value.status == status


def copy_in(pointer: int, host: Host, stream: int, size: int = SIZE) -> None:
    cuda.memcpyAsync(host.address, pointer, size, cuda.memcpyDeviceToHost, stream)


def test_a_handle_is_not_opened_where_it_was_made() -> None:
    handle = cuda.ipcGetMemHandle(cuda.malloc(SIZE) + 8)
    refused(gpus.NOT_SAME_PROCESS, cuda.ipcOpenMemHandle, handle)
    event = cuda.ipcGetEventHandle(cuda.eventCreateWithFlags(0))
    refused(gpus.INVALID_HANDLE, cuda.ipcOpenEventHandle, event)


def test_opened_twice_it_is_one_mapping_that_is_closed_twice() -> None:
    foreign = Foreign(SIZE)
    pointer = opened(foreign)
    assert opened(foreign) == pointer
    cuda.ipcCloseMemHandle(pointer)
    assert list(foreign.users)
    cuda.ipcCloseMemHandle(pointer)
    assert not list(foreign.users)
    refused(gpus.INVALID_VALUE, cuda.ipcCloseMemHandle, pointer)


def test_memory_is_opened_on_its_own_device_while_it_is_there() -> None:
    foreign = Foreign(SIZE, device=1)
    cuda.setDevice(0)
    refused(gpus.INVALID_VALUE, cuda.ipcOpenMemHandle, foreign.named(0).regions[0].handle)
    foreign.free()
    cuda.setDevice(1)
    refused(gpus.INVALID_VALUE, cuda.ipcOpenMemHandle, foreign.named(0).regions[0].handle)


def test_what_is_gone_is_an_error_that_stays_with_its_context_alone() -> None:
    foreign, host = Foreign(SIZE), Host()
    pointer, stream = opened(foreign), cuda.streamCreateWithFlags(1)
    cuda.hostRegister(host.address, SIZE, 1)
    foreign.free()
    copy_in(pointer, host, stream)
    refused(gpus.ILLEGAL_ADDRESS, cuda.streamSynchronize, stream)
    refused(gpus.ILLEGAL_ADDRESS, cuda.ipcCloseMemHandle, pointer)
    refused(gpus.ILLEGAL_ADDRESS, cuda.setDevice, 0)
    cuda.setDevice(1)
    assert cuda.malloc(SIZE)


def test_a_copy_of_registered_memory_is_late_and_in_the_order_of_its_stream() -> None:
    foreign, host = Foreign(SIZE), Host()
    foreign.bytes[:] = 7
    pointer, stream, gate = opened(foreign), cuda.streamCreateWithFlags(1), threading.Event()
    cuda.hostRegister(host.address, SIZE, 1)
    cuda.launch(stream, lambda: None, gate.is_set)
    copy_in(pointer, host, stream)
    assert not host.bytes.any()
    foreign.bytes[:] = 8
    gate.set()
    cuda.streamSynchronize(stream)
    assert (host.bytes[:SIZE] == 8).all() and not host.bytes[SIZE:].any()


def test_other_memory_is_copied_within_the_call() -> None:
    foreign, host = Foreign(SIZE), Host()
    foreign.bytes[:] = 7
    copy_in(opened(foreign), host, cuda.streamCreateWithFlags(1))
    assert (host.bytes[:SIZE] == 7).all()


def test_only_events_order_streams() -> None:
    order: list[str] = []
    gate = threading.Event()
    slow, quick = cuda.streamCreateWithFlags(1), cuda.streamCreateWithFlags(1)
    event = cuda.eventCreateWithFlags(2)
    cuda.launch(slow, lambda: order.append("slow"), gate.is_set)
    cuda.eventRecord(event, slow)
    cuda.launch(quick, lambda: order.append("quick"))
    cuda.streamSynchronize(quick)
    cuda.streamWaitEvent(quick, event)
    cuda.launch(quick, lambda: order.append("after"))
    gate.set()
    cuda.streamSynchronize(quick)
    assert order == ["quick", "slow", "after"]


def test_no_copy_crosses_the_end_of_a_registration() -> None:
    foreign, host = Foreign(2 * SIZE), Host()
    pointer, stream = opened(foreign), cuda.streamCreateWithFlags(1)
    cuda.hostRegister(host.address, SIZE, 1)
    cuda.hostRegister(host.address + SIZE, SIZE, 1)
    refused(712, cuda.hostRegister, host.address, SIZE, 1)
    with pytest.raises(CUDARuntimeError, match="across the end"):
        copy_in(pointer, host, stream, 2 * SIZE)


def test_a_copy_stays_on_the_device_of_its_stream() -> None:
    foreign, host = Foreign(SIZE, device=1), Host()
    pointer = opened(foreign)
    cuda.setDevice(0)
    stream = cuda.streamCreateWithFlags(1)
    with pytest.raises(CUDARuntimeError):
        copy_in(pointer, host, stream)
    assert 0 in cuda.machine().errors


def test_rows_of_a_copy_are_no_wider_than_their_pitch() -> None:
    foreign, host = Foreign(SIZE), Host()
    pointer, stream = opened(foreign), cuda.streamCreateWithFlags(1)
    with pytest.raises(CUDARuntimeError, match="Pitch"):
        cuda.memcpy2DAsync(host.address, 64, pointer, 32, 64, 2, 2, stream)
