"""`python -m tests.sim --seed N`: run one seed and tell its story; with --count, many at once."""

import argparse
import time

from . import traps
from .fleet import sail
from .scenario import Scenario


def main() -> int:
    """Run the seeds asked for; 1 if one of them finds something."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=1, help="so many seeds from there on")
    parser.add_argument("--quiet", action="store_true", help="one line for one seed")
    parser.add_argument("--workers", type=int, help="processes; as many as there are cores")
    parser.add_argument("--first", action="store_true", help="one after the other, to the first")
    args = parser.parse_args()
    if args.count == 1 or args.first:
        return int(any(one(args.seed + n, args.quiet) for n in range(args.count)))
    return many(args.seed, args.count, args.workers)


def one(seed: int, quiet: bool) -> int:
    """One seed and its story."""
    scenario = Scenario(seed)
    try:
        result = scenario.run()
    except AssertionError as err:
        story = str(err)
        print(story.splitlines()[-1] if quiet else story)
        return 1
    if not quiet:
        print(scenario.world.story())
        print(result.counts, result.books)
    print(f"seed {seed}: {result.steps} steps, trace {result.trace}")
    return 0


def many(first: int, count: int, workers: int | None) -> int:
    """Many seeds and what they have met."""
    started = time.monotonic()
    fleet = sail(range(first, first + count), workers)
    print(traps.table(fleet.met))
    for what, times in sorted(fleet.counts.items()):
        print(f"{what:32} {times}")
    for seed, story in fleet.stories.items():
        print(f"seed {seed}: {story.splitlines()[-1]}")
    took = time.monotonic() - started
    print(f"{fleet.green} of {count} seeds green, {fleet.steps} steps, {took:.0f} s")
    print(f"dull: {fleet.dull}")
    missed = list(traps.missed(fleet.met))
    print(f"cells that were never met: {missed}")
    return 1 if fleet.stories else 0


if __name__ == "__main__":
    raise SystemExit(main())
