"""Space in shared memory that is reserved: really there, and no first touch of it is left."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.ledger import HEADER_BYTES, RECORD_BYTES
from pegaflow.device import poolfiles
from pegaflow.device.engine.staged import Bounce
from pegaflow.device.memory import Extents, SharedFile
from pegaflow.device.poolfiles import PoolFiles
from pegaflow.wire.identities import Incarnation

EXTENT = 1 << 20
GEOMETRY = Geometry(4 * EXTENT, EXTENT)
RECORDS = GEOMETRY.records_per_extent * RECORD_BYTES


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="pegaflow-test-", dir="/dev/shm") as made:  # noqa: S108
        yield Path(made)


@pytest.fixture
def files(folder: Path) -> PoolFiles:
    return poolfiles.make(str(folder / "pool"), GEOMETRY, Incarnation(1))


def cleared(file: SharedFile, first: int, length: int) -> bool:
    """Whether the kernel takes all of this range for data: what is only reserved is a hole."""
    return os.lseek(file.fd, first, os.SEEK_HOLE) >= first + length


def taken(file: SharedFile) -> int:
    """Bytes of memory."""
    return os.fstat(file.fd).st_blocks * 512


def test_an_extent_that_is_grown_has_no_page_left_to_clear(files: PoolFiles) -> None:
    assert Extents(files.pool, files.file, GEOMETRY).grow(1) == ""
    assert cleared(files.pool, EXTENT, EXTENT)
    assert cleared(files.file, HEADER_BYTES + RECORDS, RECORDS)


def test_no_other_extent_becomes_real_and_none_is_counted_twice(files: PoolFiles) -> None:
    before = taken(files.pool)
    Extents(files.pool, files.file, GEOMETRY).grow(1)
    assert taken(files.pool) == before + EXTENT
    assert not cleared(files.pool, 0, 1) and not cleared(files.pool, 2 * EXTENT, 1)


def test_what_an_extent_holds_is_there_when_it_is_grown_again(files: PoolFiles) -> None:
    extents = Extents(files.pool, files.file, GEOMETRY)
    extents.grow(1)
    files.pool.map[EXTENT : EXTENT + 5] = b"bytes"
    assert extents.grow(1) == ""
    assert files.pool.map[EXTENT : EXTENT + 6] == b"bytes\0"


@pytest.mark.parametrize("reserved", [0, EXTENT // 2, EXTENT])
@pytest.mark.parametrize("held", [0, EXTENT // 4])
def test_who_comes_after_one_who_was_killed_has_all_of_it(
    folder: Path, reserved: int, held: int
) -> None:
    """Wherever the kill came: before, in or after the first reservation, or in the second."""
    file = SharedFile.create(str(folder / "pool"), EXTENT)
    if reserved:
        os.posix_fallocate(file.fd, 0, reserved)
    file.map[:held] = bytes([7]) * held
    assert not cleared(file, 0, EXTENT)
    assert file.reserve(0, EXTENT) == ""
    assert cleared(file, 0, EXTENT) and taken(file) == EXTENT
    assert file.map[:] == bytes([7]) * held + bytes(EXTENT - held)


def test_a_bounce_file_has_no_first_touch_either(folder: Path) -> None:
    bounce = Bounce(str(folder / "x.bounce"), 4, EXTENT)
    assert bounce.reserve() == ""
    assert cleared(bounce.file, 0, 4 * EXTENT)
