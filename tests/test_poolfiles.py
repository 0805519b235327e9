"""The pool's files: which of an earlier life are adopted, and what becomes of the others."""

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pegaflow.cache import ledger
from pegaflow.cache.geometry import Geometry
from pegaflow.cache.ledger import HEADER_BYTES, RECORD_BYTES, Record
from pegaflow.device import poolfiles
from pegaflow.device.poolfiles import Found, PoolFiles, Wanted
from pegaflow.errors import UserError

from .test_locks import holder, living

EXTENT = 64 << 10
POOL = 4 * EXTENT
GEOMETRY = Geometry(POOL, EXTENT)
AS_IT_IS = Wanted(None, None, False)
RECORD = Record(1, 1, 0, 1, 16384, bytes(16), b"k" * 32, None, 0)


@pytest.fixture
def stem(tmp_path: Path) -> str:
    return str(tmp_path / "pegaflow-0-abc")


def made(stem: str) -> PoolFiles:
    """A pool with one sealed page."""
    files = poolfiles.make(stem, GEOMETRY, incarnation=6)
    records = GEOMETRY.records_per_extent * RECORD_BYTES
    assert files.file.reserve(HEADER_BYTES, records) == ""
    files.ledger.seal([0], [RECORD])
    return files


def test_a_pool_as_it_was_left_is_adopted(stem: str) -> None:
    old = made(stem)
    for wanted in (AS_IT_IS, Wanted(POOL, EXTENT, False), Wanted(POOL + 1, None, False)):
        found = poolfiles.adopt(stem, wanted)
        files = found.files
        assert files is not None and found == Found(files)
        assert files.header == old.header
        assert files.sealed() == (1, 16384)
        assert files.ledger.read(0) == RECORD
    assert poolfiles.incarnation_of(stem) == 6


def test_nothing_there_is_no_reason_to_tell(stem: str) -> None:
    assert poolfiles.adopt(stem, AS_IT_IS) == Found(None)
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
    found = poolfiles.adopt(stem, AS_IT_IS)
    (said,) = found.refused
    assert found.files is None
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
    found = poolfiles.adopt(stem, wanted)
    assert found.files is None and why in found.refused[0]


def test_another_users_pool_is_passed_over(stem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made(stem)
    uid = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert poolfiles.adopt(stem, AS_IT_IS) == Found(None)
    assert poolfiles.remove(stem) == (0, [])
    assert Path(f"{stem}.1.pool").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to make files of another user")
@pytest.mark.parametrize("kind", [Path.touch, Path.mkdir, os.mkfifo])
def test_names_that_another_user_has_taken_keep_nobody_out(
    stem: str, kind: Callable[[Path], None]
) -> None:
    for name in ("1.ledger", "1.pool", "2.pool", "900000000000000000.ledger"):
        kind(path := Path(f"{stem}.{name}"))
        os.chown(path, 12345, 12345)
    files = made(stem)
    assert files.ledger.read(0) == RECORD
    files.share(7)
    assert poolfiles.remove(stem, files) == (0, [])
    assert len(list(Path(stem).parent.iterdir())) == 6
    found = poolfiles.adopt(stem, AS_IT_IS)
    assert found.files is not None and found.files.pool.path == files.pool.path


def test_a_name_that_is_always_taken_is_one_line(
    stem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(f"{stem}.1.pool").touch()
    monkeypatch.setattr(os, "urandom", lambda count: bytes(count))
    with pytest.raises(UserError, match="every name tried"):
        made(stem)
    assert [p.name for p in Path(stem).parent.iterdir()] == ["pegaflow-0-abc.1.pool"]


@pytest.mark.parametrize("ends", [("pool",), ("ledger",), ("pool", "ledger")])
def test_a_copy_is_not_adopted(stem: str, ends: tuple[str, ...]) -> None:
    """One that was made while the pool was in use holds pages of one moment, records of another."""
    made(stem)
    for end in ends:
        path = Path(f"{stem}.1.{end}")
        copy = path.with_name("copy")
        shutil.copy2(path, copy)
        copy.rename(path)
    found = poolfiles.adopt(stem, AS_IT_IS)
    assert found.files is None and "is a copy" in found.refused[0]


def test_a_pool_of_a_version_that_wrote_no_identity_is_adopted_and_gets_one(stem: str) -> None:
    made(stem)
    torn(Path(f"{stem}.1.pool"), POOL + 16, bytes(64))
    for _ in range(2):
        found = poolfiles.adopt(stem, AS_IT_IS)
        assert found.files is not None
    written = Path(f"{stem}.1.pool").read_bytes()[POOL + 16 : POOL + 24]
    assert written == b"PEGAFILE"


def test_the_newest_pool_counts_and_the_oldest_incarnation_is_never_given_again(stem: str) -> None:
    made(stem).ledger.set_incarnation(40)
    made(stem)
    assert poolfiles.numbers(stem) == [2, 1]
    assert poolfiles.incarnation_of(stem) == 40
    files = poolfiles.adopt(stem, AS_IT_IS).files
    assert files is not None and files.pool.path == f"{stem}.2.pool"


def test_a_pool_in_use_is_passed_over_and_stays(stem: str) -> None:
    made(stem)
    Path(f"{stem}.1.session.4.bounce").touch(0o600)
    made(stem)
    with living(f"{stem}.2.pool", service=9) as pid:
        found = poolfiles.adopt(stem, AS_IT_IS)
        assert found.in_use == (f"{stem}.2.pool is in use by another service (pid {pid})",)
        assert found.files is not None and found.files.pool.path == f"{stem}.1.pool"
        assert poolfiles.remove(stem, found.files)[1] == [f"{stem}.2"]
        assert sorted(p.name for p in Path(stem).parent.iterdir()) == [
            f"pegaflow-0-abc.{name}" for name in ("1.ledger", "1.pool", "2.ledger", "2.pool")
        ]
    assert poolfiles.remove(stem, found.files)[1] == []
    assert len(list(Path(stem).parent.iterdir())) == 2


def test_a_bounce_file_in_use_stays_and_nobody_is_killed_for_it(stem: str) -> None:
    path = Path(f"{stem}.1.session.4.bounce")
    path.touch(0o600)
    with holder(path, service=3) as child:
        assert poolfiles.remove(stem) == (0, [f"{stem}.1"])
        assert child.poll() is None and path.exists()
    assert poolfiles.remove(stem) == (0, []) and not path.exists()


def test_removed_names_take_no_bytes_from_who_has_them_mapped(stem: str) -> None:
    old = made(stem)
    neighbour = Path(f"{stem}x.1.pool")
    neighbour.touch()
    assert poolfiles.remove(stem)[0] > 0
    assert old.ledger.read(0) == RECORD
    assert poolfiles.numbers(stem) == [] and neighbour.exists()


def test_a_name_that_is_another_files_by_now_is_not_removed(stem: str) -> None:
    old = made(stem)
    for end in ("pool", "ledger"):
        Path(f"{stem}.1.{end}").unlink()
        Path(f"{stem}.1.{end}").touch()
    assert not old.pool.named()
    old.unlink()
    assert len(list(Path(stem).parent.iterdir())) == 2


def test_what_is_kept_is_not_removed(stem: str) -> None:
    old = made(stem)
    Path(f"{stem}.1.session.4.0.bounce").touch()
    poolfiles.remove(stem, old)
    assert {p.name for p in Path(stem).parent.iterdir()} == {
        "pegaflow-0-abc.1.pool",
        "pegaflow-0-abc.1.ledger",
    }
