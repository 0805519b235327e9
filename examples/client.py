"""A program that saves blocks and has them back: start `pegaflow serve`, then run this.

It is to the service what an engine is: it names itself, registers memory, and speaks of blocks by
the hashes of what is in them.
"""

import hashlib
from contextlib import closing

import numpy as np

from pegaflow.client import Client
from pegaflow.wire.layout import LayerLayout, Layout

BLOCKS, BLOCK_BYTES = 8, 64 * 1024


def main() -> None:
    """Save three blocks, forget them, load them."""
    memory = np.zeros((BLOCKS, BLOCK_BYTES), np.uint8)
    layer = LayerLayout(0, 0, BLOCK_BYTES, BLOCK_BYTES)  # region, offset, stride, bytes per block
    layout = Layout(BLOCKS, (layer,), "uint8", "example")
    namespace = hashlib.blake2b(b"example-model", digest_size=16).digest()
    with closing(Client("example-engine", namespace)) as client:
        client.register(layout, [memory])
        if not client.connect(timeout=5):
            raise SystemExit(f"no session: {client.refusal or 'is `pegaflow serve` running?'}")
        memory[:3] = np.arange(3 * BLOCK_BYTES).reshape(3, -1) % 251
        keys = [hashlib.sha256(memory[at].tobytes()).digest() for at in range(3)]
        expected = memory[:3].copy()
        print("saved:", client.save(keys, [0, 1, 2], timeout=5))
        memory[:] = 0
        found = client.lookup(keys, timeout=5)
        print("found:", found)
        if found.lease is not None:
            print("loaded:", client.load(found.lease, [5, 6, 7], timeout=5))
            print("the same bytes:", bool((memory[5:8] == expected).all()))


if __name__ == "__main__":
    main()
