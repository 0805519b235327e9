"""What is done for the first time beside the same done again: python -m perf.fresh

A pool into whose pages nobody has saved yet, and a session that has copied nothing yet.  One engine
saves until each page of the pool was written once, then again as much, so that every save evicts;
then it goes, another gets a session that was a spare till now, and loads and saves.  Before that
the pool has grown to its end, and every session has it in its page tables as far as it does that in
advance.  Beside the time stands what does not depend on who else uses the machine: how often the
session's process was interrupted by a page that it had not touched before.  What the page tables of
a spare take is what /proc says of it (VmPTE).

Goals: a save into a fresh pool takes at most 1.3 times as long as into a full one, and so does the
first load and the first save of a new session beside those of one that has copied the whole pool.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

from rich.table import Table

from pegaflow.client import inspect
from pegaflow.core.errors import UserError
from pegaflow.replay import service
from pegaflow.wire.values import SESSION
from perf import command, machine
from perf.copies import EXTENT, Engine
from perf.machine import verdict
from perf.shapes import QUICK, SHAPES, Shape

COLUMNS = ("layout", "what", "first", "later", "first/later", "faults", "later", "load")
WAY = "process_vm"
GOAL = 1.3
PASSES = 16  # saves that fill the pool
NEWCOMERS = 5
WAIT_S = 60.0


def warm(endpoint: str, pool: int) -> float:
    """Wait until the pool has grown and all sessions have it; MiB of page tables of a spare."""
    until = time.monotonic() + WAIT_S
    while time.monotonic() < until:
        report = inspect(endpoint, 1.0)
        rows = report.processes if report is not None else ()
        named = [{c.name: c.value for c in row.counters} for row in rows]
        grown = any(c.get("pool_capacity_bytes") and not c["pool_absent_bytes"] for c in named)
        entered = [c.get("session_entered_bytes", 0) for c in named if "session_entered_bytes" in c]
        sessions = [row for row in rows if row.address.name == SESSION]
        spares = [row for row in sessions if row.state == "spare"]
        if grown and spares and len(entered) == len(sessions) and min(entered) >= pool:
            said = Path(f"/proc/{spares[0].pid}/status").read_text()
            found = re.search(r"VmPTE:\s+(\d+) kB", said)
            return int(found[1]) / 1024 if found else 0.0
        time.sleep(0.05)
    raise UserError("the pool does not grow, or no session has it in its page tables")


class Turn(NamedTuple):
    """One save or load."""

    seconds: float
    faults: int  # of the session's process


def faults(endpoint: str, shape: Shape) -> Callable[[], int]:
    """Reads how often the session of this engine has been interrupted by a page so far."""
    report = inspect(endpoint, 1.0)
    rows = report.processes if report is not None else ()
    pid = next((row.pid for row in rows if row.engine == f"perf-{shape}"), 0)
    stat = Path(f"/proc/{pid}/stat")
    return lambda: int(stat.read_text().rsplit(")", 1)[1].split()[7])


def turns(count: int, do: Callable[[], float], so_far: Callable[[], int]) -> list[Turn]:
    """Do it so often."""
    found = []
    for _ in range(count):
        before = so_far()
        seconds = do()
        found.append(Turn(seconds, so_far() - before))
    return found


def measure(shape: Shape, passes: int, newcomers: int) -> tuple[list[list[Turn]], float]:
    """Saves into a fresh and into a full pool, loads by new sessions and by an old one, and saves;
    MiB of page tables for each GiB of pool."""
    pool = -(-passes * shape.total // EXTENT) * EXTENT
    with service.running(pool, EXTENT) as endpoint:
        tables = warm(endpoint, pool)
        engine = Engine(endpoint, shape, WAY)
        try:
            so_far = faults(endpoint, shape)
            fresh = turns(passes, engine.save, so_far)
            full = turns(passes, engine.save, so_far)
            loads = turns(passes, engine.load, so_far)
        finally:
            engine.close()
        first_loads: list[Turn] = []
        first_saves: list[Turn] = []
        for _ in range(newcomers):
            warm(endpoint, pool)
            engine = Engine(endpoint, shape, WAY, engine.turn)
            try:
                so_far = faults(endpoint, shape)
                first_loads += turns(1, engine.load, so_far)
                first_saves += turns(1, engine.save, so_far)
            finally:
                engine.close()
    return [fresh, full, first_loads, loads, first_saves, full], tables / (pool / (1 << 30))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small layout, two turns")
    given = parser.parse_args()
    shapes = (QUICK,) if given.quick else SHAPES
    passes, newcomers = (256, 1) if given.quick else (PASSES, NEWCOMERS)
    table = Table(*COLUMNS, box=None)
    tables = 0.0
    for shape in shapes:
        found, tables = measure(shape, passes, newcomers)
        names = ("save, fresh pool", "load, new session", "save, new session")
        for what, first, later in zip(names, found[::2], found[1::2], strict=True):
            seconds = [median(turn.seconds for turn in column) for column in (first, later)]
            taken = [median(turn.faults for turn in column) for column in (first, later)]
            ratio = seconds[0] / seconds[1]
            cells = [f"{1e3 * one:.1f}" for one in seconds] + [
                f"{ratio:.2f} {verdict(ratio, GOAL)}"
            ]
            cells += [f"{one:,.0f}" for one in taken]
            table.add_row(str(shape), what, *cells, machine.load())
    table.caption = f"milliseconds, medians; a spare's page tables: {tables:.2f} MiB for each GiB"
    machine.show(table)


if __name__ == "__main__":
    command.run("perf.fresh", main)
