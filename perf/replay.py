"""Replay a trace through pools of several sizes: python perf/replay.py [TRACE] [--requests N]

Each size, a percentage of the trace's unique blocks, gets a service and a namespace of its own. The
table has the measured hit rate beside plain LRU and the infinite cache, and copies beside memcpy.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pegaflow.errors import UserError
from pegaflow.replay import ceiling, report, service
from pegaflow.replay.engine import Shape
from pegaflow.replay.runner import Plan, run
from pegaflow.replay.trace import BUNDLED, Request, TraceError, count_blocks, read

PERCENT = (1, 5, 10, 25)
EXTENT = 4 << 20  # smaller than a service's usual one, so that a small pool has some
COLUMNS = ("pool", "blocks", "hit", "LRU", "infinite", "load", "save", "memcpy", "p50", "p99", "s")


def measure(requests: list[Request], engines: int, shape: Shape, percent: int) -> list[str]:
    """One row of the table."""
    _, unique = count_blocks(requests)
    wanted = unique * percent // 100 * shape.block_bytes
    pool = max(4, -(-wanted // EXTENT)) * EXTENT
    blocks = pool // shape.block_bytes
    with service.running(pool, EXTENT) as endpoint:
        outcome = run(Plan(requests, engines, shape, os.urandom(32), endpoint))
    top = ceiling.infinite(requests)
    why = report.problem(outcome, top)
    if why:
        raise UserError(f"with a pool of {percent} %: {why}")
    t = report.total(outcome.records.values())
    rates = (t.rate, ceiling.lru(requests, blocks).rate, top.rate)
    speeds = (t.load.large, t.save.large, outcome.memcpy)
    return [
        f"{percent} %",
        str(blocks),
        *map(report.percent, rates),
        *(f"{speed / 1e9:.2f}" for speed in speeds),
        *(f"{seconds * 1e6:.0f}" for seconds in (t.lookup_p50, t.lookup_p99)),
        f"{outcome.seconds:.1f}",
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", nargs="?", type=Path, default=BUNDLED)
    parser.add_argument("--requests", type=int, help="only so many")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--layer-bytes", type=int, default=8192)
    given = parser.parse_args()
    shape = Shape(given.layers, given.layer_bytes, 256)
    table = Table(*COLUMNS, box=None, caption="GB/s of copies of 2 MiB and more; lookup in us")
    try:
        requests = read(given.trace, given.requests)
        for percent in PERCENT:
            table.add_row(*measure(requests, given.engines, shape, percent))
    except (TraceError, UserError) as error:
        raise SystemExit(f"perf/replay.py: {error}") from None
    Console().print(table)


if __name__ == "__main__":
    main()
