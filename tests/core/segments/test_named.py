"""Rows of a segment as columns say what they say one by one."""

from hypothesis import given
from hypothesis import strategies as st

from pegaflow.core.segments.codec import Row, joined, pack_row
from pegaflow.core.segments.named import named
from pegaflow.wire.identities import Incarnation, Key, Namespace
from tests.actors.disks import row_of

ROWS = st.builds(
    Row,
    offset=st.just(4096),
    checksum=st.just(7),
    generation=st.just(Incarnation(1)),
    payload_bytes=st.just(4096),
    depth=st.just(0),
    shards=st.just(1),
    namespace=st.sampled_from([Namespace(b"a" * 16), Namespace(bytes(16))]),
    key=st.sampled_from([Key(bytes(8)), Key(b"k" * 8), Key(b"k" * 64), Key(b"k" * 7 + b"\0")]),
)


@given(st.lists(ROWS, max_size=9))
def test_every_row_is_named_once(rows: list[Row]) -> None:
    found: dict[int, tuple[Namespace, Key]] = {}
    for some in named(joined(rows)):
        assert {(some.namespace, len(key)) for key in some.keys} == {
            (some.namespace, len(some.keys[0]))
        }
        places = some.places.tolist()
        assert places == sorted(places)
        found.update(zip(places, [(some.namespace, key) for key in some.keys], strict=True))
    assert found == {at: (row.namespace, row.key) for at, row in enumerate(rows)}


def test_a_row_without_a_key_is_left_out() -> None:
    row = bytearray(pack_row(row_of(0)))
    row[34] = 0
    assert not list(named(bytes(row)))
