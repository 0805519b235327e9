"""The names of a service's files in shared memory, and their removal.

    STEM.N.pool, STEM.N.ledger    a pool, see poolfiles.py; STEM is in /dev/shm
    STEM.N.ADDRESS.*              what a process of the service made for itself

The pool's file alone may lie in a hugetlbfs instead, under the same name without its folder
(hugepages.py).  Names of other users are passed over everywhere.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from pegaflow.core.errors import UserError

from . import gpuusers, hugepages
from .locks import InUse, Say, claim, take

if TYPE_CHECKING:
    from .poolfiles import PoolFiles


def numbers(stem: str) -> list[int]:
    """The pools of this stem that have left a ledger of ours, the newest first."""
    found = [(_parts(path, stem), path) for path in _ours(stem)]
    return sorted((int(p[1]) for p, _ in found if p is not None and p[2] == "ledger"), reverse=True)


def _ours(stem: str) -> list[Path]:
    """All names of this stem that belong to this user, wherever a pool can lie."""
    folder, name = os.path.split(stem)
    places = [sorted(Path(f).glob(f"{name}.*")) for f in (folder, *hugepages.folders())]
    return [path for place in places for path in place if _is_ours(path)]


def _is_ours(path: Path) -> bool:
    try:
        return path.lstat().st_uid == os.getuid()
    except OSError:
        return False


def pool_of(ledger: str) -> str:
    """Where the pool of this ledger lies; beside it, if there is none."""
    beside = Path(ledger).with_suffix(".pool")
    places = (beside, *(Path(folder) / beside.name for folder in hugepages.folders()))
    return str(next((path for path in places if _is_ours(path)), beside))


def _parts(path: Path, stem: str) -> re.Match[str] | None:
    """Group 1: the pool's number; group 2: what comes behind it."""
    return re.fullmatch(r"\.([0-9]{1,18})\.(.+)", path.name[len(os.path.basename(stem)) :])


def remove(stem: str, keep: PoolFiles | None = None, say: Say = bool) -> tuple[int, list[str]]:
    """Remove the names of this stem's files, but for our pool `keep` and pools that are in use.

    Returns:
        Bytes of memory that the files had, and the pools that are in use, without their endings.
    """
    groups: dict[str, list[Path]] = {}
    for path in _ours(stem):
        part = _parts(path, stem)
        groups.setdefault(part[1] if part else "", []).append(path)
    removed, in_use = 0, []
    for number, paths in groups.items():
        if keep is not None and keep.file.path == f"{stem}.{number}.ledger":
            own = (keep.pool.path, keep.file.path)
            removed += sum(_remove(path) for path in paths if str(path) not in own)
            continue
        claims = [fd for path in paths if (fd := _claim_to_remove(path, say)) is not None]
        if all(fd >= 0 for fd in claims):
            removed += sum(_remove(path) for path in paths)
        else:
            in_use.append(f"{stem}.{number}")
        for fd in claims:
            if fd >= 0:
                os.close(fd)
    return removed, in_use


def _claim_to_remove(path: Path, say: Say) -> int | None:
    """Claim a file: its descriptor; -1 if somebody lives in it; None if only its name can go."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        if path.suffix in (".pool", ".ledger"):
            claim(fd, gpuusers.patience_with(Path(pool_of(str(path)))), say)
            return fd
        if take(fd):
            return fd
    except (InUse, UserError):
        pass
    os.close(fd)
    return -1


def _remove(path: Path) -> int:
    try:
        size = path.lstat().st_blocks * 512
        path.unlink()
    except (FileNotFoundError, IsADirectoryError):
        return 0
    return size
