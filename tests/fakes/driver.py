"""The calls of libcuda by which an engine exports its memory, those by which a session maps pieces
of it, and those that need no context, over tests/fakes/cuda.py and vmm.py."""

from collections.abc import Callable
from typing import Any

from pegaflow.client.gpu import (
    DEVICE_ORDINAL,
    HANDLE_TYPES,
    IPC_CAPABLE,
    MAPPING_SIZE,
    MAPPING_START,
    MEMPOOL,
    RANGE_SIZE,
    RANGE_START,
)
from pegaflow.device.gpufacts import COMPUTE_MODE

from . import cuda, gpus, vmm
from .gpus import CUDARuntimeError, Range


def _status(call: Callable[[], None]) -> int:
    """What the driver returns where the runtime would raise."""
    try:
        call()
    except CUDARuntimeError as error:
        return error.status
    return 0


class Driver:
    """An engine's libcuda.

    Args:
        capable: whether its memory may be opened by others.
        compute_mode: of its devices.
    """

    def __init__(self, capable: bool = True, *, compute_mode: int = 0) -> None:
        self.capable, self.compute_mode = capable, compute_mode

    def cuInit(self, flags: int) -> int:
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:
        version._obj.value = 12080
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(cuda.machine().devices)
        return 0

    def cuDeviceGetName(self, name: Any, length: int, device: Any) -> int:
        name.value = b"GPU that is not there"
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device: Any) -> int:
        value._obj.value = {COMPUTE_MODE: self.compute_mode}[attribute]
        return 0

    def cuDeviceCanAccessPeer(self, can: Any, device: Any, peer: Any) -> int:
        can._obj.value = 0
        return 0

    def cuPointerGetAttribute(self, data: Any, attribute: int, pointer: Any) -> int:
        shared = cuda.machine().owner(pointer.value, 1)
        memory, piece = shared, None
        if isinstance(shared, Range):
            piece = shared.at(pointer.value)
            memory = piece.memory if piece is not None else None
        if shared is None or not isinstance(memory, gpus.Shared):
            return gpus.INVALID_VALUE
        data._obj.value = {
            DEVICE_ORDINAL: cuda.machine().devices.index(memory.device),
            IPC_CAPABLE: int(self.capable and piece is None),
            RANGE_START: shared.address,
            RANGE_SIZE: shared.size,
            HANDLE_TYPES: int(memory.words[vmm.KINDS]) if piece is not None else 0,
            MEMPOOL: 0,
            MAPPING_START: piece.address if piece is not None else shared.address,
            MAPPING_SIZE: piece.size if piece is not None else shared.size,
        }[attribute]
        return 0

    def cuMemRetainAllocationHandle(self, handle: Any, pointer: Any) -> int:
        return _status(lambda: setattr(handle._obj, "value", vmm.retain(pointer.value)))

    def cuMemExportToShareableHandle(self, fd: Any, handle: Any, kind: int, flags: Any) -> int:
        return _status(lambda: setattr(fd._obj, "value", vmm.export(handle.value, kind)))

    def cuMemImportFromShareableHandle(self, handle: Any, fd: Any, kind: int) -> int:
        return _status(lambda: setattr(handle._obj, "value", vmm.take(fd.value or 0, kind)))

    def cuMemRelease(self, handle: Any) -> int:
        return _status(lambda: vmm.release(handle.value))

    def cuMemAddressReserve(
        self, start: Any, size: Any, alignment: Any, wished: Any, flags: Any
    ) -> int:
        return _status(lambda: setattr(start._obj, "value", vmm.reserve(size.value)))

    def cuMemMap(self, address: Any, size: Any, offset: Any, handle: Any, flags: Any) -> int:
        assert not offset.value, "must be zero, says cuda.h"
        return _status(lambda: vmm.place(address.value, size.value, handle.value))

    def cuMemSetAccess(self, address: Any, size: Any, access: Any, count: Any) -> int:
        given = access._obj
        assert (given.kind, given.flags, count.value) == (1, 3, 1), "a device, to read and write"
        return _status(lambda: vmm.permit(address.value, size.value, given.device))

    def cuMemUnmap(self, address: Any, size: Any) -> int:
        return _status(lambda: vmm.unmap(address.value, size.value))

    def cuMemAddressFree(self, address: Any, size: Any) -> int:
        return _status(lambda: vmm.free(address.value, size.value))

    def cuIpcGetMemHandle(self, handle: Any, pointer: Any) -> int:
        handle.raw = cuda.ipcGetMemHandle(pointer.value)
        return 0

    def cuDeviceGet(self, device: Any, ordinal: int) -> int:
        device._obj.value = cuda.machine().devices[ordinal]
        return 0

    def cuDevicePrimaryCtxSetFlags_v2(self, device: Any, flags: int) -> int:
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, device: Any) -> int:
        return 0

    def cuDeviceGetUuid_v2(self, uuid: Any, device: Any) -> int:
        uuid.raw = gpus.UUIDS[device.value]
        return 0

    def cuDeviceGetPCIBusId(self, bus: Any, length: int, device: Any) -> int:
        bus.value = gpus.BUSES[device.value].encode()
        return 0
