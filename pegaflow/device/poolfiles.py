"""The pool's files: made, adopted from an earlier life, and removed.

    STEM.N.pool      the extents, then one page with the pool's uuid
    STEM.N.ledger    the header with the same uuid, then the records

N grows with every new pool of a run directory, so that whoever still has an older one mapped keeps
what it has.  An old pool is adopted only if both files are regular files of ours that nobody else
may open, if they belong together, and if format, boot and sizes are what is wanted; else a new one
is made and the old names are removed.  No file is ever truncated.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pegaflow.cache.geometry import Geometry
from pegaflow.cache.ledger import HEADER_BYTES, UUID_BYTES, Header, Ledger, ledger_bytes
from pegaflow.cache.scan import scan
from pegaflow.errors import UserError

from .memory import SharedFile

TRAILER_BYTES = 4096
"""Room behind the last extent for the pool's uuid: one page."""

_SCAN = 65536  # records looked at at a time


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says of the pool."""

    pool_bytes: int | None  # None: whatever an old pool has
    extent_bytes: int | None  # likewise
    fresh: bool  # whatever there is, it is not adopted


@dataclass(frozen=True, slots=True)
class PoolFiles:
    """A pool and its ledger, mapped for writing."""

    pool: SharedFile
    file: SharedFile  # the ledger's
    ledger: Ledger

    @property
    def header(self) -> Header:
        """What the ledger says of both."""
        return self.ledger.header

    def sealed(self) -> tuple[int, int]:
        """Pages that hold a block, and bytes of payload in them."""
        pages = bytes_ = 0
        for first in range(0, self.ledger.records, _SCAN):
            chunk = scan(self.ledger, first, min(_SCAN, self.ledger.records - first))
            pages += len(chunk.pages)
            bytes_ += int(chunk.rows["length"].sum(dtype="u8"))
        return pages, bytes_

    def unlink(self) -> None:
        """Remove both names; whoever has the files mapped keeps them."""
        self.pool.unlink()
        self.file.unlink()


def boot_id() -> bytes:
    """Which boot of the machine this is: shared memory does not outlive it."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()


def make(stem: str, number: int, geometry: Geometry, incarnation: int) -> PoolFiles:
    """A new pool and its ledger; only the ledger's header and the pool's trailer are really there.

    Raises:
        UserError: there is no room.
    """
    header = Header(
        os.urandom(UUID_BYTES),
        boot_id(),
        geometry.pool_bytes,
        geometry.extent_bytes,
        geometry.records_per_extent,
        incarnation,
    )
    size = ledger_bytes(geometry.extents, geometry.records_per_extent)
    file = SharedFile.create(f"{stem}.{number}.ledger", size)
    try:
        _reserve(file, 0, HEADER_BYTES)
        pool = SharedFile.create(f"{stem}.{number}.pool", geometry.pool_bytes + TRAILER_BYTES)
        try:
            _reserve(pool, geometry.pool_bytes, TRAILER_BYTES)
        except UserError:
            pool.unlink()
            raise
    except UserError:
        file.unlink()
        raise
    at = geometry.pool_bytes
    pool.map[at : at + UUID_BYTES] = header.pool_uuid
    Ledger.format(file.map, header)
    return PoolFiles(pool, file, Ledger(file.map, file.read))


def _reserve(file: SharedFile, offset: int, length: int) -> None:
    why = file.reserve(offset, length)
    if why:
        raise UserError(f"cannot fill {file.path}: {why}; make /dev/shm larger")


def numbers(stem: str) -> list[int]:
    """The pools of this stem that have left a ledger, the newest first."""
    folder, name = os.path.split(stem)
    found = [path.name.removeprefix(f"{name}.") for path in Path(folder).glob(f"{name}.*.ledger")]
    counts = [part.removesuffix(".ledger") for part in found]
    return sorted((int(part) for part in counts if part.isdecimal()), reverse=True)


def incarnation_of(stem: str) -> int:
    """The highest incarnation that any pool of this stem has given away; 0 without one."""
    highest = 0
    for number in numbers(stem):
        try:
            file = SharedFile.adopt(f"{stem}.{number}.ledger")
        except (OSError, UserError):
            continue
        if not Ledger.fault(file.map):
            highest = max(highest, Ledger(file.map).header.incarnation)
        file.close()
    return highest


def adopt(stem: str, wanted: Wanted) -> tuple[PoolFiles | None, str]:
    """The newest pool of this stem, if it is as wanted; else None and why in one line ('' if there
    is none)."""
    found = numbers(stem)
    if not found:
        return None, ""
    if wanted.fresh:
        return None, "--fresh was asked for"
    files: list[SharedFile] = []
    try:
        for end in ("ledger", "pool"):
            files.append(SharedFile.adopt(f"{stem}.{found[0]}.{end}"))
        file, pool = files
        why = Ledger.fault(file.map) or _fault(pool, Ledger(file.map).header, wanted)
    except OSError as err:
        why = f"cannot open {err.filename}: {err.strerror}"
    except UserError as err:
        why = str(err)
    if not why:
        return PoolFiles(pool, file, Ledger(file.map, file.read)), ""
    for opened in files:
        opened.close()
    return None, why


def _fault(pool: SharedFile, header: Header, wanted: Wanted) -> str:
    """Why this pool is not to be had, in one line; '' if it is."""
    if header.boot_id != boot_id():
        return "it is of an earlier boot of this machine"
    if pool.length != header.pool_bytes + TRAILER_BYTES:
        return f"its file has {pool.length} bytes, not those of its header"
    if pool.map[header.pool_bytes : header.pool_bytes + UUID_BYTES] != header.pool_uuid:
        return "its ledger is another pool's"
    if wanted.extent_bytes not in (None, header.extent_bytes):
        return f"its extents have {header.extent_bytes} bytes, {wanted.extent_bytes} are wanted"
    size = wanted.pool_bytes
    if size is not None and size // header.extent_bytes * header.extent_bytes != header.pool_bytes:
        return f"it has {header.pool_bytes} bytes, {size} are wanted"
    return ""


def remove(stem: str, keep: Iterable[str] = ()) -> int:
    """Remove the names of all files of this stem but these; the bytes that they had."""
    folder, name = os.path.split(stem)
    kept, removed = set(keep), 0
    for path in Path(folder).glob(f"{name}.*"):
        if str(path) not in kept:
            removed += path.lstat().st_blocks * 512
            path.unlink(missing_ok=True)
    return removed
