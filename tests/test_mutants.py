"""The planted bugs of the simulator still say of the code what it is; tests/sim runs them."""

import shutil
from pathlib import Path

import pytest

import pegaflow
from tests.sim import mutants

PACKAGE = Path(pegaflow.__file__).resolve().parent


@pytest.mark.parametrize("mutant", mutants.MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies(mutant: mutants.Mutant, tmp_path: Path) -> None:
    assert mutant.sign
    for part in ("actors", "core", "device", "client", "wire"):
        shutil.copytree(PACKAGE / part, tmp_path / part, ignore=shutil.ignore_patterns("__py*"))
    mutant.apply(tmp_path)


SOURCE = "class A:\n    def f(self):\n        if self.x:\n            return 1\n        return 2\n"


def planted(tmp_path: Path, change: str) -> str:
    code, file = tmp_path / "a.py", tmp_path / "a.mutant"
    code.write_text(f"import os\n\n\n{SOURCE}")
    file.write_text(f"Does wrong.\nSign: x\n\n{change}")
    mutants.Mutant(file).apply(tmp_path)
    return code.read_text().removeprefix("import os\n\n\n")


def test_a_change_is_indented_as_the_code_is(tmp_path: Path) -> None:
    found = planted(tmp_path, "@@ A.f\n-if self.x:\n+if not self.x:\n")
    assert found == SOURCE.replace("if self", "if not self")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("@@ A.g\n-return 1\n+return 3\n", "A.g is there 0 times"),
        ("@@ A.f\n-return 4\n+return 3\n", "its lines are there 0 times"),
    ],
)
def test_a_change_of_what_is_gone_is_an_error(tmp_path: Path, change: str, why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        planted(tmp_path, change)
