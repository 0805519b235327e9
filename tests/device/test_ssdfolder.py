"""Who has an SSD directory, and what becomes of one that is removed or replaced; on real files."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pegaflow.core.segments.marker import MARKER
from pegaflow.device.diskops import Ops
from pegaflow.device.ssdfolder import Folder, Known, UnusableError
from pegaflow.device.ssdwipe import remove_log
from pegaflow.wire.diskjobs import (
    DropSegment,
    LoadSegment,
    MakeSegment,
    OpenVolume,
    VolumeOpened,
    WatchVolume,
)
from pegaflow.wire.status import Status

from .disks import SEGMENT, Bench, key_of, marker_of


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "log", tmp_path / "pool")
    yield made
    made.close()


@contextmanager
def other(bench: Bench, folder: Path) -> Iterator[Bench]:
    """Another service, with this directory."""
    made = Bench(folder, bench.folder.parent / "pool2")
    try:
        yield made
    finally:
        made.close()


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file: which one it is, and its bytes."""
    return {path.name: (path.stat().st_ino, path.read_bytes()) for path in folder.iterdir()}


def in_use(bench: Bench) -> bool:
    return "in use by another service" in bench.fails(OpenVolume(0), Status.IN_USE)


# one directory, two services


def test_a_symlink_and_another_spelling_lead_to_the_same_lock(bench: Bench, tmp_path: Path) -> None:
    bench.open()
    (tmp_path / "link").symlink_to(bench.folder)
    for path in (tmp_path / "link", tmp_path / "log" / ".." / "log"):
        with other(bench, path) as second:
            assert in_use(second)


def test_a_bind_mount_leads_to_the_same_lock(bench: Bench, tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root may make a bind mount")
    bench.open()
    bound = tmp_path / "bound"
    bound.mkdir()
    command = ["mount", "--bind", str(bench.folder), str(bound)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount here")
    try:
        with other(bench, bound) as second:
            assert in_use(second)
    finally:
        subprocess.run(["umount", str(bound)], check=True)


def test_another_user_meets_the_same_lock() -> None:
    if os.getuid() != 0:
        pytest.skip("only root may be another user")
    top = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    try:
        top.chmod(0o755)
        bench = Bench(top / "log", top / "pool")
        bench.open()
        bench.write(1, 1)
        before = state_of(bench.folder)
        said = _open_as_another(bench.folder)
        assert "ermission denied" in said, "it is made for its user alone"
        bench.folder.chmod(0o777)
        assert "in use by another service" in _open_as_another(bench.folder)
        bench.close()
        assert "ermission denied" in _open_as_another(bench.folder), "the marker is not theirs"
        assert state_of(bench.folder) == before
    finally:
        shutil.rmtree(top)


def _open_as_another(folder: Path) -> str:
    """What another user's service is told; a fork, since another may not run this interpreter."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            said = str(Folder(str(folder), Ops(), Known()).open())
        except (UnusableError, OSError) as error:
            said = str(error)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said


def test_a_directory_linked_file_by_file_is_in_use(bench: Bench, tmp_path: Path) -> None:
    bench.open()
    bench.write(1, 2)
    shutil.copytree(bench.folder, tmp_path / "links", copy_function=os.link)
    before = state_of(bench.folder)
    with other(bench, tmp_path / "links") as second:
        assert in_use(second)
        assert remove_log(str(second.folder))[0] == 0
    assert state_of(bench.folder) == before
    bench.close()
    with other(bench, tmp_path / "links") as second:
        assert second.open() == [1], "nobody has it any more"
    bench.disk = Bench(bench.folder, Path(bench.pool.path)).disk


def test_a_segment_under_another_name_is_neither_believed_nor_touched(
    bench: Bench, tmp_path: Path
) -> None:
    bench.open()
    offset = bench.write(1, 2)
    folder = tmp_path / "second"
    folder.mkdir(mode=0o700)
    link = folder / bench.file(1).name
    link.hardlink_to(bench.file(1))
    before = state_of(bench.folder)
    with other(bench, folder) as second:
        done = second.look()
        assert (done.segments, done.segment_bytes) == ((1,), (0,))
        assert "another service has it" in "".join(done.notes)
        second.fails(LoadSegment(0, 1), Status.COPY_FAILED)
        second.work(DropSegment(0, 1))
        assert "in use" in remove_log(str(folder))[1]
        second.work(MakeSegment(0, 2, SEGMENT))
        assert second.fails(MakeSegment(0, 1, SEGMENT), Status.COPY_FAILED)
    assert link.exists() and state_of(bench.folder) == before
    bench.work(bench.group(1, 2, offset, [key_of(90)]))
    assert all(bench.right(1, row) for row in bench.rows(1)), "it is written on"


def test_two_directories_of_one_service_do_not_share_a_segment(
    bench: Bench, tmp_path: Path
) -> None:
    bench.open()
    bench.write(1, 1)
    bench.close()
    both = Bench(bench.folder, tmp_path / "pool")
    (tmp_path / "more").mkdir(mode=0o700)
    (tmp_path / "more" / bench.file(1).name).hardlink_to(bench.file(1))
    disk = type(both.disk)([str(bench.folder), str(tmp_path / "more")], 0, both.pool)
    first, second = disk.work(OpenVolume(0)), disk.work(OpenVolume(1))
    assert isinstance(first, VolumeOpened) and first.segments == (1,) and first.segment_bytes[0]
    assert isinstance(second, VolumeOpened)
    assert (second.segments, second.segment_bytes) == ((1,), (0,))
    disk.close()
    bench.disk = Bench(bench.folder, Path(bench.pool.path)).disk


def test_a_copy_is_a_log_of_its_own(bench: Bench, tmp_path: Path) -> None:
    bench.open()
    bench.seal(1, bench.write(1, 2))
    rows = bench.rows(1)
    shutil.copytree(bench.folder, tmp_path / "copy")
    with other(bench, tmp_path / "copy") as second:
        assert "is a copy of log" in "".join(second.look().notes)
        assert marker_of(tmp_path / "copy").log != marker_of(bench.folder).log
        assert second.rows(1) == rows
        second.work(DropSegment(0, 1))
    assert all(bench.right(1, row) for row in rows)


@pytest.mark.parametrize("kind", ["symlink", "pipe", "directory"])
def test_what_is_called_a_segment_and_is_no_file_is_left_alone(
    bench: Bench, tmp_path: Path, kind: str
) -> None:
    bench.open()
    bench.seal(1, bench.write(1, 1))
    bench.close()
    with other(bench, tmp_path / "second") as second:
        second.open()
        name = tmp_path / "second" / bench.file(1).name
        if kind == "symlink":
            name.symlink_to(bench.file(1))
        elif kind == "pipe":
            os.mkfifo(name)
        else:
            name.mkdir()
        before = state_of(bench.folder)
        done = second.look()
        assert (done.segments, done.segment_bytes) == ((1,), (0,))
        assert "as it is" in "".join(done.notes)
        second.work(DropSegment(0, 1))
        assert name.is_symlink() or name.exists()
    assert state_of(bench.folder) == before
    bench.disk = Bench(bench.folder, Path(bench.pool.path)).disk


# removed or replaced while it is used


def test_a_replaced_directory_is_noticed_and_never_written_to(bench: Bench, tmp_path: Path) -> None:
    bench.open()
    bench.work(WatchVolume(0))
    offset = bench.write(1, 2)
    rows = bench.rows(1)
    away = bench.folder.rename(tmp_path / "away")
    bench.folder.mkdir(mode=0o700)
    (bench.folder / bench.file(1).name).write_bytes(b"somebody else's")
    before = state_of(bench.folder)
    bench.work(bench.group(1, 2, offset, [key_of(70)]))
    bench.work(MakeSegment(0, 2, SEGMENT))
    assert all(bench.right(1, row) for row in rows), "what is open is read as ever"
    said = bench.fails(WatchVolume(0), Status.GONE)
    assert f"touch {bench.folder}/{MARKER}" in said
    bench.work(DropSegment(0, 1))
    assert state_of(bench.folder) == before and not (away / bench.file(1).name).exists()
    for _ in range(2):
        assert bench.fails(OpenVolume(0), Status.GONE) == said, "it is said once"
    assert state_of(bench.folder) == before
    shutil.rmtree(bench.folder)
    away.rename(bench.folder)
    assert bench.open() == [2], "it comes back when its directory does"


def test_a_directory_that_is_removed_is_noticed_and_not_made_again(bench: Bench) -> None:
    bench.open()
    bench.write(1, 1)
    shutil.rmtree(bench.folder)
    said = bench.fails(WatchVolume(0), Status.GONE)
    assert said.startswith(f"{bench.folder} is not there any more; mount its file system, or make")
    assert bench.fails(MakeSegment(0, 2, SEGMENT), Status.COPY_FAILED)
    assert bench.fails(OpenVolume(0), Status.GONE) == said, "it is said once"
    assert not bench.folder.exists()


def test_a_file_in_its_place_is_said_once(bench: Bench) -> None:
    bench.open()
    shutil.rmtree(bench.folder)
    bench.folder.touch()
    said = bench.fails(WatchVolume(0), Status.GONE)
    assert "not a directory" in said and bench.fails(OpenVolume(0), Status.GONE) == said


@pytest.mark.parametrize("below", ["", "log"])
def test_a_lost_mount_is_one_line_with_what_to_do(tmp_path: Path, below: str) -> None:
    """Of the directory where the file system is mounted, and of one in it."""
    if os.getuid() != 0:
        pytest.skip("only root may mount")
    (mounted := tmp_path / "mnt").mkdir(mode=0o700)
    if subprocess.run(["mount", "-t", "tmpfs", "none", mounted], capture_output=True).returncode:
        pytest.skip("no right to mount here")
    try:
        bench = Bench(mounted / below, tmp_path / "pool")
        bench.open()
    finally:
        subprocess.run(["umount", "--lazy", mounted], check=True)
    said = bench.fails(WatchVolume(0), Status.GONE)
    assert "mount its file system, or " in said
    assert bench.fails(OpenVolume(0), Status.GONE) == said
    assert not list(mounted.iterdir())
    bench.close()


def test_an_empty_directory_in_its_place_is_used_on_an_operators_word(bench: Bench) -> None:
    bench.open()
    log = marker_of(bench.folder).log
    shutil.rmtree(bench.folder)
    bench.folder.mkdir(mode=0o700)
    bench.fails(OpenVolume(0), Status.GONE)
    (bench.folder / MARKER).touch()
    assert bench.open() == [] and marker_of(bench.folder).log != log
    bench.work(WatchVolume(0))


def test_another_log_in_its_place_is_used_with_a_line(bench: Bench, tmp_path: Path) -> None:
    with other(bench, tmp_path / "second") as second:
        second.open()
        second.write(1, 1)
    bench.open()
    log = marker_of(bench.folder).log
    bench.folder.rename(tmp_path / "away")
    (tmp_path / "second").rename(bench.folder)
    bench.fails(WatchVolume(0), Status.GONE)
    done = bench.look()
    assert f"before, it had {log}" in "".join(done.notes) and done.segments == (1,)


def test_removed_segments_are_noticed(bench: Bench) -> None:
    bench.open()
    bench.seal(1, bench.write(1, 1))
    bench.write(2, 1)
    bench.file(1).unlink()
    assert "removed 1 segments" in bench.fails(WatchVolume(0), Status.GONE)
    assert bench.open() == [2]
    bench.work(WatchVolume(0))


def test_a_name_that_leads_to_another_file_by_now_is_not_removed(bench: Bench) -> None:
    bench.open()
    bench.write(1, 1)
    bench.file(1).unlink()
    bench.file(1).write_text("somebody else's")
    bench.work(DropSegment(0, 1))
    assert bench.file(1).read_text() == "somebody else's"


def test_a_removed_or_replaced_marker_is_written_anew(bench: Bench) -> None:
    bench.open()
    log = marker_of(bench.folder)
    (bench.folder / MARKER).unlink()
    assert "written anew" in bench.mended()
    assert marker_of(bench.folder) == log
    (bench.folder / MARKER).unlink()
    (bench.folder / MARKER).write_text("not ours")
    assert "written anew" in bench.mended()
    assert marker_of(bench.folder) == log and bench.mended() == ""


def test_a_marker_of_an_earlier_life_is_durable_before_it_is_remembered(tmp_path: Path) -> None:
    """Who wrote it may have died before it synced the directory, and then the host."""
    synced: list[str | None] = []
    known = Known()

    class Watched(Ops):
        def sync_all(self, fd: int) -> None:
            synced.append(known.get(str(tmp_path)))
            super().sync_all(fd)

    for ops, seen in ((Ops(), Known()), (Watched(), known)):
        folder = Folder(str(tmp_path), ops, seen)
        folder.open()
        folder.close()
    assert synced == [None] and known.get(str(tmp_path))
