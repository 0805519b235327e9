"""A worker's KV memory and its model, read out of torch's tensors."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import compat
from .layout import Tensor, Unrepresentable
from .live import Weights


def tensors(caches: Mapping[str, Any]) -> list[Tensor]:
    """vLLM's KV tensors (torch) as plain numbers; raises Unrepresentable."""
    found = []
    for layer, cache in caches.items():
        if not hasattr(cache, "untyped_storage"):
            raise Unrepresentable(f"layer {layer} is a {type(cache).__name__}, not one tensor")
        if cache.device.type not in ("cpu", "cuda"):
            raise Unrepresentable(f"KV memory on {cache.device.type} is not supported yet")
        storage = cache.untyped_storage()
        found.append(
            Tensor(
                layer=layer,
                shape=tuple(cache.shape),
                stride=tuple(cache.stride()),
                offset=int(cache.storage_offset()),
                element=int(cache.element_size()),
                dtype=str(cache.dtype),
                storage=int(storage.data_ptr()),
                storage_bytes=int(storage.nbytes()),
            )
        )
    return found


def buffers(caches: Mapping[str, Any], addresses: Iterable[int]) -> list[Any]:
    """Storages as writable byte arrays that share their memory.

    Args:
        caches: by layer, tensors on the CPU.
        addresses: of the storages, in the order that is wanted.
    """
    import torch

    by_address = {c.untyped_storage().data_ptr(): c for c in caches.values()}
    storages = (by_address[address].untyped_storage() for address in addresses)
    return [torch.empty(0, dtype=torch.uint8).set_(storage).numpy() for storage in storages]


def weights_of(models: Sequence[Any]) -> Weights:
    """The weights of these models; what cannot be read is not known."""
    try:
        return Weights(models)
    except (AttributeError, RuntimeError, TypeError) as error:
        compat.logger().warning("pegaflow: the weights in memory cannot be read: %r", error)
        return Weights(())
