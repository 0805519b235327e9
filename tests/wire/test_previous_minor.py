"""A program of the first minor, frozen in golden_1_0.json, against this service.

`messages` holds the bytes of every message as minor 0 of major 1 said it.  `conversation` is what a
client of that minor said in one session, `answers` what it was told; it reads as many fields of an
answer as it knows, and those must mean what they meant.  The file is never edited: whoever breaks
one of these tests has broken engines that are in use.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import msgpack
import pytest

from pegaflow.wire.allocator import Reserve
from pegaflow.wire.control import Serve, Serving, SessionAt
from pegaflow.wire.envelope import Envelope, unpack
from pegaflow.wire.identities import ClaimId, LeaseId
from pegaflow.wire.index import Claim, Claimed, Find, Held, Seal, Sealed
from pegaflow.wire.jobs import BounceOpened, FillPages, OpenBounce
from pegaflow.wire.message import Message, decode, encode
from pegaflow.wire.session import Attached, Confirmed, CopyBatch, Found, Pages, Pong, Saved
from pegaflow.wire.status import Status
from pegaflow.wire.values import CLIENT
from tests.actors.group import Group
from tests.actors.rig import ALLOC, IDX, Rig, one, said
from tests.actors.sessions import grant, serving
from tests.naming import as_pages

from .samples import MESSAGES, fields, sample

FROZEN: dict[str, list[list[Any]]] = json.loads(
    Path(__file__).with_name("golden_1_0.json").read_text(encoding="utf-8")
)
SAID = {
    name: [bytes.fromhex(header), bytes.fromhex(body)]
    for name, header, body in FROZEN["conversation"]
}
TOLD = {name: (tag, bytes.fromhex(body)) for name, tag, body in FROZEN["answers"]}
LATER = ["of a later minor", [1, [2]], None]


def raw(body: bytes) -> list[Any]:
    array: list[Any] = msgpack.unpackb(body)
    return array


@pytest.mark.parametrize("row", FROZEN["messages"], ids=lambda row: row[0])
def test_a_message_of_minor_0_means_what_it_meant(row: list[Any]) -> None:
    name, tag, body = row[0], row[1], bytes.fromhex(row[2])
    msg: Any = decode(tag, body)
    known = len(raw(body))
    assert type(msg).__name__ == name
    assert fields(msg)[:known] == fields(sample(type(msg)))[:known]
    defaults = [f.default for f in dataclasses.fields(msg)[known:]]
    assert fields(msg)[known:] == defaults, "a field that minor 0 does not send has its default"


@pytest.mark.parametrize("row", FROZEN["messages"], ids=lambda row: row[0])
def test_minor_0_reads_what_we_say_now(row: list[Any]) -> None:
    now = raw(encode(sample(type(decode(row[1], bytes.fromhex(row[2]))))))
    then = raw(bytes.fromhex(row[2]))
    assert beginning(now, then) == then


def beginning(now: Any, then: Any) -> Any:
    """As much of a value as somebody reads who knows only `then`, in nested records too."""
    if not isinstance(then, list) or not isinstance(now, list):
        return now
    return [beginning(n, t) for n, t in zip(now, then, strict=False)]


@pytest.mark.parametrize("cls", MESSAGES, ids=lambda cls: cls.__name__)
def test_fields_of_the_next_minor_are_ignored_at_every_depth(cls: type[Any]) -> None:
    msg = sample(cls)
    assert decode(cls.TAG, msgpack.packb(longer(msg))) == msg


def longer(value: Any) -> list[Any]:
    """The array of a record with unknown fields behind those of every record in it."""
    array = raw(encode(value))
    for at, own in enumerate(fields(value)):
        if isinstance(own, tuple) and own and dataclasses.is_dataclass(own[0]):
            array[at] = [longer(one_) for one_ in own]
        elif dataclasses.is_dataclass(own):
            array[at] = longer(own)
    return [*array, *LATER]


class OldClient:
    """Says what was frozen, and reads no more of an answer than its minor knew."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig

    def says(self, name: str) -> list[Envelope]:
        """The envelopes of that step."""
        frames = SAID[name]
        return self.rig._look(self.rig.host.deliver(unpack(frames), self.rig.now, frames))

    @staticmethod
    def hears(name: str, sent: list[Envelope], kind: type[Message]) -> None:
        """The one message of this kind to a client is what that minor was told."""
        msg = said([e for e in sent if e.receiver.name == CLIENT], kind)
        tag, body = TOLD[name]
        assert msg.TAG == tag
        assert beginning(raw(encode(msg)), raw(body)) == raw(body)


def test_a_client_of_minor_0_gets_a_session() -> None:
    group = Group()
    client = OldClient(group)
    serve = one(client.says("open") + group.settle(), Serve)
    answer = said(group.answer(serve, Serving()), SessionAt)
    tag, body = TOLD["open"]
    # Where the session is differs from service to service: kinds count, not values.
    assert answer.TAG == tag and kinds(beginning(raw(encode(answer)), raw(body))) == kinds(
        raw(body)
    )


def kinds(value: Any) -> Any:
    """The types in a value."""
    return [kinds(part) for part in value] if isinstance(value, list) else type(value)


def test_a_whole_conversation_of_a_client_of_minor_0() -> None:
    rig, _ = serving()
    client = OldClient(rig)
    assert client.says("attach") == []
    sent = rig.done(OpenBounce, BounceOpened("bounce", ()))
    client.hears("attach", sent, Attached)
    rig.answer(one(sent, Reserve, ALLOC), grant(1, 8))

    claim = one(client.says("save"), Claim, IDX)
    client.hears("take", rig.answer(claim, Claimed(ClaimId(1), (0, 1))), CopyBatch)
    client.says("keep")
    seal = one(rig.done(FillPages), Seal, IDX)
    client.hears("save", rig.answer(seal, Sealed(Status.OK, (0, 1))), Saved)

    find = one(client.says("lookup"), Find, IDX)
    client.hears("lookup", rig.answer(find, Held(LeaseId(1), 1, as_pages(0, 1))), Found)
    client.hears("load", client.says("load"), Pages)
    client.hears("copied", client.says("copied"), Confirmed)

    assert client.says("drop") == [] and client.says("release") == []
    client.hears("ping", client.says("ping"), Pong)
    client.says("leave")
    assert rig.stop == "", "its session ended with its last client"
