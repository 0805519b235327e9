"""Whose an SSD directory is: its marker, what is known of it, and what is never made or wiped."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pegaflow.core.segments.marker import MARKER, Marker, OfLaterFormatError, pack, unpack
from pegaflow.device.mounts import missing_mount
from pegaflow.device.ssdfolder import Known
from pegaflow.device.ssdwipe import remove_log
from pegaflow.wire.diskjobs import OpenVolume
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.status import Status

from .disks import Bench, marker_of
from .failing import Failing


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "log", tmp_path / "pool")
    yield made
    made.close()


def test_only_the_last_component_is_made(tmp_path: Path) -> None:
    bench = Bench(tmp_path / "missing" / "kv", tmp_path / "pool")
    note = bench.fails(OpenVolume(0), Status.GONE)
    assert f"there is no {tmp_path}/missing" in note and "mount" in note
    assert not (tmp_path / "missing").exists()
    (tmp_path / "missing").mkdir()
    assert bench.open() == []
    assert (tmp_path / "missing" / "kv").stat().st_mode & 0o777 == 0o700
    bench.close()


def test_what_is_known_of_a_directory_outlives_the_process(tmp_path: Path) -> None:
    folder, known = tmp_path / "log", str(tmp_path / "ssd.json")
    bench = Bench(folder, tmp_path / "pool", known=Known(known))
    bench.open()
    bench.close()
    assert json.loads(Path(known).read_text()) == {str(folder): marker_of(folder).log}
    away = folder.rename(tmp_path / "away")
    for lost in (False, True):
        bench = Bench(folder, tmp_path / "pool", known=Known(known))
        bench.fails(OpenVolume(0), Status.GONE)
        bench.close()
        if not lost:
            assert not folder.exists(), "what was there is not mounted: nothing is made"
            folder.mkdir()
        else:
            assert not list(folder.iterdir())
    folder.rmdir()
    away.rename(folder)
    bench = Bench(folder, tmp_path / "pool", known=Known(known))
    assert bench.open() == []
    bench.close()


@pytest.mark.parametrize("text", ["", "no json", "[1]", '{"/a": 1}'])
def test_a_damaged_memory_is_no_memory(text: str, tmp_path: Path) -> None:
    (tmp_path / "ssd.json").write_text(text)
    assert Known(str(tmp_path / "ssd.json")).get("/a") is None
    nowhere = Known(str(tmp_path / "nowhere" / "ssd.json"))
    nowhere.put("/a", "x")
    assert nowhere.get("/a") == "x"


def test_no_new_log_is_begun_where_a_file_system_is_missing(tmp_path: Path) -> None:
    class Unmounted(Failing):
        missing = "/mnt/disk"

        def unmounted(self, path: str) -> str:
            return self.missing

    ops = Unmounted()
    bench = Bench(tmp_path / "log", tmp_path / "pool", ops)
    assert "/mnt/disk is not mounted" in bench.fails(OpenVolume(0), Status.GONE)
    assert not bench.folder.exists()
    bench.folder.mkdir(mode=0o700)
    assert "/etc/fstab" in bench.fails(OpenVolume(0), Status.GONE)
    assert not list(bench.folder.iterdir())
    ops.missing = ""
    assert bench.open() == []
    ops.missing = "/mnt/disk"
    assert bench.open() == [], "it has a marker: this is the log"
    bench.close()


FSTAB = r"""
# /dev/sdz /mnt/off ext4 defaults 0 0
UUID=1 / ext4 defaults 0 1
UUID=2 /mnt/disk ext4 nofail 0 2
UUID=3 /mnt/my\040disk/ ext4 defaults 0 2
UUID=4 /mnt/cd iso9660 noauto 0 0
UUID=5 none swap sw 0 0
"""


@pytest.mark.parametrize(
    ("path", "mounted", "missing"),
    [
        ("/mnt/disk/kv", "/", "/mnt/disk"),
        ("/mnt/disk", "/", "/mnt/disk"),
        ("/mnt/disk/kv", "/mnt/disk", ""),
        ("/mnt/disk/kv", "/mnt/disk/kv", ""),
        ("/mnt/disk2/kv", "/", ""),
        ("/mnt/my disk/a/b", "/", "/mnt/my disk"),
        ("/mnt/my disk/a/b", r"/mnt/my\040disk", ""),
        ("/mnt/cd/kv", "/", ""),
        ("/mnt/off/kv", "/", ""),
        ("/var/kv", "/", ""),
    ],
)
def test_missing_mounts(path: str, mounted: str, missing: str) -> None:
    lines = [f"1 0 8:1 / {point} rw - ext4 /dev/x rw" for point in {"/", mounted}]
    assert missing_mount(path, FSTAB, "\n".join(lines)) == missing
    assert missing_mount(path, FSTAB, "") == "", "nobody says what is mounted"


def test_a_log_of_the_version_before_is_adopted(bench: Bench) -> None:
    bench.open()
    bench.seal(1, bench.write(1, 2))
    bench.close()
    (bench.folder / MARKER).unlink()
    after = Bench(bench.folder, Path(bench.pool.path))
    done = after.look()
    assert done.segments == (1,) and "from before there were markers" in "".join(done.notes)
    assert not after.look().notes and marker_of(bench.folder)
    after.close()
    bench.disk = Bench(bench.folder, Path(bench.pool.path)).disk


@pytest.mark.parametrize("data", [b"x", b"{}", b"[]", b'{"format": 1}', bytes(5000)])
def test_a_damaged_marker_is_written_anew(bench: Bench, data: bytes) -> None:
    bench.folder.mkdir(mode=0o700)
    (bench.folder / MARKER).write_bytes(data)
    assert "damaged" in "".join(bench.look().notes)
    assert not bench.look().notes


def test_a_marker_of_a_later_version_is_left_alone(bench: Bench) -> None:
    bench.open()
    bench.seal(1, bench.write(1, 1))
    bench.close()
    later = _later()
    (bench.folder / MARKER).write_bytes(later)
    bench.disk = Bench(bench.folder, Path(bench.pool.path)).disk
    assert "format 2" in bench.fails(OpenVolume(0), Status.READ_ONLY)
    removed, why = remove_log(str(bench.folder))
    assert removed == 0 and "format 2" in why
    assert (bench.folder / MARKER).read_bytes() == later and bench.file(1).exists()


def _later() -> bytes:
    from pegaflow.core.segments import marker

    said = {"format": 2, "log": "x", "device": 1, "inode": 2}
    return json.dumps({**said, "sum": marker._sum(said)}).encode()


def test_a_marker_says_what_was_said() -> None:
    marker = Marker("ab" * 16, 2049, 1 << 40)
    assert unpack(pack(marker)) == marker
    for at in range(len(pack(marker))):
        damaged = bytearray(pack(marker))
        damaged[at] ^= 4
        assert unpack(bytes(damaged)) in (None, marker)
    with pytest.raises(OfLaterFormatError):
        unpack(_later())


def test_another_device_number_is_said_once(bench: Bench) -> None:
    bench.open()
    found = marker_of(bench.folder)
    bench.close()
    (bench.folder / MARKER).write_bytes(pack(Marker(found.log, found.device + 1, found.inode)))
    bench.disk = Bench(bench.folder, Path(bench.pool.path)).disk
    assert "it has its marker, so it is used" in "".join(bench.look().notes)
    assert not bench.look().notes and marker_of(bench.folder) == found


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EACCES])
def test_where_no_marker_can_be_written_the_log_is_read(bench: Bench, number: int) -> None:
    bench.open()
    bench.seal(1, bench.write(1, 1))
    bench.close()
    (bench.folder / MARKER).unlink()

    class ReadOnly(Failing):
        def open(self, path: str, flags: int, at: int | None = None) -> int:
            if flags & (os.O_CREAT | os.O_RDWR):
                raise OSError(number, os.strerror(number))
            return super().open(path, flags, at)

    known = Known()
    disk = Bench(bench.folder, Path(bench.pool.path), ReadOnly(), known=known)
    assert disk.open() == [1] and known.get(str(bench.folder)) is None
    assert all(disk.right(1, row) for row in disk.rows(1))
    assert disk.open() == [1] and disk.mended() == ""
    disk.close()
    bench.disk = Bench(bench.folder, Path(bench.pool.path)).disk


# --fresh-ssd


def test_nothing_is_wiped_that_is_not_ours(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / f"{7:016x}.segment").write_bytes(b"theirs" * PAGE_ALIGN)
    removed, why = remove_log(str(folder))
    assert removed == 0 and f"has no {MARKER}" in why and "nothing is removed" in why
    assert (folder / f"{7:016x}.segment").exists()
    (folder / MARKER).touch()
    assert remove_log(str(folder)) == (6 * PAGE_ALIGN, ""), "an operator says that it is"


def test_a_log_of_the_version_before_is_wiped(bench: Bench) -> None:
    bench.open()
    size = bench.seal(1, bench.write(1, 1))
    bench.close()
    (bench.folder / MARKER).unlink()
    bench.file(2).write_bytes(bytes(PAGE_ALIGN))
    assert remove_log(str(bench.folder)) == (size + PAGE_ALIGN, "")
    assert not list(bench.folder.iterdir())
    bench.disk = Bench(bench.folder, Path(bench.pool.path)).disk
