"""The trace formats that are read, one module each, and those that are only named (foreign).

To add one: a module with a class like those here, and its line in `FORMATS`. A first value is given
to them in this order.
"""

from __future__ import annotations

from pegaflow.replay.source import Value

from . import foreign
from .aiperf import AIPerf
from .bailian import Bailian
from .base import Format, Row
from .dynamo import Dynamo
from .mooncake import Mooncake
from .weka import Weka

__all__ = ["AUTO", "FORMATS", "Format", "Row", "mistaken", "recognized", "unknown"]

AUTO = "auto"

FORMATS: dict[str, Format] = {
    one.name: one for one in (Dynamo(), Weka(), Bailian(), Mooncake(), AIPerf())
}


def recognized(first: Value) -> Format | None:
    """The format of a file that begins with this value, if it is one that is read."""
    if not isinstance(first.data, dict):
        return None
    fields = first.data
    return next((one for one in FORMATS.values() if one.fits(fields)), None)


def unknown(first: Value) -> str:
    """Why a file that begins with this value is not read: what it is, if that is known."""
    known = ", ".join(sorted(FORMATS))
    why = foreign.named(first.data) or f"this is no trace of a known format ({known})"
    return f"{first.where}: {why}"


def mistaken(first: Value, asked: Format) -> str:
    """Why a file that begins with this value is not of the format asked for; empty if it may be.

    Rows like Mooncake's may be of other formats too: that is what asking is for.
    """
    found = recognized(first)
    if not isinstance(first.data, dict):
        return unknown(first)
    if found is None or asked.fits(first.data) or isinstance(found, Mooncake):
        return ""
    return f"{first.where}: this is a {found.title} trace, and --format says {asked.name}"
