"""The SSD directories, on real files: round trips, damage, faults, locks, sudden death."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pegaflow.core.segments.codec import block_sum, block_sums, pack_row, page_sum, unpack_rows
from pegaflow.core.segments.marker import MARKER
from pegaflow.device.diskops import ADVICE
from pegaflow.device.ssdwipe import remove_log
from pegaflow.wire.diskjobs import (
    CarryGroup,
    DropSegment,
    LoadSegment,
    MakeSegment,
    OpenVolume,
    SyncSegment,
    WriteFooter,
)
from pegaflow.wire.jobs import Done, PagesDiffer
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status

from .disks import HALF, PAGE, PAYLOAD, SEGMENT, Bench, content, flip, key_of, read_of, small_disk
from .failing import CALLS, ERRORS, Failing

SHM = Path("/dev/shm")
KILLS = 50


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path / "log", tmp_path / "pool")
    yield made
    made.close()


@contextmanager
def again(bench: Bench, ops: Failing | None = None) -> Iterator[Bench]:
    """The same directory in the next life."""
    bench.disk.close()
    next_ = Bench(bench.folder, Path(bench.pool.path), ops)
    try:
        yield next_
    finally:
        next_.disk.close()
        bench.disk = Bench(bench.folder, Path(bench.pool.path)).disk


# what is written comes back


def test_blocks_come_back_by_the_footer_and_by_a_walk_alike(bench: Bench) -> None:
    assert bench.open() == []
    offset = bench.write(1, 2)
    size = bench.seal(1, offset)
    bench.write(2, 2, first=6)
    with again(bench) as after:
        assert after.open() == [1, 2]
        sealed = after.load(1)
        assert (sealed.file_bytes, sealed.scanned, sealed.corrupt) == (size, False, 0)
        walked = after.load(2)
        assert walked.scanned and not walked.corrupt
        for segment, done in ((1, sealed), (2, walked)):
            rows = unpack_rows(done.rows)
            first = 6 * (segment - 1)
            assert [row.key for row in rows] == [key_of(first + n) for n in range(6)]
            assert all(after.right(segment, row) for row in rows)
        assert after.load(2) == replace(walked, scanned=False), "sealed by then"
        assert after.file(2).stat().st_size == walked.file_bytes < SEGMENT


def test_a_run_is_read_in_one_go_with_the_checksum_of_every_page(bench: Bench) -> None:
    bench.open()
    bench.write(1, 2)
    rows = bench.rows(1)
    assert rows[3].offset == rows[2].offset + rows[2].bytes_ + PAGE_ALIGN, "another group's rows"
    sums, payloads = bench.read(1, rows)
    assert payloads == [content(row.key, shard) for row in rows for shard in (0, 1)]
    pairs = [block_sum(sums[n : n + 2]) for n in range(0, len(sums), 2)]
    assert block_sums(sums, 2) == pairs == [row.checksum for row in rows]


def test_pages_that_are_not_what_was_sealed_are_named_and_nothing_is_written(bench: Bench) -> None:
    bench.open()
    bench.work(MakeSegment(0, 1, SEGMENT))
    keys = [key_of(1), key_of(2)]
    good = tuple(page_sum(content(key, shard)) for key in keys for shard in (0, 1))
    bench.work(bench.group(1, 0, PAGE_ALIGN, keys, (0, *good[1:])))
    bad = bench.group(1, 1, PAGE_ALIGN * 10, keys, (*good[:2], good[2] ^ 1, good[3]))
    assert bench.disk.work(bad) == PagesDiffer((2 * PAGE,))
    assert len(bench.rows(1)) == 2


def test_blocks_are_carried_over_but_for_those_that_are_damaged(bench: Bench) -> None:
    bench.open()
    bench.write(1, 2)
    rows = bench.rows(1)
    flip(bench.file(1), rows[1].offset + 7)
    bench.work(MakeSegment(0, 2, SEGMENT))
    some = b"".join(pack_row(row) for row in (rows[0], rows[1], rows[4]))
    new = bench.carry(CarryGroup(0, 1, 2, 0, offset=PAGE_ALIGN, rows=some))
    assert [row.key for row in new] == [rows[0].key, rows[4].key]
    bench.work(DropSegment(0, 1))
    assert all(bench.right(2, row) for row in new) and bench.rows(2) == new
    only_bad = pack_row(rows[1])
    bench.write(3, 2)
    flip(bench.file(3), rows[1].offset)
    assert bench.carry(CarryGroup(0, 3, 2, 1, offset=20 * PAGE_ALIGN, rows=only_bad)) == []


def test_a_dropped_segment_is_gone_and_dropping_it_again_is_no_fault(bench: Bench) -> None:
    bench.open()
    bench.write(1, 1)
    bench.work(DropSegment(0, 1))
    bench.work(DropSegment(0, 1))
    assert not bench.file(1).exists() and bench.open() == []
    assert bench.fails(LoadSegment(0, 1), Status.COPY_FAILED)


def test_where_there_is_no_direct_io_it_is_buffered_with_one_note(tmp_path: Path) -> None:
    class Old(Failing):
        def open(self, path: str, flags: int, at: int | None = None) -> int:
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return super().open(path, flags, at)

    bench = Bench(tmp_path / "log", tmp_path / "pool", Old())
    (note,) = bench.look().notes
    assert "buffered" in note
    bench.write(1, 1)
    assert all(bench.right(1, row) for row in bench.rows(1))
    bench.close()


def test_in_memory_it_works_too(tmp_path: Path) -> None:
    folder = SHM / f"pegaflow-test-{os.getpid()}"
    try:
        bench = Bench(folder, tmp_path / "pool")
        bench.open()
        bench.write(1, 2)
        assert all(bench.right(1, row) for row in bench.rows(1))
        bench.close()
    finally:
        shutil.rmtree(folder)


# damage


def test_every_flipped_bit_of_a_block_is_seen(bench: Bench) -> None:
    bench.open()
    bench.write(1, 1)
    rows = bench.rows(1)
    random_ = random.Random(1)
    for row in rows:
        for _ in range(20):
            shard, at = random_.randrange(row.shards), random_.randrange(PAYLOAD)
            place, bit = row.offset + shard * PAGE + at, random_.randrange(8)
            flip(bench.file(1), place, bit)
            sums, _ = bench.read(1, [row])
            assert block_sum(sums) != row.checksum, (shard, at, bit)
            flip(bench.file(1), place, bit)
        assert bench.right(1, row)


def test_a_walk_leaves_damaged_blocks_out_and_counts_them(bench: Bench) -> None:
    bench.open()
    bench.write(1, 2)
    rows = bench.rows(1)
    os.truncate(bench.file(1), rows[-1].offset + rows[-1].bytes_)  # no footer
    flip(bench.file(1), rows[2].offset + PAGE)
    with again(bench) as after:
        after.open()
        done = after.load(1)
        assert (done.scanned, done.corrupt) == (True, 1)
        assert unpack_rows(done.rows) == [row for row in rows if row != rows[2]]


def test_a_damaged_footer_is_made_good_by_a_walk(bench: Bench) -> None:
    bench.open()
    size, whole = bench.seal(1, bench.write(1, 2)), bench.load(1)
    for at in (size - PAGE_ALIGN + 3, size - 2 * PAGE_ALIGN + 3):
        flip(bench.file(1), at)
        with again(bench) as after:
            after.open()
            assert after.load(1) == replace(whole, scanned=True)


def test_a_tail_torn_anywhere_is_cut(bench: Bench) -> None:
    bench.open()
    bench.write(1, 3)
    rows = bench.rows(1)
    whole = bench.file(1).read_bytes()
    for end in range(PAGE_ALIGN, rows[-1].offset + rows[-1].bytes_, 3 * 512):
        bench.file(1).write_bytes(whole[:end])
        with again(bench) as after:
            after.open()
            found = after.rows(1)
            assert found == [row for row in rows if row.offset + row.bytes_ <= end]
            assert all(after.right(1, row) for row in found)


def test_strange_files_stay_as_they_are_with_a_line_each(bench: Bench) -> None:
    bench.folder.mkdir()
    bench.file(3).write_bytes(b"PEGASEGM" + (9).to_bytes(4, "little") + bytes(8192))
    bench.file(4).write_bytes(b"somebody else's" + bytes(8192))
    bench.file(5).write_bytes(b"")
    (bench.folder / "notes.txt").write_text("mine")
    done = bench.look()
    assert (done.segments, done.segment_bytes) == ((3, 4, 5), (0, 0, 0)), "names that are taken"
    assert len(done.notes) == 4 and "before there were markers" in done.notes[0]
    assert "format 9" in done.notes[1] and "no segment" in done.notes[2]
    assert "1 files" in done.notes[3]
    names = sorted(path.name for path in bench.folder.iterdir())
    there = [bench.file(3).name, bench.file(4).name, "notes.txt", MARKER]
    assert names == there, "the empty one is gone"


# faults


def jobs_of(bench: Bench) -> list[Message]:
    """One of each kind that can be done to a log with segment 1, closed, and 2, being written."""
    rows = b"".join(pack_row(row) for row in bench.rows(1)[:1])
    pages = tuple(HALF + n * PAGE for n in range(bench.shards))
    return [
        OpenVolume(0),
        LoadSegment(0, 1),
        MakeSegment(0, 9, SEGMENT),
        bench.group(2, 7, 30 * PAGE_ALIGN, [key_of(99)]),
        CarryGroup(0, 1, 2, 8, offset=60 * PAGE_ALIGN, rows=rows),
        SyncSegment(0, 2),
        read_of(1, bench.rows(1)[:1], pages),
        WriteFooter(0, 2, 90 * PAGE_ALIGN, b""),
        DropSegment(0, 9),
    ]


@pytest.mark.parametrize("number", ERRORS, ids=errno.errorcode.get)
@pytest.mark.parametrize("call", CALLS)
def test_every_fault_is_a_status_and_a_line_and_then_it_goes_on(
    tmp_path: Path, call: str, number: int
) -> None:
    ops = Failing()
    bench = Bench(tmp_path / "log", tmp_path / "pool", ops)
    bench.open()
    bench.seal(1, bench.write(1, 2))
    bench.write(2, 1, first=6)
    jobs = jobs_of(bench)
    for job in jobs[1:]:
        ops.will_fail(call, number)
        done = bench.disk.work(job)
        if isinstance(done, Done):
            assert done.ok or done.note.startswith(str(bench.folder)) and "\n" not in done.note
        ops.fail.clear()
        if isinstance(job, MakeSegment):
            assert done.ok or not bench.file(9).exists() or call == "unlink"
    ops.will_fail(call, number)
    opened = bench.disk.work(OpenVolume(0))
    assert not isinstance(opened, Done) or opened.status in (Status.COPY_FAILED, Status.GONE)
    ops.fail.clear()
    assert 1 in bench.open()
    assert all(bench.right(1, row) for row in bench.rows(1)), "nothing was lost"
    bench.close()


def test_short_reads_and_writes_are_gone_on_with(tmp_path: Path) -> None:
    ops = Failing()
    bench = Bench(tmp_path / "log", tmp_path / "pool", ops)
    bench.open()
    ops.most = PAGE_ALIGN
    bench.seal(1, bench.write(1, 2))
    rows = bench.rows(1)
    assert len(rows) == 6 and all(bench.right(1, row) for row in rows)
    assert ops.calls["write"] > 10
    bench.close()


def test_a_write_that_moves_nothing_has_failed(bench: Bench) -> None:
    class Stuck(Failing):
        def write(self, fd: int, parts: object, offset: int) -> int:
            return 0

    bench.open()
    bench.write(1, 1)
    with again(bench, Stuck()) as after:
        after.open()
        job = after.group(1, 5, 40 * PAGE_ALIGN, [key_of(9)])
        assert "fewer bytes" in after.fails(job, Status.COPY_FAILED)


def test_a_read_behind_the_end_has_failed(bench: Bench) -> None:
    bench.open()
    bench.write(1, 1)
    row = bench.rows(1)[0]._replace(offset=SEGMENT * 2)
    pages = tuple(HALF + n * PAGE for n in range(2))
    assert bench.fails(read_of(1, [row], pages), Status.COPY_FAILED)


def test_the_floor_of_the_file_system_is_kept(tmp_path: Path) -> None:
    ops = Failing()
    bench = Bench(tmp_path / "log", tmp_path / "pool", ops, floor=10 * SEGMENT)
    ops.free = 11 * SEGMENT
    assert bench.look().free_bytes == SEGMENT
    bench.work(MakeSegment(0, 1, SEGMENT))
    ops.free -= 1
    note = bench.fails(MakeSegment(0, 2, SEGMENT), Status.NO_SPACE)
    assert "--ssd-free-floor" in note
    assert f"a segment of {SEGMENT >> 20} MiB does not fit: " in note
    bench.close()


@pytest.mark.parametrize(
    ("number", "status"),
    [(errno.EROFS, Status.READ_ONLY), (errno.ENOSPC, Status.NO_SPACE)],
)
def test_a_directory_that_cannot_be_written_can_be_read(
    number: int, status: Status, tmp_path: Path
) -> None:
    bench = Bench(tmp_path / "log", tmp_path / "pool")
    bench.open()
    bench.seal(1, bench.write(1, 1))
    bench.close()

    class ReadOnly(Failing):
        def open(self, path: str, flags: int, at: int | None = None) -> int:
            if flags & (os.O_CREAT | os.O_RDWR):
                raise OSError(number, os.strerror(number))
            return super().open(path, flags, at)

    bench = Bench(tmp_path / "log", tmp_path / "pool", ReadOnly())
    done = bench.look()
    assert done.segments == (1,) and ADVICE[number] in "".join(done.notes)
    assert all(bench.right(1, row) for row in bench.rows(1))
    assert bench.fails(MakeSegment(0, 2, SEGMENT), status)
    bench.close()


def test_a_directory_that_vanishes_is_not_made_again(bench: Bench) -> None:
    bench.open()
    shutil.rmtree(bench.folder)
    assert "is not there any more; mount its" in bench.fails(OpenVolume(0), Status.GONE)
    assert not bench.folder.exists()


def test_a_directory_that_others_may_write_to_is_used_with_a_line(bench: Bench) -> None:
    assert not bench.look().notes
    bench.folder.chmod(0o777)
    assert f"other users may write to {bench.folder}" in "".join(bench.look().notes)


def test_a_directory_has_one_owner(bench: Bench, tmp_path: Path) -> None:
    bench.open()
    second = Bench(bench.folder, tmp_path / "pool2")
    note = second.fails(OpenVolume(0), Status.IN_USE)
    assert "in use by another service" in note and "--ssd-cache-path" in note
    bench.close()
    assert second.open() == []
    second.close()
    bench.disk = Bench(bench.folder, Path(bench.pool.path)).disk


def test_what_is_no_directory_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bench = Bench(tmp_path / "file", tmp_path / "pool")
    assert str(tmp_path / "file") in bench.fails(OpenVolume(0), Status.GONE)
    bench.close()


# --fresh-ssd


def test_a_log_is_removed_and_nothing_else(bench: Bench) -> None:
    bench.open()
    size = bench.seal(1, bench.write(1, 1))
    (bench.folder / "notes.txt").write_text("mine")
    assert "in use" in remove_log(str(bench.folder))[1]
    bench.disk.close()
    assert remove_log(str(bench.folder)) == (size, "")
    assert sorted(path.name for path in bench.folder.iterdir()) == ["notes.txt", MARKER]
    assert remove_log(str(bench.folder / "nowhere")) == (0, "")
    assert "not a directory" in remove_log(str(bench.folder / "notes.txt"))[1]
    bench.disk = Bench(bench.folder, Path(bench.pool.path)).disk


# sudden death


def test_after_a_kill_every_record_is_whole_or_absent_and_what_was_synced_is_there(
    tmp_path: Path,
) -> None:
    """50 times: a writer is killed in the middle of its writes; the next one goes on."""
    folder, synced, first = tmp_path / "log", 0, 1
    for turn in range(KILLS):
        command = [sys.executable, "-m", "tests.writer", str(folder), str(tmp_path / "pool")]
        command += [str(first), str(turn)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(1 + turn * 7 % 40)]
        os.kill(writer.pid, signal.SIGKILL)
        lines += writer.stdout.readlines()
        writer.wait()
        said = [json.loads(line) for line in lines if line.endswith("\n")]
        bench = Bench(folder, tmp_path / "pool")
        there = set()
        for segment in bench.open():
            for row in bench.rows(segment):
                assert bench.right(segment, row), (turn, segment, row)
                there.add(row.key)
        for segment, numbers in said:
            first = max(first, segment + 1)
            assert {key_of(number) for number in numbers} <= there, (turn, segment)
            synced += len(numbers)
        first = max([first, *(number + 1 for number in bench.open())])
        for segment in bench.open()[:-2]:
            bench.work(DropSegment(0, segment))
        bench.close()
    assert synced >= KILLS


def test_a_disk_that_fills_up_says_so_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path, 32 << 20) as mount:
        bench = Bench(mount / "log", tmp_path / "pool")
        bench.open()
        number = 1
        while (done := bench.disk.work(MakeSegment(0, number, 4 << 20))).ok:
            number += 1
        assert isinstance(done, Done) and done.status is Status.NO_SPACE and number > 3, done
        (mount / "other").write_bytes(bytes(1 << 20))
        assert not bench.file(number).exists()
        bench.work(DropSegment(0, 1))
        bench.work(MakeSegment(0, number, 4 << 20))
        bench.work(bench.group(number, 0, PAGE_ALIGN, [key_of(1)]))
        bench.work(SyncSegment(0, number))
        assert bench.right(number, bench.rows(number)[0])
        bench.close()
