"""How long an engine waits for its session: python -m perf.attach

A client connects and registers its memory, from the first call to the moment it is served: with a
spare session ready (goal: under 50 ms, whatever the size of the pool), and with none, so that one
is started first (goal: under 300 ms).  Beside it stands what the second cannot go below: a Python
process that imports what a session imports.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from statistics import median

import numpy as np
from rich.table import Table

from pegaflow.client import Client, inspect
from pegaflow.core.errors import UserError
from pegaflow.replay import service
from pegaflow.service import sizes
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.values import SESSION
from perf import command, machine
from perf.machine import verdict

COLUMNS = ("pool", "spare", "median", "most", "bare process", "goal", "load")
POOLS = (1 << 30, 8 << 30)
SPARE_MS, COLD_MS = 50.0, 300.0
BLOCK = 64 << 10
BLOCKS = 256
WAIT_S = 30.0


def attach(endpoint: str, engine: str) -> tuple[float, Client]:
    """Milliseconds until a new engine is served, and its client."""
    layout = Layout(BLOCKS, (LayerLayout(0, 0, BLOCK, BLOCK),), "uint8")
    memory = np.zeros(BLOCK * BLOCKS, np.uint8)
    start = time.perf_counter()
    client = Client(engine, b"perf" * 4, endpoint=endpoint)
    client.register(layout, [memory])
    if not client.connect(WAIT_S):
        raise UserError(f"no session: {client.refusal}")
    return 1e3 * (time.perf_counter() - start), client


def spares(endpoint: str, least: int) -> int:
    """How many spare sessions there are, once there are so many and no session comes or goes."""
    until = time.monotonic() + WAIT_S
    states: list[str] = []
    while time.monotonic() < until:
        report = inspect(endpoint, 1.0)
        if report is not None:
            states = [row.state for row in report.processes if row.address.name == SESSION]
            ready = states.count("spare")
            if ready >= least and set(states) <= {"spare", "serving"}:
                return ready
        time.sleep(0.02)
    raise UserError(f"{least} spare sessions are wanted, there are: {', '.join(states)}")


def measure(pool: int, ready: int, turns: int) -> list[float]:
    """Milliseconds of each turn, in a service that keeps so many spares."""
    found = []
    with service.running(pool, extra=("--spares", str(ready))) as endpoint:
        for turn in range(turns):
            clients = []
            left = spares(endpoint, ready)
            while not ready and left:  # one that was started for an engine before
                clients.append(attach(endpoint, f"perf-{turn}-{left}")[1])
                left = spares(endpoint, ready)
            taken, client = attach(endpoint, f"perf-{turn}")
            found.append(taken)
            for one in (*clients, client):
                one.close()
    return found


def bare_process(turns: int) -> float:
    """Milliseconds that a process with a session's imports takes, from spawn to exit."""
    session = "pegaflow.actors.session"
    imports = f"pegaflow.actors.runtime.process, {session}.device, {session}.actor"
    code = f"import sys; sys.modules['rich'] = None; import {imports}"
    command = [sys.executable, "-c", code]
    seconds, *_ = machine.medians(turns, [lambda: subprocess.run(command, check=True)])
    return 1e3 * seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small pool, two turns")
    parser.add_argument("--turns", type=int, default=15)
    given = parser.parse_args()
    pools, turns = ((64 << 20,), 2) if given.quick else (POOLS, given.turns)
    table = Table(*COLUMNS, box=None, caption="milliseconds from connect to being served")
    bare = bare_process(turns)
    for pool in pools:
        for ready, goal in ((2, SPARE_MS), (0, COLD_MS)):
            found = measure(pool, ready, turns)
            figures = (median(found), max(found), bare)
            table.add_row(
                sizes.show(pool),
                "ready" if ready else "none",
                *(f"{figure:.0f}" for figure in figures),
                verdict(median(found), goal),
                machine.load(),
            )
    machine.show(table)


if __name__ == "__main__":
    command.run("perf.attach", main)
