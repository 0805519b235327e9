"""How long a new index takes to know what its predecessor knew: python -m perf.recovery

A real service with an index of so many blocks of one page each (perf/house.py); the index is killed
and an engine asks, again and again, until all of a chain is a hit, which needs no index; then until
the service's report, which is up to a beat old, says that the next one knows what there is. Beside
it: what the index does with the ledger, here, without its process; a Python process that imports
what an index imports; and the memcpy of as many bytes as the ledger has.  Between two kills the
index lives long enough to be restarted without any back-off.  Goal: a million pages are adopted in
under a second.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
from rich.table import Table

from pegaflow.actors.supervisor.restarts import CALM_NS
from pegaflow.client import Client, inspect
from pegaflow.core.blocks.adoption import Adoption
from pegaflow.core.blocks.table import PrefixIndex
from pegaflow.core.errors import UserError
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.ledger import RECORD_BYTES, Ledger
from pegaflow.device.memory import SharedFile
from pegaflow.service.rundir import front_desk
from pegaflow.wire.control import ProcessRow, Report
from pegaflow.wire.values import INDEX, Address
from perf import command, house, machine
from perf.attach import attach
from perf.machine import verdict

COLUMNS = "pages adopted,killed to hit,to known,most,bare process,adoption,memcpy,goal,load".split(
    ","
)
PAGES = (100_000, 1_000_000)
GOAL_S = 1.0
WAIT_S = 30.0
ENGINE = "perf"


def report_of(run_dir: Path) -> Report:
    """What the front desk says."""
    report = inspect(front_desk(run_dir), 2.0)
    if report is None:
        raise UserError("the service does not answer")
    return report


def index_of(run_dir: Path) -> ProcessRow | None:
    """The living index."""
    rows = [row for row in report_of(run_dir).processes if row.address.name == INDEX]
    return next((row for row in rows if row.state == "up"), None)


def counter(index: ProcessRow, name: str) -> int:
    """By its last Beat."""
    return next((c.value for c in index.counters if c.name == name), 0)


def resident(run_dir: Path) -> int:
    """Blocks that the index knows."""
    index = index_of(run_dir)
    return counter(index, "blocks_resident") if index is not None else 0


def replaced(run_dir: Path, victim: Address) -> bool:
    """Whether another index knows what there is."""
    index = index_of(run_dir)
    return index is not None and index.address != victim and counter(index, "blocks_adopted") > 0


def wait(what: str, done: Callable[[], bool]) -> None:
    """Until that is so."""
    until = time.perf_counter() + WAIT_S
    while not done():
        if time.perf_counter() > until:
            raise UserError(f"not within {WAIT_S:g} s: {what}")
        time.sleep(0.001)


def hits(client: Client, names: Sequence[bytes]) -> int:
    """Blocks of the prefix that are there; nothing of it is kept."""
    found = client.lookup(names, timeout=1.0)
    if found.lease is not None:
        client.release(found.lease)
    return found.blocks


def bare_process() -> None:
    """A process with the index's imports, from spawn to exit."""
    code = "import sys; sys.modules['rich'] = None; import pegaflow.actors.runtime.process, "
    subprocess.run([sys.executable, "-c", code + "pegaflow.actors.index.actor"], check=True)


def adopt(ledger: Ledger, geometry: Geometry) -> int:
    """What the index does with it; how many blocks it finds."""
    blocks = PrefixIndex(ledger.read)
    adoption = Adoption(ledger, geometry, blocks)
    while adoption.step():
        pass
    return len(blocks)


def measure(pages: int, turns: int) -> tuple[list[tuple[float, float]], list[float]]:
    """Seconds from each kill to the first full hit, and to an index that knows what there is; of
    the bare process, adoption and memcpy."""
    with house.running(pages) as run_dir:
        _, before = attach(front_desk(run_dir), ENGINE)
        before.close()
        house.fill(run_dir, house.namespace_of(ENGINE, run_dir), pages)
        _, client = attach(front_desk(run_dir), ENGINE)
        names = house.keys(house.CHAIN, pages // house.CHAIN - 1)
        recoveries = []
        for turn in range(turns):
            time.sleep(CALM_NS / 1e9 + 1 if turn else 0)
            victim = index_of(run_dir)
            if victim is None:
                raise UserError("there is no index")
            os.kill(victim.pid, signal.SIGKILL)
            began = time.perf_counter()
            wait("all is a hit", lambda: hits(client, names) == len(names))
            hit = time.perf_counter() - began
            wait("the next index knows it", partial(replaced, run_dir, victim.address))
            recoveries.append((hit, time.perf_counter() - began))
        report = report_of(run_dir)
        client.close()
        file = SharedFile.peek(report.ledger_path)
        ledger = Ledger(file.map, file.read)
        geometry = Geometry(report.pool_bytes, report.extent_bytes)
        source = np.ones(pages * RECORD_BYTES, np.uint8)
        target = np.zeros_like(source)
        wait("we adopt what the index knows", lambda: adopt(ledger, geometry) == resident(run_dir))
        copy = partial(np.copyto, target, source)
        calls = (bare_process, partial(adopt, ledger, geometry), copy)
        return recoveries, machine.medians(turns, calls)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few pages, one turn")
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    sizes, turns = ((10_240,), 1) if given.quick else (PAGES, given.turns)
    table = Table(*COLUMNS, box=None, caption="seconds; medians, but for `most`")
    for pages in sizes:
        recoveries, (bare, adoption, memcpy) = measure(pages, turns)
        to_hit, to_known = zip(*recoveries, strict=True)
        figures = (median(to_hit), median(to_known), max(to_known), bare, adoption)
        shown = [f"{figure:.2f}" for figure in figures]
        goal = verdict(adoption, GOAL_S)
        table.add_row(f"{pages:,}", *shown, f"{memcpy:.3f}", goal, machine.load())
    machine.show(table)


if __name__ == "__main__":
    command.run("perf.recovery", main)
