"""What a block costs the index: python -m perf.index [--against CHECKOUT]

A real index in its host, alone in a process, its messages packed before the clock runs: it is
filled with chains of 1,024 blocks, then chains are saved into the full pool, each after an eviction
of as many blocks, sealed in pieces of 128 as a session does; then 64 lookups of 128 keys go before
each of these saves.  A hazard file is read before each eviction, behind the kernel's barrier.

Bytes are private memory beside ledger and table, without the black box, which has one size; times
are CPU time of the index's thread, and a pause is one message or one wake-up.  `--against` names a
checkout of another commit, whose index takes its turn after this one (indexturn.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from rich.table import Table

from perf import command, machine

COLUMNS = {
    "bytes": ("bytes per block", 0),
    "bytes_after": ("after the saves", 0),
    "us": ("us per block saved", 1),
    "filling_ms": ("longest pause filling, ms", 1),
    "saving_ms": ("saving, ms", 1),
    "mixed_ms": ("saving and looking up, ms", 1),
}
GOALS = "goals: 96 bytes, 3 us, 10 ms"
SAVES = 64


def turn(checkout: str, blocks: int, saves: int) -> dict[str, float]:
    """One turn of the index of a checkout."""
    script = str(Path(__file__).with_name("indexturn.py"))
    found = subprocess.run(
        [sys.executable, "-P", script, str(blocks), str(saves)],
        env={**machine.ENVIRONMENT, "PYTHONPATH": checkout},
        check=True,
        stdout=subprocess.PIPE,
    )
    figures: dict[str, float] = json.loads(found.stdout)
    return figures


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1 << 20, 3 << 20])
    parser.add_argument("--saves", type=int, default=SAVES, help="chains saved with eviction")
    parser.add_argument("--against", help="a checkout of another commit")
    given = parser.parse_args()
    checkouts = {"this one": machine.ENVIRONMENT["PYTHONPATH"]}
    if given.against:
        checkouts["the other"] = str(Path(given.against).absolute())
    table = Table("blocks", "commit", *(name for name, _ in COLUMNS.values()), caption=GOALS)
    table.box = None
    for blocks in given.blocks:
        for name, checkout in checkouts.items():
            found = turn(checkout, blocks, given.saves)
            cells = [f"{found[column]:.{digits}f}" for column, (_, digits) in COLUMNS.items()]
            table.add_row(f"{blocks:,}", name, *cells)
    machine.show(table)


if __name__ == "__main__":
    command.run("perf.index", main)
