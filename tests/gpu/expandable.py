"""An engine whose memory is of PyTorch's expandable segments.

Run as `python -m tests.gpu.expandable ENDPOINT`.  Its last line says how it was served, how many
blocks were saved, and whether they came back.
"""

from __future__ import annotations

import sys
from typing import Any

from pegaflow.client import Client, Unexportable, export
from pegaflow.wire.layout import LayerLayout, Layout
from perf.gpucard import new_keys

BLOCKS, LAYERS, SEGMENT = 64, 8, 65536
PLANE = BLOCKS * SEGMENT
HALF = BLOCKS // 2
LAYOUT = Layout(
    BLOCKS,
    tuple(LayerLayout(0, layer * PLANE, SEGMENT, SEGMENT) for layer in range(LAYERS)),
    "uint8",
    "expandable",
)
PATIENCE_S = 60.0


def main(endpoint: str) -> str:
    """Half of the blocks are saved and loaded into the other half."""
    import torch

    tensor: Any = torch.randint(0, 256, (LAYERS, BLOCKS, SEGMENT), dtype=torch.uint8, device="cuda")
    event: Any = torch.cuda.Event(interprocess=True)
    try:
        made = export([(tensor.data_ptr(), tensor.nbytes)], bytes(event.ipc_handle()))
    except Unexportable as error:
        return f"unexportable: {error}"
    client = Client("expandable", bytes(16), endpoint=endpoint)
    client.register(LAYOUT, made)
    if not client.connect(PATIENCE_S):
        return f"refused: {client.refusal}"
    event.record()
    keys = new_keys(HALF, 1)
    saved = client.save(keys, range(HALF), timeout=PATIENCE_S).saved
    lease = client.lookup(keys, timeout=PATIENCE_S).lease
    assert lease is not None
    event.record()
    client.load(lease, range(HALF, BLOCKS), timeout=PATIENCE_S)
    same = torch.equal(tensor[:, :HALF], tensor[:, HALF:])
    ways, left = client.ways, client.unregister()
    client.close()
    pieces = "pieces" if len(made.memory.pieces) > 1 else "one piece"
    return f"{pieces}, {ways[0]}, {ways[1]}, {saved} saved, same: {same}, left: {left}"


if __name__ == "__main__":
    print(main(sys.argv[1]))
