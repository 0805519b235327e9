"""The ledger: one fixed record per page id, enough to rebuild the index after any crash.

A file beside the pool, in shared memory, written by the index alone. A record is a state word and
a body. Sealing writes the body and then, in one aligned 8-byte store, the state word, which holds a
checksum of the body; voiding stores 0. So at every instant, and after a crash at any byte, a record
is either void or whole: a word that does not fit its body is *torn* and reads as void. A page that
is only being filled has no record at all, hence can never be taken for a filled one. A third word
says that a page is quarantined: it holds no block, and nobody may use it as long as the pool lives.

A fourth word, with the same checksum, says that a page is *leaving*: nobody finds it any more, and
its bytes are still the block's.  Between that and void the index learns who has found the page
before (hazards.py); where somebody has, the page stays, which is to say that it is sealed as it
was, since the body was never touched.  An index that dies in between has lost nothing: the next one
lets all of them stay.

The checksum is a sum of products, modulo 2^64, whose upper half is kept: numpy makes it for a
whole chunk of records at once (scan.py), which is what lets a restart read a million in a second,
and for all that one message names.

The file never leaves its host, so numbers are in the host's byte order; the magic word is a number
too, and a file of the other order has no valid header. The header's magic word is written last. The
incarnation counter stands outside the header's checksum: it changes while the service lives, by one
aligned store.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from operator import mul
from struct import Struct
from typing import TYPE_CHECKING, Any, NamedTuple

from pegaflow.wire.identities import Incarnation, Key, Namespace, PageId, Stamp, numbered
from pegaflow.wire.units import Bytes, Constant, Count

if TYPE_CHECKING:  # at run time only where it is needed: it takes longer to start
    import numpy as np
    import numpy.typing as npt

    U64 = npt.NDArray[np.uint64]
    Pages = Sequence[PageId] | npt.NDArray[np.int64] | U64

HEADER_BYTES: Constant = 4096
RECORD_BYTES: Constant = 128
VERSION: Constant = 2

MAX_KEY: Bytes = 64
"""Bytes of a block key: engines hash with 16 to 32 bytes; the record has room for a SHA-512."""

NAMESPACE_BYTES: Bytes = 16
"""What a session hashes an engine's namespace and layout to."""

UUID_BYTES: Constant = 16
MAX_SHARDS: Count = (1 << 16) - 1
"""Pages of one block: the largest that the record has room for."""

PAYLOAD_BYTES_MAX: Bytes = (1 << 32) - 1
"""The largest that the record has room for."""

MAX_BOOT_ID: Bytes = 36
"""Bytes of a boot id: Linux's is a UUID in text."""

VOID: Constant = 0
# No byte of these is 0, so no part of such a word over a void passes for it.
SEALED: Constant = 0x5EA1_ED01 << 32
LEAVING: Constant = 0x1EA7_E502 << 32  # and no byte is that of SEALED
QUARANTINED: Constant = 0xBAD0_0BAD << 32  # whatever the other half is
_SUM = (1 << 32) - 1  # of a state word: the body's checksum
_TAG = _SUM << 32
_MAGIC = int.from_bytes(b"PEGALDGR", "big")

# The word at 0 is the magic, at 8 the incarnation; then the checksum of the facts, then the facts:
# version, uuid, boot id and its length, pool bytes, extent bytes, records per extent.
_CRC = Struct("=I")
_FACTS = Struct("=I16s36sBQQI")
_CRC_AT = 16
_FACTS_AT = 20

# stamp, seal, shard, shards, length, namespace, key length, key, has checksum, checksum, depth
_BODY = Struct("=QQHHI16sB64sBQI2x")
_WORDS = Struct("=15Q")  # the body again
assert _BODY.size == _WORDS.size == RECORD_BYTES - 8

FACTORS: tuple[Constant, ...] = tuple(
    0x9E3779B97F4A7C15 * (2 * n + 1) % (1 << 64) for n in range(15)
)
"""What the words of a body are multiplied with: odd, so that no flipped bit is lost."""


WritableBuffer = Any
"""An mmap, bytearray or memoryview; typing has no name for a buffer before Python 3.12."""


class Record(NamedTuple):
    """What the ledger says of a sealed page."""

    stamp: Stamp  # the grant the page was filled under; never reused
    seal: int  # one number for all pages of a block that were sealed together
    shard: int  # which of the block's pages this is, 0..shards-1
    shards: int  # pages of the block
    payload_bytes: int  # in the page
    namespace: Namespace  # NAMESPACE_BYTES
    key: Key  # 1..MAX_KEY bytes
    checksum: int | None  # of the payload, 64 bits; None where it was never computed
    depth: int  # the block's position in its chain, 0 the first


@dataclass(frozen=True, slots=True)
class Header:
    """What a pool and its ledger must agree on to be adopted."""

    pool_uuid: bytes  # UUID_BYTES; the same in the pool's file
    boot_id: bytes  # of the boot that made it; 1..MAX_BOOT_ID bytes, no trailing zero
    pool_bytes: int
    extent_bytes: int
    records_per_extent: int
    incarnation: Incarnation  # the last one that the supervisor gave away


def ledger_bytes(extents: int, records_per_extent: int) -> int:
    """Size of the file."""
    return HEADER_BYTES + extents * records_per_extent * RECORD_BYTES


Read = Callable[[int, int], bytes]
"""(offset, length) -> these bytes of a file, without making holes of it real."""


class Ledger:
    """Reads and writes the ledger in a buffer: a writable mmap, bytearray or memoryview.

    Args:
        buffer: the whole file.
        read: another way to its bytes, for scans: to touch the hole of a mapped file makes it real,
            and ends the process where there is no room for it.
    """

    def __init__(self, buffer: WritableBuffer, read: Read | None = None) -> None:
        wrong = Ledger.fault(buffer)
        assert not wrong, wrong
        self._bytes = memoryview(buffer).cast("B")  # the whole file
        self._words = self._bytes[: len(self._bytes) // 8 * 8].cast(
            "Q"
        )  # the same, as aligned words
        self._read = read
        self._rows: U64 | None = None
        facts = self._header()
        self.records = facts.pool_bytes // facts.extent_bytes * facts.records_per_extent

    @staticmethod
    def fault(buffer: WritableBuffer) -> str:
        """Why this buffer is no ledger of this version, in one line; '' if it is one."""
        raw = memoryview(buffer).cast("B")
        if len(raw) < HEADER_BYTES:
            return f"the ledger has {len(raw)} bytes, less than its header"
        if raw[:8].cast("Q")[0] != _MAGIC:
            return "the ledger's header was never finished, or this is no ledger"
        (crc,) = _CRC.unpack_from(raw, _CRC_AT)
        if crc != zlib.crc32(raw[_FACTS_AT : _FACTS_AT + _FACTS.size]):
            return "the ledger's header is damaged"
        version, _, _, _, pool, extent, per_extent = _FACTS.unpack_from(raw, _FACTS_AT)
        if version != VERSION:
            return f"the ledger has format {version}; this service reads format {VERSION}"
        if len(raw) < ledger_bytes(pool // extent, per_extent):
            return f"the ledger has {len(raw)} bytes, too few for its pool"
        return ""

    @staticmethod
    def format(buffer: WritableBuffer, header: Header) -> Ledger:
        """Make a ledger of a new, zeroed file (all records are void): the facts, the magic word
        last. It touches nothing behind the header: the file is still full of holes.

        Args:
            buffer: the whole file, at least `ledger_bytes` long; writable, and kept referenced.
        """
        assert len(header.pool_uuid) == UUID_BYTES
        assert 1 <= len(header.boot_id) <= MAX_BOOT_ID
        raw = memoryview(buffer).cast("B")
        size = ledger_bytes(header.pool_bytes // header.extent_bytes, header.records_per_extent)
        assert len(raw) >= size, (len(raw), size)
        words = raw[:16].cast("Q")
        words[0] = 0
        facts = _FACTS.pack(
            VERSION,
            header.pool_uuid,
            header.boot_id,
            len(header.boot_id),
            header.pool_bytes,
            header.extent_bytes,
            header.records_per_extent,
        )
        raw[_FACTS_AT : _FACTS_AT + _FACTS.size] = facts
        _CRC.pack_into(raw, _CRC_AT, zlib.crc32(facts))
        words[1] = header.incarnation
        words[0] = _MAGIC
        return Ledger(buffer)

    @property
    def header(self) -> Header:
        """What the file says of itself."""
        return self._header()

    def set_incarnation(self, incarnation: Incarnation) -> None:
        """Supervisor only, before it spawns the process that gets this number."""
        assert incarnation > self._words[1], (incarnation, self._words[1])
        self._words[1] = incarnation

    def read(self, page: PageId) -> Record | None:
        """The record of a sealed page; None if it is void, torn, leaving or quarantined."""
        at = self._at(page)
        body = self._bytes[at + 8 : at + RECORD_BYTES]
        return _record(body) if self._words[at // 8] == SEALED | _sum(body) else None

    def is_quarantined(self, page: PageId) -> bool:
        """Whether nobody may use it any more."""
        return self._words[self._at(page) // 8] & _TAG == QUARANTINED

    def quarantine(self, page: PageId) -> None:
        """Ends the record; nobody may use the page as long as the pool lives."""
        self._words[self._at(page) // 8] = QUARANTINED

    def rows(self) -> U64:
        """The records as rows of words, the state word first: a view of the file."""
        if self._rows is None:
            import numpy as np

            shape = (self.records, RECORD_BYTES // 8)
            self._rows = np.ndarray(shape, np.uint64, self._bytes, HEADER_BYTES)
        return self._rows

    def are_sealed(self, pages: Pages) -> list[bool]:
        """Of each page whether its record is whole."""
        found: list[bool] = (self._tags(pages) == SEALED).tolist()
        return found

    def are_void(self, pages: Pages) -> list[bool]:
        """Of each page whether it may be used anew: void, or torn."""
        found: list[bool] = self.void_among(pages).tolist()
        return found

    def void_among(self, pages: Pages) -> npt.NDArray[np.bool_]:
        """The same as an array."""
        void: npt.NDArray[np.bool_] = self._tags(pages) == VOID
        return void

    def seal(self, pages: Sequence[PageId], records: Sequence[Record]) -> None:
        """Write the bodies, then the state words.

        Args:
            pages: different ones, and all void.
            records: what to say of each page, beside `pages`.
        """
        import numpy as np

        assert len(set(pages)) == len(pages) and self.void_among(pages).all(), pages
        bodies = np.frombuffer(b"".join(map(_body, records)), np.uint64)
        self.seal_bodies(pages, bodies.reshape(-1, len(FACTORS)))

    def seal_bodies(self, pages: Pages, bodies: U64) -> None:
        """The same of bodies that are made already, and pages that were looked at already.

        Args:
            pages: different ones, and all void.
            bodies: a row of words for each page.
        """
        import numpy as np

        at, rows = self._checked(pages), self.rows()
        sums = sums_of(bodies) | np.uint64(SEALED)
        rows[at, 0] = VOID
        rows[at, 1:] = bodies
        rows[at, 0] = sums

    def void(self, pages: Pages) -> None:
        """End these records, sealed or not."""
        self.rows()[self._checked(pages), 0] = VOID

    def leave(self, pages: Pages) -> None:
        """Nobody finds these pages from here on; void them, or let them `stay`.

        Args:
            pages: sealed ones.
        """
        self._turn(pages, SEALED, LEAVING)

    def stay(self, pages: Pages) -> None:
        """Somebody uses these pages: they are sealed as they were.

        Args:
            pages: leaving ones.
        """
        self._turn(pages, LEAVING, SEALED)

    def chunk(self, first: PageId, count: int) -> bytes:
        """The raw records of these pages.

        Args:
            first: page id of the first record.
            count: records.

        Returns:
            RECORD_BYTES of each, back to back, as they are in the file: also void and torn ones.
        """
        at, length = HEADER_BYTES + first * RECORD_BYTES, count * RECORD_BYTES
        if self._read is not None:
            return self._read(at, length)
        return bytes(self._bytes[at : at + length])

    def check(self) -> None:
        """The header is whole, and every sealed record makes sense."""
        wrong = Ledger.fault(self._bytes)
        assert not wrong, wrong
        for page in numbered(PageId(0), self.records):
            record = self.read(page)
            if record is not None:
                assert record.shard < record.shards and record.key, (page, record)

    def _tags(self, pages: Pages) -> U64:
        """Of each page SEALED, LEAVING, QUARANTINED, or VOID, also where it is torn."""
        import numpy as np

        at = self._checked(pages)
        words = self.rows()[at, 0]
        return tags_of(words, self.rows()[at, 1:]) if np.count_nonzero(words) else words

    def _turn(self, pages: Pages, before: int, after: int) -> None:
        """Each word becomes another in one store; what it says of the body stays."""
        import numpy as np

        at = self._checked(pages)
        words = self.rows()[at, 0]
        assert (words & np.uint64(_TAG) == np.uint64(before)).all(), pages
        self.rows()[at, 0] = words & np.uint64(_SUM) | np.uint64(after)

    def _checked(self, pages: Pages) -> npt.NDArray[np.int64]:
        import numpy as np

        at = np.array(pages, np.int64)  # as unsigned numbers those below 0 are large
        assert not np.count_nonzero(at.view(np.uint64) >= np.uint64(self.records)), pages
        return at

    def _at(self, page: PageId) -> int:
        assert 0 <= page < self.records, page
        return HEADER_BYTES + page * RECORD_BYTES

    def _header(self) -> Header:
        facts = _FACTS.unpack_from(self._bytes, _FACTS_AT)
        _, uuid, boot_id, boot_length, pool, extent, per_extent = facts
        return Header(
            pool_uuid=uuid,
            boot_id=boot_id[:boot_length],
            pool_bytes=pool,
            extent_bytes=extent,
            records_per_extent=per_extent,
            incarnation=Incarnation(self._words[1]),
        )


def tags_of(words: U64, bodies: U64) -> U64:
    """What state words say of their bodies.

    Args:
        words: the state word of each record.
        bodies: a row for each, of its other words.

    Returns:
        SEALED, LEAVING or QUARANTINED; VOID also where a word does not fit its body.
    """
    import numpy as np

    tags, sums = words & np.uint64(_TAG), words & np.uint64(_SUM)
    tags[(tags != SEALED) & (tags != LEAVING) & (tags != QUARANTINED)] = VOID
    torn = sums != sums_of(bodies)
    torn &= tags != QUARANTINED
    tags[torn] = VOID
    return tags


def sums_of(bodies: U64) -> U64:
    """The checksums of these bodies, which are rows of words."""
    import numpy as np

    sums: U64 = bodies @ _column()
    sums >>= np.uint64(32)
    return sums


@cache
def _column() -> U64:
    import numpy as np

    return np.array(FACTORS, np.uint64)


def _body(record: Record) -> bytes:
    assert 1 <= len(record.key) <= MAX_KEY, record
    assert len(record.namespace) == NAMESPACE_BYTES, record
    assert record.shard < record.shards, record
    return _BODY.pack(
        record.stamp,
        record.seal,
        record.shard,
        record.shards,
        record.payload_bytes,
        record.namespace,
        len(record.key),
        record.key,
        record.checksum is not None,
        record.checksum or 0,
        record.depth,
    )


def _sum(body: bytes | memoryview) -> int:
    total: int = sum(map(mul, _WORDS.unpack(body), FACTORS))
    return total >> 32 & 0xFFFF_FFFF


def _record(raw: bytes | memoryview) -> Record:
    unpacked = _BODY.unpack(raw)
    stamp, seal, shard, shards, length, namespace, size, key, has, checksum, depth = unpacked
    crc = checksum if has else None
    return Record._make((stamp, seal, shard, shards, length, namespace, key[:size], crc, depth))
