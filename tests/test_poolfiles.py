"""The pool's files: which of an earlier life are adopted, and what becomes of the others."""

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pegaflow.cache import ledger
from pegaflow.cache.geometry import Geometry
from pegaflow.cache.ledger import HEADER_BYTES, RECORD_BYTES, Record
from pegaflow.device import poolfiles
from pegaflow.device.poolfiles import PoolFiles, Wanted

EXTENT = 64 << 10
POOL = 4 * EXTENT
GEOMETRY = Geometry(POOL, EXTENT)
AS_IT_IS = Wanted(None, None, False)
RECORD = Record(1, 1, 0, 1, 16384, bytes(16), b"k" * 32, None, 0)


@pytest.fixture
def stem(tmp_path: Path) -> str:
    return str(tmp_path / "pegaflow-0-abc")


def made(stem: str, number: int = 1) -> PoolFiles:
    """A pool with one sealed page."""
    files = poolfiles.make(stem, number, GEOMETRY, incarnation=6)
    records = GEOMETRY.records_per_extent * RECORD_BYTES
    assert files.file.reserve(HEADER_BYTES, records) == ""
    files.ledger.seal([0], [RECORD])
    return files


def test_a_pool_as_it_was_left_is_adopted(stem: str) -> None:
    old = made(stem)
    for wanted in (AS_IT_IS, Wanted(POOL, EXTENT, False), Wanted(POOL + 1, None, False)):
        files, why = poolfiles.adopt(stem, wanted)
        assert files is not None and why == ""
        assert files.header == old.header
        assert files.sealed() == (1, 16384)
        assert files.ledger.read(0) == RECORD
    assert poolfiles.incarnation_of(stem) == 6


def test_nothing_there_is_no_reason_to_tell(stem: str) -> None:
    assert poolfiles.adopt(stem, AS_IT_IS) == (None, "")
    assert poolfiles.incarnation_of(stem) == 0


def torn(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def hard_linked(path: Path) -> None:
    path.with_name("elsewhere").hardlink_to(path)


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def another_boot(path: Path) -> None:
    found = poolfiles.boot_id()
    data = path.read_bytes()
    at = data.index(found)
    header = bytearray(data[:HEADER_BYTES])
    header[at : at + 4] = b"0000" if found[:4] != b"0000" else b"1111"
    facts = header[ledger._FACTS_AT : ledger._FACTS_AT + ledger._FACTS.size]
    struct.pack_into("=I", header, ledger._CRC_AT, zlib.crc32(facts))
    torn(path, 0, bytes(header))


@pytest.mark.parametrize(
    ("end", "spoil", "why"),
    [
        ("ledger", lambda p: p.chmod(0o644), "mode 0600"),
        ("pool", lambda p: p.chmod(0o660), "mode 0600"),
        ("ledger", linked, "cannot open"),
        ("pool", linked, "cannot open"),
        ("pool", hard_linked, "regular file of ours"),
        ("ledger", a_fifo, "regular file of ours"),
        ("pool", lambda p: p.unlink(), "cannot open"),
        ("pool", lambda p: torn(p, POOL, b"another one's"), "another pool's"),
        ("pool", lambda p: os.truncate(p, POOL), "not those of its header"),
        ("ledger", lambda p: torn(p, 0, bytes(8)), "ledger"),
        ("ledger", lambda p: torn(p, 24, b"\xff"), "ledger"),
        ("ledger", lambda p: os.truncate(p, 100), "ledger"),
        ("ledger", another_boot, "earlier boot"),
    ],
)
def test_what_is_not_ours_or_not_whole_is_not_adopted(
    stem: str, end: str, spoil: Callable[[Path], None], why: str
) -> None:
    made(stem)
    spoil(Path(f"{stem}.1.{end}"))
    files, said = poolfiles.adopt(stem, AS_IT_IS)
    assert files is None
    assert why in said and "\n" not in said


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        (Wanted(2 * POOL, None, False), f"it has {POOL} bytes, {2 * POOL} are wanted"),
        (Wanted(None, 2 * EXTENT, False), f"its extents have {EXTENT} bytes"),
        (Wanted(None, None, True), "--fresh"),
    ],
)
def test_another_size_or_a_wish_means_a_new_one(stem: str, wanted: Wanted, why: str) -> None:
    made(stem)
    files, said = poolfiles.adopt(stem, wanted)
    assert files is None and why in said


def test_another_users_pool_is_not_adopted(stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made(stem)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert "of ours" in poolfiles.adopt(stem, AS_IT_IS)[1]


def test_the_newest_pool_counts_and_the_oldest_incarnation_is_never_given_again(stem: str) -> None:
    made(stem, 2).ledger.set_incarnation(40)
    made(stem, 10)
    assert poolfiles.numbers(stem) == [10, 2]
    files, _ = poolfiles.adopt(stem, AS_IT_IS)
    assert files is not None and files.pool.path == f"{stem}.10.pool"
    assert poolfiles.incarnation_of(stem) == 40


def test_removed_names_take_no_bytes_from_who_has_them_mapped(stem: str) -> None:
    old = made(stem)
    neighbour = Path(f"{stem}x.1.pool")
    neighbour.touch()
    assert poolfiles.remove(stem) > 0
    assert old.ledger.read(0) == RECORD
    assert poolfiles.numbers(stem) == [] and neighbour.exists()


def test_what_is_kept_is_not_removed(stem: str) -> None:
    old = made(stem)
    Path(f"{stem}.1.session.4.0.bounce").touch()
    poolfiles.remove(stem, (old.pool.path, old.file.path))
    assert {p.name for p in Path(stem).parent.iterdir()} == {
        "pegaflow-0-abc.1.pool",
        "pegaflow-0-abc.1.ledger",
    }
