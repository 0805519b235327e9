"""Saves and loads beside a C memcpy loop over the same bytes: python -m perf.copies

A client saves blocks of its memory and loads them into other blocks; bytes over the time from the
call to its return, messages included.  The pool is small and written once before, so saves evict
and nothing touches a page of memory for the first time.  Beside it, in turns, one C loop of memcpy
moves the same pieces to a shared mapping and back, on one thread: the client's memory, the pool and
that mapping all begin with a page, so that neither side copies between addresses for which the
processor is several times slower than for an engine's (perf/machine.py says which).

With `--against` a checkout of another version, both take turns instead: saves into a fresh and into
a full pool, and loads, each by its default way, in the table of perf/peers/copies.py without peers.

Goals: 0.8 x memcpy where a block has pieces of 256 KiB and more, 0.7 x where they have 64 KiB.
"""

from __future__ import annotations

import argparse
import itertools
from statistics import median

import numpy as np
from rich.table import Table

from pegaflow.client import Client
from pegaflow.core.errors import UserError
from pegaflow.replay import service
from pegaflow.wire.status import Status
from perf import command, machine
from perf.machine import Copy, timed, verdict
from perf.peers import copies
from perf.peers.contestants import entries
from perf.shapes import QUICK, QUICK_BLOCKS, REAL, SHAPES, Memcpy, Shape

WAYS = (("staged", 1), ("staged", 2), ("process_vm", 1), ("process_vm", 2))
COLUMNS = "way threads layout save load out in save/out load/in machine".split()
LARGE, LARGE_GOAL, SMALL_GOAL = 256 << 10, 0.8, 0.7
EXTENT = 32 << 20
TIMEOUT_S = 60.0


class Engine:
    """A client that saves and loads all blocks of a shape.

    Args:
        turn: how often engines of this shape have saved; another one loads what the last has saved.
    """

    def __init__(self, endpoint: str, shape: Shape, way: str, turn: int = 0) -> None:
        self.shape = shape
        self.memory = machine.memory(2 * shape.total)
        self.memory[:] = np.random.default_rng(1).integers(0, 256, 2 * shape.total, np.uint8)
        self.written = 0  # bytes saved so far
        self.turn = turn
        self._client = Client(f"perf-{shape}", b"perf" * 4, endpoint=endpoint, way=way)
        self._client.register(shape.layout, [self.memory])
        if not self._client.connect(20.0):
            self._client.close()
            raise UserError(f"no session: {self._client.refusal}")

    def save(self) -> float:
        """Seconds; under keys that are new."""
        self.turn += 1
        keys = self._keys()
        blocks = range(self.shape.blocks)
        seconds, done = timed(lambda: self._client.save(keys, blocks, timeout=TIMEOUT_S))
        if done.saved != self.shape.blocks:
            raise UserError(f"{done.saved} of {self.shape.blocks} saved: {done.status.words}")
        self.written += self.shape.total
        return seconds

    def load(self) -> float:
        """Seconds; what was saved last, into the other half."""
        found = self._client.lookup(self._keys(), timeout=TIMEOUT_S)
        blocks = range(self.shape.blocks, 2 * self.shape.blocks)
        lease = found.lease
        if lease is None or found.blocks != self.shape.blocks:
            raise UserError(f"{found.blocks} of {self.shape.blocks} blocks found")
        seconds, done = timed(lambda: self._client.load(lease, blocks, timeout=TIMEOUT_S))
        if done.status is not Status.OK:
            raise UserError(f"not loaded: {done.status.words}")
        planes = self.memory.reshape(self.shape.layers, 2, -1)
        if not np.array_equal(planes[:, 0], planes[:, 1]):
            raise UserError("wrong bytes were loaded")
        planes[:, 1] = 0
        return seconds

    def close(self) -> None:
        self._client.close()

    def _keys(self) -> list[bytes]:
        return [b"%016x%016x" % (self.turn, block) for block in range(self.shape.blocks)]


def measure(
    shape: Shape, way: str, threads: int, copy: Copy, turns: int
) -> tuple[float, float, float, float]:
    """Median bytes per second of save, load, memcpy out and memcpy in."""
    pool = -(-4 * shape.total // EXTENT) * EXTENT
    with service.running(pool, EXTENT, ("--copy-threads", str(threads))) as endpoint:
        engine = Engine(endpoint, shape, way)
        try:
            bare = Memcpy(copy, shape, engine.memory)
            while engine.written < pool:
                engine.save()
                engine.load()
            rows = [(engine.save(), engine.load(), bare.out(), bare.back()) for _ in range(turns)]
        finally:
            engine.close()
    save, load, out, back = (shape.total / median(column) for column in zip(*rows, strict=True))
    return save, load, out, back


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small layout, two turns")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--against", help="a checkout of another version")
    given = parser.parse_args()
    if given.against:
        pieces = (QUICK_BLOCKS,) if given.quick else SHAPES
        copies.compare(entries(given.against), pieces, 2 if given.quick else given.turns)
        return
    shapes, turns = ((QUICK,), 2) if given.quick else ((*SHAPES, REAL), given.turns)
    ways = WAYS[-1:] if given.quick else WAYS
    with machine.memcpy_loop() as (copy, name):
        table = Table(*COLUMNS, box=None, caption=f"GB/s, medians; out and in: {name}")
        for shape, (way, threads) in itertools.product(shapes, ways):
            save, load, out, back = measure(shape, way, threads, copy, turns)
            goal = LARGE_GOAL if shape.piece >= LARGE else SMALL_GOAL
            table.add_row(
                way,
                str(threads),
                str(shape),
                *(f"{speed / 1e9:.1f}" for speed in (save, load, out, back)),
                *(
                    f"{ratio:.2f} {verdict(ratio, goal, least=True)}"
                    for ratio in (save / out, load / back)
                ),
                machine.load(),
            )
        machine.show(table)


if __name__ == "__main__":
    command.run("perf.copies", main)
