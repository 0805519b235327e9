"""`python -m tests.sim --seed N`: run one seed and tell its story."""

import argparse

from .scenario import Scenario


def main() -> int:
    """Run the seeds asked for; 1 if one of them finds something."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--count", type=int, default=1, help="so many seeds from there on")
    parser.add_argument("--quiet", action="store_true", help="one line per seed")
    args = parser.parse_args()
    worst = 0
    for seed in range(args.seed, args.seed + args.count):
        scenario = Scenario(seed)
        try:
            result = scenario.run()
        except AssertionError as err:
            story, worst = str(err), 1
            print(story.splitlines()[-1] if args.quiet else story)
            continue
        if not args.quiet:
            print(scenario.world.story())
            print(result.counts, result.books)
        print(f"seed {seed}: {result.steps} steps, trace {result.trace}")
    return worst


if __name__ == "__main__":
    raise SystemExit(main())
