"""The ledger: one fixed record per page id, enough to rebuild the index after any crash.

A file beside the pool, in shared memory, written by the index alone. A record is a state word and
a body. Sealing writes the body and then, in one aligned 8-byte store, the state word, which holds a
checksum of the body; voiding stores 0. So at every instant, and after a crash at any byte, a record
is either void or whole: a word that does not fit its body is *torn* and reads as void. A page that
is only being filled has no record at all, hence can never be taken for a filled one.

The file never leaves its host, so numbers are in the host's byte order; the magic word is a number
too, and a file of the other order has no valid header. The header's magic word is written last. The
incarnation counter stands outside the header's checksum: it changes while the service lives, by one
aligned store.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct
from typing import Any, NamedTuple

HEADER_BYTES = 4096
RECORD_BYTES = 128
VERSION = 1

MAX_KEY = 64
"""Bytes of a block key: engines hash with 16 to 32 bytes; the record has room for a SHA-512."""

NAMESPACE_BYTES = 16
"""What a session hashes an engine's namespace and layout to."""

UUID_BYTES = 16
MAX_SHARDS = (1 << 16) - 1
"""Pages of one block: the largest that the record has room for."""

MAX_LENGTH = (1 << 32) - 1
"""The largest that the record has room for."""

MAX_BOOT_ID = 36
"""Bytes of a boot id: Linux's is a UUID in text."""

VOID = 0
_SEALED = 0x5EA1_ED01 << 32  # no byte of it is 0, so no part of the word over a void passes for it
_MAGIC = int.from_bytes(b"PEGALDGR", "big")

# The word at 0 is the magic, at 8 the incarnation; then the checksum of the facts, then the facts:
# version, uuid, boot id and its length, pool bytes, extent bytes, records per extent.
_CRC = Struct("=I")
_FACTS = Struct("=I16s36sBQQI")
_CRC_AT = 16
_FACTS_AT = 20

# stamp, seal, shard, shards, length, namespace, key length, key, has checksum, checksum, depth
_BODY = Struct("=QQHHI16sB64sBQI2x")
_WORDS_PER_RECORD = RECORD_BYTES // 8
_SCAN = 4096  # records looked at per slice of a scan
assert _BODY.size + 8 == RECORD_BYTES


WritableBuffer = Any
"""An mmap, bytearray or memoryview; typing has no name for a buffer before Python 3.12."""


class Record(NamedTuple):
    """What the ledger says of a sealed page."""

    stamp: int  # the grant the page was filled under; never reused
    seal: int  # one number for all pages of a block that were sealed together
    shard: int  # which of the block's pages this is, 0..shards-1
    shards: int  # pages of the block
    length: int  # bytes of payload in the page
    namespace: bytes  # NAMESPACE_BYTES
    key: bytes  # 1..MAX_KEY bytes
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
    incarnation: int  # the last one that the supervisor gave away


def ledger_bytes(extents: int, records_per_extent: int) -> int:
    """Size of the file."""
    return HEADER_BYTES + extents * records_per_extent * RECORD_BYTES


class Ledger:
    """Reads and writes the ledger in a buffer: a writable mmap, bytearray or memoryview."""

    def __init__(self, buffer: WritableBuffer) -> None:
        wrong = Ledger.fault(buffer)
        assert not wrong, wrong
        self._bytes = memoryview(buffer).cast("B")  # the whole file
        self._words = self._bytes[: len(self._bytes) // 8 * 8].cast(
            "Q"
        )  # the same, as aligned words
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
    def format(buffer: WritableBuffer, header: Header) -> "Ledger":
        """Makes a ledger of a new, zeroed file (all records are void): the facts, the magic word
        last.  It touches nothing behind the header: the file is still full of holes."""
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
        return self._header()

    def set_incarnation(self, incarnation: int) -> None:
        """Supervisor only, before it spawns the process that gets this number."""
        assert incarnation > self._words[1], (incarnation, self._words[1])
        self._words[1] = incarnation

    def read(self, page: int) -> Record | None:
        """The record of a sealed page; None if it is void or torn."""
        at = self._at(page)
        word = self._words[at // 8]
        if word == VOID:
            return None
        body = self._bytes[at + 8 : at + RECORD_BYTES]
        return _record(body, 0) if word == _SEALED | zlib.crc32(body) else None

    def is_void(self, page: int) -> bool:
        """True if a rebuild would find nothing here: void, or torn."""
        at = self._at(page)
        word = self._words[at // 8]
        return word == VOID or word != _SEALED | zlib.crc32(self._bytes[at + 8 : at + RECORD_BYTES])

    def seal(self, page: int, record: Record) -> None:
        """Writes the body, then the state word. The page must be void."""
        assert self.is_void(page), page
        body = _body(record)
        at = self._at(page)
        self._words[at // 8] = VOID
        self._bytes[at + 8 : at + RECORD_BYTES] = body
        self._words[at // 8] = _SEALED | zlib.crc32(body)

    def void(self, page: int) -> None:
        """Ends the record, sealed or not."""
        self._words[self._at(page) // 8] = VOID

    def sealed(self) -> Iterator[tuple[int, Record]]:
        """Every sealed page and its record, by page id. The ledger must not change meanwhile."""
        crc32 = zlib.crc32
        last = HEADER_BYTES + self.records * RECORD_BYTES
        for first in range(0, self.records, _SCAN):
            start = HEADER_BYTES + first * RECORD_BYTES
            end = min(start + _SCAN * RECORD_BYTES, last)
            states = self._words[start // 8 : end // 8 : _WORDS_PER_RECORD].tolist()
            if not any(states):
                continue
            raw = bytes(self._bytes[start:end])
            at = 8
            for page, word in enumerate(states, first):
                if word and word == _SEALED | crc32(raw[at : at + _BODY.size]):
                    yield page, _record(raw, at)
                at += RECORD_BYTES

    def check(self) -> None:
        """The header is whole, and every sealed record makes sense."""
        wrong = Ledger.fault(self._bytes)
        assert not wrong, wrong
        for page, record in self.sealed():
            assert record == self.read(page)
            assert record.shard < record.shards and record.key, (page, record)

    def _at(self, page: int) -> int:
        assert 0 <= page < self.records, page
        return HEADER_BYTES + page * RECORD_BYTES

    def _header(self) -> Header:
        facts = _FACTS.unpack_from(self._bytes, _FACTS_AT)
        _, uuid, boot_id, boot_length, pool, extent, per_extent = facts
        return Header(uuid, boot_id[:boot_length], pool, extent, per_extent, self._words[1])


def _body(record: Record) -> bytes:
    assert 1 <= len(record.key) <= MAX_KEY, record
    assert len(record.namespace) == NAMESPACE_BYTES, record
    assert record.shard < record.shards, record
    return _BODY.pack(
        record.stamp,
        record.seal,
        record.shard,
        record.shards,
        record.length,
        record.namespace,
        len(record.key),
        record.key,
        record.checksum is not None,
        record.checksum or 0,
        record.depth,
    )


def _record(raw: bytes | memoryview, at: int) -> Record:
    unpacked = _BODY.unpack_from(raw, at)
    stamp, seal, shard, shards, length, namespace, size, key, has, checksum, depth = unpacked
    crc = checksum if has else None
    return Record._make((stamp, seal, shard, shards, length, namespace, key[:size], crc, depth))
