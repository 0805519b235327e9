"""The memory of an index under test, and what sessions write into it.

A store that a session has made is not seen by the index before the next barrier.
"""

from dataclasses import dataclass

import numpy as np

from pegaflow.core.pool.hazards import HazardReader, Hazards, Rows, hazard_bytes
from pegaflow.core.pool.ledger import Header, Ledger
from pegaflow.core.pool.table import Table, file_bytes
from pegaflow.wire.control import Welcome
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.index import HazardFile

from .rig import PAGE

ROWS = 64
"""Of each hazard file."""


@dataclass
class File:
    """A hazard file: what its session has written, and what of that the index sees."""

    written: bytearray
    seen: bytearray


class IndexMemory:
    """What one index, and those after it, map.

    Args:
        ledger: one with room for a table.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.files: dict[str, File] = {}
        self.refused = ""  # why there is no barrier
        self.full = ""  # why there is no room for a table
        self.barriers = 0

    def open(self, welcome: Welcome) -> tuple[Ledger, Table]:
        """As of `Memory`."""
        records = self.ledger.records
        return self.ledger, Table(self.ledger._bytes, records, lambda at, length: self.full)

    def open_hazards(self, msg: HazardFile) -> HazardReader | str:
        """As of `Memory`."""
        file = self.files.get(msg.path)
        if file is None:
            return f"cannot open {msg.path}"
        file.seen[:] = file.written
        return HazardReader.fault(file.seen) or HazardReader(file.seen)

    def barrier(self) -> str:
        """As of `Memory`."""
        if self.refused:
            return self.refused
        self.barriers += 1
        for file in self.files.values():
            file.seen[:] = file.written
        return ""

    def hazards(self, path: str) -> Hazards:
        """A session makes its file."""
        size = hazard_bytes(ROWS)
        self.files[path] = File(bytearray(size), bytearray(size))
        return Hazards(self.files[path].written)


def new_ledger(welcome: Welcome) -> Ledger:
    """An empty one for this pool, with room for a table."""
    extents, records = welcome.pool_bytes // welcome.extent_bytes, welcome.extent_bytes // PAGE
    header = Header(
        pool_uuid=bytes(16),
        boot_id=b"boot",
        pool_bytes=welcome.pool_bytes,
        extent_bytes=welcome.extent_bytes,
        records_per_extent=records,
        incarnation=Incarnation(1),
    )
    buffer = bytearray(file_bytes(extents * records))
    return Ledger.format(buffer, header)


def publish(hazards: Hazards, ledger: Ledger, *pages: int, stamp: int | None = None) -> Rows:
    """Name these pages under the stamps that they have now, or under another one."""
    at = np.array(pages, np.int64)
    stamps = ledger.rows()[at, 1]
    return hazards.publish(at, stamps if stamp is None else np.full(len(at), stamp, np.uint64))
