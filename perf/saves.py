"""What saves of few blocks cost each process: python -m perf.saves

Requests that decode save one block each, in the same step, and prompts some tens of blocks.  A
client keeps several saves under way, of blocks of 8 layers of 8 KiB, into a full pool; one save
may bring several chains, as the connector says those of a step together.  *CPU* is
what the kernel's books say (/proc/PID/task/*/schedstat) of each process for one save, copies
included; it depends less on who else uses the machine than the time does.  *memcpy* is one C loop
over the bytes of one save.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from statistics import median

from rich.table import Table

from pegaflow.client import Chain, Client, inspect
from pegaflow.core.errors import UserError
from pegaflow.replay import service
from pegaflow.wire.values import ALLOCATOR, INDEX, SESSION
from perf import command, machine
from perf.machine import Copy
from perf.shapes import Memcpy, Shape

COLUMNS = (
    *("chains", "blocks", "under way", "saves/s", "p50"),
    *(INDEX, SESSION, ALLOCATOR, "client", "memcpy"),
)
LAYERS, PIECE = 8, 8 << 10
POOL, QUICK_POOL = 256 << 20, 32 << 20
SIZES = ((1, 1, 1), (1, 1, 16), (16, 1, 1), (1, 32, 8), (1, 256, 2))
QUICK = ((1, 1, 4), (4, 1, 1))
SAVES, QUICK_SAVES = 400, 20
TIMEOUT_S = 30.0


class Saver:
    """A client with several saves under way.

    Args:
        chains: of each save.
        blocks: of each chain.
        width: saves under way.
    """

    def __init__(self, endpoint: str, chains: int, blocks: int, width: int) -> None:
        self._chains, self._blocks, self._width, self._begun = chains, blocks, width, 0
        shape = Shape(chains * blocks * width, LAYERS, PIECE)
        self._memory = machine.memory(2 * shape.total)
        self._memory[:] = 1
        self._client = Client(f"perf-saves-{chains}-{blocks}", b"perf" * 4, endpoint=endpoint)
        self._client.register(shape.layout, [self._memory])
        if not self._client.connect(TIMEOUT_S):
            self._client.close()
            raise UserError(f"no session: {self._client.refusal}")

    def run(self, saves: int) -> list[float]:
        """So many saves, under keys that are new; the seconds of each."""
        left, free = saves, list(range(self._width))
        begun: dict[int, tuple[int, float]] = {}
        took = []
        while left or begun:
            while left and free:
                place = free.pop()
                begun[self._begin(place)] = place, time.perf_counter()
                left -= 1
            for done in self._client.poll(TIMEOUT_S):
                place, since = begun.pop(done.ticket)
                took.append(time.perf_counter() - since)
                free.append(place)
        return took

    def _begin(self, place: int) -> int:
        first, *more = (self._chain(place * self._chains + at) for at in range(self._chains))
        order = first.order if more else 0
        return self._client.start_save(
            first.keys, first.blocks, timeout=TIMEOUT_S, order=order, more=more
        )

    def _chain(self, place: int) -> Chain:
        self._begun += 1
        keys = [b"%016x%016x" % (self._begun, block) for block in range(self._blocks)]
        first = place * self._blocks
        return Chain(keys, range(first, first + self._blocks), self._begun)

    def close(self) -> None:
        self._client.close()


def cpu(pids: dict[int, str]) -> Counter[str]:
    """Nanoseconds that the processes of each name have run."""
    found: Counter[str] = Counter()
    for pid, name in pids.items():
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            found[name] += int(task.read_text().split()[0])
    return found


def measure(
    endpoint: str, size: tuple[int, int, int], saves: int, pool: int
) -> tuple[float, float, list[float]]:
    """Saves per second, seconds of one, and ms of CPU that one costs each process of COLUMNS."""
    chains, blocks, width = size
    saver = Saver(endpoint, chains, blocks, width)
    try:
        saver.run(pool // (LAYERS * PIECE * chains * blocks) + width)
        report = inspect(endpoint, 1.0)
        rows = report.processes if report is not None else ()
        pids = {row.pid: row.address.name for row in rows}
        before, own, began = cpu(pids), time.process_time(), time.perf_counter()
        took = saver.run(saves)
        seconds, client = time.perf_counter() - began, time.process_time() - own
        spent = cpu(pids) - before
    finally:
        saver.close()
    each = [spent[name] / saves / 1e6 for name in (INDEX, SESSION, ALLOCATOR)]
    return saves / seconds, median(took), [*each, client / saves * 1e3]


def limit(copy: Copy, blocks: int) -> float:
    """Milliseconds of one loop over the bytes of a save."""
    shape = Shape(blocks, LAYERS, PIECE)
    loop = Memcpy(copy, shape, machine.memory(2 * shape.total))
    return median(loop.out() for _ in range(50)) * 1e3


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few saves of one block")
    given = parser.parse_args()
    sizes, saves, pool = (QUICK, QUICK_SAVES, QUICK_POOL) if given.quick else (SIZES, SAVES, POOL)
    table = Table(*COLUMNS, "load", box=None)
    with machine.memcpy_loop() as (copy, name), service.running(pool) as endpoint:
        for size in sizes:
            speed, seconds, spent = measure(endpoint, size, saves, pool)
            bare = limit(copy, size[0] * size[1])
            cells = [f"{ms:.2f}" for ms in (seconds * 1e3, *spent, bare)]
            table.add_row(*map(str, size), f"{speed:.0f}", *cells, machine.load())
        table.caption = f"p50 in ms; CPU of one save in ms; memcpy: {name}"
    machine.show(table)


if __name__ == "__main__":
    command.run("perf.saves", main)
