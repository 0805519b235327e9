"""Memory in pieces is as strict here as CUDA is.

Each rule was broken by our own code once, and then a test failed: of test_mapped.py in
tests/device/engine, of test_gpu_pieces.py in tests/client, or of test_gpu.py in tests/procs.

    broken                                           found by
    a descriptor is closed before its answer         client: until_it_is_settled
    descriptors are left open                        procs: each_session_in_its_turn
    what was created for nobody is named             client: was_not_created_for_it
    no access is given to what is mapped             test_mapped.py: blocks_go_and_come
    pieces are mapped elsewhere than side by side    test_mapped.py: blocks_go_and_come
    a handle is kept beside the mapping              test_mapped.py: when_its_last_copy_is_over
    pieces stay mapped after close                   test_mapped.py: when_its_last_copy_is_over
    addresses are never given back, or too early     test_mapped.py: when_its_last_copy_is_over
    they are unmapped while a copy runs              test_mapped.py: when_its_last_copy_is_over
    a failure leaves what came before it mapped      test_mapped.py: refused_and_nothing_is_left
    what was taken stays open                        test_mapped.py: taken_is_not_kept
    Left is said before the session has unmapped     procs: given_back_for_sleep
"""

import ctypes
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pegaflow.wire.gpu import POSIX_FD

from . import cuda, gpus, vmm
from .engines import fresh
from .gpus import CUDARuntimeError

SIZE = 4096


@pytest.fixture(autouse=True)
def _gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    fresh(tmp_path, monkeypatch)
    yield


def refused(status: int, call: Callable[..., object], *args: int) -> None:
    with pytest.raises(CUDARuntimeError) as error:
        call(*args)
    assert error.value.status == status


def copied(pointer: int, size: int) -> bytes:
    host = mmap.mmap(-1, size)
    cuda.setDevice(0)
    stream, here = cuda.streamCreateWithFlags(1), ctypes.addressof(ctypes.c_char.from_buffer(host))
    cuda.memcpyAsync(here, pointer, size, cuda.memcpyDeviceToHost, stream)
    cuda.streamSynchronize(stream)
    return bytes(np.frombuffer(host, np.uint8))


def test_only_what_was_created_for_it_is_exported() -> None:
    for kinds in (0, vmm.FABRIC):
        refused(vmm.NOT_SUPPORTED, vmm.export, vmm.create(SIZE, 0, kinds), POSIX_FD)
    refused(gpus.INVALID_VALUE, vmm.export, vmm.create(SIZE, 0), vmm.FABRIC)


def test_what_is_imported_is_an_open_descriptor_of_a_piece() -> None:
    fd = vmm.export(vmm.create(SIZE, 0), POSIX_FD)
    vmm.release(vmm.take(fd, POSIX_FD))
    os.close(fd)
    refused(gpus.INVALID_VALUE, vmm.take, fd, POSIX_FD)
    other = os.open("/dev/null", os.O_RDONLY)
    refused(gpus.INVALID_VALUE, vmm.take, other, POSIX_FD)
    os.close(other)


def test_copies_go_from_a_piece_into_the_next_and_no_further() -> None:
    segment = vmm.Segment(2, SIZE)
    cuda.memory(segment.address, 2 * SIZE)[:] = np.arange(2 * SIZE, dtype=np.uint8)
    assert copied(segment.address + SIZE - 8, 16) == bytes(range(248, 256)) + bytes(range(8))
    with pytest.raises(CUDARuntimeError):
        copied(segment.address + SIZE, SIZE + 1)


@pytest.mark.parametrize("given", [False, True])
def test_what_is_mapped_is_touched_by_whom_it_was_given_to(given: bool) -> None:
    """The error stays with the context, as of any illegal address."""
    start, handle = vmm.reserve(SIZE), vmm.create(SIZE, 0)
    vmm.place(start, SIZE, handle)
    if given:
        vmm.permit(start, SIZE, 1)
    with pytest.raises(CUDARuntimeError, match="IllegalAddress"):
        copied(start, SIZE)
    assert cuda.machine().errors == {0: gpus.ILLEGAL_ADDRESS}


def test_a_piece_is_mapped_whole_where_nothing_is_and_addresses_are_ours() -> None:
    start, handle = vmm.reserve(2 * SIZE), vmm.create(SIZE, 0)
    refused(gpus.INVALID_VALUE, vmm.place, start, 2 * SIZE, handle)
    refused(gpus.INVALID_VALUE, vmm.place, start + 2 * SIZE, SIZE, handle)
    vmm.place(start, SIZE, handle)
    refused(gpus.INVALID_VALUE, vmm.place, start, SIZE, handle)
    refused(gpus.INVALID_VALUE, vmm.permit, start, 2 * SIZE, 0)
    refused(gpus.INVALID_VALUE, vmm.unmap, start, SIZE // 2)
    refused(gpus.INVALID_VALUE, vmm.free, start, 2 * SIZE)
    vmm.unmap(start, SIZE)
    refused(gpus.INVALID_VALUE, vmm.unmap, start, SIZE)
    vmm.free(start, 2 * SIZE)
    refused(gpus.INVALID_VALUE, vmm.free, start, 2 * SIZE)
    vmm.release(handle)
    refused(gpus.INVALID_VALUE, vmm.release, handle)


def test_memory_is_free_when_nothing_has_it_any_more() -> None:
    segment = vmm.Segment(3, SIZE)
    assert gpus.taken(0) == 3 * SIZE
    kept = vmm.retain(segment.address)
    segment.sleep()
    assert gpus.taken(0) == SIZE
    vmm.release(kept)
    assert gpus.taken(0) == 0
    segment.wake()
    assert not cuda.memory(segment.address, 3 * SIZE).any(), "other memory at the same addresses"
