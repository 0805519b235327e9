"""The nouns: key lists, number lists, addresses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.wire.message import WireError, decode, encode
from pegaflow.wire.session import Lookup, Take
from pegaflow.wire.values import KEY_BYTES_MAX, LIST_MAX, NOBODY, Address

from .samples import U64_MAX, keys


def lookup_of(blob: bytes) -> Lookup:
    size = len(blob).to_bytes(4, "big")
    msg = decode(Lookup.TAG, b"\x91\xc6" + size + blob)
    assert isinstance(msg, Lookup)
    return msg


@given(keys)
def test_keys_travel_as_a_length_and_the_hashes(drawn: tuple[bytes, ...]) -> None:
    assert lookup_of(bytes([len(drawn[0])]) + b"".join(drawn)) == Lookup(drawn)


def test_no_keys() -> None:
    assert lookup_of(b"") == Lookup(())
    assert decode(Lookup.TAG, encode(Lookup(()))) == Lookup(())


@pytest.mark.parametrize("mixed", [(b"aa", b"b"), (b"a", b"bb"), (b"", b""), (bytes(65),)])
def test_keys_of_mixed_or_impossible_lengths_are_our_bug(mixed: tuple[bytes, ...]) -> None:
    with pytest.raises(AssertionError):
        encode(Lookup(mixed))


@pytest.mark.parametrize(
    "blob",
    [
        b"\x00",
        b"\x00abc",
        b"\x02abc",
        b"\x04",
        bytes([KEY_BYTES_MAX + 1]) + bytes(KEY_BYTES_MAX + 1),
        b"\x01" + bytes(LIST_MAX + 1),
    ],
    ids=["no size", "size 0", "half a key", "no keys", "too long a key", "too many"],
)
def test_blobs_that_are_no_keys(blob: bytes) -> None:
    with pytest.raises(WireError):
        lookup_of(blob)


@given(st.lists(st.integers(0, U64_MAX), max_size=50))
def test_numbers_are_little_endian(drawn: list[int]) -> None:
    msg = Take(1, 2, tuple(drawn), ())
    body = encode(msg)
    assert b"".join(n.to_bytes(8, "little") for n in drawn) in body
    assert decode(Take.TAG, body) == msg


def test_too_many_numbers() -> None:
    with pytest.raises(WireError, match="u64"):
        decode(Take.TAG, encode(Take(1, 2, (0,) * (LIST_MAX + 1), ())))


def test_address() -> None:
    assert str(Address("session", 7)) == "session.7"
    assert Address("session", 7).routing_id == b"session.7"
    assert Address("session", 7) != Address("session", 8)
    assert NOBODY.name == ""
