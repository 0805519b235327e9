"""Replay a trace through pools and SSD logs of several sizes: python -m perf.replay [TRACE]

Each size, a percentage of the trace's unique blocks, gets a service and a namespace of its own, and
so does each size of the log below it. The table has the measured hit rate beside plain LRU of both
together and the infinite cache, and copies beside memcpy.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from pathlib import Path

from rich.table import Table

from pegaflow.core.errors import UserError
from pegaflow.replay import ceiling, report, service
from pegaflow.replay.engine import Shape
from pegaflow.replay.errors import TraceError
from pegaflow.replay.reading import Options, read
from pegaflow.replay.runner import Plan, run
from pegaflow.replay.trace import BUNDLED, Trace
from pegaflow.wire.control import BEAT_NS
from pegaflow.wire.values import INDEX
from perf import command, fio, machine
from perf.ssd import counted, flags, folders

PERCENT = (1, 5, 10, 25)
SSD_PERCENT = (0, 25, 100)
SSD_LEAST = 64 << 20
SSD_SLACK = 1.25  # of the log: heads, footers, and the segment that is written next
EXTENT = 4 << 20  # smaller than a service's usual one, so that a small pool has some
COLUMNS = "pool,ssd,blocks,hit,of ssd,LRU,infinite,load,save,memcpy,p50,p99,s".split(",")


def measure(
    trace: Trace, engines: int, shape: Shape, percent: int, ssd: int, where: Path
) -> list[str]:
    """One row of the table."""
    top = ceiling.infinite(trace)
    unique = top.missed
    wanted = unique * percent // 100 * shape.block_bytes
    pool = max(4, -(-wanted // EXTENT)) * EXTENT
    blocks, below = pool // shape.block_bytes, unique * ssd // 100
    with folders(where, 1) as paths:
        size = max(SSD_LEAST, int(below * shape.block_bytes * SSD_SLACK))
        extra = flags(paths, "--ssd-cache-capacity", str(size)) if ssd else ()
        with service.running(pool, EXTENT, extra) as endpoint:
            outcome = run(Plan(trace, engines, shape, os.urandom(32), endpoint=endpoint))
            time.sleep(2 * BEAT_NS / 1e9)  # what was counted is said with each beat
            fetched = counted(endpoint, INDEX, "blocks_hit_ssd")
    why = report.problem(outcome, trace, engines)
    if why:
        raise UserError(f"with a pool of {percent} %: {why}")
    t = report.total(outcome.records.values())
    rates = (t.rate, fetched / t.asked, ceiling.lru(trace, blocks + below).rate, top.rate)
    speeds = (t.load.large, t.save.large, outcome.memcpy)
    return [
        f"{percent} %",
        f"{ssd} %",
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
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="a folder on the disk")
    parser.add_argument("--requests", type=int, help="only so many")
    parser.add_argument("--engines", type=int, default=2)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--layer-bytes", type=int, default=8192)
    given = parser.parse_args()
    shape = Shape(given.layers, given.layer_bytes, 256)
    table = Table(*COLUMNS, box=None, caption="GB/s of copies of 2 MiB and more; lookup in us")
    try:
        trace = read([given.trace], Options(limit=given.requests))
        fio.need_disk(given.dir)
        for percent, ssd in itertools.product(PERCENT, SSD_PERCENT):
            row = measure(trace, given.engines, shape, percent, ssd, given.dir)
            table.add_row(*row)
    except TraceError as error:
        raise UserError(str(error)) from None
    machine.show(table)


if __name__ == "__main__":
    command.run("perf.replay", main)
