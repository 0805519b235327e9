"""The calls of libcuda by which an engine exports its memory, over tests/fakes/cuda.py."""

from typing import Any

from pegaflow.client.gpu import DEVICE_ORDINAL, IPC_CAPABLE, RANGE_SIZE, RANGE_START

from . import cuda, gpus


class Driver:
    """An engine's libcuda.

    Args:
        capable: whether its memory may be opened by others.
    """

    def __init__(self, capable: bool = True) -> None:
        self.capable = capable

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

    def cuDeviceGetUuid_v2(self, uuid: Any, device: Any) -> int:
        uuid.raw = gpus.UUIDS[device.value]
        return 0

    def cuDeviceGetPCIBusId(self, bus: Any, length: int, device: Any) -> int:
        bus.value = gpus.BUSES[device.value].encode()
        return 0
