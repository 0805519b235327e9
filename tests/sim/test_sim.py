"""Seeds that must run green, a table of what they met, runs that must repeat, bugs to be found."""

import os
import re
import subprocess
import sys
import time

import pytest

from . import mutants, scenario, traps
from .fleet import sail

SEEDS = range(320)

SSD_MET = (
    "index: blocks_hit_ssd",
    "index: ssd_write_queue_full",
    "index: ssd_waits_cut",
    "index: ssd_prefetch_backpressure_blocks",
    "flusher: ssd_blocks_carried",
    "flusher: ssd_blocks_corrupt",
    "flusher: ssd_blocks_recovered",
    "flusher: ssd_segments_scanned",
    "flusher: ssd_segments_recycled",
    "flusher: ssd_write_failures",
    "a write is torn",
    "dies in a write",
    "host goes down",
)
"""What all seeds together must have met of the SSD tier."""

HAZARDS_MET = (
    *("index: evictions_turned_back", "no room for a table", "no room for hazards"),
    *("evicts within a lookup", "client: lookups", "client: leases passed on"),
)
"""And of lookups without a message."""

GPU_MET = (
    *("GPU: copies", "GPU: a copy waits for kernels", "GPU: a copy drags", "GPU: a copy fails"),
    *("GPU: bytes move after a death", "GPU hangs", "session dies in a copy"),
)
"""And of engines on GPUs."""

WATCHED = ("a starved child is waited for", "a hung child is killed")
"""And of the watchdog."""


def test_all_seeds_run_green_and_meet_every_fault_at_every_message() -> None:
    started = time.monotonic()
    fleet = sail(SEEDS)
    print(traps.table(fleet.met))
    print("\n".join(f"{what:32} {times}" for what, times in sorted(fleet.counts.items())))
    took = time.monotonic() - started
    print(
        f"{fleet.green} of {len(SEEDS)} seeds green, {fleet.steps} steps, "
        f"{fleet.loaded} blocks loaded, {fleet.chased} runs for single traps, {took:.0f} s"
    )
    assert not fleet.stories, "\n".join(next(iter(fleet.stories.values())).splitlines()[-80:])
    dry = [what for what in (*SSD_MET, *HAZARDS_MET, *GPU_MET, *WATCHED) if not fleet.counts[what]]
    assert not dry, f"never happened: {dry}"
    assert not fleet.dull, f"seeds with too little in them: {fleet.dull}"
    assert not traps.missed(fleet.met), "messages that some fault never met"


def test_a_seed_always_tells_the_same_story() -> None:
    said = set()
    for hash_seed in ("0", "4711"):
        line = subprocess.run(
            [sys.executable, "-m", "tests.sim", "--seed", "0", "--quiet"],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        said.add(line)
    assert len(said) == 1


def test_a_seed_asks_the_machine_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("chance and time are the simulator's")

    monkeypatch.setattr(os, "urandom", refuse)
    for clock in ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter"):
        monkeypatch.setattr(time, clock, refuse)
    assert scenario.run(1).steps > 5000


@pytest.fixture(scope="module")
def findings() -> dict[str, str]:
    """What the seeds say of each planted bug."""
    return mutants.seek_all()


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_found(mutant: mutants.Mutant, findings: dict[str, str]) -> None:
    said = findings[mutant.name]
    assert re.search(mutant.sign, said), f"not found in {mutants.SEEDS} seeds:\n{said}"


def test_there_are_enough_bugs() -> None:
    assert len(mutants.MUTANTS) >= 30
