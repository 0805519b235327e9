"""Many seeds on all cores: what each came to, and what all of them have met together."""

import os
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

from .scenario import Result, run
from .traps import Trap


@dataclass(slots=True)
class Fleet:
    """The sum of many runs."""

    green: int = 0
    steps: int = 0
    loaded: int = 0  # blocks, each judged byte by byte
    stories: dict[int, str] = field(default_factory=dict)  # of the seeds that found something
    met: Counter[Trap] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    dull: list[int] = field(default_factory=list)  # green, but without what every run must have


def _one(seed: int) -> tuple[int, Result | str]:
    try:
        return seed, run(seed)
    except AssertionError as err:
        return seed, str(err)


def sail(seeds: Iterable[int], workers: int | None = None) -> Fleet:
    """Run these seeds."""
    fleet = Fleet()
    context = get_context("spawn")
    with ProcessPoolExecutor(workers or os.cpu_count(), mp_context=context) as pool:
        for seed, result in pool.map(_one, seeds, chunksize=4):
            if isinstance(result, str):
                fleet.stories[seed] = result
                continue
            fleet.green += 1
            fleet.steps += result.steps
            fleet.met += result.met
            fleet.counts.update(result.counts)
            books = result.books
            assert books.started == books.ended + books.abandoned
            lively = books.saved and result.counts.get("pages evicted", 0)
            fleet.loaded += books.loaded
            if not (lively and result.engines >= 2 and result.steps >= 2000):
                fleet.dull.append(seed)
    return fleet
