"""The bytes of protocol major 1, frozen in golden.json: a release may not change what it says.

golden.json holds `messages`, rows of [class name, tag, body in hex], and `envelopes`, rows of
[what it shows, header in hex, body in hex].

To add a message, or a field (at the end, with a default) to one: `python -m tests.wire.golden`.
Never edit or remove a row: each is what some release has sent, and every later one must read it.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from pegaflow.wire.control import OpenSession
from pegaflow.wire.envelope import Envelope, pack, unpack
from pegaflow.wire.identities import EngineNamespace, Incarnation
from pegaflow.wire.message import Message, decode, encode
from pegaflow.wire.session import Confirmed, Lookup
from pegaflow.wire.status import Status
from pegaflow.wire.values import CLIENT, FRONT_DESK, SESSION, Address
from tests.naming import as_keys

from . import golden
from .samples import MESSAGES, fields, sample

GOLDEN: dict[str, list[list[Any]]] = json.loads(
    Path(__file__).with_name("golden.json").read_text(encoding="utf-8")
)
ON_A_SOCKET = [cls for cls in MESSAGES if cls.TAG < 200]

CLIENT_7, SESSION_3 = Address(CLIENT, Incarnation(7)), Address(SESSION, Incarnation(3))
OPEN = OpenSession("engine", bytes(range(16)), 4242, 99, namespace=EngineNamespace(bytes(16)))

QUESTION = Envelope(
    CLIENT_7,
    SESSION_3,
    Lookup(as_keys(bytes(32), b"\x01" * 32)),
    5,
    answer=0,
    deadline=1_000_000_000,
)

ENVELOPES = {
    "a question": QUESTION,
    "a question of minor 1": QUESTION,
    "a question of minor 2": QUESTION,
    "a question of minor 3": QUESTION,
    "a question of minor 4": QUESTION,
    "an answer of a later minor: one more field in header and body": Envelope(
        SESSION_3, CLIENT_7, Confirmed(Status.OK), 0, answer=5
    ),
    "an OpenSession of a minor before `probe`": Envelope(
        CLIENT_7, FRONT_DESK, OPEN, 1, answer=0, deadline=2_000_000_000
    ),
}
"""What the frames of golden.json mean."""


def test_fields_keep_their_places() -> None:
    frozen = json.loads(golden.NAMES.read_text())
    assert golden.names().keys() == frozen.keys(), "python -m tests.wire.golden"
    moved = [tag for tag, said in frozen.items() if golden.names()[tag][: len(said)] != said]
    assert moved == []
    assert golden.names() == frozen, "python -m tests.wire.golden"


@pytest.mark.parametrize("row", GOLDEN["messages"], ids=lambda row: row[0])
def test_old_bytes_keep_their_meaning(row: list[Any]) -> None:
    name, tag, body = row
    msg = decode(tag, bytes.fromhex(body))
    assert type(msg).__name__ == name
    raw = msgpack.unpackb(bytes.fromhex(body))
    assert as_said(msg, raw) == as_said(sample(type(msg)), raw)


def as_said(value: Any, raw: Any) -> Any:
    """A value with the fields alone that its bytes have, and so for the records in it."""
    if dataclasses.is_dataclass(value):
        return [as_said(*both) for both in zip(fields(value), raw, strict=False)]
    if isinstance(value, tuple) and value and dataclasses.is_dataclass(value[0]):
        return [as_said(*both) for both in zip(value, raw, strict=True)]
    return value


@pytest.mark.parametrize("cls", ON_A_SOCKET, ids=lambda cls: cls.__name__)
def test_what_we_say_is_frozen(cls: type[Message]) -> None:
    row = [cls.__name__, cls.TAG, encode(sample(cls)).hex()]
    assert row in GOLDEN["messages"], f"to add: {json.dumps(row)}"


@pytest.mark.parametrize("row", GOLDEN["envelopes"], ids=lambda row: row[0])
def test_envelopes(row: list[str]) -> None:
    shows, header, body = row
    assert unpack([bytes.fromhex(header), bytes.fromhex(body)]) == ENVELOPES[shows]


def test_the_question_is_what_we_send() -> None:
    what = "a question of minor 4"
    (row,) = [row for row in GOLDEN["envelopes"] if row[0] == what]
    assert [f.hex() for f in pack(ENVELOPES[what])] == row[1:]
