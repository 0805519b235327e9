"""The pool of the cages, and its ledger."""

from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.ledger import Header, Ledger
from pegaflow.core.pool.table import file_bytes
from pegaflow.wire.identities import Incarnation, Key

from .cage import EXTENT, POOL

GEOMETRY = Geometry(POOL, EXTENT)
RECORDS = GEOMETRY.extents * GEOMETRY.records_per_extent
KEYS = tuple(Key(bytes((n,)) * 32) for n in range(4))


def new_ledger() -> Ledger:
    size = file_bytes(RECORDS)
    header = Header(
        bytes(16),
        b"boot",
        POOL,
        EXTENT,
        records_per_extent=GEOMETRY.records_per_extent,
        incarnation=Incarnation(1),
    )
    return Ledger.format(bytearray(size), header)
