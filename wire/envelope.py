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

from typing import NamedTuple

from .message import Message, WireError, decode, encode, pack_array, unpack_array
from .values import Address

MAGIC = "pega"
MAJOR = 1
MINOR = 4

HEADER_BYTES_MAX = 512
"""Longest header: two names and seven numbers."""

NAME_BYTES_MAX = 64
"""Longest actor name."""

_TYPES = (str, int, int, str, int, str, int, int, int, int, int)
_FIELDS = len(_TYPES)


class VersionMismatch(WireError):
    """The peer speaks another major version."""


class Envelope(NamedTuple):
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
    return [pack_array((MAGIC, MAJOR, MINOR, *around)), encode(e.message)]


def unpack(frames: list[bytes]) -> Envelope:
    """The envelope in these two frames.

    Raises:
        VersionMismatch: another major version.
        WireError: anything else that is not a well-formed envelope.
    """
    if len(frames) != 2:
        raise WireError(f"{len(frames)} frames where 2 belong")
    if len(frames[0]) > HEADER_BYTES_MAX:
        raise WireError(f"header of {len(frames[0])} bytes")
    raw = unpack_array(frames[0])
    if len(raw) < 2 or raw[0] != MAGIC:
        raise WireError("not an envelope")
    if type(raw[1]) is not int or raw[1] != MAJOR:
        raise VersionMismatch(f"protocol major {raw[1]!r}, ours is {MAJOR}")
    if len(raw) < _FIELDS:
        raise WireError(f"header of {len(raw)} fields")
    fields = raw[:_FIELDS]
    if tuple(map(type, fields)) != _TYPES:
        raise WireError("a header field of the wrong type")
    _, _, minor, sender, life, receiver, its_life, question, answer, deadline, tag = fields
    if len(sender) > NAME_BYTES_MAX or len(receiver) > NAME_BYTES_MAX:
        raise WireError("too long a name in the header")
    if minor < 0 or life < 0 or its_life < 0 or question < 0 or answer < 0 or deadline < 0:
        raise WireError("a negative number in the header")
    if question and answer:
        raise WireError("a question that is an answer")
    message = decode(tag, frames[1])
    return Envelope(
        Address(sender, life), Address(receiver, its_life), message, question, answer, deadline
    )
