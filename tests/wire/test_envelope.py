"""Frames: what is around a message, and what a stranger may put there."""

import contextlib
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.wire.control import Beat
from pegaflow.wire.envelope import (
    HEADER_BYTES_MAX,
    MAJOR,
    MINOR,
    NAME_BYTES_MAX,
    Envelope,
    VersionMismatch,
    pack,
    unpack,
)
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.message import WireError, encode
from pegaflow.wire.values import Address

from .samples import any_message, numbers

names = st.text(st.characters(codec="ascii"), max_size=NAME_BYTES_MAX)
addresses = st.builds(Address, names, numbers)
kinds = st.tuples(numbers, st.just(0)) | st.tuples(st.just(0), numbers)
envelopes = st.tuples(addresses, addresses, any_message, kinds, numbers).map(
    lambda t: Envelope(t[0], t[1], t[2], question=t[3][0], answer=t[3][1], deadline=t[4])
)

BEAT = Envelope(
    Address("index", Incarnation(2)),
    Address("supervisor", Incarnation(1)),
    Beat(()),
    5,
    answer=0,
    deadline=99,
)
MAGIC_AT, MAJOR_AT, MINOR_AT, NAMES_AT, QUESTION_AT, ANSWER_AT, TAG_AT = 0, 1, 2, (3, 5), 7, 8, 10


def framed(change: dict[int, Any]) -> list[bytes]:
    """The frames of BEAT with some header fields replaced."""
    header: list[Any] = msgpack.unpackb(pack(BEAT)[0])
    for at, value in change.items():
        header[at] = value
    return [msgpack.packb(header), encode(BEAT.message)]


@given(envelopes)
def test_round_trip(envelope: Envelope) -> None:
    frames = pack(envelope)
    assert len(frames[0]) <= HEADER_BYTES_MAX
    assert unpack(frames) == envelope


def test_another_major_is_named() -> None:
    for major in (MAJOR + 1, 0, "1", None):
        with pytest.raises(VersionMismatch, match=f"major {major!r}, ours is {MAJOR}"):
            unpack(framed({MAJOR_AT: major}))
    other = ["pega", MAJOR + 1, {"a": [1]}, None]
    with pytest.raises(VersionMismatch):
        unpack([msgpack.packb(other), b""])
    short = [msgpack.packb(["pega", MAJOR + 1]), b"whatever that major says"]
    with pytest.raises(VersionMismatch):
        unpack(short)


def test_another_minor_is_welcome() -> None:
    assert unpack(framed({MINOR_AT: MINOR + 1})) == BEAT
    header = msgpack.unpackb(framed({MINOR_AT: MINOR + 1})[0])
    assert unpack([msgpack.packb([*header, "new"]), encode(BEAT.message)]) == BEAT


def test_question_and_answer_exclude_each_other() -> None:
    with pytest.raises(WireError, match="a question that is an answer"):
        unpack(framed({QUESTION_AT: 5, ANSWER_AT: 6}))


@pytest.mark.parametrize("at", range(11))
def test_wrong_type_in_each_field(at: int) -> None:
    strangers: tuple[Any, ...] = (None, 1.5, b"x", [], -1, {})
    for value in strangers:
        with pytest.raises(WireError):
            unpack(framed({at: value}))


@pytest.mark.parametrize("at", NAMES_AT)
def test_long_names(at: int) -> None:
    with pytest.raises(WireError):
        unpack(framed({at: "x" * (NAME_BYTES_MAX + 1)}))


def test_not_an_envelope() -> None:
    header, body = pack(BEAT)
    for frames in (
        [],
        [header],
        [header, body, b""],
        [b"", body],
        [msgpack.packb([]), body],
        [msgpack.packb(["pega"]), body],
        [msgpack.packb(["pega", MAJOR, MINOR]), body],
        [header + b"\0", body],
        [header, b""],
        framed({MAGIC_AT: "peg"}),
        framed({TAG_AT: 65535}),
    ):
        with pytest.raises(WireError):
            unpack(frames)


def test_oversized_header() -> None:
    header = msgpack.unpackb(pack(BEAT)[0])
    with pytest.raises(WireError, match="header of"):
        unpack([msgpack.packb([*header, bytes(HEADER_BYTES_MAX)]), encode(BEAT.message)])


@given(st.lists(st.binary(max_size=100), min_size=2, max_size=2))
def test_random_frames(frames: list[bytes]) -> None:
    with contextlib.suppress(WireError):
        unpack(frames)


@given(envelopes, st.data())
def test_mutated_frames(envelope: Envelope, data: st.DataObject) -> None:
    frames = [bytearray(f) for f in pack(envelope)]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = frames[data.draw(st.integers(0, 1))]
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
        del frame[data.draw(st.integers(1, 400)) :]
    with contextlib.suppress(WireError):
        unpack([bytes(f) for f in frames])
