"""How long a start needs for what is in the log: python -m perf.ssdstart [--dir DIR]

A log of so many records of one page is written with footers only: the pages of the blocks are holes
in its files, which no start reads.  Then a real service is started: seconds until an engine can
attach and gets an answer, which does not wait for the log, and until the index knows every block.
Beside it: what a start does with the same files, here, without its processes, and the time to read
as many bytes as all footers have.

Goal: a million records in under 10 seconds.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from pegaflow.actors.flusher.volumes import SEGMENT_BYTES
from pegaflow.client import Client
from pegaflow.core.errors import UserError
from pegaflow.core.segments.catalog import Catalog
from pegaflow.core.segments.codec import (
    GROUP_ROWS,
    HEAD_BYTES,
    Row,
    footer,
    footer_bytes,
    head,
    joined,
    read_footer,
)
from pegaflow.replay import service
from pegaflow.wire.identities import Incarnation, Key, Namespace
from pegaflow.wire.layout import PAGE_ALIGN
from perf import command, fio, machine
from perf.machine import timed, verdict
from perf.ssd import EXTENT, flags, folders, known

COLUMNS = "records,segments,answers,knows all,bare load,bare read,goal,load".split(",")
RECORDS = (100_000, 1_000_000)
NAMESPACE = Namespace(b"perf" * 4)
GOAL_RECORDS, GOAL_S = 1_000_000, 10.0
POOL = 4 * EXTENT


def write_log(folder: Path, records: int) -> list[Path]:
    """Segments with so many rows of one page each, and nothing in the pages."""
    made: list[Path] = []
    first = 0
    while first < records:
        uuid, number = os.urandom(16), len(made) + 1
        rows: list[Row] = []
        at = HEAD_BYTES
        while first + len(rows) < records:
            count = min(GROUP_ROWS, records - first - len(rows))
            end = at + PAGE_ALIGN * (1 + count)
            if end + footer_bytes(len(rows) + count) > SEGMENT_BYTES:
                break
            for place in range(count):
                key = (first + len(rows)).to_bytes(32, "big")
                offset = at + PAGE_ALIGN * (1 + place)
                rows.append(
                    Row(
                        offset,
                        1,
                        Incarnation(1),
                        PAGE_ALIGN,
                        depth=0,
                        shards=1,
                        namespace=NAMESPACE,
                        key=Key(key),
                    )
                )
            at = end
        path = folder / f"{number:016x}.segment"
        with path.open("wb") as file:
            file.write(head(uuid, number, SEGMENT_BYTES))
            file.seek(at)
            file.write(footer(uuid, at, joined(rows)))
        made.append(path)
        first += len(rows)
    return made


def load(files: Sequence[Path]) -> int:
    """What a start does with the footers; how many blocks it finds."""
    catalog = Catalog()
    for number, path in reversed(list(enumerate(files))):
        size = path.stat().st_size
        with path.open("rb") as file:
            uuid = file.read(HEAD_BYTES)[16:32]

            def read(offset: int, length: int) -> bytes:
                return os.pread(file.fileno(), length, offset)  # noqa: B023  (used at once)

            rows = read_footer(read, size, uuid)
        if rows is None:
            raise UserError(f"{path.name} has no footer")
        catalog.load(catalog.segment(0, number, size), rows)
    return catalog.blocks


def read_all(files: Sequence[Path], records: int) -> None:
    """As many bytes as all footers have, from the ends of the files."""
    share = footer_bytes(records // len(files))
    for path in files:
        with path.open("rb") as file:
            file.seek(-min(share, path.stat().st_size), os.SEEK_END)
            file.read()


def measure(where: Path, records: int) -> tuple[int, list[float]]:
    """Segments, and seconds until it answers, until it knows all, of the bare load and read."""
    with folders(where, 1) as paths:
        files = write_log(paths[0], records)
        bare_read, _ = timed(lambda: read_all(files, records))
        bare, found = timed(lambda: load(files))
        if found != records:
            raise UserError(f"{found} of {records} records were loaded")
        began = time.perf_counter()
        with service.running(POOL, EXTENT, flags(paths)) as endpoint:
            client = Client("perf-start", NAMESPACE, endpoint=endpoint)
            try:
                if not client.connect(20.0):
                    raise UserError(f"no session: {client.refusal}")
                answers = time.perf_counter() - began
                known(endpoint, records)
                return len(files), [answers, time.perf_counter() - began, bare, bare_read]
            finally:
                client.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", type=Path, default=Path.cwd(), help="a folder on the disk")
    parser.add_argument("--quick", action="store_true", help="few records")
    given = parser.parse_args()
    table = Table(*COLUMNS, box=None, caption="seconds from the start of the service")
    fio.need_disk(given.dir)
    for records in (10_000,) if given.quick else RECORDS:
        segments, figures = measure(given.dir, records)
        goal = verdict(figures[1], GOAL_S) if records >= GOAL_RECORDS else ""
        shown = [f"{figure:.2f}" for figure in figures]
        table.add_row(f"{records:,}", str(segments), *shown, goal, machine.load())
    machine.show(table)


if __name__ == "__main__":
    command.run("perf.ssdstart", main)
