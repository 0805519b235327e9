"""Memory in pieces on the GPUs that are not there: libcuda's calls of virtual memory.

As strict as CUDA (cuda.h, and what PyTorch and vLLM have to heed), so each of these is an error:

* to export what was not created for it; to import what is no descriptor of a piece, or is closed;
* to map a piece beyond its reservation, over another one, or in part; to touch what is mapped
  before access was given to that device: the device's error, which stays with the context;
* to unmap a part of a mapping, or to give addresses back that something is mapped at;
* to release a handle twice.

A piece is there as long as any living process has it mapped or has a handle of it (`gpus.holders`):
nobody else's use of it becomes unsound by that it is unmapped somewhere, and nobody can have its
memory until it is unmapped everywhere.  Descriptors are those of the kernel: `exported` lists this
process's.  None of the calls needs a context.
"""

import ctypes
import mmap
import os
import secrets
from pathlib import Path

import numpy as np

from pegaflow.wire.gpu import POSIX_FD

from . import cuda
from .gpus import HEAD, INVALID_VALUE, CUDARuntimeError, Piece, Range, Shared

FABRIC = 8
NOT_SUPPORTED = 801
KINDS = 8  # word: what a piece can be exported as

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_FIXED, _NORESERVE = 0x10, 0x4000


def create(size: int, device: int, kinds: int = POSIX_FD) -> int:
    """A handle of a new piece.

    Args:
        device: this process's number of it.
        kinds: what it can be exported as; 0: as nothing.
    """
    m = cuda.machine()
    _require(size > 0 and size % mmap.PAGESIZE == 0, "no multiple of the granularity")
    piece = Shared(f"phys.{m.devices[device]}.{os.getpid()}.{secrets.token_hex(6)}", size)
    piece.words[KINDS] = np.uint64(kinds)
    return _handle(piece)


def retain(pointer: int) -> int:
    """Another handle of the piece that is mapped there."""
    return _handle(_mapped(pointer).memory)


def release(handle: int) -> None:
    piece = cuda.machine().handles.pop(handle, None)
    _require(piece is not None, "no handle")
    assert piece is not None
    cuda.machine().let_go(piece)


def export(handle: int, kind: int) -> int:
    """A descriptor, which whoever closes keeps open as any."""
    piece = cuda.machine().handles.get(handle)
    _require(piece is not None and kind == POSIX_FD, "no handle, or no descriptor")
    assert piece is not None
    if not int(piece.words[KINDS]) & kind:
        raise CUDARuntimeError(NOT_SUPPORTED, "was not created for that")
    path = piece.path.with_name(f"exported.{piece.name}")
    if not path.exists():
        path.hardlink_to(piece.path)
    fd = os.open(path, os.O_RDWR)
    os.set_inheritable(fd, True)  # the driver does not say that it is not
    return fd


def take(fd: int, kind: int) -> int:
    """A handle of what was exported, here or elsewhere."""
    try:
        path = Path(os.readlink(f"/proc/self/fd/{fd}"))
    except OSError:
        raise CUDARuntimeError(INVALID_VALUE, "closed") from None
    ours = path.parent == Path(os.environ["FAKE_CUDA"]).resolve()
    sound = ours and path.name.startswith("exported.") and kind == POSIX_FD
    _require(sound, "no exported memory")
    return _handle(Shared(path.name.removeprefix("exported.")))


def reserve(size: int) -> int:
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
    address = _map(0, size, 0, flags, -1)
    cuda.machine().ranges[address] = Range(address, size)
    return address


def place(address: int, size: int, handle: int) -> None:
    """Map a piece."""
    m = cuda.machine()
    piece, there = m.handles.get(handle), _range(address, size)
    _require(piece is not None and size == piece.size, "no handle, or another size")
    assert piece is not None
    with m.lock:
        free = all(p.end <= address or address + size <= p.address for p in there.pieces.values())
        _require(free, "something is mapped there")
        fd = os.open(piece.path, os.O_RDWR)
        try:
            flags = mmap.MAP_SHARED | _FIXED
            _map(address, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd)
        finally:
            os.close(fd)
        there.pieces[address] = Piece(piece, address, size)
        m.hold(piece)


def permit(address: int, size: int, device: int) -> None:
    """Give a device access to what is mapped there, all of it."""
    m, there = cuda.machine(), _range(address, size)
    inside = [p for p in there.pieces.values() if address <= p.address and p.end <= address + size]
    _require(sum(p.size for p in inside) == size, "not mapped, or in part")
    for piece in inside:
        piece.devices.add(m.devices[device])


def unmap(address: int, size: int) -> None:
    m, there = cuda.machine(), _range(address, size)
    with m.lock:
        piece = there.pieces.get(address)
        _require(piece is not None and piece.size == size, "no mapping")
        assert piece is not None
        del there.pieces[address]
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE | _FIXED
    _map(address, size, 0, flags, -1)
    m.let_go(piece.memory)


def free(address: int, size: int) -> None:
    m = cuda.machine()
    there = m.ranges.get(address)
    _require(there is not None and there.size == size and not there.pieces, "not reserved, or used")
    del m.ranges[address]
    _libc.munmap(ctypes.c_void_p(address), ctypes.c_size_t(size))


def exported() -> list[str]:
    """Descriptors of pieces that this process has open."""
    links = []
    for name in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:
            continue
    return [name for link in links if (name := Path(link).name).startswith("exported.")]


class Segment:
    """Pieces side by side, as PyTorch's expandable segments and vLLM's sleep mode have them.

    Args:
        device: this process's number of it.
        kinds: what they can be exported as.
    """

    def __init__(self, count: int, size: int, device: int = 0, kinds: int = POSIX_FD) -> None:
        self.count, self.size, self.device, self.kinds = count, size, device, kinds
        self.address = reserve(count * size)
        self.handles: list[int] = []
        self.wake()

    def wake(self) -> None:
        """New pieces at the same addresses."""
        self.handles = [create(self.size, self.device, self.kinds) for _ in range(self.count)]
        for number, handle in enumerate(self.handles):
            place(self.address + number * self.size, self.size, handle)
        permit(self.address, self.count * self.size, self.device)

    @property
    def names(self) -> list[str]:
        """Of the pieces."""
        return [cuda.machine().handles[handle].name for handle in self.handles]

    def sleep(self) -> None:
        """Give the pieces back: their memory is free if nobody else has them."""
        for number, handle in enumerate(self.handles):
            unmap(self.address + number * self.size, self.size)
            release(handle)
        self.handles = []


def _require(sound: bool, why: str) -> None:
    if not sound:
        raise CUDARuntimeError(INVALID_VALUE, why)


def _handle(piece: Shared) -> int:
    m = cuda.machine()
    m.hold(piece)
    return m.new(m.handles, piece)


def _range(address: int, size: int) -> Range:
    for there in cuda.machine().ranges.values():
        if there.address <= address and address + size <= there.address + there.size:
            return there
    raise CUDARuntimeError(INVALID_VALUE, "not reserved")


def _mapped(pointer: int) -> Piece:
    found = _range(pointer, 1).at(pointer)
    _require(found is not None, "nothing is mapped there")
    assert found is not None
    return found


def _map(address: int, size: int, access: int, flags: int, fd: int) -> int:
    at, offset = ctypes.c_void_p(address), ctypes.c_long(HEAD if fd >= 0 else 0)
    found = _libc.mmap(at, ctypes.c_size_t(size), access, flags, fd, offset)
    if found in (None, ctypes.c_void_p(-1).value):
        raise CUDARuntimeError(2, "cudaErrorMemoryAllocation")
    return int(found)
