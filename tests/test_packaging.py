"""What is packaged is what is on the disk, and what is tested is what is packaged.

The top level has `actors/` and `wire/` beside `pegaflow/`; setuptools maps them into the package,
and two links in git make the same names work in a checkout.  A new folder that is missing from the
package list would only be missed by whoever installs the wheel, so it is compared here.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

import pegaflow

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
INSTALLED = os.environ.get("PEGAFLOW_TEST_INSTALLED") == "1"
WHEEL = os.environ.get("PEGAFLOW_TEST_WHEEL") or os.environ.get("TOX_PACKAGE")


def packages_on_disk() -> set[str]:
    """Folders with Python files, under the names they are imported by."""
    found = {"pegaflow"}
    for top, prefix in (("pegaflow", ""), ("actors", "pegaflow."), ("wire", "pegaflow.")):
        for folder in [ROOT / top, *(ROOT / top).rglob("*/")]:
            if folder.is_dir() and not folder.is_symlink() and any(folder.glob("*.py")):
                found.add(prefix + ".".join(folder.relative_to(ROOT).parts))
    return found


def modules_on_disk() -> set[str]:
    found = set()
    for top in ("pegaflow", "actors", "wire"):
        for path in (ROOT / top).rglob("*.py"):
            parts = path.relative_to(ROOT).parts
            found.add("/".join(parts if top == "pegaflow" else ("pegaflow", *parts)))
    return found


def folders_of_tests() -> set[str]:
    """Folders with tests, under the names of the packages that they should mirror."""
    tests = ROOT / "tests"
    folders = {path.parent.relative_to(tests) for path in tests.rglob("test_*.py")}
    return {".".join(("pegaflow", *folder.parts)) for folder in folders}


OF_THE_WHOLE = {
    f"pegaflow.{n}" for n in "fakes fuzz gpu perf procs rdma sim connectors.vllm.real".split()
}
"""Tests that stand for no package: what they test takes several, or is none."""

TESTED_BELOW = {"pegaflow.actors", "pegaflow.connectors"}
"""Packages whose own few lines are tested with the packages in them."""


def test_the_tests_lie_as_the_packages_do() -> None:
    packages = packages_on_disk()
    assert sorted(packages - TESTED_BELOW) == sorted(folders_of_tests() - OF_THE_WHOLE)
    assert TESTED_BELOW <= packages and OF_THE_WHOLE <= folders_of_tests()


def repeated(path: str) -> bool:
    """Whether a file of tests says in its name what its folders say: test_replay_tree in replay."""
    *folders, name = Path(path).with_suffix("").parts
    return any(name.startswith(f"test_{folder}_") for folder in folders)


def test_a_file_of_tests_is_named_for_what_is_in_its_folder() -> None:
    tests = (path.relative_to(ROOT) for path in (ROOT / "tests").rglob("test_*.py"))
    assert [str(path) for path in tests if repeated(str(path))] == []


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        ("tests/replay/test_replay_tree.py", True),
        ("tests/connectors/vllm/test_vllm_cores.py", True),
        ("tests/connectors/vllm/real/test_vllm_cores.py", True),
        ("tests/replay/test_tree.py", False),
        ("tests/actors/flusher/test_flusher.py", False),
        ("tests/procs/test_replay_service.py", False),
    ],
)
def test_a_name_that_repeats_its_folder_is_found(path: str, bad: bool) -> None:
    assert repeated(path) is bad


def test_the_package_list_is_the_disk() -> None:
    listed = PYPROJECT["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(packages_on_disk())


@pytest.mark.parametrize("name", ["actors", "wire"])
def test_the_links_are_right(name: str) -> None:
    assert os.readlink(ROOT / "pegaflow" / name) == f"../{name}"
    assert PYPROJECT["tool"]["setuptools"]["package-dir"][f"pegaflow.{name}"] == name


def test_every_declared_entry_point_resolves() -> None:
    project = PYPROJECT["project"]
    for group in (project["scripts"], *project["entry-points"].values()):
        for point in group.values():
            module, _, name = point.partition(":")
            assert callable(getattr(importlib.import_module(module), name)), point


@pytest.mark.skipif(not INSTALLED, reason="an editable install keeps the metadata of its first day")
def test_the_distribution_is_the_one_declared() -> None:
    found = importlib.metadata.distribution("pegaflow")
    assert found.version == PYPROJECT["project"]["version"]
    assert set(found.metadata.get_all("Provides-Extra") or []) == {
        "gpu",
        "gpu-cu13",
        "rdma",
        "zstd",
    }


@pytest.mark.skipif(not INSTALLED, reason="a checkout is tested; tox tests the wheel")
def test_the_wheel_is_tested_and_not_the_checkout() -> None:
    site_packages = Path(sysconfig.get_path("purelib"))
    for name in ("pegaflow", "pegaflow.wire", "pegaflow.actors.runtime.contract"):
        where = importlib.import_module(name).__file__
        assert where is not None and Path(where).is_relative_to(site_packages), where
    assert pegaflow.__file__ is not None
    for name in ("actors", "wire"):
        assert not (Path(pegaflow.__file__).parent / name).is_symlink()


@pytest.mark.skipif(not WHEEL, reason="no wheel was built; tox builds one")
def test_the_wheel_holds_the_modules_the_data_and_the_licences() -> None:
    assert WHEEL is not None
    names = set(zipfile.ZipFile(WHEEL).namelist())
    assert {name for name in names if name.endswith(".py")} == modules_on_disk(), "stale build/?"
    assert "pegaflow/py.typed" in names
    data = ROOT / "pegaflow" / "replay" / "data"
    for path in data.iterdir():
        assert f"pegaflow/replay/data/{path.name}" in names
    licences = {name.split("/licenses/")[1] for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "pegaflow/replay/data/LICENSE.mooncake"}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"pegaflow"}
