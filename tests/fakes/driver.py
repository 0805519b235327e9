"""The calls of libcuda by which an engine exports its memory, and those that need no context, over
tests/fakes/cuda.py."""

from typing import Any

from pegaflow.client.gpu import DEVICE_ORDINAL, IPC_CAPABLE, RANGE_SIZE, RANGE_START
from pegaflow.device.gpufacts import COMPUTE_MODE

from . import cuda, gpus


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
        if shared is None:
            return gpus.INVALID_VALUE
        data._obj.value = {
            DEVICE_ORDINAL: cuda.machine().devices.index(shared.device),
            IPC_CAPABLE: int(self.capable),
            RANGE_START: shared.address,
            RANGE_SIZE: shared.size,
        }[attribute]
        return 0

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
