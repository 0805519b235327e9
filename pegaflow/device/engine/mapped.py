"""An engine's memory that lies in pieces, mapped here as it is there: see wire/gpu.py.

Pieces that lie side by side in the engine do so here, so a copy goes over their borders.  A mapping
keeps its piece by itself: what was taken and imported for it is given back at once.
"""

import ctypes
import os
from collections.abc import Callable, Sequence

from pegaflow.core.errors import UserError
from pegaflow.device import procs
from pegaflow.wire.gpu import NO_FD, POSIX_FD, GpuPiece, side_by_side

from . import cuda
from .lanes import give_up

POLICY = (
    "this process may not take its descriptors: in a container --cap-add SYS_PTRACE, elsewhere "
    "sysctl kernel.yama.ptrace_scope=1"
)


class Mapped:
    """Pieces of one rank, mapped for one device until `close`.

    Args:
        device: this process's number of it.
        pieces: as its client has said.
        pid: of the engine's process.
        started_ticks: its start, in clock ticks since boot.

    Raises:
        UserError: they cannot be taken out of the engine's process.
        RuntimeError: the driver refuses.
    """

    def __init__(
        self, device: int, pieces: Sequence[GpuPiece], *, pid: int, started_ticks: int
    ) -> None:
        self._driver = cuda.libcuda()
        self._runs: list[tuple[int, int, int]] = []  # engine's address, ours, length
        self._mapped: list[tuple[int, int]] = []  # our address, length
        pidfd = _process(pid, started_ticks)
        try:
            for run in side_by_side(pieces):
                self._map_run(device, run, pidfd)
        except (RuntimeError, UserError):
            self._undo()
            raise
        finally:
            os.close(pidfd)

    def place(self, address: int) -> int:
        """Where here is what the engine has at this address, which is in a piece."""
        return next(
            here + address - there
            for there, here, length in self._runs
            if there <= address < there + length
        )

    def close(self) -> None:
        """Unmap all of it; no copy may run there.  Then the memory is the engine's alone.

        Raises:
            RuntimeError: the driver refuses.
        """
        while self._mapped:
            address, length = self._mapped.pop()
            self._call(self._driver.cuMemUnmap, _address(address), _size(length))
        while self._runs:
            _, address, length = self._runs.pop()
            self._call(self._driver.cuMemAddressFree, _address(address), _size(length))

    def _undo(self) -> None:
        """What stays mapped would be lost to everybody until this process ends."""
        try:
            self.close()
        except RuntimeError as error:
            give_up(error)

    def _map_run(self, device: int, run: Sequence[GpuPiece], pidfd: int) -> None:
        """Pieces side by side."""
        length, start = sum(piece.length for piece in run), ctypes.c_uint64()
        self._call(
            self._driver.cuMemAddressReserve,
            ctypes.byref(start),
            _size(length),
            _size(0),
            _address(0),
            _NO_FLAGS,
        )
        self._runs.append((run[0].address, start.value, length))
        for piece in run:
            address = start.value + piece.address - run[0].address
            handle = self._import(piece, pidfd)
            try:
                mapping = _address(address), _size(piece.length), _size(0)
                self._call(self._driver.cuMemMap, *mapping, handle, _NO_FLAGS)
                self._mapped.append((address, piece.length))
            finally:
                self._call(self._driver.cuMemRelease, handle)
        access = cuda.Access(cuda.ON_DEVICE, device, cuda.READ_WRITE)
        whole = _address(start.value), _size(length)
        self._call(self._driver.cuMemSetAccess, *whole, ctypes.byref(access), _size(1))

    def _import(self, piece: GpuPiece, pidfd: int) -> ctypes.c_uint64:
        """A handle of the driver's for a piece."""
        if piece.fd == NO_FD:
            raise UserError("its process could not export it (has it descriptors left, ulimit -n?)")
        try:
            fd = procs.take_fd(pidfd, piece.fd)
        except PermissionError:
            raise UserError(POLICY) from None
        except OSError as error:
            raise UserError(f"a descriptor of its pieces cannot be had: {error.strerror}") from None
        handle, kind = ctypes.c_uint64(), POSIX_FD
        try:
            imported = self._driver.cuMemImportFromShareableHandle
            self._call(imported, ctypes.byref(handle), ctypes.c_void_p(fd), kind)
        finally:
            os.close(fd)
        return handle

    def _call(self, function: Callable[..., int], *arguments: object) -> None:
        status = function(*arguments)
        if status:
            name = getattr(function, "__name__", "the driver")
            raise RuntimeError(f"{name}: error {status}")


_address, _size = ctypes.c_uint64, ctypes.c_size_t
_NO_FLAGS = ctypes.c_uint64(0)


def _process(pid: int, started_ticks: int) -> int:
    """A pidfd of the engine's process."""
    try:
        pidfd = procs.open_pidfd(pid, started_ticks)
    except OSError as error:
        raise UserError(f"there is no pidfd of its process: {error.strerror}") from None
    if pidfd is None:
        raise UserError("its process is gone")
    return pidfd
