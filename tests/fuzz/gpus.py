"""Hostile GPU memory: what a client may name in its Attach, well typed and never sound for long."""

import random
from dataclasses import replace
from typing import Any

from pegaflow.wire.gpu import (
    DEVICE_UUID_BYTES,
    HANDLE_BYTES,
    NO_FD,
    NO_HANDLE,
    GpuMemory,
    GpuPiece,
    GpuRegion,
)

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
    handles += [NO_HANDLE, NO_HANDLE, rng.randbytes(HANDLE_BYTES), b"../" * 21 + b"x", b""]
    offsets = (0, 0, rng.choice(EDGES), rng.choice(HUGE))
    uuids = [bytes(DEVICE_UUID_BYTES), b"", bytes(300), *(memory.uuid for memory in sound)]
    some = [GpuRegion(rng.choice(handles), rng.choice(offsets)) for _ in range(3)]
    base = rng.choice(sound)
    pieces = [piece for memory in sound for piece in memory.pieces] or [GpuPiece(0, 4096, 2)]
    fds = (NO_FD, 0, 2, 987_654, rng.choice(HUGE), *(piece.fd for piece in pieces))
    places = (4096, rng.choice(EDGES), rng.choice(HUGE), *(p.address for p in pieces))
    parts = [
        tuple(replace(piece, fd=rng.choice(fds)) for piece in pieces),
        tuple(replace(piece, length=rng.choice(places)) for piece in pieces),
        tuple(replace(piece, address=rng.choice(places)) for piece in pieces),
    ]
    change: dict[str, Any] = {
        "bus": rng.choice(("ffffffff:ff:1f.7", *TEXTS, *(memory.bus for memory in sound))),
        "uuid": rng.choice(uuids),
        "regions": tuple(rng.choice(some) for _ in range(rng.choice(COUNTS))),
        "event": rng.choice(handles),
        "pieces": rng.choice(parts),
    }
    names = rng.sample(list(change), rng.choice((1, 1, 2, 4)))
    return replace(base, **{name: change[name] for name in names})
