"""The SSD directories: the device of the flusher.  Jobs and answers: wire/diskjobs.py.

A directory is locked by the flock of its own descriptor, so a lock never outlives its holder.  A
segment is the file `<number in 16 hex digits>.segment`.  Bytes move between the file and the pool's
mapping without another copy, past the page cache where the file system allows it (O_DIRECT); what
is not a block (heads, rows, footers) goes through aligned buffers of our own.

`work` may be called by several threads at once: a job knows its segment, and whoever gives the jobs
sees to it that nobody removes what another one uses.
"""

import errno
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pegaflow.cache.segments import (
    HEAD_BYTES,
    Row,
    block_sum,
    footer,
    group,
    head,
    joined,
    padded,
    page_sum,
    read_footer,
    read_head,
    recover,
    sums_of,
    unpack_rows,
)
from pegaflow.limits import MIB
from pegaflow.wire.diskjobs import (
    CarryGroup,
    DropSegment,
    LoadSegment,
    MakeSegment,
    OpenVolume,
    ReadRun,
    SealSegment,
    SyncSegment,
    WriteGroup,
)
from pegaflow.wire.jobs import Done
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status

from .diskops import Ops, buffer, read_all, said, write_all
from .memory import SharedFile

FLOOR_SHARE = 20
"""One part in so many of a file system stays free, if nobody says how much: file systems, and the
disks below them, get slow when they are full."""

SCAN_BYTES = MIB
"""Read at a time while a segment without a footer is looked through."""

PROBE = "pegaflow.probe"
_NAME = re.compile(r"([0-9a-f]{16})\.segment")
_STATUS = {
    errno.ENOSPC: Status.NO_SPACE,
    errno.EDQUOT: Status.NO_SPACE,
    errno.EROFS: Status.READ_ONLY,
    errno.EACCES: Status.READ_ONLY,
    errno.EPERM: Status.READ_ONLY,
}


@dataclass(slots=True)
class _File:
    """A segment that is open."""

    fd: int
    uuid: bytes


@dataclass(slots=True)
class _Volume:
    """A directory."""

    path: str
    fd: int = -1  # of the directory: its lock
    direct: int = 0  # O_DIRECT, or nothing
    seen: bool = False  # it was there: should it vanish, its disk has, and no other takes its place
    files: dict[int, _File] = field(default_factory=dict)

    def name(self, segment: int) -> str:
        """The path of a segment."""
        return os.path.join(self.path, f"{segment:016x}.segment")


class Disk:
    """All directories.

    Args:
        paths: one per volume.
        floor: bytes of each file system that stay free; None: one part in FLOOR_SHARE.
        pool: where blocks come from and go to.
        ops: the operating system.
    """

    def __init__(
        self, paths: Sequence[str], floor: int | None, pool: SharedFile, ops: Ops | None = None
    ) -> None:
        self._volumes = [_Volume(path) for path in paths]
        self._floor = floor
        self._pool = memoryview(pool.map)
        self._ops = ops or Ops()
        self._lock = threading.Lock()  # for the tables of open files
        self._jobs: dict[type[Message], Callable[[_Volume, Any], Done]] = {
            OpenVolume: self._open,
            LoadSegment: self._load,
            MakeSegment: self._make,
            WriteGroup: self._write,
            CarryGroup: self._carry,
            SyncSegment: self._sync,
            SealSegment: self._seal,
            ReadRun: self._read,
            DropSegment: self._drop,
        }

    def work(self, job: Message) -> Done:
        """Do one job; every failure is a status and a line."""
        volume = self._volumes[job.volume]  # type: ignore[attr-defined]
        try:
            return self._jobs[type(job)](volume, job)
        except OSError as error:
            status = _STATUS.get(error.errno or 0, Status.COPY_FAILED)
            return Done(status, said(volume.path, error))

    def close(self) -> None:
        """Give all files and the pool back."""
        for volume in self._volumes:
            self._shut(volume)
        self._pool.release()

    # directories

    def _open(self, volume: _Volume, job: OpenVolume) -> Done:
        try:
            return self._look(volume)
        except OSError as error:
            self._shut(volume)
            return Done(Status.COPY_FAILED, said(volume.path, error))

    def _look(self, volume: _Volume) -> Done:
        ops = self._ops
        self._shut(volume)
        if not volume.seen:
            ops.make_folder(volume.path)
        volume.fd = ops.open(volume.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            ops.lock(volume.fd)
        except BlockingIOError:
            self._shut(volume)
            why = f"{volume.path} is in use by another service; give each its own --ssd-cache-path"
            return Done(Status.COPY_FAILED, why)
        volume.seen = True
        notes: list[str] = []
        if ops.mode(volume.fd) & (stat.S_IWGRP | stat.S_IWOTH):
            notes.append(f"other users may write to {volume.path}; chmod 700 it")
        writable = self._probe(volume, notes)
        found: list[int] = []
        strange = 0
        for name in sorted(ops.names(volume.path)):
            match = _NAME.fullmatch(name)
            if match is None:
                strange += name != PROBE
                continue
            size = self._admit(volume, int(match[1], 16), writable, notes)
            found += [int(match[1], 16), size] if size else []
        if strange:
            notes.append(f"{strange} files that are not of the log stay as they are")
        free, total = ops.space(volume.fd)
        return Done(Status.OK, "\n".join(notes), (max(0, free - self._kept(total)), *found))

    def _kept(self, total: int) -> int:
        return total // FLOOR_SHARE if self._floor is None else self._floor

    def _probe(self, volume: _Volume, notes: list[str]) -> bool:
        """Find out whether the directory can be written, and past the page cache."""
        path, flags = os.path.join(volume.path, PROBE), os.O_RDWR | os.O_CREAT
        volume.direct = os.O_DIRECT
        try:
            fd = self._ops.open(path, flags | os.O_DIRECT)
        except OSError as error:
            if _STATUS.get(error.errno or 0) in (Status.READ_ONLY, Status.NO_SPACE):
                notes.append(f"nothing can be written: {said(volume.path, error)}")
                return False
            if error.errno != errno.EINVAL:
                raise
            fd = self._ops.open(path, flags)
            volume.direct = 0
            notes.append("no O_DIRECT in this file system: reads and writes are buffered")
        self._ops.close(fd)
        self._ops.unlink(path)
        return True

    def _admit(self, volume: _Volume, number: int, writable: bool, notes: list[str]) -> int:
        """Open a segment that was found; its bytes, or 0 if it is none of ours."""
        name = volume.name(number)
        try:
            fd = self._ops.open(name, (os.O_RDWR if writable else os.O_RDONLY) | volume.direct)
        except OSError as error:
            if error.errno != errno.EINVAL or not volume.direct:
                notes.append(f"left as it is: {said(name, error)}")
                return 0
            volume.direct = 0
            notes.append("no O_DIRECT in this file system: reads are buffered")
            return self._admit(volume, number, writable, notes)
        page = self._reader(fd)(0, HEAD_BYTES)
        if writable and not any(page):
            self._ops.close(fd)  # its maker died before anything of it was durable
            self._ops.unlink(name)
            return 0
        found = read_head(bytes(page))
        if isinstance(found, str) or found.number != number:
            self._ops.close(fd)
            why = found if isinstance(found, str) else f"it is number {found.number}"
            notes.append(f"{name} stays as it is: {why}")
            return 0
        with self._lock:
            volume.files[number] = _File(fd, found.uuid)
        return self._ops.size(fd)

    def _shut(self, volume: _Volume) -> None:
        with self._lock:
            files, volume.files = list(volume.files.values()), {}
            fd, volume.fd = volume.fd, -1
        for file in files:
            self._ops.close(file.fd)
        if fd >= 0:
            self._ops.close(fd)

    # segments

    def _file(self, volume: _Volume, segment: int) -> _File:
        with self._lock:
            file = volume.files.get(segment)
        if file is None:
            raise OSError(errno.ENOENT, f"there is no segment {segment} in this log")
        return file

    def _reader(self, fd: int) -> Callable[[int, int], memoryview]:
        """Reads of whole pages; what one has returned is valid until the next."""
        window = memoryview(buffer(SCAN_BYTES))
        held = [0, 0]  # offset and bytes of what is in the window

        def read(offset: int, length: int) -> memoryview:
            nonlocal window
            if not held[0] <= offset <= offset + length <= held[0] + held[1]:
                if length > len(window):
                    window = memoryview(buffer(length))
                held[:] = offset, 0
                held[1] = read_all(self._ops, fd, [window], offset)
            at = offset - held[0]
            return window[at : at + min(length, held[1] - at)]

        return read

    def _load(self, volume: _Volume, job: LoadSegment) -> Done:
        file = self._file(volume, job.segment)
        size = self._ops.size(file.fd)
        read = self._reader(file.fd)
        rows = read_footer(read, size, file.uuid)
        if rows is not None:
            return Done(Status.OK, "", (size, 0, 0), rows)
        found = recover(read, size, file.uuid)
        try:
            size = self._end(file, found.end, found.rows)
        except OSError:
            pass  # it is read like this again the next time
        return Done(Status.OK, "", (size, 1, found.corrupt), found.rows)

    def _make(self, volume: _Volume, job: MakeSegment) -> Done:
        ops, name = self._ops, volume.name(job.segment)
        free, total = ops.space(volume.fd)
        if free - job.size < self._kept(total):
            kept = self._kept(total) // MIB
            why = f"{free // MIB} MiB are free, of which {kept} are to stay so"
            why = f"a segment of {job.size // MIB} MiB does not fit: {why}; see --ssd-free-floor"
            return Done(Status.NO_SPACE, f"{volume.path}: {why}")
        fd = ops.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | volume.direct)
        try:
            ops.allocate(fd, job.size)
            uuid = os.urandom(16)
            write_all(ops, fd, [_paged(head(uuid, job.segment, job.size))], 0)
            ops.sync_all(fd)
            ops.sync_all(volume.fd)
        except OSError:
            ops.close(fd)
            ops.unlink(name)
            raise
        with self._lock:
            volume.files[job.segment] = _File(fd, uuid)
        return Done(Status.OK)

    def _write(self, volume: _Volume, job: WriteGroup) -> Done:
        file = self._file(volume, job.segment)
        pages = [self._pool[at : at + job.page_size] for at in job.pages]
        sums = [page_sum(page[: job.payload]) for page in pages]
        wrong = [at for at, sum_, its in _beside(job, sums) if its not in (0, sum_)]
        if wrong:
            return Done(Status.CORRUPT, "pages are not what was sealed", tuple(wrong))
        rows: list[Row] = []
        offset = job.offset + PAGE_ALIGN
        for n, (key, depth) in enumerate(zip(job.keys, job.depths, strict=True)):
            checksum = block_sum(sums[n * job.shards : (n + 1) * job.shards])
            facts = (job.generation, job.payload, depth, job.shards, job.namespace, key)
            rows.append(Row(offset, checksum, *facts))
            offset += job.shards * job.page_size
        front = _paged(group(file.uuid, job.index, rows))
        write_all(
            self._ops, file.fd, [front, *_merged(self._pool, job.pages, job.page_size)], job.offset
        )
        return Done(Status.OK, "", tuple(row.checksum for row in rows))

    def _carry(self, volume: _Volume, job: CarryGroup) -> Done:
        source, file = self._file(volume, job.source), self._file(volume, job.segment)
        old = unpack_rows(job.rows)
        space = memoryview(buffer(sum(row.length for row in old)))
        rows: list[Row] = []
        length = 0
        for row in old:
            into = space[length : length + row.length]
            whole = read_all(self._ops, source.fd, [into], row.offset) == row.length
            if whole and block_sum(sums_of(into, row)) == row.checksum:
                rows.append(row._replace(offset=job.offset + PAGE_ALIGN + length))
                length += row.length
        if rows:
            front = _paged(group(file.uuid, job.index, rows))
            write_all(self._ops, file.fd, [front, space[:length]], job.offset)
        return Done(Status.OK, "", (), joined(rows))

    def _sync(self, volume: _Volume, job: SyncSegment) -> Done:
        self._ops.sync(self._file(volume, job.segment).fd)
        return Done(Status.OK)

    def _seal(self, volume: _Volume, job: SealSegment) -> Done:
        return Done(
            Status.OK, "", (self._end(self._file(volume, job.segment), job.offset, job.rows),)
        )

    def _end(self, file: _File, offset: int, rows: bytes) -> int:
        """Write the footer and cut the file behind it; its bytes."""
        ending = _paged(footer(file.uuid, offset, rows))
        write_all(self._ops, file.fd, [ending], offset)
        self._ops.cut(file.fd, offset + len(ending))
        self._ops.sync_all(file.fd)
        return offset + len(ending)

    def _read(self, volume: _Volume, job: ReadRun) -> Done:
        file = self._file(volume, job.segment)
        size, payload = padded(job.payload), job.payload
        into: list[memoryview] = []
        at = 0
        for count in job.stretches:
            into += [memoryview(buffer(PAGE_ALIGN))] if at else []
            into += _merged(self._pool, job.pages[at : at + count], size)
            at += count
        if read_all(self._ops, file.fd, into, job.offset) != sum(map(len, into)):
            raise OSError(errno.EIO, f"segment {job.segment} is shorter than it should be")
        sums = tuple(page_sum(self._pool[at : at + payload]) for at in job.pages)
        return Done(Status.OK, "", sums)

    def _drop(self, volume: _Volume, job: DropSegment) -> Done:
        with self._lock:
            file = volume.files.pop(job.segment, None)
        if file is not None:
            self._ops.close(file.fd)
        try:
            self._ops.unlink(volume.name(job.segment))
        except FileNotFoundError:
            pass
        return Done(Status.OK)


def _paged(data: bytes) -> memoryview:
    """These bytes where O_DIRECT can take them from."""
    space = buffer(len(data))
    space[: len(data)] = data
    return memoryview(space)[: len(data)]


def _beside(job: WriteGroup, sums: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Offset, checksum, and the checksum it was sealed with (0: unknown), of each page."""
    return zip(job.pages, sums, job.sums or (0,) * len(sums), strict=True)


def _merged(pool: memoryview, offsets: Sequence[int], size: int) -> list[memoryview]:
    """The pages as pieces of the pool, those behind each other as one."""
    parts: list[memoryview] = []
    first = end = -1
    for at in (*offsets, -1):
        if at != end:
            if end > first:
                parts.append(pool[first:end])
            first = at
        end = at + size
    return parts


def remove_log(path: str, ops: Ops | None = None) -> tuple[int, str]:
    """Remove every segment in a directory: bytes that were removed, and why not more, if so."""
    ops = ops or Ops()
    removed = 0
    try:
        fd = ops.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return 0, ""
    except OSError as error:
        return 0, said(path, error)
    try:
        ops.lock(fd)
        for name in filter(_NAME.fullmatch, ops.names(path)):
            removed += _remove(ops, os.path.join(path, name))
    except BlockingIOError:
        return 0, f"{path} is in use by another service; stop that one first"
    except OSError as error:
        return removed, said(path, error)
    finally:
        ops.close(fd)
    return removed, ""


def _remove(ops: Ops, name: str) -> int:
    fd = ops.open(name, os.O_RDONLY)
    try:
        size = ops.size(fd)
    finally:
        ops.close(fd)
    ops.unlink(name)
    return size
