"""What the tests have not reached, in a few lines: python -m tests.covered

It reads the file `.coverage` that `pytest --cov` leaves in this folder, and says how much of each
package has run, and which files have the most lines that have not.
"""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from coverage import Coverage

LISTED = 12
"""Files that are named: as many as somebody reads."""


class Reached(NamedTuple):
    """How much of something has run."""

    name: str
    lines: int  # that could run
    missed: int

    def __str__(self) -> str:
        share = 1 - self.missed / self.lines if self.lines else 1.0
        return f"{share:6.1%}  {self.missed:5d} of {self.lines:5d} lines missed  {self.name}"


def files() -> Iterator[Reached]:
    """Each file of ours, under its name in the repository."""
    measured = Coverage()
    measured.load()
    for path in measured.get_data().measured_files():
        _, lines, _, missed, _ = measured.analysis2(path)
        yield Reached(name(path), len(lines), len(missed))


def name(path: str) -> str:
    """`pegaflow/actors` is a link in a checkout, and a folder where it is installed."""
    parts = Path(path).parts
    at = max(at for at, part in enumerate(parts) if part in ("pegaflow", "actors", "wire"))
    return "/".join(parts[at:])


def summary(found: list[Reached]) -> Iterator[str]:
    """The total, each package, and the files with the most that has not run."""
    packages: dict[str, list[Reached]] = defaultdict(list)
    for file in found:
        packages[file.name.split("/")[0]].append(file)
    for package, own in [("total", found), *sorted(packages.items())]:
        yield str(Reached(package, sum(f.lines for f in own), sum(f.missed for f in own)))
    yield "most missed:"
    yield from map(str, sorted(found, key=lambda f: (-f.missed, f.name))[:LISTED])


def main() -> None:
    """Print it."""
    print("\n".join(summary(list(files()))))


if __name__ == "__main__":
    main()
