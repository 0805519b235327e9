"""`python -m tests.fuzz --kind session --frames 1000000 --seed 1`: feed one kind of actor."""

import argparse
import time

from .kinds import CAGES


def main() -> None:
    """Run and print what was counted."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--kind", choices=CAGES, action="append")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for kind in options.kind or CAGES:
        began = time.perf_counter()
        cage = CAGES[kind](options.seed)
        try:
            counts = cage.run(options.frames)
        finally:
            print(f"{kind}: seed {options.seed}, stopped after frame {cage.counts['frames']}")
        took = time.perf_counter() - began
        print(
            f"{kind}: {options.frames} frames in {took:.1f} s, {options.frames / took:.0f} a second"
        )
        print("   ", ", ".join(f"{name} {count}" for name, count in sorted(counts.items())))


if __name__ == "__main__":
    main()
