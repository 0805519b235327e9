"""Planted bugs: patches of the product, each applied to a copy, which a few seeds must find.

A patch begins with what it does and with `Sign:`, a pattern of what a seed that found it says.
With `Bait:` the runs do something often that makes the bug show, but is no fault by itself.  A
simulator that does not find one within SEEDS seeds watches nothing there.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pegaflow

HERE = Path(__file__).resolve().parent
SEEDS = 20


@dataclass(frozen=True, slots=True)
class Plant:
    """One bug."""

    patch: Path

    @property
    def name(self) -> str:
        """The file's name."""
        return self.patch.stem

    @property
    def sign(self) -> str:
        """What a finding looks like."""
        sign = self._said("Sign")
        assert sign, f"{self.patch} has no sign"
        return sign

    @property
    def bait(self) -> str:
        """What the runs do often; empty: nothing."""
        return self._said("Bait")

    def _said(self, name: str) -> str:
        found = re.search(rf"^{name}: (.+)$", self.patch.read_text(), re.MULTILINE)
        return found[1] if found else ""


PLANTS = [Plant(path) for path in sorted((HERE / "plants").glob("*.patch"))]


def seek(plant: Plant) -> str:
    """What the seeds say of the product with this bug, line by line."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        product = Path(pegaflow.__file__).resolve().parent
        junk = shutil.ignore_patterns("__pycache__")
        shutil.copytree(product, Path(folder, "pegaflow"), ignore=junk)
        shutil.copytree(HERE.parent, Path(folder, "tests"), ignore=junk)
        git = ["git", "apply", "--whitespace=nowarn", str(plant.patch)]
        outside = {**os.environ, "GIT_CEILING_DIRECTORIES": folder, "GIT_DIR": "/nowhere"}
        done = subprocess.run(git, cwd=folder, env=outside, capture_output=True, text=True)
        assert not done.returncode, f"{plant.name} does not apply any more: {done.stderr}"
        command = [sys.executable, "-m", "tests.sim", "--count", str(SEEDS)]
        command += ["--until", plant.sign, "--bait", plant.bait]
        env = {**os.environ, "PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True).stdout


def seek_all() -> dict[str, str]:
    """All plants, as many at a time as there are cores."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip((p.name for p in PLANTS), pool.map(seek, PLANTS), strict=True))
