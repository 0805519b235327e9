"""`python -m tests.sim --seed N`: run one seed and tell its story; with --count, many at once."""

import argparse
import re
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
    parser.add_argument("--bait", default="", help="a fault of scenario.py to be done often")
    parser.add_argument("--until", help="one after the other, until one finds this pattern")
    args = parser.parse_args()
    if args.until is not None:
        return until(args)
    if args.count == 1:
        return one(args.seed, args.bait, args.quiet)[0]
    return many(args.seed, args.count, args.workers)


def one(seed: int, bait: str, quiet: bool) -> tuple[int, str]:
    """One seed and its story; its exit status and last line."""
    scenario = Scenario(seed, bait)
    status = 0
    try:
        result = scenario.run()
        story = f"{scenario.world.story()}\n{result.counts} {result.books}\n"
        story += f"seed {seed}: {result.steps} steps, trace {result.trace}"
    except AssertionError as err:
        status, story = 1, str(err)
    last = story.splitlines()[-1]
    print(last if quiet else story)
    return status, last


def until(args: argparse.Namespace) -> int:
    """Seed after seed, until one of them finds what is sought; 1 if one does."""
    for seed in range(args.seed, args.seed + args.count):
        status, last = one(seed, args.bait, True)
        if status and re.search(args.until, last):
            return 1
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
    print(f"{fleet.chased} runs with one trap only")
    print(f"dull: {fleet.dull}")
    missed = list(traps.missed(fleet.met))
    print(f"cells that were never met: {missed}")
    return 1 if fleet.stories else 0


if __name__ == "__main__":
    raise SystemExit(main())
