"""Lookup and lease in an engine's thread, beside the peers: python -m perf.peers.lookups

Each contestant is an engine and a service of its own with the same chains of 1,024 blocks in its
memory (contestants.py), and takes its turn of a few lookups; the time of one is from the call of
the client to the answer that names the lease.  Leases are given back between lookups.  With
several at once, that many lookups are under way or have a lease; the peers' clients wait for each
answer, so there each lookup has a thread.  `stopped` is ours with supervisor, index, allocator and
session stopped by SIGSTOP, for as long as `--stopped` says, with a load after each hundredth lookup
by the staged way: what fails then is counted, and what was loaded is compared.

The limits beside them are a bare ZeroMQ ipc echo of as many bytes, and one with a process between.

Goals, beside the original in the same run: 128 keys in a third of its p50, and a p99 within its
p50; 1,024 keys in 0.8 of its p50; 64 at once no slower each than one at a time; stopped the same.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from pegaflow.core.errors import UserError
from perf import command, echo, machine
from perf.machine import microseconds, percentile, verdict
from perf.peers.contestants import OURS, Entry, Handle, all_running, default_folder, entries
from perf.peers.obey import Size

COLUMNS = ("keys", "at once", "who", "p50", "p99", "lookups/s", "of the original's", "goal", "load")
CASES = ((128, 1), (1024, 1), (128, 16), (128, 64))
CHAIN, BLOCK = 1024, 16 << 10
CHAINS, QUICK_CHAINS = 64, 24  # 64 lookups of 128 keys at once and their leases: half of 24
THIRD, LONG, FLAT = 1 / 3, 0.8, 1.25
ORIGINAL = "original"


@dataclass
class Lookups:
    """Of one contestant or limit."""

    seconds: list[float] = field(default_factory=list)  # of each
    wall: float = 0.0  # seconds of its turns, leases given back

    def turn(self, do: Callable[[], list[float]]) -> None:
        """Let it have one."""
        wall, seconds = machine.timed(do)
        self.wall += wall
        self.seconds += seconds


Times = dict[str, Lookups]
"""By who."""


def size_for(chains: int) -> Size:
    """A pool that holds them, with a quarter to spare for what a service keeps free."""
    return Size(chains * CHAIN * BLOCK * 5 // 4, CHAIN, BLOCK)


def rounds(
    handles: Sequence[Handle],
    limits: tuple[echo.Chain, echo.Chain],
    case: tuple[int, int],
    count: int,
) -> tuple[Times, list[str]]:
    """`count` lookups of each, in turns; and a line of each that could not."""
    keys, at_once = case
    turn = max(2 * at_once, 50)
    bare = dict(zip(("zmq echo", "zmq, two hops"), limits, strict=True))
    times: Times = {name: Lookups() for name in (*(handle.name for handle in handles), *bare)}
    failed: dict[str, str] = {}
    for _ in range(-(-count // turn)):
        for handle in handles:
            if handle.name in failed:
                continue
            try:
                times[handle.name].turn(partial(handle.ask, "lookups", keys, turn, at_once))
            except UserError as error:
                failed[handle.name] = str(error)
        for name, limit in bare.items():
            times[name].turn(partial(limit.ask, 32 * keys, turn, at_once))
    return {name: own for name, own in times.items() if own.seconds}, list(failed.values())


def goal(
    case: tuple[int, int], ours: Sequence[float], original: Sequence[float], alone: float
) -> str:
    """What ours has reached.

    Args:
        alone: p50 of as many keys, one lookup at a time.
    """
    p50, p99 = percentile(ours, 50), percentile(ours, 99)
    if case[1] > 1:
        return f"p50/alone {p50 / alone:.2f} {verdict(p50 / alone, FLAT)}"
    if not original:
        return ""
    bare = percentile(original, 50)
    share = LONG if case[0] == CHAIN else THIRD
    said = f"p50 {verdict(p50 / bare, round(share, 2))}"
    return said if case[0] == CHAIN else f"{said}, p99 {verdict(p99 / bare, 1)}"


def rows(case: tuple[int, int], times: Times, alone: float) -> list[list[str]]:
    """One for each who."""
    original = times.get(ORIGINAL, Lookups()).seconds
    bare = percentile(original, 50) if original else 0.0
    found = []
    for name, own in times.items():
        p50, p99 = percentile(own.seconds, 50), percentile(own.seconds, 99)
        found.append(
            [
                str(case[0]),
                str(case[1]),
                name,
                microseconds(p50),
                microseconds(p99),
                f"{len(own.seconds) / own.wall:,.0f}",
                f"{p50 / bare:.2f}" if bare else "",
                goal(case, own.seconds, original, alone or p50) if name == OURS else "",
                machine.load(),
            ]
        )
    return found


def stopped_row(keys: int, found: dict[str, Any], alone: float) -> list[str]:
    """Ours, while nobody of its service runs."""
    times, failed = found["times"], found["failed"]
    lost = f"{failed['lookups']} lookups and {failed['loads']} of {found['loads']} loads failed"
    if not times:
        return [str(keys), "1", "ours, stopped", "none", "none", "", "", lost, machine.load()]
    p50, p99 = percentile(times, 50), percentile(times, 99)
    said = f"p50/running {verdict(p50 / alone, FLAT)}, {lost}"
    figures = [microseconds(p50), microseconds(p99), f"{len(times) / sum(times):,.0f}"]
    return [str(keys), "1", "ours, stopped", *figures, "", said, machine.load()]


def compare(chosen: Sequence[Entry], chains: int, count: int, stopped: float = 0.0) -> None:
    """Measure, and print the table.

    Args:
        count: lookups of each row.
        stopped: seconds for which ours is stopped; 0: not.
    """
    table = Table(*COLUMNS, box=None, caption=f"microseconds; {chains * CHAIN:,} blocks in memory")
    ways = {OURS: "staged"} if stopped else {}
    with (
        all_running(chosen, size_for(chains), ways) as (handles, lines),
        tempfile.TemporaryDirectory(prefix="pegaflow-perf-") as folder,
        echo.running(Path(folder)) as limits,
    ):
        for handle in handles:
            handle.ask("fill", chains)
        alone: dict[int, float] = {}
        for case in CASES:
            times, failed = rounds(handles, limits, case, count)
            lines += failed
            for row in rows(case, times, alone.get(case[0], 0.0)):
                table.add_row(*row)
            alone.setdefault(case[0], percentile(times[OURS].seconds, 50))
        if stopped:
            keys = CASES[0][0]
            table.add_row(*stopped_row(keys, handles[0].ask("stopped", keys, stopped), alone[keys]))
    machine.show(table, *lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few blocks, few lookups")
    parser.add_argument("--peers", type=Path, default=default_folder(), metavar="FOLDER")
    parser.add_argument("--against", help="a checkout of another version, which takes turns too")
    parser.add_argument(
        "--chains", type=int, default=CHAINS, help="of 1,024 blocks, in each memory"
    )
    parser.add_argument("--lookups", type=int, default=2000, help="of each row")
    parser.add_argument("--stopped", type=float, default=60.0, help="seconds; 0: not at all")
    given = parser.parse_args()
    chosen = entries(given.against, given.peers)
    if given.quick:
        compare(chosen, QUICK_CHAINS, 50, 1.0)
    else:
        compare(chosen, given.chains, given.lookups, given.stopped)


if __name__ == "__main__":
    command.run("perf.peers.lookups", main)
