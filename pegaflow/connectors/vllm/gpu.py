"""KV memory on a GPU: what the service is told of it, and the event behind which it is complete.

vLLM's tensors lie in allocations of torch's caching allocator, which hands out parts of them; the
client asks the driver which (pegaflow/client/gpu.py).  What the allocator makes in another way
(expandable segments, cudaMallocAsync, the memory of sleep mode) cannot be named to another process,
and the engine goes on without us, with one line that says what to set.

The event is one for the worker's life.  Its thread records it on the stream that it computes on
whenever it orders loads or saves, which it does after it has launched the kernels of a step: so a
session that waits for the event waits for all of them, and the thread for nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pegaflow.client import GpuBuffers, export

from .compat import attribute


@dataclass(frozen=True, slots=True)
class Exported:
    """KV memory that a session may open."""

    buffers: GpuBuffers
    mark: Callable[[], None]  # "all that I have launched comes before what I order now"


def holds(caches: Mapping[str, Any]) -> bool:
    """Whether some of these tensors, by layer, are on a GPU."""
    return any(attribute(cache, "device.type") == "cuda" for cache in caches.values())


def exported(caches: Mapping[str, Any], addresses: Sequence[int]) -> Exported:
    """Make KV memory known to other processes.

    Args:
        caches: by layer, tensors of one GPU.
        addresses: of their storages, in the order that is wanted.

    Raises:
        Unexportable: that cannot be.
    """
    import torch

    storages = [cache.untyped_storage() for cache in caches.values()]
    sizes = {int(storage.data_ptr()): int(storage.nbytes()) for storage in storages}
    device = next(iter(caches.values())).device
    with torch.cuda.device(device):
        event = torch.cuda.Event(interprocess=True)
        regions = [(address, sizes[address]) for address in addresses]
        made = export(regions, bytes(event.ipc_handle()))

    def mark() -> None:
        event.record(torch.cuda.current_stream(device))

    return Exported(made, mark)
