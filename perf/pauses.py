"""How long the index's books stop for Python's garbage collector: python -m perf.pauses

The blocks of an index (core/blocks/table.py, core/policy/lru.py; no messages, no pool) are filled,
then batches of blocks come and the same number of the oldest go, until half are replaced.  A pause
is what one batch takes; while filling, the growth of a dict is among them.
Each row is a process of its own: with the collector as Python has it, and as the index's process
sets it (actors/runtime/process.py).  The limit beside them: the collector switched off.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import time
from statistics import median

from rich.table import Table

from pegaflow.actors.runtime.process import collect_young_only
from pegaflow.core.blocks.table import Block, PrefixIndex
from pegaflow.core.policy.lru import Lru
from pegaflow.wire.identities import Key, Namespace, PageId, Stamp, numbered
from perf import command, machine

BATCH = 64
PAGE = 65536
NAMESPACE = Namespace(bytes(16))
WAYS = {"python's": lambda: None, "the index's": collect_young_only, "off": gc.disable}


def resident_bytes() -> int:
    """Of this process, without what it shares."""
    with open("/proc/self/smaps_rollup") as lines:
        found = [line.split() for line in lines if line.startswith("Private_")]
    return sum(int(words[1]) for words in found) * 1024


def turn(way: str, blocks: int) -> dict[str, float]:
    """Fill, then save and evict; seconds and bytes."""
    WAYS[way]()
    index, order = PrefixIndex(), Lru()
    before = resident_bytes()

    def save(first: int) -> None:
        keys = [n.to_bytes(32, "little") for n in range(first, first + BATCH)]
        pages = numbered(PageId(first), BATCH)
        new = [
            Block(
                NAMESPACE,
                Key(key),
                PAGE,
                (page,),
                stamps=(Stamp(n),),
                seal=n,
                depth=n % 64,
                parent=Key(keys[max(n % 64 - 1, 0)]),
            )
            for n, (page, key) in enumerate(zip(pages, keys, strict=True), first)
        ]
        for block in new:
            index.add(block)
        order.insert_chain(new)

    longest_filling = 0.0
    for first in range(0, blocks, BATCH):
        began = time.perf_counter()
        save(first)
        longest_filling = max(longest_filling, time.perf_counter() - began)
    each = (resident_bytes() - before) / blocks
    took = []
    for first in range(blocks, blocks + blocks // 2, BATCH):
        began = time.perf_counter()
        for block in order.victims(PAGE, BATCH):
            index.remove(block)
            order.remove(block)
        save(first)
        took.append(time.perf_counter() - began)
    return {"filling": longest_filling, "full": max(took), "batch": median(took), "bytes": each}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1_000_000, 3_000_000])
    parser.add_argument("--way", choices=WAYS, help="one turn in this process, as JSON")
    given = parser.parse_args()
    if given.way:
        json.dump(turn(given.way, given.blocks[0]), sys.stdout)
        return
    columns = ("longest while filling, ms", "while full, ms", "a batch, us", "bytes per block")
    table = Table("blocks", "collector", *columns, box=None)
    for blocks in given.blocks:
        for way in WAYS:
            size = ["--blocks", str(blocks)]
            command = [sys.executable, "-m", "perf.pauses", "--way", way, *size]
            out = subprocess.run(
                command, env=machine.ENVIRONMENT, check=True, stdout=subprocess.PIPE
            ).stdout
            found = json.loads(out)
            cells = (found["filling"] * 1e3, found["full"] * 1e3, found["batch"] * 1e6)
            shown = [f"{cell:.1f}" for cell in cells] + [f"{found['bytes']:.0f}"]
            table.add_row(f"{blocks:,}", way, *shown)
    machine.show(table)


if __name__ == "__main__":
    command.run("perf.pauses", main)
