"""Saves and loads of 64 MiB, beside the peers: python -m perf.peers.copies

Each contestant is an engine and a service of its own (contestants.py), with a pool of sixteen
saves.  First all save, in turns, into pages of the pool that nobody has saved into: `fresh`.  Then,
with the pool full, so that each save evicts, they save and load in turns.  A time is from the call
of the client to its end, without the lookup before a load; what was loaded is compared.

The limits beside them are a C loop of memcpy over the same pieces, and `process_vm_readv` and
`writev` of them between two processes with nothing around it, one thread each.

Goals, beside the original in the same run: a save into a full pool in its time, or 1.2 of it in
pieces of 64 KiB; a load in its time; and a save into a fresh pool in 1.3 of one into a full pool.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from rich.table import Table

from pegaflow.core.errors import UserError
from perf import command, machine
from perf.bare import Across, across
from perf.machine import Copy, verdict
from perf.peers.contestants import OURS, Entry, Handle, all_running, default_folder, entries
from perf.peers.obey import Size
from perf.shapes import QUICK_BLOCKS, SHAPES, Memcpy, Shape

COLUMNS = (
    "layout,who,fresh,full,load,fresh/full,save GB/s,load GB/s,full/original,load/original,goal,"
    "machine"
)
LARGE = Shape(32, 1, 2 << 20)  # one request of an engine with large blocks
SAVES_IN_POOL, FRESH, FILL = 16, 12, 8
SMALL, SMALL_GOAL, GOAL, FRESH_GOAL = 64 << 10, 1.2, 1.0, 1.3
ORIGINAL = "original"


@dataclass
class Times:
    """Seconds of one contestant's turns."""

    fresh: list[float] = field(default_factory=list)
    full: list[float] = field(default_factory=list)
    load: list[float] = field(default_factory=list)

    def medians(self) -> tuple[float, float, float]:
        """Of the three; 0 of what was not measured."""
        fresh, full, load = (
            median(own) if own else 0.0 for own in (self.fresh, self.full, self.load)
        )
        return fresh, full, load


class Contest:
    """The turns of one shape."""

    def __init__(self, handles: Sequence[Handle]) -> None:
        self.times = {handle.name: Times() for handle in handles}
        self._going = list(handles)
        self.lines: list[str] = []

    def round(self, order: Callable[[Handle, Times], None]) -> None:
        """One turn of each that has not failed; who fails has a line, and no more turns."""
        for handle in tuple(self._going):
            try:
                order(handle, self.times[handle.name])
            except UserError as error:
                self._going.remove(handle)
                self.lines.append(str(error))


def save_fresh(handle: Handle, times: Times) -> None:
    times.fresh.append(handle.ask("save"))


def fill(handle: Handle, times: Times) -> None:
    handle.ask("save")


def save_and_load(handle: Handle, times: Times) -> None:
    times.full.append(handle.ask("save"))
    times.load.append(handle.ask("load"))


def measure(
    chosen: Sequence[Entry], shape: Shape, copy: Copy, turns: int
) -> tuple[dict[str, Times], list[str]]:
    """All contestants and the limits, in turns; and a line of each that could not."""
    size = Size(SAVES_IN_POOL * shape.total, shape.blocks, shape.piece)
    with (
        all_running(chosen, size) as (handles, lines),
        across(shape.piece, shape.blocks) as between,
    ):
        contest = Contest(handles)
        memcpy = Memcpy(copy, shape, machine.memory(2 * shape.total))
        limits: dict[str, Memcpy | Across] = {"memcpy": memcpy, "process_vm": between}
        contest.times |= {name: Times() for name in limits}
        for _ in range(FRESH):
            contest.round(save_fresh)
        for _ in range(FILL):
            contest.round(fill)
        for _ in range(turns):
            contest.round(save_and_load)
            for name, limit in limits.items():
                contest.times[name].full.append(limit.out())
                contest.times[name].load.append(limit.back())
        return contest.times, lines + contest.lines


def goals(shape: Shape, ours: Times, original: Times | None) -> str:
    """What ours has reached."""
    fresh, full, load = ours.medians()
    said = [f"fresh {verdict(fresh / full, FRESH_GOAL)}"]
    if original is not None and original.load:
        _, save, back = original.medians()
        most = SMALL_GOAL if shape.piece <= SMALL else GOAL
        said += [f"save {verdict(full / save, most)}", f"load {verdict(load / back, GOAL)}"]
    return ", ".join(said)


def rows(shape: Shape, times: dict[str, Times]) -> list[list[str]]:
    """One for each contestant and limit."""
    original = times.get(ORIGINAL)
    _, save, back = original.medians() if original is not None else (0.0, 0.0, 0.0)
    found = []
    for name, own in times.items():
        fresh, full, load = own.medians()
        if not load:
            continue
        cells = [f"{1e3 * seconds:.1f}" if seconds else "" for seconds in (fresh, full, load)]
        cells.append(f"{fresh / full:.2f}" if fresh else "")
        cells += [f"{shape.total / seconds / 1e9:.1f}" for seconds in (full, load)]
        cells += [f"{full / save:.2f}" if save else "", f"{load / back:.2f}" if back else ""]
        goal = goals(shape, own, original) if name == OURS else ""
        found.append([str(shape), name, *cells, goal, machine.load()])
    return found


def compare(chosen: Sequence[Entry], shapes: Sequence[Shape], turns: int) -> None:
    """Measure each shape, and print the table."""
    with machine.memcpy_loop() as (copy, name):
        caption = f"milliseconds, medians of turns; memcpy: {name}"
        table = Table(*COLUMNS.split(","), box=None, caption=caption)
        lines: dict[str, None] = {}
        for shape in shapes:
            times, failed = measure(chosen, shape, copy, turns)
            lines |= dict.fromkeys(failed)
            for row in rows(shape, times):
                table.add_row(*row)
        machine.show(table, *lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small layout, two turns")
    parser.add_argument("--peers", type=Path, default=default_folder(), metavar="FOLDER")
    parser.add_argument("--against", help="a checkout of another version, which takes turns too")
    parser.add_argument("--turns", type=int, default=15)
    given = parser.parse_args()
    shapes, turns = ((QUICK_BLOCKS,), 2) if given.quick else ((*SHAPES, LARGE), given.turns)
    compare(entries(given.against, given.peers), shapes, turns)


if __name__ == "__main__":
    command.run("perf.peers.copies", main)
