"""The nouns: key lists, number lists, addresses."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.wire import values
from pegaflow.wire.identities import ClaimId, Incarnation, Key, Namespace
from pegaflow.wire.index import Seal
from pegaflow.wire.message import Message, WireError, decode, encode
from pegaflow.wire.session import CopyBatch, Lookup
from pegaflow.wire.values import KEY_BYTES_MAX, LIST_MAX, NOBODY, Address, Packed
from tests.naming import as_keys, as_pages, as_stamps

from .samples import U64_MAX, keys


def lookup_of(blob: bytes) -> Lookup:
    size = len(blob).to_bytes(4, "big")
    msg = decode(Lookup.TAG, b"\x91\xc6" + size + blob)
    assert isinstance(msg, Lookup)
    return msg


@given(keys)
def test_keys_travel_as_a_length_and_the_hashes(drawn: tuple[bytes, ...]) -> None:
    assert lookup_of(bytes([len(drawn[0])]) + b"".join(drawn)) == Lookup(as_keys(*drawn))


def test_no_keys() -> None:
    assert lookup_of(b"") == Lookup(())
    assert decode(Lookup.TAG, encode(Lookup(()))) == Lookup(())


@pytest.mark.parametrize("mixed", [(b"aa", b"b"), (b"a", b"bb"), (b"", b""), (bytes(65),)])
def test_keys_of_mixed_or_impossible_lengths_are_our_bug(mixed: tuple[bytes, ...]) -> None:
    with pytest.raises(AssertionError):
        encode(Lookup(as_keys(*mixed)))


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
    msg = CopyBatch(1, 2, tuple(drawn), ())
    body = encode(msg)
    assert b"".join(n.to_bytes(8, "little") for n in drawn) in body
    assert decode(CopyBatch.TAG, body) == msg


def test_too_many_numbers() -> None:
    with pytest.raises(WireError, match="u64"):
        decode(CopyBatch.TAG, encode(CopyBatch(1, 2, (0,) * (LIST_MAX + 1), ())))


THREE = tuple(Key(bytes([n]) * 32) for n in (1, 2, 3))
SEAL = Seal(
    ClaimId(9),
    Namespace(b"ns"),
    4096,
    4096,
    shards=1,
    keys=THREE,
    parents=(Key(bytes(32)), *THREE[:-1]),
    pages=as_pages(7, 8, U64_MAX),
    stamps=as_stamps(1, 2, 3),
)


def came(msg: Message) -> Any:
    return decode(msg.TAG, encode(msg))


def test_a_list_is_not_taken_apart_until_somebody_needs_an_element(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def apart(self: Packed[object]) -> tuple[object, ...]:
        raise AssertionError(f"{type(self).__name__} was taken apart")

    monkeypatch.setattr(values.PackedKeys, "_apart", apart)
    monkeypatch.setattr(values.PackedU64s, "_apart", apart)
    seal = came(SEAL)
    assert [len(one) for one in (seal.keys, seal.parents, seal.pages, seal.checksums)] == [
        3,
        3,
        3,
        0,
    ]
    assert seal.pages and not seal.checksums
    assert seal == came(SEAL), "the same bytes are the same list"
    assert encode(seal) == encode(SEAL)
    assert encode(Lookup(seal.keys)) == encode(Lookup(THREE)), "nor when it is passed on"
    with pytest.raises(AssertionError, match="PackedU64s was taken apart"):
        seal.pages[0]
    with pytest.raises(AssertionError, match="PackedKeys was taken apart"):
        next(iter(seal.keys))


@given(st.lists(st.integers(0, U64_MAX), min_size=1, max_size=50).map(tuple), st.data())
def test_a_list_that_came_is_the_tuple_of_its_elements(
    drawn: tuple[int, ...], data: st.DataObject
) -> None:
    there = came(CopyBatch(1, 2, drawn, ())).positions
    assert isinstance(there, Packed)
    assert there == drawn and drawn == there and hash(there) == hash(drawn)
    assert CopyBatch(1, 2, there, ()) == CopyBatch(1, 2, drawn, ())
    assert hash(CopyBatch(1, 2, there, ())) == hash(CopyBatch(1, 2, drawn, ()))
    assert (*there,) == drawn and repr(there) == repr(drawn) and len(there) == len(drawn)
    at = data.draw(st.slices(len(drawn)))
    assert there[at] == drawn[at] and type(there[at]) is tuple
    assert there[-1] == drawn[-1] and drawn[0] in there
    assert there != (*drawn, 1) and there != list(drawn) and (*drawn, 1) != there


@given(keys, keys)
def test_two_lists_of_keys_are_equal_as_their_tuples_are(
    one: tuple[bytes, ...], other: tuple[bytes, ...]
) -> None:
    here, there = came(Lookup(as_keys(*one))).keys, came(Lookup(as_keys(*other))).keys
    assert (here == there) == (one == other) and here == one and hash(here) == hash(one)


def test_keys_are_no_numbers() -> None:
    keys, numbers = (
        came(Lookup(as_keys(b"\x01" * 7))).keys,
        came(CopyBatch(1, 2, (1,), ())).positions,
    )
    assert keys != numbers


@given(st.integers(1, 200), st.integers(1, 64))
def test_keys_are_cut_where_they_begin(count: int, size: int) -> None:
    drawn = tuple(n.to_bytes(64, "little")[:size] for n in range(count))
    assert came(Lookup(as_keys(*drawn))).keys[:] == drawn


def test_address() -> None:
    assert str(Address("session", Incarnation(7))) == "session.7"
    assert Address("session", Incarnation(7)).routing_id == b"session.7"
    assert Address("session", Incarnation(7)) != Address("session", Incarnation(8))
    assert NOBODY.name == ""
