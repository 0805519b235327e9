"""Pools that were kept: listed, and freed, but for those in which a service lives."""

import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pegaflow.core.errors import UserError
from pegaflow.core.pool.geometry import Geometry
from pegaflow.device import poolfiles
from pegaflow.service import rundir, serve
from pegaflow.service.cli import app
from pegaflow.wire.identities import Incarnation
from tests.device.test_locks import living

GEOMETRY = Geometry(1 << 20, 1 << 18)


@pytest.fixture
def shm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "shm"
    folder.mkdir()
    monkeypatch.setattr(serve, "SHM", folder)
    return folder


def keep(run_dir: Path) -> Path:
    """A pool of this run directory; its path."""
    stem = str(serve.SHM / serve.shm_stem(run_dir))
    return Path(poolfiles.make(stem, GEOMETRY, Incarnation(3), 0, run_dir=str(run_dir)).pool.path)


def said(*words: str) -> str:
    done = CliRunner().invoke(app, ["purge", *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_all_are_listed_and_all_that_are_free_are_freed(shm: Path, tmp_path: Path) -> None:
    one, two = keep(tmp_path / "one"), keep(tmp_path / "two")
    with living(str(two), 9) as pid, living(str(two.with_suffix(".ledger")), 9) as ledger_pid:
        shown = said("--list").splitlines()
        assert len(shown) == 2 and len(list(shm.iterdir())) == 4
        assert any(str(tmp_path / "one") in line and "free to purge" in line for line in shown)
        assert any(f"in use by pid {ledger_pid}" in line for line in shown), pid
        assert f"{two.with_suffix('')} is in use" in said("--all")
        assert not one.exists() and two.exists()
    said("--all")
    assert list(shm.iterdir()) == [] and said("--list") == "no pool is kept\n"


def test_a_directory_that_is_not_there_is_one_line_and_is_not_made(
    shm: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="no run directory"):
        serve.purge(tmp_path / "typo")
    assert not (tmp_path / "typo").exists()


def test_the_pool_of_a_directory_that_was_removed_can_be_freed(shm: Path, tmp_path: Path) -> None:
    keep(tmp_path / "gone")
    assert serve.purge(tmp_path / "gone") > 0
    assert list(shm.iterdir()) == []


def test_another_service_in_the_pool_is_one_line(shm: Path, tmp_path: Path) -> None:
    path = keep(rundir.prepare(tmp_path / "run"))
    with living(str(path), 9):
        with pytest.raises(UserError, match="another service lives in"):
            serve.purge(tmp_path / "run")
    assert path.exists() and os.getuid() == path.stat().st_uid
