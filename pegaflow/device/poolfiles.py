"""The pool's files: made, adopted from an earlier life, and removed.

    STEM.N.pool      the extents, then one page: the pool's uuid, which two files these are, and
                     the run directory of their service
    STEM.N.ledger    the header with the same uuid, then the records, then room for the table

N grows with every new pool, so that whoever still has an older one mapped keeps what it has. An old
pool is adopted only if nobody lives in it (locks.py, gpuusers.py), which is found out before a byte
of it is believed; if both files are regular files of ours that nobody else may open and that have
no second name; if they belong together and are the very files that were made, not copies, since a
copy of a living pool is torn; and if format, boot and size of extents are what is wanted. What is
not adopted is removed, but for pools that are in use: another mount namespace, or a run directory
that was removed under its service, can have the same stem. No file is ever truncated; a pool of
another size keeps what fits, and never the table, which the index makes anew (resize.py).

Names in /dev/shm can be taken by anybody on the host.  Files of others are passed over, and a
number that somebody else has taken is followed by one that nobody can guess.

The pool's file may lie in a hugetlbfs, its ledger in /dev/shm: hugepages.py says what is different
then, and poolnames.py where it is looked for.
"""

import errno
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from struct import Struct

from pegaflow.core.errors import UserError
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.ledger import HEADER_BYTES, UUID_BYTES, Header, Ledger, ledger_bytes
from pegaflow.core.pool.scan import scan
from pegaflow.core.pool.table import file_bytes
from pegaflow.wire.identities import Incarnation, PageId
from pegaflow.wire.units import Bytes, Count

from . import gpuusers, locks, resize
from .locks import InUse, Say, claim, share
from .memory import FileId, SharedFile
from .poolnames import numbers, pool_of

TRAILER_BYTES: Bytes = 4096
"""Room behind the last extent for the pool's uuid and its files' identities: one page."""

TRIES_MAX: Count = 16
"""Names tried for a new pool; all but the first are drawn from 2^48."""

_IDENTITY = Struct("=8s4QI")  # magic, device and inode of the pool, of the ledger, checksum
_MAGIC = b"PEGAFILE"
_RUN_DIR_AT = 256  # in the trailer; to its end, closed by zeros

_SCAN = 65536  # records looked at at a time


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says of the pool."""

    pool_bytes: int | None  # None: whatever an old pool has
    extent_bytes: int | None  # likewise
    fresh: bool  # whatever there is, it is not adopted
    run_dir: str = ""  # of the service, for people
    huge: bool = False  # it is to lie in a hugetlbfs, not beside its ledger
    #: Told the bytes that an old pool with its ledger has in /dev/shm; raises UserError if it is to
    #: be too large.
    check: Callable[[int], object] = bool
    say: Say = bool

    def size_of(self, header: Header) -> int:
        """Bytes that a pool with this header is to have."""
        wanted = header.pool_bytes if self.pool_bytes is None else self.pool_bytes
        return wanted // header.extent_bytes * header.extent_bytes


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

    @property
    def huge(self) -> bool:
        """Whether the pool lies elsewhere than its ledger: in a hugetlbfs."""
        return os.path.dirname(self.pool.path) != os.path.dirname(self.file.path)

    def sealed(self) -> tuple[int, int]:
        """Pages that hold a block, and bytes of payload in them."""
        pages = bytes_ = 0
        for first in range(0, self.ledger.records, _SCAN):
            chunk = scan(self.ledger, PageId(first), min(_SCAN, self.ledger.records - first))
            pages += len(chunk.pages)
            bytes_ += int(chunk.rows["payload_bytes"].sum(dtype="u8"))
        return pages, bytes_

    def share(self, service: Incarnation) -> None:
        """Let the children of the supervisor of this incarnation write."""
        share(self.pool.fd, service)
        share(self.file.fd, service)

    def unlink(self) -> None:
        """Remove both names; whoever has the files mapped keeps them."""
        self.pool.unlink()
        self.file.unlink()


def boot_id() -> bytes:
    """Which boot of the machine this is: shared memory does not outlive it."""
    return Path("/proc/sys/kernel/random/boot_id").read_bytes().strip()


def make(
    stem: str,
    geometry: Geometry,
    incarnation: Incarnation,
    above: int = 0,
    *,
    run_dir: str = "",
    folder: str = "",
) -> PoolFiles:
    """A new pool and its ledger, claimed for us; only the ledger's header and the pool's trailer
    are really there.

    Args:
        incarnation: the last one given away so far.
        above: the highest number of a pool that was removed.
        run_dir: the run directory, for people.
        folder: a hugetlbfs in which the pool is to lie; empty: beside its ledger.

    Raises:
        UserError: there is no room.
    """
    header = Header(
        pool_uuid=os.urandom(UUID_BYTES),
        boot_id=boot_id(),
        pool_bytes=geometry.pool_bytes,
        extent_bytes=geometry.extent_bytes,
        records_per_extent=geometry.records_per_extent,
        incarnation=incarnation,
    )
    file, pool = _create(stem, geometry, above, folder=folder or os.path.dirname(stem))
    try:
        _promise(pool, geometry.pool_bytes + TRAILER_BYTES)
        _reserve(file, 0, HEADER_BYTES)
        _reserve(pool, geometry.pool_bytes, TRAILER_BYTES)
    except UserError:
        file.unlink()
        pool.unlink()
        raise
    at = geometry.pool_bytes
    pool.map[at : at + UUID_BYTES] = header.pool_uuid
    _identify(pool, file, at, run_dir)
    Ledger.format(file.map, header)
    return PoolFiles(pool, file, Ledger(file.map, file.read))


def _create(
    stem: str, geometry: Geometry, above: int, *, folder: str
) -> tuple[SharedFile, SharedFile]:
    """Ledger and pool under a number that nobody has, claimed; the pool's in this folder."""
    length, name = geometry.pool_bytes + TRAILER_BYTES, os.path.basename(stem)
    number = max([*numbers(stem), above]) + 1
    size = file_bytes(geometry.records)
    for _ in range(TRIES_MAX):
        made: list[SharedFile] = []
        try:
            made.append(_claimed(f"{stem}.{number}.ledger", size))
            made.append(_claimed(os.path.join(folder, f"{name}.{number}.pool"), length))
            return made[0], made[1]
        except (FileExistsError, InUse):
            for file in made:
                file.unlink()
                file.close()
        except UserError:
            for file in made:
                file.unlink()
            raise
        number += int.from_bytes(os.urandom(6))
    raise UserError(f"every name tried for a pool is taken, the last {stem}.{number}.ledger")


def _claimed(path: str, length: int) -> SharedFile:
    """A new file that is ours from its first moment, or InUse: whoever cleans up was faster."""
    file = SharedFile.create(path, length)
    claim(file.fd)
    if not file.named():
        file.close()
        raise InUse(path)
    return file


def _reserve(file: SharedFile, offset: int, length: int) -> None:
    why = file.reserve(offset, length)
    if why:
        do = "" if file.huge else "; make /dev/shm larger"
        raise UserError(f"cannot fill {file.path}: {why}{do}")


def _promise(pool: SharedFile, length: int, had: int = 0) -> None:
    why = pool.promise(length, had)
    if why:
        raise UserError(why)


def incarnation_of(stem: str) -> Incarnation:
    """The highest incarnation that any pool of this stem has given away; 0 without one.

    Before one of them is claimed: this closes descriptors of theirs.
    """
    highest = Incarnation(0)
    for number in numbers(stem):
        try:
            file = SharedFile.peek(f"{stem}.{number}.ledger")
        except (OSError, UserError):
            continue
        if not _unfinished(file):
            highest = max(highest, Ledger(file.map).header.incarnation)
        file.close()
    return highest


@dataclass(frozen=True, slots=True)
class Found:
    """What was left by earlier lives."""

    files: PoolFiles | None  # adopted, and claimed for us
    refused: tuple[str, ...] = ()  # why others are not to be had, a line each
    in_use: tuple[str, ...] = ()  # those in which a service lives, and which
    orphans: tuple[int, ...] = ()  # processes that were killed for it
    was_bytes: int = 0  # size that the adopted pool had


@dataclass(frozen=True, slots=True)
class Kept:
    """A pool in shared memory, to be shown."""

    path: str
    owner: str  # the service that lives in it, '' for nobody
    pool_bytes: int
    taken_bytes: int  # of memory, by both files
    sealed_bytes: int  # of blocks
    run_dir: str  # of its service; '' if a version made it that did not say


def kept(begins: str) -> list[Kept]:
    """The pools of this user whose paths begin so, as far as they can be read.  For processes that
    hold none of them: this closes descriptors of theirs."""
    found = []
    folder, name = os.path.split(begins)
    for path in sorted(Path(folder).glob(f"{name}*.ledger")):
        try:
            file, pool = SharedFile.peek(str(path)), SharedFile.peek(pool_of(str(path)))
        except (OSError, UserError):
            continue
        if not _unfinished(file):
            found.append(_shown(PoolFiles(pool, file, Ledger(file.map, file.read))))
        file.close()
        pool.close()
    return found


def _shown(files: PoolFiles) -> Kept:
    at = files.header.pool_bytes + _RUN_DIR_AT
    run = os.fsdecode(files.pool.read(at, TRAILER_BYTES - _RUN_DIR_AT).rstrip(b"\0"))
    taken = sum(os.fstat(f.fd).st_blocks * 512 for f in (files.pool, files.file))
    path, total, owner = files.pool.path, files.header.pool_bytes, locks.owner(files.file.fd)
    return Kept(path, owner, total, taken_bytes=taken, sealed_bytes=files.sealed()[1], run_dir=run)


def adopt(stem: str, wanted: Wanted) -> Found:
    """The newest pool of this stem that is as wanted and in which nobody lives; made to fit.

    Raises:
        UserError: the pool that would be adopted has no room for the size that is wanted.
    """
    refused: list[str] = []
    in_use: list[str] = []
    orphans: list[int] = []
    for number in numbers(stem):
        try:
            files, why, killed, was = _adopt(f"{stem}.{number}", wanted)
        except InUse as err:
            in_use.append(f"{stem}.{number}.pool is in use by another service ({err})")
            continue
        orphans += killed
        if files is not None:
            return Found(files, tuple(refused), tuple(in_use), tuple(orphans), was_bytes=was)
        refused.append(why)
    return Found(None, tuple(refused), tuple(in_use), tuple(orphans))


def _adopt(base: str, wanted: Wanted) -> tuple[PoolFiles | None, str, list[int], int]:
    """One pool, or why it is not to be had; orphans killed, and the size that it had.

    Raises:
        InUse: a service lives in it.
    """
    if wanted.fresh:
        return None, "--fresh was asked for", [], 0
    files: list[SharedFile] = []
    try:
        path = pool_of(f"{base}.ledger")
        patience = gpuusers.patience_with(Path(path))
        for name in (f"{base}.ledger", path):
            files.append(SharedFile.adopt(name, patience, wanted.say))
        file, pool = files
        gpuusers.await_deaths(base, patience, wanted.say)
        why = _unfinished(file) or _fault(PoolFiles(pool, file, Ledger(file.map)), wanted)
    except OSError as err:
        why = f"cannot open {err.filename}: {err.strerror}"
    except UserError as err:
        why = str(err)
    except InUse:
        for opened in files:
            opened.close()
        raise
    killed = [pid for opened in files for pid in opened.orphans]
    if not why:
        found = PoolFiles(pool, file, Ledger(file.map, file.read))
        was = found.header.pool_bytes
        try:
            return _fitted(found, wanted), "", killed, was
        except OSError as err:
            why = f"it cannot be made as large as is wanted: {err.strerror}"
    for opened in files:
        opened.close()
    return None, why, killed, 0


def _unfinished(file: SharedFile) -> str:
    """Why this file is no ledger, in one line; '' if it is.  A file of a service that was killed
    while it made it is a hole, which nobody touches: see memory.py."""
    if not any(file.read(0, 8)):
        return "the ledger's header was never finished, or this is no ledger"
    return Ledger.fault(file.map)


def _fault(files: PoolFiles, wanted: Wanted) -> str:
    """Why this pool is not to be had, in one line; '' if it is.  Nothing of the pool is touched:
    it may be a hole."""
    pool, file, header = files.pool, files.file, files.header
    at = header.pool_bytes
    if header.boot_id != boot_id():
        return "it is of an earlier boot of this machine"
    if pool.length < at + TRAILER_BYTES:
        return f"its file has {pool.length} bytes, fewer than its header says"
    if pool.read(at, UUID_BYTES) != header.pool_uuid:
        return "its ledger is another pool's"
    written = pool.read(at + UUID_BYTES, _IDENTITY.size)
    # Versions before this one wrote no identity there.
    if any(written) and written != _identity(pool.id, file.id):
        return f"{pool.path} or its ledger is a copy"
    if wanted.extent_bytes not in (None, header.extent_bytes):
        return f"its extents have {header.extent_bytes} bytes, {wanted.extent_bytes} are wanted"
    if files.huge != wanted.huge:
        return f"it is in {os.path.dirname(pool.path)}, and --use-hugepages was " + (
            "asked for" if wanted.huge else "not asked for"
        )
    return ""


def _identify(pool: SharedFile, file: SharedFile, at: int, run_dir: str) -> None:
    """Write down which files these are, and whose."""
    start = at + UUID_BYTES
    pool.map[start : start + _IDENTITY.size] = _identity(pool.id, file.id)
    path = os.fsencode(run_dir)[: TRAILER_BYTES - _RUN_DIR_AT]
    pool.map[at + _RUN_DIR_AT : at + TRAILER_BYTES] = path.ljust(TRAILER_BYTES - _RUN_DIR_AT, b"\0")


def _fitted(files: PoolFiles, wanted: Wanted) -> PoolFiles:
    """The same pool with the size that is wanted, and what fits of its blocks; in which order, and
    why, says resize.py.

    Raises:
        OSError: a file cannot be made so long.
        UserError: there is no room.
    """
    pool, file, header = files.pool, files.file, files.header
    pool_bytes = wanted.size_of(header)
    geometry = Geometry(pool_bytes, header.extent_bytes)
    if pool_bytes != header.pool_bytes:
        in_shm = (file,) if files.huge else (pool, file)
        wanted.check(sum(os.fstat(f.fd).st_blocks for f in in_shm) * 512)
    _promise_again(pool, header.pool_bytes + TRAILER_BYTES, pool_bytes + TRAILER_BYTES)
    resize.fit(pool, file, geometry, TRAILER_BYTES)
    if pool_bytes == header.pool_bytes:
        _identify(pool, file, pool_bytes, wanted.run_dir)
        return PoolFiles(pool, file, Ledger(file.map, file.read))
    _reserve(pool, pool_bytes, TRAILER_BYTES)
    pool.map[pool_bytes : pool_bytes + UUID_BYTES] = header.pool_uuid
    _identify(pool, file, pool_bytes, wanted.run_dir)
    Ledger.format(file.map, replace(header, pool_bytes=pool_bytes))
    ends = (pool_bytes + TRAILER_BYTES, ledger_bytes(geometry.extents, geometry.records_per_extent))
    for shared, end in zip((pool, file), ends, strict=True):
        resize.punch(shared, end, shared.length - end)
    return PoolFiles(pool, file, Ledger(file.map, file.read))


def _promise_again(pool: SharedFile, had: int, length: int) -> None:
    """Have the pages of an old pool promised that it may lack: those by which it grows, or some
    that one has given back who was killed while he made it smaller.

    Args:
        had: bytes that were promised, if he was not.
        length: bytes that are to be.

    Raises:
        OSError: the pool is not to be had, though it does not grow.
        UserError: there are too few for it to grow; it stays as it is.
    """
    if length <= had:
        why = pool.promise(length)
        if why:
            raise OSError(errno.ENOMEM, why)
        return
    pool.lengthen(length)
    _promise(pool, length, had)


def _identity(pool: FileId, file: FileId) -> bytes:
    facts = _IDENTITY.pack(_MAGIC, *pool, *file, 0)
    return facts[:-4] + zlib.crc32(facts[:-4]).to_bytes(4, "little")
