"""Room for the table behind the records of a ledger: in new pools and older ones of any size."""

import os

import numpy as np
import pytest

from pegaflow.core.pool import ledger, table
from pegaflow.core.pool.ledger import HEADER_BYTES
from pegaflow.core.pool.table import Table, TableReader
from pegaflow.device import poolfiles, resize
from pegaflow.device.poolfiles import PoolFiles, Wanted
from pegaflow.wire.identities import Incarnation, PageId
from tests.naming import as_pages

from .test_poolfiles import (
    AS_IT_IS,
    EXTENT,
    GEOMETRY,
    RECORD,
    found_in,
    held_by_us,
    made,
    sealed_at,
    sized,
    stem,
)

__all__ = ["stem"]

NAMES = np.arange(4, dtype=np.uint64) * np.uint64(1 << 62) + np.uint64(2)


def with_table(files: PoolFiles) -> None:
    """There is room for one, and its readers find what it says."""
    writer = Table(files.file.map, files.ledger.records, files.file.reserve)
    assert writer.begin(16) == ""
    writer.add(NAMES, as_pages(0, 1, 2, 3, 0, 2, 1, 3), shards=2)
    writer.publish()
    assert finds(TableReader(files.file.map, files.ledger.records)) == [0, 2, 0, 1]


def finds(reader: TableReader) -> list[int] | None:
    pages = reader.find(NAMES)
    return None if pages is None else [int(page) for page in pages]


def test_a_new_pool_has_room_for_a_table_and_none_of_it_is_real(stem: str) -> None:
    files = made(stem)
    assert files.file.length == table.file_bytes(GEOMETRY.records)
    before = os.stat(files.file.path).st_blocks * 512
    assert before <= HEADER_BYTES + 4096
    with_table(files)
    assert os.stat(files.file.path).st_blocks * 512 <= before + 3 * 4096
    assert files.ledger.header.incarnation == 6 and files.sealed() == (1, 16384)


def test_a_pool_of_the_version_before_is_adopted_and_gets_room_for_a_table(stem: str) -> None:
    files = made(stem)
    end = ledger.ledger_bytes(GEOMETRY.extents, GEOMETRY.records_per_extent)
    os.truncate(files.file.path, end)
    found = poolfiles.adopt(stem, AS_IT_IS).files
    assert found is not None and found.sealed() == (1, 16384)
    assert found.ledger.read(PageId(0)) == RECORD and held_by_us(found) == [True, True]
    assert os.stat(found.file.path).st_size == table.file_bytes(GEOMETRY.records)
    with_table(found)


@pytest.mark.parametrize("extents", [1, 3, 9])
def test_a_pool_of_the_version_before_may_get_another_size(stem: str, extents: int) -> None:
    end = ledger.ledger_bytes(GEOMETRY.extents, GEOMETRY.records_per_extent)
    os.truncate(made(stem).file.path, end)
    files = sized(stem, extents)
    assert files.ledger.read(PageId(0)) == RECORD
    with_table(files)


@pytest.mark.parametrize("extents", [2, 4, 7])
def test_the_table_of_an_earlier_service_is_forgotten_whatever_size_the_pool_gets(
    stem: str, extents: int
) -> None:
    files = poolfiles.make(stem, GEOMETRY, Incarnation(6))
    keys = {sealed_at(files, 0, slot, slot + 1) for slot in range(4)}
    with_table(files)
    end = ledger.ledger_bytes(GEOMETRY.extents, GEOMETRY.records_per_extent)
    files.file.map[end:] = b"\x5a" * (files.file.length - end)  # whatever stands there
    files = sized(stem, extents)
    assert finds(TableReader(files.file.map, files.ledger.records)) is None
    assert found_in(files) == keys
    words = files.ledger.rows()[16:, 0]
    assert not words.any(), "records of new extents are void"
    with_table(files)


def test_a_pool_whose_table_cannot_give_way_does_not_grow(
    stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(stem)
    with monkeypatch.context() as patch:
        patch.setattr(resize, "punch", lambda file, start, length: False)
        found = poolfiles.adopt(stem, Wanted(9 * EXTENT, None, False))
        assert found.files is None and "cannot be made as large" in found.refused[0]
    assert sized(stem, 4).sealed() == (1, 16384)
