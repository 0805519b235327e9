"""The KV memory of vLLM 0.30 and later: one allocation, seen as a tensor for each layer."""

from dataclasses import dataclass

from pegaflow.connectors.vllm.layout import Tensor

ORDERS = {
    "LBHNC": (0, 1, 2, 3, 4),
    "LBNHC": (0, 1, 3, 2, 4),
    "LHBNC": (0, 2, 1, 3, 4),
    "BLHNC": (1, 0, 2, 3, 4),
    "BLNHC": (1, 0, 3, 2, 4),
    "BHLNC": (1, 2, 0, 3, 4),
}
"""KVCacheLayout: the axes L, B, H, N, C from the longest stride to the shortest."""


@dataclass(frozen=True)
class Shape:
    """Layers of one kind: what create_kv_cache_views is given, C in bytes."""

    layers: int
    blocks: int
    heads: int
    tokens: int
    content: int
    kernel_blocks: int = 1  # of a block, as the attention backend counts them
    padding: int = 0  # of a page: page_size_padded

    @property
    def page(self) -> int:
        return self.heads * self.tokens * self.content + self.padding

    @property
    def bytes(self) -> int:
        return self.layers * self.blocks * self.page


def views(
    order: str, shape: Shape, *, offset: int = 0, storage: int = 0, block_stride: int = 0
) -> list[Tensor]:
    """A tensor for each layer, as compute_layout_strides lays it out.

    Args:
        offset: of the first layer in the storage.
        block_stride: where other layers lie between two blocks.
    """
    split = shape.kernel_blocks
    sizes = (
        *(shape.layers, shape.blocks * split, shape.heads),
        *(shape.tokens // split, shape.content),
    )
    strides, step = [0] * 5, 1
    tail = max(ORDERS[order].index(0), ORDERS[order].index(1))
    for place, axis in reversed(list(enumerate(ORDERS[order]))):
        step += shape.padding if place == tail else 0
        strides[axis] = block_stride if axis == 1 and block_stride else step
        step = strides[axis] * sizes[axis]
    return [
        Tensor(
            f"layers.{layer}",
            sizes[1:],
            tuple(strides[1:]),
            offset + layer * strides[0],
            element=1,
            dtype="int8",
            storage=storage,
            storage_bytes=1 << 30,
        )
        for layer in range(shape.layers)
    ]
