"""Planted bugs: mutants of the product, each in a copy of its own, which a few seeds must find.

A file `mutants/NAME.mutant` begins with what the bug does, and with `Sign:`, a pattern of what a
seed that found it says.  With `Bait:` the runs do something often that makes the bug show, but is
no fault by itself.  `Import:` is a line that the change needs.  The changes follow:

    @@ Class.method
     a line that stays
    -a line that goes
    +a line that comes

A change names what it breaks and not where that lives, so it goes along when code moves.  Its lines
are looked for in that function (or class, or constant) whatever their indentation, and have to be
there exactly once.

A simulator that does not find a bug within SEEDS seeds watches nothing there.
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pegaflow

HERE = Path(__file__).resolve().parent
SEEDS = 20


@dataclass(frozen=True, slots=True)
class Mutant:
    """One bug."""

    file: Path

    @property
    def name(self) -> str:
        """The file's name."""
        return self.file.stem

    @property
    def sign(self) -> str:
        """What a finding looks like."""
        (sign,) = self._said("Sign")
        return sign

    @property
    def bait(self) -> str:
        """What the runs do often; empty: nothing."""
        return "".join(self._said("Bait"))

    def _said(self, name: str) -> list[str]:
        return re.findall(rf"^{name}: (.+)$", self.file.read_text(), re.MULTILINE)

    def apply(self, package: Path) -> None:
        """Plant it into this copy of the package."""
        for change in self.file.read_text().split("\n@@ ")[1:]:
            of, *lines = change.rstrip("\n").split("\n")
            where, first, last = find(package, of)
            source = where.read_text().split("\n")
            source[first:last] = changed(source[first:last], lines, f"{self.name}: {of}")
            at = next(
                at for at, line in enumerate(source) if re.match(r"(from|import) (?!__)", line)
            )
            source[at:at] = self._said("Import")
            text = "\n".join(source)
            ast.parse(text)
            where.write_text(text)


def find(package: Path, name: str) -> tuple[Path, int, int]:
    """(file, first line, line behind the last) of what has this qualified name."""
    found = [
        (path, node.lineno - 1, node.end_lineno or 0)
        for path in sorted(package.rglob("*.py"))
        for qualified, node in named(ast.parse(path.read_text()).body, "")
        if qualified == name
    ]
    assert len(found) == 1, f"{name} is there {len(found)} times"
    return found[0]


def named(body: list[ast.stmt], within: str) -> Iterator[tuple[str, ast.stmt]]:
    """Classes, functions and constants of a body, by qualified name."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield within + node.name, node
            yield from named(node.body, f"{within}{node.name}.")
        elif isinstance(node, ast.FunctionDef):
            yield within + node.name, node
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            yield within + node.targets[0].id, node
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield within + node.target.id, node


def changed(source: list[str], lines: list[str], what: str) -> list[str]:
    """The source with these lines of a change in it."""
    old = [line[1:].strip() for line in lines if line[0] != "+"]
    bare = [line.strip() for line in source]
    places = [at for at in range(len(bare)) if bare[at : at + len(old)] == old]
    assert len(places) == 1, f"{what} is not as it was: its lines are there {len(places)} times"
    indent = len(source[places[0]]) - len(bare[places[0]])
    kept = next(line for line in lines if line[0] != "+")
    shift = indent - (len(kept[1:]) - len(kept[1:].strip()))
    new = [line[1:] for line in lines if line[0] != "-"]
    new = [" " * shift + line if shift >= 0 else line[-shift:] for line in new]
    return source[: places[0]] + new + source[places[0] + len(old) :]


MUTANTS = [Mutant(path) for path in sorted((HERE / "mutants").glob("*.mutant"))]


def seek(mutant: Mutant) -> str:
    """What the seeds say of the product with this bug, line by line."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        product = Path(pegaflow.__file__).resolve().parent
        junk = shutil.ignore_patterns("__pycache__")
        shutil.copytree(product, Path(folder, "pegaflow"), ignore=junk)
        shutil.copytree(HERE.parent, Path(folder, "tests"), ignore=junk)
        mutant.apply(Path(folder, "pegaflow"))
        command = [sys.executable, "-m", "tests.sim", "--count", str(SEEDS)]
        command += ["--until", mutant.sign, "--bait", mutant.bait]
        env = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True).stdout


def seek_all() -> dict[str, str]:
    """All mutants, as many at a time as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip((m.name for m in MUTANTS), pool.map(seek, MUTANTS), strict=True))
