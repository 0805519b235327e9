"""What a message costs to encode and to decode: python -m perf.codec [--against CHECKOUT]

A small message, a Find of 1,024 keys, a Seal of 1,024 blocks, and the envelope around a small
message.  "pass on" encodes a message that was decoded; "decode, read" takes an element of every
list too, and with it the list apart.  The limit beside each is `msgpack` itself with the same raw
values, not checked and in no class.  `--against` names a checkout of another commit, whose codec
takes turns with this one, each turn a process of its own (codecturn.py).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from rich.table import Table

from perf import command, machine

COLUMNS = ("encode", "pass on", "msgpack encodes", "decode", "decode, read", "msgpack decodes")
LIMITS = ("msgpack encodes", "msgpack decodes")
TURNS = 7

Figures = dict[str, dict[str, float]]
"""Seconds by message and column."""


def turn(checkout: str) -> Figures:
    """One turn of the codec of a checkout."""
    found = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).with_name("codecturn.py"))],
        env={**machine.ENVIRONMENT, "PYTHONPATH": checkout},
        check=True,
        stdout=subprocess.PIPE,
    )
    figures: Figures = json.loads(found.stdout)
    return figures


def medians(turns: list[Figures]) -> Figures:
    """Of each figure."""
    return {
        name: {column: median(t[name][column] for t in turns) for column in columns}
        for name, columns in turns[0].items()
    }


def cell(seconds: float, before: float | None) -> str:
    """Microseconds; before the arrow those of the other commit."""
    return f"{before * 1e6:.2f} -> {seconds * 1e6:.2f}" if before else f"{seconds * 1e6:.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", help="a checkout of another commit")
    parser.add_argument("--quick", action="store_true", help="one turn")
    given = parser.parse_args()
    ours: list[Figures] = []
    theirs: list[Figures] = []
    for _ in range(1 if given.quick else TURNS):
        ours.append(turn(machine.ENVIRONMENT["PYTHONPATH"]))
        if given.against:
            theirs.append(turn(str(Path(given.against).absolute())))
    now = medians(ours)
    then = medians(theirs) if theirs else {}
    table = Table("message", *COLUMNS, box=None, caption="microseconds")
    for name, columns in now.items():
        old = then.get(name, {})
        cells = {c: cell(s, None if c in LIMITS else old.get(c)) for c, s in columns.items()}
        table.add_row(name, *(cells.get(c, "") for c in COLUMNS))
    machine.show(table)


if __name__ == "__main__":
    command.run("perf.codec", main)
