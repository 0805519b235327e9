"""The marker of an SSD directory: the file `pegaflow.ssd`, which says whose directory it is.

It holds one line of JSON: its format, the name that the log was given when it was begun (`log`),
the directory that it was written for (`device` and `inode`), and a checksum of all that.  A
directory that has a marker is ours.  One that had a marker when it was used last and has none now
is not the directory that it was: its file system is not mounted, or somebody has cleared it.  A
marker that was written for another inode has been copied together with its directory.

An empty marker is an operator's word that the directory is meant to be used.
"""

import json
import zlib
from dataclasses import asdict, dataclass

from pegaflow.wire.units import Bytes, Constant

MARKER = "pegaflow.ssd"

MARKER_BYTES: Bytes = 4096
"""Read of a marker: ours has some 150 bytes, and those of later formats may have more."""

FORMAT: Constant = 1
"""Of the line; a marker of another format is none of ours."""


class OfLaterFormatError(Exception):
    """A later version has written this marker; its number is the argument."""


@dataclass(frozen=True, slots=True)
class Marker:
    """What a marker says."""

    log: str  # 32 hex digits
    device: int  # st_dev of the directory that it was written for
    inode: int  # st_ino of it


def pack(marker: Marker) -> bytes:
    """The bytes of the file."""
    said = {"format": FORMAT, **asdict(marker)}
    return json.dumps({**said, "sum": _sum(said)}).encode() + b"\n"


def unpack(data: bytes) -> Marker | None:
    """What this file says; None if it is no marker, or a damaged one.

    Raises:
        OfLaterFormatError: it is a marker that this version cannot read.
    """
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or said.pop("sum", None) != _sum(said):
        return None
    if said.get("format") != FORMAT:
        raise OfLaterFormatError(said.get("format"))
    log, device, inode = said.get("log"), said.get("device"), said.get("inode")
    sound = isinstance(log, str) and isinstance(device, int) and isinstance(inode, int)
    return Marker(log, device, inode) if sound else None  # type: ignore[arg-type]


def _sum(said: dict[str, object]) -> int:
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())
