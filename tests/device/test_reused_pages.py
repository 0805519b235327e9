"""Two processes: one uses pages anew, one reads what it finds, and never finds another's bytes."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from pegaflow.core.pool.finder import Finder
from pegaflow.core.pool.hazards import Hazards
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.pool.table import TableReader
from pegaflow.device import membarrier

from .reusing import GEOMETRY, KEYS, LENGTH, PAGES, SPACE, Shared

LOOKUPS = 2000
ROOT = Path(__file__).resolve().parents[2]


def test_who_reads_under_a_hazard_reads_the_blocks_that_were_found(tmp_path: Path) -> None:
    why = membarrier.register()
    if why:
        pytest.skip(f"this kernel has no barrier for us: {why}")
    shared = Shared(tmp_path)
    index = subprocess.Popen(
        [sys.executable, "-m", "tests.device.reusing", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert index.stdout is not None and index.stdout.readline() == "ready\n"
        hazards = Hazards(shared.hazards)
        found, wrong, lost = read(shared, hazards, index)
        shared.stop[0] = 1
        said = index.communicate()[0]
    finally:
        index.kill()
        index.wait()
    rounds, turned_back = map(int, said.split())
    print(f"{found} blocks read, {rounds} rounds, {turned_back} blocks turned back")
    assert wrong == 0, "bytes of another block under a hazard"
    assert lost == 0, "a record that changed under a hazard"
    assert found > LOOKUPS and rounds > 100
    hazards.check()


def read(shared: Shared, hazards: Hazards, index: subprocess.Popen[str]) -> tuple[int, int, int]:
    """Blocks that were found; those with other bytes; runs whose records have changed."""
    ledger, table = Ledger(shared.ledger), TableReader(shared.ledger, PAGES)
    finder = Finder(ledger, table, GEOMETRY)
    chance = random.Random(2)
    assert index.stdin is not None
    index.stdin.write("go\n")
    index.stdin.flush()
    found = wrong = lost = 0
    for _ in range(LOOKUPS):
        keys = chance.sample(KEYS, 8)
        run = finder.find(SPACE, keys, hazards, shards=1, most_bytes=1 << 40)
        assert run is not None
        for key, page in zip(keys, run.pages, strict=False):
            at = GEOMETRY.offset(page, LENGTH)
            wrong += shared.pool[at : at + LENGTH] != key * (LENGTH // len(key))
        lost += not finder.sealed(run.pages, run.stamps)
        found += run.blocks
        hazards.clear(run.rows)
    return found, wrong, lost
