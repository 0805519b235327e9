"""What the directory of other hosts' blocks costs: python -m perf.directory [--blocks N]

Some hosts say what they have, 1,024 blocks at a time; then one of them changes 1,024 at a time,
runs of 1,024 keys, half of them known, are looked up, and one host's snapshot is taken and put in
the place of what was there.  "one" is the table that the peer link has (core/directory/held.py);
"one for each" is the same with a table for each host, for comparison.  "in common" are hosts that
all have the same blocks.  Then 1,024 keys are planned over eight hosts and a disk
(core/directory/planning.py): all have all, four kinds of owners with memory and disk between them,
and owners by chance, the worst that can be.  Beside each lookup stands its limit: numpy reading as
many lines of as large a memory, in the same order of places, one for each key.  Times are CPU time.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from rich.table import Table

from pegaflow.core.directory.held import LAST_NAME, Held
from pegaflow.core.directory.planning import SSD, Run, Source, plan
from pegaflow.core.pool.fingerprints import U64
from perf import command, machine

BATCH = 1024
CHUNK = 8192
TURNS = 200

COLUMNS = ("MB", "fill, us a block", "longest, ms", "change, us a block", "query, us", "limit, us")
GOALS = "goals: 16 x 1 M blocks in 400 MB, a query of 1,024 keys well under 1 ms, a plan under 1 ms"


class Tables:
    """One table of all hosts, or one for each."""

    def __init__(self, hosts: int, each: int, apart: bool) -> None:
        self.hosts = hosts
        self.tables = [Held(1, each) for _ in range(hosts)] if apart else [Held(hosts, each)]

    def of(self, host: int) -> tuple[Held, int]:
        return (self.tables[host], 0) if len(self.tables) > 1 else (self.tables[0], host)

    def owners_of(self, names: U64) -> U64:
        found = self.tables[0].owners_of(names)
        for host, table in enumerate(self.tables[1:], 1):
            found |= table.owners_of(names) << np.uint64(host)
        return found

    @property
    def megabytes(self) -> float:
        return sum(table.bytes_used for table in self.tables) / 1e6


def cpu(call: Callable[[], object]) -> float:
    """Seconds of this thread."""
    start = time.thread_time()
    call()
    return time.thread_time() - start


def microseconds(calls: Sequence[Callable[[], object]]) -> float:
    """The median of all calls."""
    return float(np.median([cpu(call) for call in calls])) * 1e6


def row(hosts: int, blocks: int, *, apart: bool, common: bool) -> tuple[list[str], Tables]:
    """One line of the table."""
    chance = np.random.default_rng(1)
    tables = Tables(hosts, blocks, apart)
    names = chance.integers(2, 1 << 64, blocks, np.uint64)
    took, longest = 0.0, 0.0
    for host in range(hosts):
        if not common:
            names = chance.integers(2, 1 << 64, blocks, np.uint64)
        table, bit = tables.of(host)
        for first in range(0, blocks, BATCH):
            some = names[first : first + BATCH]
            seconds = cpu(partial(table.add, bit, some))
            took, longest = took + seconds, max(longest, seconds)
    table, bit = tables.of(hosts - 1)
    gone = [chance.choice(names, BATCH) for _ in range(TURNS)]
    new = [chance.integers(2, 1 << 64, BATCH, np.uint64) for _ in range(TURNS)]
    changing = microseconds([partial(table.remove, bit, some) for some in gone])
    changing += microseconds([partial(table.add, bit, some) for some in new])
    half = BATCH // 2
    asked = [np.concatenate([chance.choice(names, half), some[half:]]) for some in new]
    query = microseconds([partial(tables.owners_of, some) for some in asked])
    memory = np.zeros((int(tables.megabytes * 1e6) // 64, 8), np.uint64)
    memory[:] = 1
    lines = [(some >> np.uint64(32)) * np.uint64(len(memory)) >> np.uint64(32) for some in asked]
    places = [some.astype(np.int64) for some in lines]
    limit = microseconds([partial(memory.take, some, axis=0) for some in places])
    figures = [f"{tables.megabytes:.0f}", f"{took / hosts / blocks * 1e6:.2f}"]
    figures += [f"{longest * 1e3:.1f}", f"{changing / BATCH / 2:.2f}"]
    return [*figures, f"{query:.0f}", f"{limit:.0f}"], tables


def snapshot(table: Held, host: int) -> str:
    """What a host has, read in chunks by itself, and put into the table again."""
    own = Held(1, table.each)
    first = 0
    own.expect(0, table.each)
    while own.busy:
        own.step()
    while first <= LAST_NAME:
        names, last = table.chunk(host, first, CHUNK)
        own.add(0, names)
        first = last + 1
    reading, putting, first = [], [], 0
    while first <= LAST_NAME:
        start = time.thread_time()
        names, last = own.chunk(0, first, CHUNK)
        reading.append(time.thread_time() - start)
        putting.append(cpu(partial(table.replace, host, first, last, names)))
        first = last + 1
    both = [f"{sum(part):.2f} s, longest {max(part) * 1e3:.1f} ms" for part in (reading, putting)]
    return f"a snapshot of {len(own):,} in {len(reading)} chunks: read {both[0]}; put {both[1]}"


def drop(table: Held, host: int) -> str:
    """A host is gone."""
    steps = []
    table.drop(host)
    while table.busy:
        steps.append(cpu(table.step))
    return (
        f"a host dropped of {len(table):,}: {sum(steps):.2f} s, longest {max(steps) * 1e3:.1f} ms"
    )


def planning() -> str:
    """What a plan takes."""
    chance = np.random.default_rng(1)
    nobody, everybody = np.zeros(BATCH, np.bool_), np.full(BATCH, 255, np.uint64)
    here, disk, kinds = nobody.copy(), nobody.copy(), everybody.copy()
    here[:256], disk[300:500] = True, True
    kinds[:400], kinds[400:800], kinds[800:] = 3, 240, 12
    runs = {
        "all have all": Run(nobody, nobody, everybody, 1 << 20),
        "four kinds": Run(here, disk, kinds, 1 << 20),
        "by chance": Run(nobody, nobody, chance.integers(1, 256, BATCH, np.uint64), 1 << 20),
    }
    sources = {n: Source(1e9 + n * 1e8, n * 1_000_000) for n in range(8)}
    sources[SSD] = Source(3e9, 500_000)
    took = {
        f"{name}{said}": microseconds([partial(plan, run, sources, 200_000_000, prefill)] * TURNS)
        for name, run in runs.items()
        for said, prefill in (("", None), (", a stated prefill rate", 2e9))
    }
    return "plans of 1,024 keys, us: " + "; ".join(f"{n} {us:.0f}" for n, us in took.items())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, default=1_000_000, help="of each host")
    given = parser.parse_args()
    table = Table("hosts", "blocks", "tables", *COLUMNS, caption=GOALS, box=None)
    lines: list[str] = []
    for hosts in (8, 16):
        for common in (False, True):
            for apart in (False, True):
                cells, tables = row(hosts, given.blocks, apart=apart, common=common)
                kinds = ("in common" if common else "apart", "one for each" if apart else "one")
                table.add_row(f"{hosts} x {given.blocks:,}", *kinds, *cells)
                if not (common or apart):
                    held, bit = tables.of(hosts - 1)
                    lines += [snapshot(held, bit), drop(held, bit)]
    machine.show(table, *lines, planning())


if __name__ == "__main__":
    command.run("perf.directory", main)
