"""The SSD directories: the device of the flusher.  Jobs and answers: wire/diskjobs.py.

A segment is the file `<number in 16 hex digits>.segment` in a directory that is ours alone
(ssdfolder.py).  Its own inode is locked before a byte of it is believed and until it is closed, and
its name is removed only while it is the name of that inode.  Bytes move between the file and the
pool's mapping without another copy, past the page cache where the file system allows it (O_DIRECT);
what is not a block (heads, rows, footers) goes through aligned buffers of our own.

`work` may be called by several threads at once: a job knows its segment, and whoever gives the jobs
sees to it that nobody removes what another one uses.
"""

import errno
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pegaflow.core.limits import MIB
from pegaflow.core.segments.codec import (
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
from pegaflow.core.segments.marker import MARKER
from pegaflow.wire.diskjobs import (
    CarryGroup,
    DropSegment,
    FooterWritten,
    GroupCarried,
    GroupWritten,
    LoadSegment,
    MakeSegment,
    OpenVolume,
    ReadRun,
    RunRead,
    SegmentLoaded,
    SyncSegment,
    VolumeOpened,
    VolumeWatched,
    WatchVolume,
    WriteFooter,
    WriteGroup,
)
from pegaflow.wire.jobs import Done, PagesDiffer, Result
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Share

from .diskops import Ops, buffer, read_all, said, write_all
from .memory import SharedFile
from .ssdfolder import NAME, SEGMENT_FLAGS, STATUS, Folder, Known, UnusableError, lock

FLOOR_SHARE: Share = 0.05
"""Of a file system: what stays free if nobody says how much.  File systems, and the disks below
them, get slow when they are full."""

SCAN_BYTES: Bytes = MIB
"""Read at a time while a segment without a footer is looked through."""

PROBE = "pegaflow.probe"

_EMPTY = "there is nothing in it"


@dataclass(slots=True)
class _File:
    """A segment that is open."""

    fd: int
    uuid: bytes


@dataclass(slots=True)
class _Volume:
    """A directory."""

    folder: Folder
    direct: int = 0  # O_DIRECT, or nothing
    files: dict[int, _File] = field(default_factory=dict)

    @property
    def path(self) -> str:
        """Of the directory, for lines that people read."""
        return self.folder.path


def _name(segment: int) -> str:
    return f"{segment:016x}.segment"


class Disk:
    """All directories.

    Args:
        paths: one per volume.
        floor_bytes: of each file system that stay free; None: FLOOR_SHARE of it.
        pool: where blocks come from and go to.
        ops: the operating system.
        known: which logs were where when they were used last.
    """

    def __init__(
        self,
        paths: Sequence[str],
        floor_bytes: int | None,
        pool: SharedFile,
        ops: Ops | None = None,
        *,
        known: Known | None = None,
    ) -> None:
        self._ops = ops or Ops()
        known = known or Known()
        self._volumes = [_Volume(Folder(path, self._ops, known)) for path in paths]
        self._floor_bytes = floor_bytes
        self._pool = memoryview(pool.map)
        self._lock = threading.Lock()  # for the tables of open files
        self._jobs: dict[type[Message], Callable[[_Volume, Any], Result]] = {
            OpenVolume: self._open,
            LoadSegment: self._load,
            MakeSegment: self._make,
            WriteGroup: self._write,
            CarryGroup: self._carry,
            SyncSegment: self._sync,
            WriteFooter: self._write_footer,
            ReadRun: self._read,
            DropSegment: self._drop,
            WatchVolume: self._watch,
        }

    def work(self, job: Message) -> Result:
        """Do one job; every failure is a status and a line."""
        volume = self._volumes[job.volume]  # type: ignore[attr-defined]
        try:
            return self._jobs[type(job)](volume, job)
        except OSError as error:
            status = STATUS.get(error.errno or 0, Status.COPY_FAILED)
            return Done(status, said(volume.path, error))
        except UnusableError as error:
            return Done(error.status, str(error))

    def close(self) -> None:
        """Give all files and the pool back."""
        for volume in self._volumes:
            self._shut(volume)
        self._pool.release()

    # directories

    def _open(self, volume: _Volume, job: OpenVolume) -> VolumeOpened | Done:
        self._shut(volume)
        try:
            return self._look(volume)
        except OSError as error:
            self._shut(volume)
            absent = error.errno in (errno.ENOENT, errno.ENOTDIR)
            return Done(Status.GONE if absent else Status.COPY_FAILED, said(volume.path, error))

    def _look(self, volume: _Volume) -> VolumeOpened:
        ops = self._ops
        notes = volume.folder.open()
        writable = self._probe(volume, notes)
        numbers: list[int] = []
        sizes: list[int] = []
        strange = 0
        for name in sorted(ops.names(volume.folder.fd)):
            match = NAME.fullmatch(name)
            if match is None:
                strange += name not in (PROBE, MARKER)
                continue
            number = int(match[1], 16)
            numbers.append(number)
            sizes.append(self._admit(volume, number, writable, notes))
        if strange:
            notes.append(f"{strange} files that are not of the log stay as they are")
        free, total = ops.space(volume.folder.fd)
        beyond = max(0, free - self._kept(total))
        return VolumeOpened(beyond, tuple(numbers), tuple(sizes), tuple(notes))

    def _watch(self, volume: _Volume, job: WatchVolume) -> VolumeWatched | Done:
        mended = volume.folder.watch()
        with self._lock:  # nobody closes a file meanwhile
            removed = sum(not self._ops.links(file.fd) for file in volume.files.values())
        if removed:
            why = f"{volume.path}: somebody has removed {removed} segments; it is looked into anew"
            return Done(Status.GONE, why)
        return VolumeWatched(mended)

    def _kept(self, total: int) -> int:
        return int(total * FLOOR_SHARE) if self._floor_bytes is None else self._floor_bytes

    def _probe(self, volume: _Volume, notes: list[str]) -> bool:
        """Find out whether the directory can be written, and past the page cache."""
        folder, flags = volume.folder.fd, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        volume.direct = os.O_DIRECT
        try:
            fd = self._ops.open(PROBE, flags | os.O_DIRECT, folder)
        except OSError as error:
            if STATUS.get(error.errno or 0) in (Status.READ_ONLY, Status.NO_SPACE):
                notes.append(f"nothing can be written: {said(volume.path, error)}")
                return False
            if error.errno != errno.EINVAL:
                raise
            fd = self._ops.open(PROBE, flags, folder)
            volume.direct = 0
            notes.append("no O_DIRECT in this file system: reads and writes are buffered")
        self._ops.close(fd)
        self._ops.unlink(PROBE, folder)
        return True

    def _admit(self, volume: _Volume, number: int, writable: bool, notes: list[str]) -> int:
        """Open and lock a segment that was found; its bytes, or 0 if it is none of ours."""
        ops, name = self._ops, _name(number)
        mode = (os.O_RDWR if writable else os.O_RDONLY) | SEGMENT_FLAGS
        try:
            fd = ops.open(name, mode | volume.direct, volume.folder.fd)
        except OSError as error:
            if error.errno != errno.EINVAL or not volume.direct:
                notes.append(f"left as it is: {said(os.path.join(volume.path, name), error)}")
                return 0
            volume.direct = 0
            notes.append("no O_DIRECT in this file system: reads are buffered")
            return self._admit(volume, number, writable, notes)
        why, uuid = self._believe(fd, number)
        if not why:
            with self._lock:
                volume.files[number] = _File(fd, uuid)
            return ops.size(fd)
        if writable and why == _EMPTY:
            ops.unlink(name, volume.folder.fd)  # its maker died before it was durable
        else:
            notes.append(f"{os.path.join(volume.path, name)} stays as it is: {why}")
        ops.close(fd)
        return 0

    def _believe(self, fd: int, number: int) -> tuple[str, bytes]:
        """Lock what was opened as segment `number`; why it is none of ours ('': it is), and its
        uuid."""
        if not stat.S_ISREG(self._ops.mode(fd)):
            return "it is no file", b""
        if not lock(self._ops, fd):
            return "another service has it; it is the same file under another name", b""
        page = self._reader(fd)(0, HEAD_BYTES)
        if not any(page):
            return _EMPTY, b""
        found = read_head(bytes(page))
        if isinstance(found, str):
            return found, b""
        return ("", found.uuid) if found.number == number else (f"it is number {found.number}", b"")

    def _shut(self, volume: _Volume) -> None:
        with self._lock:
            files, volume.files = list(volume.files.values()), {}
        for file in files:
            self._ops.close(file.fd)
        volume.folder.close()

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

    def _load(self, volume: _Volume, job: LoadSegment) -> SegmentLoaded:
        file = self._file(volume, job.segment)
        size = self._ops.size(file.fd)
        read = self._reader(file.fd)
        rows = read_footer(read, size, file.uuid)
        if rows is not None:
            return SegmentLoaded(rows, size)
        found = recover(read, size, file.uuid)
        try:
            size = self._end(file, found.end, found.rows)
        except OSError:
            pass  # it is read like this again the next time
        return SegmentLoaded(found.rows, size, scanned=True, corrupt=found.corrupt)

    def _make(self, volume: _Volume, job: MakeSegment) -> Done:
        ops, name, folder = self._ops, _name(job.segment), volume.folder.fd
        free, total = ops.space(folder)
        if free - job.size < self._kept(total):
            kept = self._kept(total) // MIB
            why = f"{free // MIB} MiB are free, of which {kept} are to stay so"
            why = f"a segment of {job.size // MIB} MiB does not fit: {why}; see --ssd-free-floor"
            return Done(Status.NO_SPACE, f"{volume.path}: {why}")
        fd = ops.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | volume.direct, folder)
        try:
            lock(ops, fd)
            ops.allocate(fd, job.size)
            uuid = ops.draw(16)
            write_all(ops, fd, [_paged(head(uuid, job.segment, job.size))], 0)
            ops.sync_all(fd)
            ops.sync_all(folder)
        except OSError:
            ops.close(fd)
            ops.unlink(name, folder)
            raise
        with self._lock:
            volume.files[job.segment] = _File(fd, uuid)
        return Done(Status.OK)

    def _write(self, volume: _Volume, job: WriteGroup) -> GroupWritten | PagesDiffer:
        file = self._file(volume, job.segment)
        pages = [self._pool[at : at + job.page_size] for at in job.pages]
        sums = [page_sum(page[: job.payload_bytes]) for page in pages]
        wrong = [at for at, sum_, its in _beside(job, sums) if its not in (0, sum_)]
        if wrong:
            return PagesDiffer(tuple(wrong))
        rows: list[Row] = []
        offset = job.offset + PAGE_ALIGN
        for n, (key, depth) in enumerate(zip(job.keys, job.depths, strict=True)):
            checksum = block_sum(sums[n * job.shards : (n + 1) * job.shards])
            row = Row(
                offset=offset,
                checksum=checksum,
                generation=job.generation,
                payload_bytes=job.payload_bytes,
                depth=depth,
                shards=job.shards,
                namespace=job.namespace,
                key=key,
            )
            rows.append(row)
            offset += job.shards * job.page_size
        front = _paged(group(file.uuid, job.index, rows))
        write_all(
            self._ops, file.fd, [front, *_merged(self._pool, job.pages, job.page_size)], job.offset
        )
        return GroupWritten(tuple(row.checksum for row in rows))

    def _carry(self, volume: _Volume, job: CarryGroup) -> GroupCarried:
        source, file = self._file(volume, job.source), self._file(volume, job.segment)
        old = unpack_rows(job.rows)
        space = memoryview(buffer(sum(row.bytes_ for row in old)))
        rows: list[Row] = []
        length = 0
        for row in old:
            into = space[length : length + row.bytes_]
            whole = read_all(self._ops, source.fd, [into], row.offset) == row.bytes_
            if whole and block_sum(sums_of(into, row)) == row.checksum:
                rows.append(row._replace(offset=job.offset + PAGE_ALIGN + length))
                length += row.bytes_
        if rows:
            front = _paged(group(file.uuid, job.index, rows))
            write_all(self._ops, file.fd, [front, space[:length]], job.offset)
        return GroupCarried(joined(rows))

    def _sync(self, volume: _Volume, job: SyncSegment) -> Done:
        self._ops.sync(self._file(volume, job.segment).fd)
        return Done(Status.OK)

    def _write_footer(self, volume: _Volume, job: WriteFooter) -> FooterWritten:
        return FooterWritten(self._end(self._file(volume, job.segment), job.offset, job.rows))

    def _end(self, file: _File, offset: int, rows: bytes) -> int:
        """Write the footer and cut the file behind it; its bytes."""
        ending = _paged(footer(file.uuid, offset, rows))
        write_all(self._ops, file.fd, [ending], offset)
        self._ops.cut(file.fd, offset + len(ending))
        self._ops.sync_all(file.fd)
        return offset + len(ending)

    def _read(self, volume: _Volume, job: ReadRun) -> RunRead:
        file = self._file(volume, job.segment)
        size, payload_bytes = padded(job.payload_bytes), job.payload_bytes
        into: list[memoryview] = []
        at = 0
        for count in job.stretches:
            into += [memoryview(buffer(PAGE_ALIGN))] if at else []
            into += _merged(self._pool, job.pages[at : at + count], size)
            at += count
        if read_all(self._ops, file.fd, into, job.offset) != sum(map(len, into)):
            raise OSError(errno.EIO, f"segment {job.segment} is shorter than it should be")
        sums = tuple(page_sum(self._pool[at : at + payload_bytes]) for at in job.pages)
        return RunRead(sums)

    def _drop(self, volume: _Volume, job: DropSegment) -> Done:
        name = _name(job.segment)
        with self._lock:
            file = volume.files.pop(job.segment, None)
        if file is None:
            return Done(Status.OK)
        try:
            if volume.folder.leads_to(name, file.fd):
                self._ops.unlink(name, volume.folder.fd)
        finally:
            self._ops.close(file.fd)
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
