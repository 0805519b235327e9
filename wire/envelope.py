"""The envelope: what stands around every message.

Two frames: `header | body` (a ROUTER puts the sender's routing id before them).  The header is one
msgpack array:

    magic, major, minor, sender name, sender incarnation, receiver name, receiver incarnation,
    question, answer, deadline, tag

* question: non-zero if an answer is expected; the answer quotes it as `answer`.  A message is
  either told (both zero), asked, or an answer, never two of those.
* deadline: absolute CLOCK_MONOTONIC in nanoseconds (one host; 0 = none).  A receiver may ignore a
  question whose deadline has passed: its asker has already taken the expiry as the answer.
* A frame from or to any other than the current incarnation is counted and dropped by the receiver.

A different major is refused by name (`VersionMismatch`), a different minor is welcome.
"""

from typing import Annotated

from msgspec import Meta, Struct
from msgspec.msgpack import Decoder

from . import message
from .identities import Incarnation
from .message import MALFORMED, Message, WireError, decode, encode
from .units import Bytes, Constant
from .values import U64, Address

MAGIC = "pega"
MAJOR: Constant = 1
MINOR: Constant = 4

HEADER_BYTES_MAX: Bytes = 512
"""Longest header: two names and seven numbers."""

NAME_BYTES_MAX: Bytes = 64
"""Longest actor name."""

_Name = Annotated[str, Meta(max_length=NAME_BYTES_MAX)]


class _Header(Struct, array_like=True, frozen=True):
    magic: str
    major: int
    minor: U64
    sender: _Name
    sender_incarnation: Annotated[Incarnation, Meta(ge=0)]
    receiver: _Name
    receiver_incarnation: Annotated[Incarnation, Meta(ge=0)]
    question: U64
    answer: U64
    deadline: U64
    tag: U64


class _Start(Struct, array_like=True, frozen=True):
    """What a header of any major begins with."""

    magic: str
    major: int | str | float | bool | None


_header = Decoder(_Header)
_start = Decoder(_Start)


class VersionMismatch(WireError):
    """The peer speaks another major version."""


class Envelope(Struct, frozen=True):
    """A message with its sender, its receiver and its place in a conversation."""

    sender: Address
    receiver: Address
    message: Message
    question: int = 0
    answer: int = 0
    deadline: int = 0


def pack(envelope: Envelope) -> list[bytes]:
    """The two frames of an envelope."""
    e = envelope
    around = (*e.sender, *e.receiver, e.question, e.answer, e.deadline, e.message.TAG)
    return [message.pack((MAGIC, MAJOR, MINOR, *around)), encode(e.message)]


def unpack(frames: list[bytes]) -> Envelope:
    """The envelope in these two frames.

    Raises:
        VersionMismatch: another major version.
        WireError: anything else that is not a well-formed envelope.
    """
    if len(frames) != 2:
        raise WireError(f"{len(frames)} frames where 2 belong")
    head, body = frames
    if len(head) > HEADER_BYTES_MAX:
        raise WireError(f"header of {len(head)} bytes")
    try:
        h = _header.decode(head)
    except MALFORMED as err:
        raise _stranger(head) or WireError(f"header: {err}") from None
    if h.magic != MAGIC or h.major != MAJOR:
        raise _stranger(head) or WireError("not an envelope")
    if h.question and h.answer:
        raise WireError("a question that is an answer")
    return Envelope(
        Address(h.sender, h.sender_incarnation),
        Address(h.receiver, h.receiver_incarnation),
        decode(h.tag, body),
        h.question,
        answer=h.answer,
        deadline=h.deadline,
    )


def _stranger(head: bytes) -> VersionMismatch | None:
    """The refusal of another major's header, whatever follows its number."""
    try:
        start = _start.decode(head)
    except MALFORMED:
        return None
    if start.magic != MAGIC or start.major == MAJOR and type(start.major) is int:
        return None
    return VersionMismatch(f"protocol major {start.major!r}, ours is {MAJOR}")
