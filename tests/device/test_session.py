"""What a session maps to find blocks by itself: a hazard file that is really there, or none."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pegaflow.actors.session.device import Reader
from pegaflow.core.errors import UserError
from pegaflow.core.pool.columns import column, signed
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.hazards import ROWS_MOST, HazardReader, hazard_bytes
from pegaflow.device import membarrier, poolfiles
from pegaflow.device.memory import FileId, SharedFile
from pegaflow.wire.control import Welcome
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.values import SESSION, SUPERVISOR, Address

BOSS = Address(SUPERVISOR, Incarnation(3))
GEOMETRY = Geometry(1 << 20, 1 << 18)


@pytest.fixture
def welcome(tmp_path: Path) -> Welcome:
    files = poolfiles.make(f"{tmp_path}/pool", GEOMETRY, Incarnation(2))
    files.share(BOSS.incarnation)
    return Welcome(
        pool_path=files.pool.path,
        ledger_path=files.file.path,
        pool_bytes=GEOMETRY.pool_bytes,
        extent_bytes=GEOMETRY.extent_bytes,
        run_dir="run",
        pool_file=files.pool.id,
        ledger_file=files.file.id,
    )


@pytest.fixture(autouse=True)
def barrier(monkeypatch: pytest.MonkeyPatch) -> None:
    """This kernel has one, whatever a seccomp filter says."""
    monkeypatch.setattr(membarrier, "register", lambda: "")


def hazard_files(tmp_path: Path) -> list[str]:
    return [path.name for path in tmp_path.iterdir() if path.suffix == ".hazards"]


def test_a_hazard_file_is_really_there_and_known_by_its_inode(
    welcome: Welcome, tmp_path: Path
) -> None:
    reader = Reader(Address(SESSION, Incarnation(4)), BOSS)
    opened = reader.open_hazards(welcome)
    assert opened.path == f"{tmp_path}/pool.1.session.4.hazards"
    found = os.stat(opened.path)
    assert (found.st_dev, found.st_ino) == opened.file and found.st_mode & 0o777 == 0o600
    assert found.st_blocks * 512 >= hazard_bytes(ROWS_MOST, sections=2) == found.st_size
    rows = opened.hazards.publish(np.array([7]), np.array([9], np.uint64))
    assert HazardReader(Path(opened.path).read_bytes()).pages().tolist() == [7]
    opened.hazards.clear(rows)
    reader.close()
    assert hazard_files(tmp_path) == []


def test_without_room_for_hazards_there_are_none(
    welcome: Welcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SharedFile, "reserve", lambda self, at, length: "No space left on device")
    with pytest.raises(UserError, match="no room for hazards in /dev/shm: No space left"):
        Reader(Address(SESSION, Incarnation(4)), BOSS).open_hazards(welcome)
    assert hazard_files(tmp_path) == []


def test_without_a_memory_barrier_there_are_none(
    welcome: Welcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membarrier, "register", lambda: "membarrier: Operation not permitted")
    with pytest.raises(UserError, match="there is no memory barrier: membarrier: Operation not"):
        Reader(Address(SESSION, Incarnation(4)), BOSS).open_hazards(welcome)
    assert hazard_files(tmp_path) == []


def test_a_name_that_somebody_has_taken_is_left_alone(welcome: Welcome, tmp_path: Path) -> None:
    theirs = tmp_path / "pool.1.session.4.hazards"
    theirs.touch()
    reader = Reader(Address(SESSION, Incarnation(4)), BOSS)
    with pytest.raises(UserError, match="somebody else's"):
        reader.open_hazards(welcome)
    reader.close()
    assert theirs.exists()


def test_a_session_cannot_write_the_ledger(
    welcome: Welcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped: list[SharedFile] = []
    opened = SharedFile.open

    def watched(
        path: str, known: FileId, service: Incarnation, *, write: bool = True
    ) -> SharedFile:
        mapped.append(opened(path, known, service, write=write))
        return mapped[-1]

    monkeypatch.setattr(SharedFile, "open", watched)
    finder = Reader(Address(SESSION, Incarnation(4)), BOSS).open_finder(welcome)
    assert finder.sealed(signed(()), column(()))
    (file,) = mapped
    with pytest.raises(TypeError, match="read-only|readonly"):
        file.map[:1] = b"x"


def test_a_ledger_that_cannot_be_mapped_is_a_line(welcome: Welcome) -> None:
    reader = Reader(Address(SESSION, Incarnation(4)), BOSS)
    with pytest.raises(UserError, match="cannot map"):
        reader.open_finder(replace(welcome, ledger_path="nowhere", ledger_file=(1, 2)))
    assert reader.open_finder(welcome).sealed(signed(()), column(()))
