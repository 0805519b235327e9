"""Records made of columns are those that are made one by one."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.pool import ledger
from pegaflow.core.pool.ledger import MAX_KEY, PAYLOAD_BYTES_MAX, Record
from pegaflow.core.pool.records import bodies_of
from pegaflow.wire.identities import Key, Namespace, Stamp

U64 = st.integers(0, (1 << 64) - 1)


@given(st.data())
def test_columns_make_the_same_records(data: st.DataObject) -> None:
    size, shards = data.draw(st.integers(1, MAX_KEY)), data.draw(st.integers(1, 4))
    key = st.binary(min_size=size, max_size=size).map(Key)
    keys = data.draw(st.lists(key, min_size=1, max_size=6))
    namespace = Namespace(data.draw(st.binary(min_size=16, max_size=16)))
    length = data.draw(st.integers(1, PAYLOAD_BYTES_MAX))
    blocks, pages = len(keys), len(keys) * shards
    seals = data.draw(st.lists(U64, min_size=blocks, max_size=blocks))
    depths = data.draw(st.lists(st.integers(0, (1 << 32) - 1), min_size=blocks, max_size=blocks))
    stamps = data.draw(st.lists(U64.map(Stamp), min_size=pages, max_size=pages))
    sums = data.draw(st.lists(st.just(0) | U64, min_size=pages, max_size=pages))
    made = bodies_of(
        namespace,
        length,
        shards,
        stamps=stamps,
        checksums=sums,
        seals=seals,
        keys=keys,
        depths=depths,
    )
    records = [
        Record(
            stamp=stamps[at * shards + shard],
            seal=seals[at],
            shard=shard,
            shards=shards,
            payload_bytes=length,
            namespace=namespace,
            key=key,
            checksum=sums[at * shards + shard] or None,
            depth=depths[at],
        )
        for at, key in enumerate(keys)
        for shard in range(shards)
    ]
    assert made.tobytes() == b"".join(map(ledger._body, records))
    assert made.dtype == np.uint64 and made.shape == (pages, 15)
