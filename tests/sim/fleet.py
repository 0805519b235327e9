"""Many seeds on all cores: what each came to, and what all of them have met together."""

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from .scenario import CHASE, Result, run
from .traps import Trap, missed


@dataclass(slots=True)
class Fleet:
    """The sum of many runs."""

    green: int = 0
    steps: int = 0
    loaded: int = 0  # blocks, each judged byte by byte
    stories: dict[int, str] = field(default_factory=dict)  # of the seeds that found something
    met: Counter[Trap] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    chased: int = 0  # runs with a single trap
    dull: list[int] = field(default_factory=list)  # green, but without what every run must have

    def add(self, seed: int, result: Result | str) -> None:
        """One run more."""
        if isinstance(result, str):
            self.stories[seed] = result
            return
        self.green += 1
        self.steps += result.steps
        self.met += result.met
        self.counts.update(result.counts)
        books = result.books
        assert books.started == books.ended + books.abandoned
        lively = books.saved and result.counts.get("pages evicted", 0)
        self.loaded += books.loaded
        if not (lively and result.engines >= 2 and result.steps >= 2000):
            self.dull.append(seed)


def _one(seed: int, only: Trap | None = None) -> tuple[int, Result | str]:
    try:
        return seed, run(seed, only)
    except AssertionError as err:
        return seed, str(err)


def _chase(cell: Trap) -> list[tuple[int, Result | str]]:
    """Run after run with this trap alone, until it springs."""
    runs: list[tuple[int, Result | str]] = []
    for seed in range(CHASE):
        runs.append(_one(seed, cell))
        result = runs[-1][1]
        if isinstance(result, str) or result.met:
            break
    return runs


def sail(seeds: Iterable[int], workers: int | None = None) -> Fleet:
    """Run these seeds, then chase the cells that none of them has met."""
    fleet = Fleet()
    context = get_context("spawn")
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=context) as pool:
        for seed, result in pool.map(_one, seeds, chunksize=4):
            fleet.add(seed, result)
        for runs in pool.map(_chase, missed(fleet.met)):
            for seed, result in runs:
                fleet.chased += 1
                fleet.met += Counter() if isinstance(result, str) else result.met
                if isinstance(result, str):
                    fleet.stories[seed] = result
    return fleet
