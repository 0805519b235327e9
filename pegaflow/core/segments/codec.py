"""A segment: one file of the SSD log.  Only ever appended to, and removed as a whole.

    0         head: what this is, its number, a uuid that every part of it repeats
    4096      group: one page of rows, then the pages of the blocks that these rows describe
    ...       more groups, each behind the one before
    footer    all rows once more, then one page, the trailer, in which the file ends

A row says everything about a block: namespace, key, shards, bytes, where its pages are, by which
life of the flusher it was written (generation), and a checksum of its content.  A block's pages lie
behind each other, each `payload` bytes filled up to PAGE_ALIGN, so that they move straight between
file and pool (O_DIRECT).

A file without a whole trailer was never closed: its writer has died, or still writes.  `recover`
then walks over it: at each place where a page of rows with the right uuid and checksum is found,
the blocks behind that page are compared with their checksums, and what does not agree is left out.
Where no such page is, `recover` looks on at the next place: writes reach a disk in any order, so a
group may be there whose predecessor is lost.

Numbers are little-endian whatever the host: a disk may be carried to another.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from struct import Struct, pack
from typing import NamedTuple

from xxhash import xxh3_64_intdigest

from pegaflow.core.pool.ledger import MAX_KEY, NAMESPACE_BYTES
from pegaflow.wire.identities import Incarnation, Key, Namespace
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.units import Bytes, Constant, Count

VERSION: Constant = 1

HEAD_BYTES: Bytes = PAGE_ALIGN
"""Before the first group."""

ROW_BYTES: Bytes = 128
"""A key of 64 bytes, and all numbers with room to spare."""

_ROW = Struct("<QQQIIHBx16s64s12x")
assert _ROW.size == ROW_BYTES

GROUP_ROWS: Count = (PAGE_ALIGN - ROW_BYTES) // ROW_BYTES
"""Blocks of one group: so many rows fit a page beside the group's own facts."""

_HEAD = Struct("<8sI4x16sQQ")
_GROUP = Struct("<8s16sIIQ")
_TRAILER = Struct("<8s16sQQQ")
_CRC = Struct("<I")
_HEAD_MAGIC, _GROUP_MAGIC, _TRAILER_MAGIC = b"PEGASEGM", b"PEGAGRUP", b"PEGAFOOT"


class Row(NamedTuple):
    """One block of a segment."""

    offset: int  # of its first page in the file
    checksum: int  # `block_sum` of its pages
    generation: Incarnation  # incarnation of the flusher that has written it
    payload_bytes: int  # bytes of each page that mean something
    depth: int  # position in its chain
    shards: int
    namespace: Namespace
    key: Key

    @property
    def page_bytes(self) -> int:
        """What a page of it takes, here and in the pool."""
        return padded(self.payload_bytes)

    @property
    def bytes_(self) -> int:
        """Bytes of all its pages."""
        return self.shards * self.page_bytes


class Head(NamedTuple):
    """The first page of a segment."""

    uuid: bytes
    number: int
    size: int  # bytes that the file was made with


def padded(size: int) -> int:
    """Rounded up to PAGE_ALIGN."""
    return -(-size // PAGE_ALIGN) * PAGE_ALIGN


def page_sum(page: bytes | memoryview) -> int:
    """Checksum of a page's payload; never 0, which means that there is none."""
    return xxh3_64_intdigest(page) or 1


def block_sum(sums: Sequence[int]) -> int:
    """Checksum of a block, from those of its pages."""
    return xxh3_64_intdigest(pack(f"<{len(sums)}Q", *sums))


def block_sums(sums: Sequence[int], shards: int) -> list[int]:
    """`block_sum` of several blocks.

    Args:
        sums: of their pages, block-major.
        shards: pages of each block.
    """
    raw, size = memoryview(pack(f"<{len(sums)}Q", *sums)), 8 * shards
    return [xxh3_64_intdigest(raw[at : at + size]) for at in range(0, len(raw), size)]


def pack_row(row: Row) -> bytes:
    """A row as it is written."""
    assert 1 <= len(row.key) <= MAX_KEY and len(row.namespace) == NAMESPACE_BYTES, row
    numbers = (row.offset, row.checksum, row.generation, row.payload_bytes, row.depth, row.shards)
    return _ROW.pack(*numbers, len(row.key), row.namespace, row.key)


def row_at(rows: bytes | bytearray | memoryview, at: int) -> Row:
    """Row number `at` of several."""
    fields = _ROW.unpack_from(rows, at * ROW_BYTES)
    offset, checksum, generation, payload_bytes, depth, shards, size, namespace, key = fields
    return Row(
        offset=offset,
        checksum=checksum,
        generation=generation,
        payload_bytes=payload_bytes,
        depth=depth,
        shards=shards,
        namespace=namespace,
        key=key[:size],
    )


def unpack_rows(rows: bytes | bytearray | memoryview) -> list[Row]:
    """Rows one behind the other."""
    return [row_at(rows, at) for at in range(len(rows) // ROW_BYTES)]


def head(uuid: bytes, number: int, size: int) -> bytes:
    """The first page of a segment.

    Args:
        uuid: 16 bytes, drawn for this file.
        size: bytes that the file is made with.
    """
    return _page(_HEAD.pack(_HEAD_MAGIC, VERSION, uuid, number, size))


def read_head(page: bytes) -> Head | str:
    """What the first page says, or in one line why it cannot be read."""
    if len(page) < HEAD_BYTES or page[:8] != _HEAD_MAGIC:
        return "it is no segment"
    magic, version, uuid, number, size = _HEAD.unpack_from(page)
    if version != VERSION:
        return f"it has format {version}; this service reads format {VERSION}"
    if not _holds(page, _HEAD.size):
        return "its head is damaged"
    return Head(uuid, number, size)


def group(uuid: bytes, index: int, rows: Sequence[Row]) -> bytes:
    """The page of rows before the pages of these blocks.

    Args:
        uuid: the segment's.
        index: of the group in its segment.
        rows: at most GROUP_ROWS; their offsets are those of the pages behind this one.
    """
    assert 0 < len(rows) <= GROUP_ROWS, len(rows)
    facts = _GROUP.pack(_GROUP_MAGIC, uuid, index, len(rows), sum(r.bytes_ for r in rows))
    return _page(facts.ljust(ROW_BYTES - _CRC.size, b"\0") + b"".join(map(pack_row, rows)))


def group_bytes(rows: int, page_bytes: int, shards: int) -> int:
    """What a group of equal blocks takes in the file, its page of rows included.

    Args:
        rows: how many blocks.
        page_bytes: of one page, padded.
        shards: pages of each block.
    """
    return PAGE_ALIGN + rows * shards * page_bytes


def read_group(page: bytes, uuid: bytes, at: int) -> list[Row] | None:
    """The rows of a group.

    Args:
        page: PAGE_ALIGN bytes of the file.
        uuid: the segment's: groups of a file that was here before have another.
        at: byte of the file at which the page lies.

    Returns:
        None if no group begins there.
    """
    if page[:8] != _GROUP_MAGIC or len(page) < PAGE_ALIGN:
        return None
    _, its, _, count, length = _GROUP.unpack_from(page)
    start = ROW_BYTES - _CRC.size
    if its != uuid or not 0 < count <= GROUP_ROWS or not _holds(page, start + count * ROW_BYTES):
        return None
    rows = unpack_rows(page[start : start + count * ROW_BYTES])
    here = at + PAGE_ALIGN
    for row in rows:
        if not _sound(row) or row.offset != here:
            return None
        here += row.bytes_
    return rows if here == at + PAGE_ALIGN + length else None


def footer(uuid: bytes, offset: int, rows: bytes) -> bytes:
    """What ends the file, behind the last group.

    Args:
        offset: byte at which it will be written.
        rows: of all groups, ROW_BYTES each.
    """
    count = len(rows) // ROW_BYTES
    trailer = _TRAILER.pack(_TRAILER_MAGIC, uuid, offset, count, xxh3_64_intdigest(rows))
    return rows.ljust(padded(len(rows)), b"\0") + _page(trailer)


def footer_bytes(rows: int) -> int:
    """What the footer of so many rows takes."""
    return padded(rows * ROW_BYTES) + PAGE_ALIGN


Read = Callable[[int, int], bytes | memoryview]
"""(offset, length) -> these bytes of a file, fewer at its end."""


def read_footer(read: Read, size: int, uuid: bytes) -> bytes | None:
    """The rows of a closed segment; None if it was never closed or its footer is damaged.

    Args:
        size: bytes of the file.
        uuid: as its head says.
    """
    page = bytes(read(size - PAGE_ALIGN, PAGE_ALIGN)) if size >= 2 * PAGE_ALIGN else b""
    if page[:8] != _TRAILER_MAGIC or len(page) < PAGE_ALIGN or not _holds(page, _TRAILER.size):
        return None
    _, its, offset, count, sum_ = _TRAILER.unpack_from(page)
    if its != uuid or offset + footer_bytes(count) != size:
        return None
    rows = bytes(read(offset, padded(count * ROW_BYTES)))[: count * ROW_BYTES]
    whole = len(rows) == count * ROW_BYTES and xxh3_64_intdigest(rows) == sum_
    return rows if whole else None


class Recovered(NamedTuple):
    """What a walk over a segment without a footer has found."""

    rows: bytes
    end: int  # behind the last group that was found
    corrupt: int  # blocks that are not what their rows say


def recover(read: Read, size: int, uuid: bytes) -> Recovered:
    """Every block that is whole, found by a walk over the file.

    Args:
        size: bytes of the file.
        uuid: as its head says: what else is found there is older.
    """
    found: list[bytes] = []
    at = end = HEAD_BYTES
    corrupt = 0
    while at + PAGE_ALIGN <= size:
        rows = read_group(bytes(read(at, PAGE_ALIGN)), uuid, at)
        at += PAGE_ALIGN
        for row in rows or ():
            if _is_whole(read, row):
                found.append(pack_row(row))
            else:
                corrupt += 1
        if rows:
            at = end = rows[-1].offset + rows[-1].bytes_
    return Recovered(b"".join(found), end, corrupt)


def sums_of(data: memoryview, row: Row) -> list[int]:
    """The checksum of each page of a block.

    Args:
        data: the block's bytes in the file, `row.bytes_` of them.
    """
    starts = range(0, row.bytes_, row.page_bytes)
    return [page_sum(data[at : at + row.payload_bytes]) for at in starts]


def _is_whole(read: Read, row: Row) -> bool:
    data = memoryview(read(row.offset, row.bytes_))
    return len(data) == row.bytes_ and block_sum(sums_of(data, row)) == row.checksum


def _sound(row: Row) -> bool:
    return row.payload_bytes > 0 and row.shards > 0 and 0 < len(row.key) <= MAX_KEY


def _page(facts: bytes) -> bytes:
    """These facts and their CRC, filled up to a page."""
    return (facts + _CRC.pack(zlib.crc32(facts))).ljust(PAGE_ALIGN, b"\0")


def _holds(page: bytes, length: int) -> bool:
    """Whether the first `length` bytes of a page are those that its CRC was made of."""
    (crc,) = _CRC.unpack_from(page, length)
    return bool(crc == zlib.crc32(page[:length]))


def joined(rows: Iterable[Row]) -> bytes:
    """Rows as they are written, one behind the other."""
    return b"".join(map(pack_row, rows))
