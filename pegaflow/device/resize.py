"""A kept pool of another size: what fits is kept.

Only at adoption, when the files are claimed and no other process has them mapped for writing.  A
page keeps its id, so a pool that grows only gets a longer file.  One that shrinks keeps its low
extents; blocks in the extents that go are moved, extent by extent and the newest first, into low
extents that are empty.  Memory may be full, so what goes is given back before anything is taken:

1. Extents that go and have no empty one to move to: their records are voided, then their space is
   given back, as is that of extents without a block.
2. Of each extent that moves: the bytes, then its records, then the old records are voided, then
   their space is given back.
3. The trailer at the new end, then the ledger's header, then the old trailer's space is given back,
   and that of the ledger behind its new end (which holds quarantined records till then).

Who is killed before the header is written leaves a pool of the old size with its trailer, in which
no record has a hole for its block: a block is there once, twice or not at all, and adoption takes
one or none.  A pool whose header was never finished is lost, and nothing worse.

A file is never cut: an engine that is served staged may still have it mapped, and would get a
SIGBUS. What is behind the new end is given back to the system as a hole instead.
"""

from __future__ import annotations

import ctypes
import errno
from dataclasses import dataclass

import numpy as np

from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.ledger import HEADER_BYTES, RECORD_BYTES, Ledger
from pegaflow.core.pool.scan import scan
from pegaflow.core.pool.table import file_bytes, forget
from pegaflow.wire.identities import PageId

from .memory import SharedFile

_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


@dataclass(frozen=True, slots=True)
class _Extent:
    """What an extent holds."""

    number: int
    newest: int  # the highest seal in it
    pages: tuple[PageId, ...]  # sealed ones


def fit(pool: SharedFile, file: SharedFile, geometry: Geometry, trailer: int) -> None:
    """Have room in both files for this geometry and every sealed record within it, as far as they
    fit.  The ledger still has the header of the pool as it was; there is no table in it, and room
    for one, which ledgers of earlier versions lack.

    Args:
        pool: claimed, and mapped by nobody else for writing.
        file: the ledger's, likewise.
        geometry: the cut that the pool is to have.
        trailer: bytes of the pool's file behind the last extent.

    Raises:
        OSError: a file cannot be made so long.
    """
    forget(file.map)
    before = Ledger(file.map).header.pool_bytes
    if geometry.pool_bytes > before:
        _grow(pool, file, geometry, trailer)
        return
    file.lengthen(file_bytes(geometry.records))
    if geometry.pool_bytes < before:
        _shrink(pool, file, geometry)


def _grow(pool: SharedFile, file: SharedFile, geometry: Geometry, trailer: int) -> None:
    """Make room in both files for this geometry.  Nothing in them changes, but that the table is
    gone: its place becomes that of records, which are to be void."""
    ledger = Ledger(file.map)
    end = HEADER_BYTES + ledger.records * RECORD_BYTES
    if not punch(file, end, file.length - end):
        raise OSError(errno.EOPNOTSUPP, "no holes can be made in it", file.path)
    pool.lengthen(geometry.pool_bytes + trailer)
    file.lengthen(file_bytes(geometry.records))


def _shrink(pool: SharedFile, file: SharedFile, geometry: Geometry) -> None:
    """Have every sealed record within this geometry; those that do not fit are voided."""
    ledger = Ledger(file.map, file.read)
    extents = _extents(ledger, geometry.records_per_extent)
    last = geometry.extents
    empty = [n for n in range(last) if n not in extents]
    going = sorted((e for n, e in extents.items() if n >= last), key=lambda e: -e.newest)
    moving = going[: len(empty)]
    for extent in going[len(moving) :]:
        ledger.void(extent.pages)
    staying = {extent.number for extent in moving}
    for number in range(last, ledger.header.pool_bytes // geometry.extent_bytes):
        if number not in staying:
            _give_back(pool, geometry, number)
    for extent in moving:
        target = next((n for n in reversed(empty) if _has_room(pool, file, geometry, n)), None)
        if target is not None:
            empty.remove(target)
            _move(pool, ledger, geometry, extent, target=target)
        ledger.void(extent.pages)
        _give_back(pool, geometry, extent.number)


def _has_room(pool: SharedFile, file: SharedFile, geometry: Geometry, extent: int) -> bool:
    """Whether this extent and its records are really there now."""
    size, records = geometry.extent_bytes, geometry.records_per_extent * RECORD_BYTES
    if pool.reserve(extent * size, size):
        return False
    return file.reserve(HEADER_BYTES + extent * records, records) == ""


def _give_back(pool: SharedFile, geometry: Geometry, extent: int) -> None:
    start, size = extent * geometry.extent_bytes, geometry.extent_bytes
    if pool.huge:
        pool.reserve(start, size)  # of a page that is not there a hole takes no promise back
    punch(pool, start, size)


def punch(file: SharedFile, start: int, length: int) -> bool:
    """Give so much of the file's space back, which reads as zeros then; its length stays.

    Args:
        start: byte at which the hole begins.
        length: bytes; 0 or less: nothing is done.

    Returns:
        Whether that was to be had; if not, the space comes back with the file.
    """
    return length <= 0 or _libc.fallocate(file.fd, _PUNCH_HOLE, start, length) == 0


def _extents(ledger: Ledger, records: int) -> dict[int, _Extent]:
    """The extents with a record that is not void, whatever it says."""
    found: dict[int, _Extent] = {}
    for number in range(ledger.records // records):
        chunk = scan(ledger, PageId(number * records), records)
        if chunk.leaving:
            ledger.stay(chunk.leaving)
            chunk = scan(ledger, PageId(number * records), records)
        if len(chunk.pages) or chunk.quarantined:
            newest = int(chunk.rows["seal"].max()) if len(chunk.pages) else 0
            found[number] = _Extent(number, newest, tuple(chunk.pages.tolist()))
    return found


def _move(
    pool: SharedFile, ledger: Ledger, geometry: Geometry, extent: _Extent, *, target: int
) -> None:
    size, own = geometry.extent_bytes, geometry.records_per_extent
    bytes_ = np.frombuffer(pool.map, np.uint8)
    source = extent.number * size
    bytes_[target * size : (target + 1) * size] = bytes_[source : source + size]
    records = [ledger.read(page) for page in extent.pages]
    shift = (target - extent.number) * own
    pairs = [(p + shift, r) for p, r in zip(extent.pages, records, strict=True) if r is not None]
    ledger.seal([PageId(page) for page, _ in pairs], [record for _, record in pairs])
