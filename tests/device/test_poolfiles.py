"""The pool's files: which of an earlier life are adopted, and what becomes of the others."""

import gc
import os
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pegaflow.core.errors import UserError
from pegaflow.core.pool import ledger
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.ledger import HEADER_BYTES, RECORD_BYTES, Record
from pegaflow.device import poolfiles, poolnames, resize
from pegaflow.device.poolfiles import Found, PoolFiles, Wanted
from pegaflow.wire.identities import Incarnation, Key, Namespace, PageId, Stamp
from tests.naming import as_pages

from .test_locks import holder, living

EXTENT = 64 << 10
POOL = 4 * EXTENT
GEOMETRY = Geometry(POOL, EXTENT)
AS_IT_IS = Wanted(None, None, False)
RECORD = Record(
    Stamp(1),
    1,
    0,
    1,
    payload_bytes=16384,
    namespace=Namespace(bytes(16)),
    key=Key(b"k" * 32),
    checksum=None,
    depth=0,
)


@pytest.fixture
def stem(tmp_path: Path) -> str:
    return str(tmp_path / "pegaflow-0-abc")


def made(stem: str) -> PoolFiles:
    """A pool with one sealed page."""
    files = poolfiles.make(stem, GEOMETRY, incarnation=Incarnation(6))
    records = GEOMETRY.records_per_extent * RECORD_BYTES
    assert files.file.reserve(HEADER_BYTES, records) == ""
    files.ledger.seal([PageId(0)], [RECORD])
    return files


def test_a_pool_as_it_was_left_is_adopted(stem: str) -> None:
    old = made(stem)
    for wanted in (AS_IT_IS, Wanted(POOL, EXTENT, False), Wanted(POOL + 1, None, False)):
        found = poolfiles.adopt(stem, wanted)
        files = found.files
        assert files is not None and found == Found(files, was_bytes=POOL)
        assert files.header == old.header
        assert files.sealed() == (1, 16384)
        assert files.ledger.read(PageId(0)) == RECORD
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
        ("pool", lambda p: os.truncate(p, POOL), "fewer than its header says"),
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
    assert poolnames.remove(stem) == (0, [])
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
    assert files.ledger.read(PageId(0)) == RECORD
    files.share(Incarnation(7))
    assert poolnames.remove(stem, files) == (0, [])
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
    made(stem).ledger.set_incarnation(Incarnation(40))
    made(stem)
    assert poolnames.numbers(stem) == [2, 1]
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
        assert poolnames.remove(stem, found.files)[1] == [f"{stem}.2"]
        assert sorted(p.name for p in Path(stem).parent.iterdir()) == [
            f"pegaflow-0-abc.{name}" for name in ("1.ledger", "1.pool", "2.ledger", "2.pool")
        ]
    assert poolnames.remove(stem, found.files)[1] == []
    assert len(list(Path(stem).parent.iterdir())) == 2


def test_a_bounce_file_in_use_stays_and_nobody_is_killed_for_it(stem: str) -> None:
    path = Path(f"{stem}.1.session.4.bounce")
    path.touch(0o600)
    with holder(path, service=3) as child:
        assert poolnames.remove(stem) == (0, [f"{stem}.1"])
        assert child.poll() is None and path.exists()
    assert poolnames.remove(stem) == (0, []) and not path.exists()


def test_removed_names_take_no_bytes_from_who_has_them_mapped(stem: str) -> None:
    old = made(stem)
    neighbour = Path(f"{stem}x.1.pool")
    neighbour.touch()
    assert poolnames.remove(stem)[0] > 0
    assert old.ledger.read(PageId(0)) == RECORD
    assert poolnames.numbers(stem) == [] and neighbour.exists()


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
    poolnames.remove(stem, old)
    assert {p.name for p in Path(stem).parent.iterdir()} == {
        "pegaflow-0-abc.1.pool",
        "pegaflow-0-abc.1.ledger",
    }


def sealed_at(files: PoolFiles, extent: int, slot: int, seal: int) -> bytes:
    """A block whose key and bytes say where it was; its key."""
    page = GEOMETRY.page_id(extent, slot)
    key = b"%32d" % page
    at = GEOMETRY.offset(page, 16384)
    files.pool.reserve(at, 16384)
    files.pool.map[at : at + 32] = key
    own = GEOMETRY.records_per_extent * RECORD_BYTES
    assert files.file.reserve(HEADER_BYTES + extent * own, own) == ""
    files.ledger.seal([page], [RECORD._replace(key=Key(key), seal=seal)])
    return key


def found_in(files: PoolFiles) -> set[Key]:
    """The keys of all sealed pages, whose bytes are theirs."""
    geometry = Geometry(files.header.pool_bytes, EXTENT)
    keys: set[Key] = set()
    for page in range(files.ledger.records):
        record = files.ledger.read(PageId(page))
        if record is not None:
            at = geometry.offset(PageId(page), 16384)
            assert files.pool.map[at : at + 32] == record.key
            assert record.key not in keys
            keys.add(record.key)
    return keys


def sized(stem: str, extents: int) -> PoolFiles:
    found = poolfiles.adopt(stem, Wanted(extents * EXTENT, None, False, "/run/here"))
    assert found.files is not None and found.refused == ()
    assert found.files.header.pool_bytes == extents * EXTENT
    return found.files


def test_a_pool_that_grows_keeps_everything_and_shrinks_again(stem: str) -> None:
    files = poolfiles.make(stem, GEOMETRY, Incarnation(6))
    keys = {sealed_at(files, extent, slot, 1) for extent in range(4) for slot in (0, 3)}
    for extents in (9, 5, 4, 7, 4):
        files = sized(stem, extents)
        assert found_in(files) == keys and files.header.incarnation == 6
        assert poolfiles.kept(stem)[0].run_dir == "/run/here"


def test_a_pool_that_shrinks_moves_the_newest_into_what_is_empty(stem: str) -> None:
    files = poolfiles.make(stem, Geometry(8 * EXTENT, EXTENT), Incarnation(6))
    for extent, seal in ((0, 50), (4, 10), (5, 30), (6, 20), (7, 40)):
        for slot in range(4):
            page = extent * GEOMETRY.records_per_extent + slot
            key, at = b"%32d" % page, extent * EXTENT + slot * 16384
            files.pool.map[at : at + 32] = key
            files.ledger.seal([PageId(page)], [RECORD._replace(key=Key(key), seal=seal)])
    files = sized(stem, 3)
    moved = {int(key) // GEOMETRY.records_per_extent for key in found_in(files)}
    assert moved == {0, 5, 7} and files.sealed()[0] == 12
    taken = os.stat(files.pool.path).st_blocks * 512
    assert taken <= 3 * EXTENT + poolfiles.TRAILER_BYTES
    files = sized(stem, 8)
    assert files.sealed()[0] == 12, "what was voided does not come back"


def test_a_record_that_was_leaving_when_its_index_died_moves_as_a_sealed_one(stem: str) -> None:
    files = poolfiles.make(stem, GEOMETRY, Incarnation(6))
    keys = {sealed_at(files, extent, slot, extent) for extent in (0, 3) for slot in range(4)}
    files.ledger.leave(as_pages(2, 3, 13))
    files = sized(stem, 2)
    assert found_in(files) == keys


@pytest.mark.skipif(os.getuid() != 0, reason="only root may mount a small file system")
@pytest.mark.parametrize(
    ("filled", "kept"),
    [
        pytest.param((1, 2, 3), {1, 3}, id="an extent to move to is not there yet"),
        pytest.param((0, 1, 3), {0, 1}, id="the page at the new end is not there yet"),
        pytest.param((0, 1, 2, 3), {0, 1}, id="everything is there"),
    ],
)
def test_a_pool_in_full_memory_shrinks_and_keeps_what_fits(
    tmp_path: Path, filled: tuple[int, ...], kept: set[int]
) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(tmp_path)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount here")
    try:
        stem = str(tmp_path / "pegaflow-0-abc")
        files = poolfiles.make(stem, GEOMETRY, Incarnation(6))
        keys = {n: {sealed_at(files, n, slot, n + 1) for slot in range(4)} for n in filled}
        with pytest.raises(OSError, match="No space left"):
            (tmp_path / "others").write_bytes(bytes(2 << 20))
        assert found_in(sized(stem, 2)) == set().union(*(keys[n] for n in kept))
    finally:
        subprocess.run(["umount", "--lazy", str(tmp_path)], check=True)


def held_by_us(files: PoolFiles) -> list[bool]:
    """Of pool and ledger, whether another process finds that we live in it."""
    ask = "import os, sys; from pegaflow.device import locks; "
    ask += "[print(locks.owner(os.open(p, os.O_RDWR))) for p in sys.argv[1:]]"
    command = [sys.executable, "-c", ask, files.pool.path, files.file.path]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    return [line == f"pid {os.getpid()}" for line in said.stdout.splitlines()]


@pytest.mark.parametrize("extents", [4, 9, 2])
def test_a_pool_is_locked_after_it_was_adopted_whatever_its_size(stem: str, extents: int) -> None:
    made(stem)
    gc.collect()
    files = sized(stem, extents)
    gc.collect()
    assert held_by_us(files) == [True, True]


def test_files_that_were_never_filled_are_looked_at_without_making_them_real() -> None:
    """Of a service that was killed while it made them.  In a full /dev/shm a touch is a SIGBUS."""
    stem = f"/dev/shm/pegaflow-test-{os.getpid()}"
    paths = [Path(f"{stem}.1.{end}") for end in ("ledger", "pool")]
    try:
        for path in paths:
            path.touch(0o600)
            os.truncate(path, 1 << 20)
        assert poolfiles.incarnation_of(stem) == 0 and poolfiles.kept(stem) == []
        assert "never finished" in poolfiles.adopt(stem, AS_IT_IS).refused[0]
        assert [path.stat().st_blocks for path in paths] == [0, 0]
    finally:
        for path in paths:
            path.unlink()


@pytest.mark.parametrize("call", ["seal", "void", "format", "punch"])
def test_who_is_killed_while_a_pool_shrinks_leaves_no_wrong_block(
    stem: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = poolfiles.make(stem, GEOMETRY, Incarnation(6))
    keys = {sealed_at(files, extent, slot, extent) for extent in (0, 2, 3) for slot in range(4)}

    def dies(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(resize if call == "punch" else ledger.Ledger, call, dies)
        with pytest.raises(KeyboardInterrupt):
            sized(stem, 2)
    pages = sized(stem, 4)
    seen = [
        r.key
        for p in range(pages.ledger.records)
        if (r := pages.ledger.read(PageId(p))) is not None
    ]
    assert set(seen) <= keys and len(set(seen)) >= 8


def test_a_size_that_does_not_fit_is_one_line_and_costs_nothing(stem: str) -> None:
    made(stem)

    def check(there: int) -> None:
        assert there > 0
        raise UserError("it does not fit")

    with pytest.raises(UserError, match="does not fit"):
        poolfiles.adopt(stem, Wanted(2 * POOL, None, False, "", check=check))
    found = poolfiles.adopt(stem, AS_IT_IS)
    assert found.files is not None and found.files.sealed() == (1, 16384)
