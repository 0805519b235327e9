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
from pegaflow.wire.control import Beat, Counter, ProcessRow
from pegaflow.wire.identities import Incarnation, Key
from pegaflow.wire.message import (
    BODY_BYTES_MAX,
    ITEMS_MAX,
    Message,
    WireError,
    decode,
    encode,
    message,
    record,
)
from pegaflow.wire.session import Lookup
from pegaflow.wire.status import Status
from pegaflow.wire.values import LIST_MAX, Address, Keys

from .samples import MESSAGES, any_message, fields, sample, schema, wrong

each = pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)


def raw(msg: Message) -> list[Any]:
    array: list[Any] = msgpack.unpackb(encode(msg))
    return array


@each
def test_sample_round_trip(cls: type[Message]) -> None:
    msg = sample(cls)
    assert decode(cls.TAG, encode(msg)) == msg


@each
def test_what_a_message_says_where_nobody_says_anything_else_is_understood(
    cls: type[Message],
) -> None:
    said = sample(cls)
    none = dataclasses.MISSING
    needed = [f for f in dataclasses.fields(said) if f.default is f.default_factory is none]
    msg = cls(**{f.name: getattr(said, f.name) for f in needed})
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
        with pytest.raises(
            WireError, match=f"^{cls.__name__}: .* at least length {required}, got {count}"
        ):
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


@each
def test_a_small_body_that_announces_much_takes_little_memory(cls: type[Message]) -> None:
    """Lists in lists, each announced as long as can be: 5 KB of them once took 80 MB."""
    parts = [msgpack.packb(part) for part in raw(sample(cls))]
    for many in (ITEMS_MAX, (1 << 32) - 1):
        announced = (b"\xdd" + many.to_bytes(4, "big")) * 1000
        bodies = [announced]
        for at in range(len(parts) + 1):
            start = b"\xdc" + (len(parts) + 1).to_bytes(2, "big") + b"".join(parts[:at])
            bodies.append(start + announced)
        tracemalloc.start()
        for body in bodies:
            with pytest.raises(WireError):
                decode(cls.TAG, body)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 1 << 20


@each
def test_a_later_field_may_not_be_of_any_depth(cls: type[Message]) -> None:
    parts = b"".join(msgpack.packb(part) for part in raw(sample(cls)))
    start = b"\xdc" + (len(raw(sample(cls))) + 1).to_bytes(2, "big") + parts
    for deeper in (b"\x91", b"\x81\xc0"):
        with pytest.raises(WireError, match="recursion"):
            decode(cls.TAG, start + deeper * 100_000 + b"\xc0")


def test_too_many_records() -> None:
    many = Beat((Counter("a", 1),) * ITEMS_MAX)
    assert decode(Beat.TAG, encode(many)) == many
    with pytest.raises(WireError, match=f"Beat.counters: .* {ITEMS_MAX}"):
        decode(Beat.TAG, encode(Beat((*many.counters, Counter("a", 1)))))


def test_a_message_is_a_frozen_dataclass_to_whoever_looks() -> None:
    row = ProcessRow(
        Address("a", Incarnation(1)), 2, "up", 3, engine="e", counters=(Counter("c", 4),)
    )
    assert dataclasses.is_dataclass(row) and isinstance(row, Message)
    assert [f.name for f in dataclasses.fields(Counter)] == ["name", "value"]
    assert dataclasses.replace(row, pid=7) == dataclasses.replace(row, pid=6 + 1) != row
    assert dataclasses.asdict(row)["counters"] == ({"name": "c", "value": 4},)
    assert repr(row.counters[0]) == "Counter(name='c', value=4)"
    assert {row: 1}[dataclasses.replace(row)] == 1
    assert len({Counter("c", 4), Counter("c", 4), Counter("c", 5)}) == 2
    match row:
        case ProcessRow(address, pid):
            assert (address, pid) == (row.address, 2)
    with pytest.raises(AttributeError):
        row.pid = 8  # type: ignore[misc]


def test_what_cannot_travel_cannot_be_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TAGS", dict(module._TAGS))

    @record
    class WithKeys:
        keys: Keys

    for hint in (float, list[int], dict, Any, WithKeys, tuple[Keys, ...]):
        with pytest.raises(AssertionError, match="no codec"):
            message(65535)(type("Odd", (Message,), {"__annotations__": {"odd": hint}}))


def test_oversized_body() -> None:
    blob = b"\x01" + bytes(BODY_BYTES_MAX)
    with pytest.raises(WireError, match="body of"):
        decode(Lookup.TAG, msgpack.packb([blob]))


def test_largest_lookup_fits() -> None:
    msg = Lookup(tuple(Key(n.to_bytes(64, "big")) for n in range(LIST_MAX)))
    assert len(encode(msg)) <= BODY_BYTES_MAX
    assert decode(Lookup.TAG, encode(msg)) == msg


def test_the_field_at_fault_is_named() -> None:
    with pytest.raises(WireError, match="Lookup.keys: .*`bytes`, got `int`"):
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
