"""A pool, a directory and a few blocks: what tests of the disk have in common."""

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from pegaflow.core.segments.codec import Row, unpack_rows
from pegaflow.core.segments.marker import MARKER, Marker, unpack
from pegaflow.device.disk import Disk
from pegaflow.device.diskops import Ops
from pegaflow.device.memory import SharedFile
from pegaflow.device.ssdfolder import Known
from pegaflow.wire.diskjobs import (
    CarryGroup,
    FooterWritten,
    GroupCarried,
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
from pegaflow.wire.identities import Incarnation, Key, Namespace
from pegaflow.wire.jobs import Done, Result
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status

NS = Namespace(b"n" * 16)
PAGE = 2 * PAGE_ALIGN
PAYLOAD = PAGE - 100
SEGMENT = 1 << 20
POOL = 1 << 20
HALF = POOL // 2
"""Blocks are written from the first half of the pool and read into the second."""


def content(key: Key, shard: int = 0) -> bytes:
    """What a block has to contain."""
    seed = hashlib.sha256(key + bytes([shard])).digest()
    return (seed * (PAYLOAD // 32 + 1))[:PAYLOAD]


def read_of(segment: int, rows: Sequence[Row], pages: tuple[int, ...]) -> ReadRun:
    """The job that reads these blocks, which lie behind each other, into these pages."""
    stretches = [0]
    for before, row in zip((rows[0], *rows), rows, strict=False):
        if row.offset > before.offset + before.bytes_:
            stretches.append(0)
        stretches[-1] += row.shards
    first = rows[0]
    return ReadRun(
        0, segment, first.offset, first.payload_bytes, stretches=tuple(stretches), pages=pages
    )


def key_of(number: int) -> Key:
    return Key(number.to_bytes(8, "big") * 4)


class Bench:
    """One directory, one pool."""

    def __init__(
        self,
        folder: Path,
        pool: Path,
        ops: Ops | None = None,
        floor: int = 0,
        known: Known | None = None,
    ) -> None:
        path = str(pool)
        self.folder = folder
        self.pool = SharedFile.adopt(path) if pool.exists() else SharedFile.create(path, POOL)
        self.disk = Disk([str(folder)], floor, self.pool, ops, known=known)
        self.shards = 2

    def close(self) -> None:
        self.disk.close()

    def work(self, job: Message) -> Result:
        """One job, which is done."""
        result = self.disk.work(job)
        assert result.ok, (job, result)
        return result

    def fails(self, job: Message, status: Status) -> str:
        """One job, which is not done, for this reason; the reason in words."""
        result = self.disk.work(job)
        assert isinstance(result, Done) and result.status is status, (job, result)
        return result.note

    def look(self, volume: int = 0) -> VolumeOpened:
        """Open a directory."""
        result = self.work(OpenVolume(volume))
        assert isinstance(result, VolumeOpened)
        return result

    def mended(self) -> str:
        """What a look at the directory mends."""
        result = self.work(WatchVolume(0))
        assert isinstance(result, VolumeWatched)
        return result.mended

    def load(self, segment: int) -> SegmentLoaded:
        """The rows of a segment, and where they are from."""
        result = self.work(LoadSegment(0, segment))
        assert isinstance(result, SegmentLoaded)
        return result

    def carry(self, job: CarryGroup) -> list[Row]:
        """Carry blocks over; their rows there."""
        result = self.work(job)
        assert isinstance(result, GroupCarried)
        return unpack_rows(result.rows)

    def open(self) -> list[int]:
        """Numbers of the segments that are there."""
        found = self.look()
        return [n for n, size in zip(found.segments, found.segment_bytes, strict=True) if size]

    def rows(self, segment: int) -> list[Row]:
        return unpack_rows(self.load(segment).rows)

    def group(
        self, segment: int, index: int, offset: int, keys: list[Key], sums: tuple[int, ...] = ()
    ) -> WriteGroup:
        """The job that writes these blocks, which are put into the pool."""
        pages = []
        for n, key in enumerate(keys):
            for shard in range(self.shards):
                at = (n * self.shards + shard) * PAGE
                self.pool.map[at : at + PAYLOAD] = content(key, shard)
                pages.append(at)
        depths = tuple(range(len(keys)))
        return WriteGroup(
            0,
            segment,
            index,
            offset,
            namespace=NS,
            page_size=PAGE,
            payload_bytes=PAYLOAD,
            shards=self.shards,
            generation=Incarnation(1),
            keys=tuple(keys),
            depths=depths,
            pages=tuple(pages),
            sums=sums,
        )

    def write(self, segment: int, groups: int, blocks: int = 3, first: int = 0) -> int:
        """Make a segment with so many groups, not closed; where the next one would begin."""
        self.work(MakeSegment(0, segment, SEGMENT))
        offset = PAGE_ALIGN
        for index in range(groups):
            keys = [key_of(first + index * blocks + n) for n in range(blocks)]
            self.work(self.group(segment, index, offset, keys))
            offset += PAGE_ALIGN + blocks * self.shards * PAGE
        self.work(SyncSegment(0, segment))
        return offset

    def seal(self, segment: int, offset: int) -> int:
        """With the rows that a walk finds; the bytes of the file."""
        result = self.work(WriteFooter(0, segment, offset, self.load(segment).rows))
        assert isinstance(result, FooterWritten)
        return result.file_bytes

    def read(self, segment: int, rows: list[Row]) -> tuple[tuple[int, ...], list[bytes]]:
        """The checksums of the pages, and the payloads, shard by shard."""
        count = sum(row.shards for row in rows)
        pages = tuple(HALF + n * PAGE for n in range(count))
        result = self.work(read_of(segment, rows, pages))
        assert isinstance(result, RunRead)
        return tuple(result.checksums), [bytes(self.pool.map[at : at + PAYLOAD]) for at in pages]

    def right(self, segment: int, row: Row) -> bool:
        """Whether a block comes back as it was written."""
        _, payloads = self.read(segment, [row])
        return payloads == [content(row.key, shard) for shard in range(row.shards)]

    def file(self, segment: int) -> Path:
        return self.folder / f"{segment:016x}.segment"


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """A file system of so many bytes; where none can be had the test is skipped."""
    if os.getuid() != 0:
        pytest.skip("only root may mount a loop device")
    image, mount = folder / "image", folder / "mount"
    mount.mkdir()
    with image.open("wb") as file:
        file.truncate(size)
    commands = (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(mount)])
    if shutil.which("mkfs.ext4") is None or any(
        subprocess.run(command, capture_output=True).returncode for command in commands
    ):
        pytest.skip("no mkfs.ext4, or no loop device here")
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def marker_of(folder: Path) -> Marker:
    found = unpack((folder / MARKER).read_bytes())
    assert found is not None
    return found


def flip(path: Path, at: int, bit: int = 0) -> None:
    """Damage a file."""
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))
        file.flush()
        os.fsync(file.fileno())
