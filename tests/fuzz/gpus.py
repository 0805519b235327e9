"""Hostile GPU memory: what a client may name in its Attach, well typed and never sound for long."""

import random
from dataclasses import replace
from typing import Any

from pegaflow.wire.gpu import DEVICE_UUID_BYTES, HANDLE_BYTES, GpuMemory, GpuRegion

from .hostile import EDGES, HUGE, TEXTS

COUNTS = (1, 1, 1, 1, 2, 3, 500, 20_000)
"""Regions of a memory."""


def hostile(rng: random.Random, *sound: GpuMemory) -> GpuMemory:
    """Parts of memory that is there, of memory of other devices, and what nobody has made.

    Args:
        sound: what can be opened, of several engines or devices.
    """
    handles = [region.handle for memory in sound for region in memory.regions]
    handles += [memory.event for memory in sound]
    handles += [bytes(HANDLE_BYTES), rng.randbytes(HANDLE_BYTES), b"../" * 21 + b"x", b""]
    offsets = (0, 0, rng.choice(EDGES), rng.choice(HUGE))
    uuids = [bytes(DEVICE_UUID_BYTES), b"", bytes(300), *(memory.uuid for memory in sound)]
    some = [GpuRegion(rng.choice(handles), rng.choice(offsets)) for _ in range(3)]
    base = rng.choice(sound)
    change: dict[str, Any] = {
        "bus": rng.choice(("ffffffff:ff:1f.7", *TEXTS, *(memory.bus for memory in sound))),
        "uuid": rng.choice(uuids),
        "regions": tuple(rng.choice(some) for _ in range(rng.choice(COUNTS))),
        "event": rng.choice(handles),
    }
    names = rng.sample(list(change), rng.choice((1, 1, 2, 4)))
    return replace(base, **{name: change[name] for name in names})
