"""The index's process never looks for cycles among old objects, so the index must make none."""

import gc
import subprocess
import sys

from pegaflow.wire.index import Release
from tests.actors.rig import SESSION_4

from .test_index import KEYS, find, index, press, save

FULL_COLLECTIONS = """
import gc
from pegaflow.actors.runtime.process import collect_young_only
collect_young_only()
before = [generation["collections"] for generation in gc.get_stats()]
kept = [[n] for n in range(1_000_000)]
after = [generation["collections"] for generation in gc.get_stats()]
print(after[0] > before[0], after[2] == before[2])
"""


def lives(rounds: int) -> int:
    """How many objects only the collector can free after so many rounds of all an index does."""
    rig, _ = index()
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            save(rig, KEYS)
            held = find(rig, KEYS)
            rig.tell(SESSION_4, Release(held.number))
            assert len(press(rig, len(KEYS))) == len(KEYS)
        return gc.collect()
    finally:
        gc.enable()


def test_saving_finding_and_evicting_leave_no_cycles() -> None:
    assert lives(40) - lives(20) < 20, "at least one object for each of twenty rounds"


def test_old_objects_are_looked_at_by_no_collection() -> None:
    command = [sys.executable, "-c", FULL_COLLECTIONS]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["True", "True"]
