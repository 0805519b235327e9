"""Remembers the digests of files: in this process, and for the user's next engines.

A file is known by device, inode, size and both times of change: whoever changes a byte of it
changes its ctime, which nobody can set back. A file changed a moment ago is not remembered, for it
may be changed again within the same tick of that clock.

The memory on disk lies in the user's own cache folder and is believed only if the folder is owned
by this user and writable by nobody else. It may be lost at any time.
"""

import json
import os
import stat
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from pegaflow.wire.units import Count, Seconds

SETTLED_S: Seconds = 2.0
"""Coarser than the clock of any file system in use, or of its server: what was changed so
shortly before it was looked at may have been changed after."""

KNOWN_MAX: Count = 4096
"""Digests remembered: the files of dozens of models; the oldest go first."""

NAME = "digests.json"


@dataclass(frozen=True, slots=True)
class Place:
    """One file as it is now."""

    device: int
    inode: int
    size: int
    changed_ns: int  # mtime
    touched_ns: int  # ctime
    whole: bool  # every byte was read

    @classmethod
    def of(cls, found: os.stat_result, whole: bool) -> "Place":
        """From a stat.

        Args:
            whole: every byte of the file was read, or will be.
        """
        return cls(
            device=found.st_dev,
            inode=found.st_ino,
            size=found.st_size,
            changed_ns=found.st_mtime_ns,
            touched_ns=found.st_ctime_ns,
            whole=whole,
        )

    def key(self) -> str:
        """As it is written to disk."""
        how = "whole" if self.whole else "spread"
        return f"{self.device}:{self.inode}:{self.size}:{self.changed_ns}:{self.touched_ns}:{how}"


@dataclass(slots=True)
class Digests:
    """See the module. Without a folder, for this process alone."""

    folder: str | None = None
    clock: Callable[[], float] = time.time
    _known: dict[str, str] = field(default_factory=dict)
    _read: bool = False

    def get(self, place: Place) -> bytes | None:
        """The file's digest, if it is known."""
        self._load()
        found = self._known.get(place.key())
        return bytes.fromhex(found) if found else None

    def put(self, place: Place, digest: bytes) -> None:
        """Remember it, if the file has settled.

        Args:
            digest: 16 bytes.
        """
        if abs(self.clock() - place.touched_ns / 1e9) < SETTLED_S:
            return
        self._load()
        self._known[place.key()] = digest.hex()

    def save(self) -> None:
        """Write what is known to disk, if there is a place for it."""
        if self.folder is None or not self._known:
            return
        known = dict(list(self._known.items())[-KNOWN_MAX:])
        with suppress(OSError):
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            if not _is_ours(self.folder):
                return
            handle, path = tempfile.mkstemp(dir=self.folder)
            with open(handle, "w") as file:
                json.dump(known, file)
            os.replace(path, os.path.join(self.folder, NAME))

    def _load(self) -> None:
        if self._read:
            return
        self._read = True
        if self.folder is None or not _is_ours(self.folder):
            return
        with suppress(OSError, ValueError):
            with open(os.path.join(self.folder, NAME), opener=_no_link) as file:
                found = json.load(file)
            for key, value in found.items() if isinstance(found, dict) else ():
                if isinstance(value, str) and len(bytes.fromhex(value)) == 16:
                    self._known[key] = value


def _no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC)


def _is_ours(folder: str) -> bool:
    with suppress(OSError):
        found = os.lstat(folder)
        return (
            stat.S_ISDIR(found.st_mode)
            and found.st_uid == os.geteuid()
            and not found.st_mode & 0o022
        )
    return False


def default_folder() -> str:
    """The user's cache folder for us."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "pegaflow")
