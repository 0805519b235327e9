"""KV memory on a GPU: what the service is told of it, and the event behind which it is complete.

vLLM's tensors lie in allocations of torch's caching allocator, which hands out parts of them; the
client asks the driver which (pegaflow/client/gpu.py).  Expandable segments and the memory of sleep
mode lie in pieces, and are named by them where these can be exported.  What cannot be named to
another process (fabric handles, cudaMallocAsync) is said in one line, with what to set, and blocks
are copied by a thread of this process, `staged`, as where no session can open the memory.

The event is one for the worker's life.  Its thread records it on the stream that it computes on
whenever it orders loads or saves, which it does after it has launched the kernels of a step: so a
session that waits for the event waits for all of them, and the thread for nothing.

A staged copy goes through one page of pinned memory, on a stream of its own: to and from the page
block by block, each waited for, so it is far from the speed of the bus.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pegaflow.client import GpuBuffers, Unexportable, export
from pegaflow.wire.gpu import NO_GPU, Backend
from pegaflow.wire.layout import Layout, page_bytes
from pegaflow.wire.units import Seconds

from .compat import attribute, logger

LOOK_S: Seconds = 0.0002
"""Between two looks at the event, while a staged copy waits for it: kernels take milliseconds."""


@dataclass(frozen=True, slots=True)
class Exported:
    """KV memory that the service may move."""

    buffers: GpuBuffers
    mark: Callable[[], None]  # "all that I have launched comes before what I order now"


def holds(caches: Mapping[str, Any]) -> bool:
    """Whether some of these tensors, by layer, are on a GPU."""
    return any(attribute(cache, "device.type") == "cuda" for cache in caches.values())


def exported(
    caches: Mapping[str, Any],
    addresses: Sequence[int],
    layout: Layout,
    backend: Backend = Backend.AUTO,
) -> Exported:
    """Make KV memory known to the service.

    Args:
        caches: by layer, tensors of one GPU.
        addresses: of their storages, in the order of the layout's regions.
        layout: where the blocks lie in them.
        backend: what shall move them in the service.
    """
    import torch

    storages = {int(c.untyped_storage().data_ptr()): c.untyped_storage() for c in caches.values()}
    regions = [(address, int(storages[address].nbytes())) for address in addresses]
    device = next(iter(caches.values())).device
    with torch.cuda.device(device):
        event = torch.cuda.Event(interprocess=True)
        named = GpuBuffers(NO_GPU, tuple(size for _, size in regions))
        try:
            named = export(regions, bytes(event.ipc_handle()), backend=backend)
        except (Unexportable, RuntimeError, AttributeError) as error:
            why = str(error).partition("\n")[0]
            logger().warning("pegaflow: GPU memory is copied by this process: %s", why)
            event = torch.cuda.Event()  # one that can be shared may be what there is none of
        copier = Copier(layout, [storages[address] for address in addresses], event, device)

    def mark() -> None:
        event.record(torch.cuda.current_stream(device))

    return Exported(replace(named, copier=copier), mark)


class Copier:
    """Copies blocks in this process, by torch: see pegaflow.client.gpu.Copier.

    Args:
        storages: of the layout's regions.
        event: torch's, recorded whenever something is ordered.
        device: torch's.
    """

    def __init__(self, layout: Layout, storages: Sequence[Any], event: Any, device: Any) -> None:
        self._layout, self._storages = layout, storages
        self._event, self._device = event, device
        self._parts: list[Any] = []  # of all blocks, by layer; made when the first is copied
        self._page: Any = None  # pinned; likewise
        self._stream: Any = None  # likewise

    def wait(self, deadline: int) -> bool:
        """Until what was launched before the newest order is done; False: not by the deadline.

        The event is looked at through one of our own, since each step of a busy engine records it
        anew.
        """
        import torch

        self._prepare()
        with torch.cuda.device(self._device):
            self._stream.wait_event(self._event)
            launched = torch.cuda.Event()
            launched.record(self._stream)
            while not launched.query():
                if time.monotonic_ns() >= deadline:
                    return False
                time.sleep(LOOK_S)
        return True

    def load(self, page: Any, block: int) -> None:
        """Write a page into a block."""
        self._prepare()
        self._page.numpy()[:] = page
        self._move(block, inward=False)

    def save(self, page: Any, block: int) -> None:
        """Write a block into a page."""
        self._prepare()
        self._move(block, inward=True)
        page[:] = self._page.numpy()

    def _move(self, block: int, *, inward: bool) -> None:
        import torch

        at = 0
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            for part in self._parts:
                there = part[block]
                end = at + there.numel()
                here = self._page[at:end].view(there.shape)
                target, source = (here, there) if inward else (there, here)
                target.copy_(source, non_blocking=True)
                at = end
        self._stream.synchronize()

    def _prepare(self) -> None:
        """Views, and pinned memory for a page: none of it is made where no copy is ours."""
        if self._page is not None:
            return
        import torch

        layout = self._layout
        with torch.cuda.device(self._device):  # or this thread makes a context on the first one
            flat = [
                torch.empty(0, dtype=torch.uint8, device=self._device).set_(storage)
                for storage in self._storages
            ]
            parts = []
            for layer in layout.layers:
                shape = (layout.blocks, layer.segments, layer.segment_bytes)
                strides = (layer.block_stride, layer.segment_stride or layer.segment_bytes, 1)
                region = flat[layer.region]
                parts.append(torch.as_strided(region, shape, strides, layer.offset))
            self._parts, self._stream = parts, torch.cuda.Stream(self._device)
            self._page = torch.empty(page_bytes(layout), dtype=torch.uint8, pin_memory=True)
