"""What perf.gpu shows of speed: copies beside the bus, a decoding engine beside copies, attaching.

Each of them starts services of its own.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Protocol

import numpy as np

from pegaflow.core.errors import UserError
from pegaflow.replay import service
from pegaflow.service import poolsize, sizes
from perf import gpubare
from perf.attach import spares
from perf.gpucard import (
    METHODS,
    Bus,
    Card,
    Engine,
    GpuShape,
    Memory,
    new_keys,
    registered,
)
from perf.gpuengine import SERVED, child
from perf.gpuparts import Rows, failing, served, session_end
from perf.machine import percentile, verdict

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
LAYERS = 32
COMPARED = 8  # blocks of a table; every byte of every layout is compared elsewhere
POOL_SHARE = 5  # of /dev/shm, bytes of one save: the pool has three times as many
EXTENT = 32 * MIB
LARGE, GOAL_LARGE = 64 * KIB, 0.95
MIDDLE, GOAL_MIDDLE = 16 * KIB, 0.7
SLOWER = 1.02
READY_MS = 50.0


@dataclass(frozen=True)
class Size:
    """How much is done."""

    segments: tuple[int, ...]
    moved: int  # bytes of one save of long segments: what messages cost is little beside that
    moved_small: int  # and of short ones
    bus: int  # bytes of one copy beside it
    turns: int
    pools: tuple[int, ...]
    attaches: int
    decode_s: float  # of each row


FULL = Size(
    (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB),
    moved=4 * GIB,
    moved_small=GIB,
    bus=256 * MIB,
    turns=3,
    pools=(GIB, 8 * GIB, 32 * GIB),
    attaches=3,
    decode_s=4.0,
)
QUICK = Size(
    (4 * KIB, 64 * KIB),
    moved=MIB,
    moved_small=MIB,
    bus=MIB,
    turns=2,
    pools=(EXTENT,),
    attaches=2,
    decode_s=0.3,
)


def shape_of(segment: int, moved: int) -> GpuShape:
    """About so many bytes in blocks of up to 32 layers, no block longer than half an extent."""
    layers = max(1, min(LAYERS, EXTENT // 4 // segment, moved // 4 // segment))
    return GpuShape(max(2, moved // (2 * layers * segment)), layers, segment)


@contextmanager
def serving(pool: int, *extra: str) -> Iterator[str]:
    """A service with a pool of this size, once it is known that there is room.

    Raises:
        UserError: there is none.
    """
    size = -(-pool // EXTENT) * EXTENT
    poolsize.choose(size, poolsize.look(), EXTENT)
    with service.running(size, EXTENT, ("--devices", "0", *extra)) as endpoint:
        yield endpoint


def copies(
    card: Card, size: Size, show: Callable[[dict[str, str]], None], methods: Sequence[str] = METHODS
) -> Rows:
    """GB/s of saves and loads of each segment by each method, beside the bus in turns.

    Args:
        show: told of each row once it is there.
    """
    rows: Rows = []
    bus = Bus(card, size.bus)
    for shape, memory in filled(card, size):
        with serving(3 * shape.total) as endpoint:
            for method in methods:
                with failing(rows, segment=sizes.show(shape.segment), method=method):
                    rows.append(
                        copied(memory, endpoint, shape, bus=bus, method=method, turns=size.turns)
                    )
                show(rows[-1])
    return rows


def bare(card: Card, size: Size, show: Callable[[dict[str, str]], None]) -> Rows:
    """The same copies without a service: perf/gpubare.py."""
    rows: Rows = []
    bus = Bus(card, size.bus)
    for shape, memory in filled(card, size):
        for method in METHODS[1:]:  # the first chooses one of the others
            with failing(rows, segment=sizes.show(shape.segment), method=method):
                rows.append(gpubare.bare(memory, shape, bus=bus, method=method, turns=size.turns))
            show(rows[-1])
    return rows


def filled(card: Card, size: Size) -> Iterator[tuple[GpuShape, Memory]]:
    """Memory for each segment, with bytes in it; it is freed when the next is asked for."""
    room = poolsize.look().shm_free_bytes // POOL_SHARE
    for segment in size.segments:
        moved = size.moved if segment >= LARGE else size.moved_small
        shape = shape_of(segment, min(moved, room))
        memory = Memory(card, 2 * shape.total)
        memory.fill(seed=1)
        yield shape, memory
        memory.free()


def copied(
    memory: Memory, endpoint: str, shape: GpuShape, *, bus: Bus, method: str, turns: int
) -> dict[str, str]:
    """One row of it; the memory stays, and nobody has it open afterwards, whatever went wrong."""
    name = f"perf-copies-{method}"
    engine = Engine(endpoint, name, shape.layout, card=memory.card, regions=[memory], method=method)
    order = np.random.default_rng(3)
    seconds: list[tuple[float, float, float, float]] = []
    saved: list[int] = []
    try:
        engine.attach()
        pool, _ = registered(endpoint, name)
        for turn in range(turns + 1):  # the first is not counted: its pages are new
            keys = new_keys(shape.blocks, (METHODS.index(method) << 20) + turn)
            saved = order.permutation(shape.blocks).tolist()
            loaded = [shape.blocks + block for block in saved]
            out = engine.save(keys, saved), bus.out()
            back = engine.load(keys, loaded), bus.back()
            seconds.append((out[0], back[0], out[1], back[1]))
        wrong = shape.wrong(memory, saved[:COMPARED])
    finally:
        engine.close(free=False)
    if wrong:
        raise UserError(f"{wrong} pieces of {COMPARED} blocks are wrong by {method}, {shape}")
    save, load, out_s, back_s = (median(column) for column in zip(*seconds[1:], strict=True))
    rates = (shape.total / save, shape.total / load, bus.size / out_s, bus.size / back_s)
    goal = GOAL_LARGE if shape.segment >= LARGE else GOAL_MIDDLE
    ratios = rates[0] / rates[2], rates[1] / rates[3]
    judged = [
        f"{r:.2f} {verdict(r, goal, least=True)}" if shape.segment >= MIDDLE else f"{r:.2f}"
        for r in ratios
    ]
    heads = ("save GB/s", "load GB/s", "bus out", "bus in")
    return {
        "segment": sizes.show(shape.segment),
        "blocks x layers x 2": str(shape),
        "method": method,
        **dict(zip(heads, (f"{rate / 1e9:.2f}" for rate in rates), strict=True)),
        "save/out": judged[0],
        "load/in": judged[1],
        "pool registered": sizes.show(pool),
    }


class Decode(Protocol):
    """Something that computes on the device as a decoding engine does."""

    def seconds(self) -> float:
        """Of one iteration, on the device."""


def matmul(decode: Decode, size: Size, show: Callable[[dict[str, str]], None]) -> Rows:
    """How much slower an iteration is while another engine saves and loads all the time, in turns
    with nothing beside it, for each method."""
    rows: Rows = []
    shape = shape_of(size.segments[len(size.segments) // 2], size.moved_small)
    with serving(4 * shape.total) as endpoint:
        for method in METHODS:
            with failing(rows, method=method):
                rows.append(slowed(decode, endpoint, shape, method, size.decode_s))
            show(rows[-1])
    return rows


def slowed(
    decode: Decode, endpoint: str, shape: GpuShape, method: str, seconds: float
) -> dict[str, str]:
    """One row of it."""
    options = ["--method", method, "--shape", *map(str, dataclasses.astuple(shape))]
    alone, name = _iterations(decode, seconds / 2), f"perf-busy-{method}"
    with child(endpoint, name, "--way", "busy", *options) as engine:
        engine.said(SERVED)
        registered(endpoint, name)
        engine.said("loaded")
        beside = _iterations(decode, seconds)
    alone += _iterations(decode, seconds / 2)
    slower = median(beside) / median(alone)
    return {
        "method": method,
        "segment": sizes.show(shape.segment),
        "alone ms": f"{1e3 * median(alone):.3f}",
        "beside copies ms": f"{1e3 * median(beside):.3f}",
        "p99 alone": f"{1e3 * percentile(alone, 99):.3f}",
        "p99 beside": f"{1e3 * percentile(beside, 99):.3f}",
        "slower": f"{slower:.4f} {verdict(slower, SLOWER)}",
    }


def _iterations(decode: Decode, seconds: float) -> list[float]:
    until = time.monotonic() + seconds
    found = [decode.seconds()]
    while time.monotonic() < until:
        found.append(decode.seconds())
    return found


def attach(card: Card, size: Size, show: Callable[[dict[str, str]], None]) -> Rows:
    """Milliseconds from a client's first call until its memory is open, and how long a session
    that has registered so much takes to be dead."""
    rows: Rows = []
    for pool in size.pools:
        for ready in (1, 0):
            try:
                with serving(pool, "--spares", str(ready)) as endpoint:
                    rows.append(attached(card, endpoint, pool, ready=ready, size=size))
            except UserError as error:
                rows.append({"pool": sizes.show(pool), "spare": str(ready), "median": str(error)})
            show(rows[-1])
    return rows


def attached(card: Card, endpoint: str, pool: int, *, ready: int, size: Size) -> dict[str, str]:
    """One row of it, of a service that keeps so many spares."""
    shape = shape_of(64 * KIB, 64 * MIB if size is FULL else MIB)
    took: list[float] = []
    for turn in range(size.attaches):
        left = spares(endpoint, ready)
        clients = [
            served(card, endpoint, f"perf-other-{turn}-{n}", shape) for n in range(left - ready)
        ]
        if ready:
            registered(endpoint)
        memory = Memory(card, 2 * shape.total)
        start = time.perf_counter()
        engine = Engine(endpoint, f"perf-attach-{turn}", shape.layout, card=card, regions=[memory])
        engine.attach()
        took.append(1e3 * (time.perf_counter() - start))
        for one in (*clients, engine):
            one.close()
    last = served(card, endpoint, "perf-last", shape)
    bytes_, seconds = registered(endpoint, "perf-last")
    ended = session_end(endpoint, "perf-last")
    last.close()
    return {
        "pool": sizes.show(pool),
        "spare": "ready" if ready else "none",
        "median": f"{median(took):.0f} ms"
        + (f" {verdict(median(took), READY_MS)}" if ready else ""),
        "most": f"{max(took):.0f} ms",
        "registered": sizes.show(bytes_),
        "after": f"{seconds:.1f} s",
        "SIGKILL to pidfd": f"{1e3 * ended:.0f} ms",
    }
