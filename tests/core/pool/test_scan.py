"""The ledger in chunks."""

import numpy as np

from pegaflow.core.pool.geometry import MIN_PAGE
from pegaflow.core.pool.ledger import Header, Ledger, Record, ledger_bytes
from pegaflow.core.pool.scan import slot_bytes
from pegaflow.wire.identities import Incarnation, Key, Namespace, Stamp
from tests.naming import as_pages

RECORDS = 8


def test_what_blocks_take_of_the_pool() -> None:
    header = Header(
        bytes(16),
        b"boot",
        RECORDS * MIN_PAGE,
        RECORDS * MIN_PAGE,
        records_per_extent=RECORDS,
        incarnation=Incarnation(1),
    )
    ledger = Ledger.format(bytearray(ledger_bytes(1, RECORDS)), header)

    def seal(page: int, shards: int, length: int) -> None:
        record = Record(
            Stamp(1),
            1,
            0,
            shards,
            payload_bytes=length,
            namespace=Namespace(bytes(16)),
            key=Key(b"key"),
            checksum=None,
            depth=0,
        )
        ledger.seal(as_pages(page), [record])

    seal(0, 1, 100)
    seal(2, 3, MIN_PAGE + 1)
    seal(4, 1, MIN_PAGE)
    ledger.leave(as_pages(4))
    taken = MIN_PAGE + 3 * (MIN_PAGE + 4096)
    assert slot_bytes(ledger, np.array([0, 1, 2, 4, RECORDS, 1 << 40])) == taken
    assert slot_bytes(ledger, np.empty(0, np.int64)) == 0
