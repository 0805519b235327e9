"""Every declared message: its round trip, and what a decoder does with a peer's other bytes."""

import contextlib
import dataclasses
import tracemalloc
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.wire import message as module
from pegaflow.wire.message import (
    BODY_BYTES_MAX,
    ITEMS_MAX,
    Message,
    WireError,
    decode,
    encode,
    message,
)
from pegaflow.wire.session import Lookup
from pegaflow.wire.status import Status
from pegaflow.wire.values import LIST_MAX

from .samples import MESSAGES, any_message, fields, sample, schema, wrong

each = pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)


def raw(msg: Message) -> list[Any]:
    array: list[Any] = msgpack.unpackb(encode(msg))
    return array


@each
def test_sample_round_trip(cls: type[Message]) -> None:
    msg = sample(cls)
    assert decode(cls.TAG, encode(msg)) == msg


@given(any_message)
def test_round_trip(msg: Message) -> None:
    assert decode(msg.TAG, encode(msg)) == msg


@each
def test_wrong_type_in_each_field(cls: type[Message]) -> None:
    for at, (_, hint) in enumerate(schema(cls)):
        for value in wrong(hint):
            array = raw(sample(cls))
            array[at] = value
            with pytest.raises(WireError):
                decode(cls.TAG, msgpack.packb(array))


@each
def test_missing_required_field(cls: type[Any]) -> None:
    required = sum(f.default is dataclasses.MISSING for f in dataclasses.fields(cls))
    for count in range(required):
        with pytest.raises(WireError, match="fewer than"):
            decode(cls.TAG, msgpack.packb(raw(sample(cls))[:count]))


@each
def test_missing_defaults_are_filled_in(cls: type[Any]) -> None:
    required = sum(f.default is dataclasses.MISSING for f in dataclasses.fields(cls))
    msg = decode(cls.TAG, msgpack.packb(raw(sample(cls))[:required]))
    assert fields(msg)[:required] == fields(sample(cls))[:required]
    assert fields(msg)[required:] == [f.default for f in dataclasses.fields(cls)[required:]]


@each
def test_unknown_trailing_fields_are_ignored(cls: type[Message]) -> None:
    longer = msgpack.packb([*raw(sample(cls)), "of a later minor", [1, [2]], None])
    assert decode(cls.TAG, longer) == sample(cls)


@each
def test_every_truncation_is_refused(cls: type[Message]) -> None:
    body = encode(sample(cls))
    for size in range(len(body)):
        with pytest.raises(WireError):
            decode(cls.TAG, body[:size])
    with pytest.raises(WireError):
        decode(cls.TAG, body + b"\0")


@given(st.sampled_from(MESSAGES), st.binary(max_size=200))
def test_random_bytes(cls: type[Message], body: bytes) -> None:
    with contextlib.suppress(WireError):
        assert type(decode(cls.TAG, body)) is cls


@given(any_message, st.data())
def test_mutated_bytes(msg: Message, data: st.DataObject) -> None:
    body = bytearray(encode(msg))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(WireError):
        assert type(decode(msg.TAG, bytes(body))) is type(msg)


def test_hostile_shapes() -> None:
    deep = b"\x91" * 100_000 + b"\x90"
    wide = msgpack.packb([0] * (ITEMS_MAX + 1))
    claims_more = b"\xdd\xff\xff\xff\xff" + bytes(64)
    mapping = msgpack.packb([{1: 2}])
    extension = b"\x91" + msgpack.packb(msgpack.ExtType(5, b"x"))
    timestamp = b"\x91\xd6\xff" + bytes(4)
    bad_text = b"\x91\xa2\xff\xfe"
    for body in (deep, wide, claims_more, mapping, extension, timestamp, bad_text, b"", b"\xc0"):
        with pytest.raises(WireError):
            decode(Lookup.TAG, body)


def test_a_small_body_that_announces_much_takes_little_memory() -> None:
    """Lists in lists, each announced as long as can be: 5 KB of them once took 80 MB."""
    body = b"\xdd" + ITEMS_MAX.to_bytes(4, "big")
    tracemalloc.start()
    with pytest.raises(WireError):
        decode(Lookup.TAG, body * 1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 40 << 20


def test_oversized_body() -> None:
    blob = b"\x01" + bytes(BODY_BYTES_MAX)
    with pytest.raises(WireError, match="body of"):
        decode(Lookup.TAG, msgpack.packb([blob]))


def test_largest_lookup_fits() -> None:
    msg = Lookup(tuple(n.to_bytes(64, "big") for n in range(LIST_MAX)))
    assert len(encode(msg)) <= BODY_BYTES_MAX
    assert decode(Lookup.TAG, encode(msg)) == msg


def test_the_field_at_fault_is_named() -> None:
    with pytest.raises(WireError, match="Lookup.keys: int where bytes belongs"):
        decode(Lookup.TAG, msgpack.packb([7]))


def test_unknown_tag() -> None:
    with pytest.raises(WireError, match="unknown message 65535"):
        decode(65535, b"\x90")


def test_unknown_status_of_a_later_minor() -> None:
    for cls in MESSAGES:
        for at, (name, hint) in enumerate(schema(cls)):
            if hint is Status:
                array = raw(sample(cls))
                array[at] = 9999
                msg = decode(cls.TAG, msgpack.packb(array))
                assert getattr(msg, name) is Status.UNKNOWN


def test_tags_are_unique(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TAGS", dict(module._TAGS))
    assert len({cls.TAG for cls in MESSAGES}) == len(MESSAGES)

    for tag in (Lookup.TAG, 0, 1 << 16):
        with pytest.raises(AssertionError, match="is taken"):

            @message(tag)
            class Second(Message):
                pass
