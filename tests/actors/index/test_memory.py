"""The files of this host, as the index opens them."""

import os
from pathlib import Path

import numpy as np
import pytest

from pegaflow.actors.index.device import IndexMemory
from pegaflow.core.pool.hazards import HazardReader, Hazards, hazard_bytes
from pegaflow.device.memory import SharedFile
from pegaflow.wire.index import HazardFile
from tests.actors.rig import BOSS
from tests.naming import as_pages, as_stamps

ROWS = 1000


@pytest.fixture
def file(tmp_path: Path) -> SharedFile:
    """A session's file, all of it there."""
    made = SharedFile.create(str(tmp_path / "session.4.hazards"), hazard_bytes(ROWS))
    assert made.reserve(0, made.length) == ""
    return made


def announced(file: SharedFile) -> HazardFile:
    return HazardFile(file.path, file.id)


def test_hazards_are_seen_as_they_are_written(file: SharedFile) -> None:
    hazards = Hazards(file.map)
    reader = IndexMemory(BOSS).open_hazards(announced(file))
    assert isinstance(reader, HazardReader)
    file.unlink()
    rows = hazards.publish(np.array([7, 9]), np.array([70, 90], np.uint64))
    assert reader.named(as_pages(7, 8, 9), as_stamps(70, 80, 91)).tolist() == [True, False, False]
    hazards.clear(rows)
    assert reader.pages().tolist() == []


def test_no_descriptor_stays_open(file: SharedFile) -> None:
    Hazards(file.map)
    before = len(os.listdir("/proc/self/fd"))
    memory = IndexMemory(BOSS)
    for _ in range(5):
        assert isinstance(memory.open_hazards(announced(file)), HazardReader)
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_no_such_file_is_refused(file: SharedFile, tmp_path: Path) -> None:
    memory, told = IndexMemory(BOSS), announced(file)
    assert memory.open_hazards(told) == "this is no file of hazards of this version"
    Hazards(file.map)
    file.unlink()
    assert memory.open_hazards(told) == f"cannot open {file.path}: No such file or directory"
    other = SharedFile.create(file.path, file.length)
    Hazards(other.map)
    assert memory.open_hazards(told) == f"{file.path} is another file by now"
    assert memory.open_hazards(HazardFile("a\0b", file.id)) == "its path is none"
    os.symlink(file.path, tmp_path / "link")
    assert "link" in str(memory.open_hazards(HazardFile(str(tmp_path / "link"), file.id)))


def test_a_file_with_holes_is_not_touched(tmp_path: Path) -> None:
    file = SharedFile.create(str(tmp_path / "session.5.hazards"), hazard_bytes(ROWS))
    Hazards(file.map)
    assert IndexMemory(BOSS).open_hazards(announced(file)) == f"{file.path} has holes"
