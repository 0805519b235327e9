"""What is said on a stream of the TCP transport (tcp.py): the frames, as bytes.  Pure.

    owner                                         reader
      ── greeting: a challenge ──────────────────→
      ←────────── hello: who, which stream, proof ──
      ── welcome: proof ─────────────────────────→
      ←── request: a lease, places in the pool ────
      ── reply: checksums, then the bytes ───────→
         ...

The token itself never crosses the stream: each side proves that it knows it by a digest
(HMAC-SHA256) of what both have drawn for this one stream, so that what somebody has overheard opens
nothing, and a host that has taken over the owner's address serves nobody.  Who proves nothing is
told nothing: the stream ends.

A reader asks for a few pieces at a time (`BATCH_BYTES`), and for the next before these have
arrived; replies come in the order of the requests.  A reply has all bytes of all pieces of its
request, one after the other, or none (`NO_SUCH_LEASE`).  Numbers are little-endian.  What cannot be
understood ends the stream.
"""

import hmac
from collections.abc import Sequence
from itertools import chain
from struct import Struct, pack, unpack_from
from typing import NamedTuple

from pegaflow.core.limits import MIB
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Constant, Count

from . import Extent

VERSION: Constant = 1

BATCH_BYTES: Bytes = 4 * MIB
"""Of one request, if it has more than one piece: calls that move more gain nothing, and by so much
a stream may be behind the others at the end."""

BATCH_PIECES: Count = 64
"""Of one request: calls with more pieces of memory than this are slower again."""

PIECE_BYTES: Bytes = 64 * MIB
"""Of one piece, which has one checksum and so one stream: more than any page of a pool has."""

NONCE_BYTES: Bytes = 32
"""What each side draws for a stream: never the same twice."""

OFFER_HOST_BYTES: Bytes = 64
"""Of an address in digits: IPv6 has 45, and a zone."""

_MAGIC = b"PEGALINK"
_GREETING = Struct("<8sH22x32s")
_HELLO = Struct("<8sHHQ32s32s")
_WELCOME = Struct("<32s32x")
_REQUEST = Struct("<IHBxQ")
_PLACE = Struct("<QI")
_REPLY = Struct("<IHBB56x")
_OFFER = Struct("<HHQ")
_NAME = Struct("<HQ")

GREETING_BYTES: Bytes = _GREETING.size
"""Of the frame of this name."""

HELLO_BYTES: Bytes = _HELLO.size
"""Of the frame of this name."""

WELCOME_BYTES: Bytes = _WELCOME.size
"""Of the frame of this name."""

REQUEST_BYTES: Bytes = _REQUEST.size
"""Of a request, without its places."""

PLACE_BYTES: Bytes = _PLACE.size
"""Of each of them."""

ALIGN: Bytes = 64
"""What an owner sends has a multiple of this, the bytes of pages aside.  The kernel copies what is
sent behind what it has of the stream already; where that is a few bytes further into its page than
the source is in its own, a processor such as AMD's third EPYC copies at half the rate."""


class FrameError(Exception):
    """Not what this protocol says; why, in a few words."""


class Offer(NamedTuple):
    """Where an owner listens, and for whom."""

    host: str  # in digits
    port: int
    reader: Incarnation


class Hello(NamedTuple):
    """A reader's first word on a stream."""

    stream: int  # 0, 1, ... of those that one token opens
    reader: Incarnation
    nonce: bytes
    proof: bytes


class Request(NamedTuple):
    """The head of one; `pieces` places follow."""

    number: int
    pieces: int
    sums: bool  # whether the owner is to make checksums
    lease: int


def pack_offer(offer: Offer) -> bytes:
    """For the conversation."""
    return _OFFER.pack(VERSION, offer.port, offer.reader) + offer.host.encode("ascii")


def unpack_offer(raw: bytes) -> Offer:
    """An offer of the other host.

    Raises:
        FrameError: it is none, or of another version.
    """
    if not _OFFER.size < len(raw) <= _OFFER.size + OFFER_HOST_BYTES:
        raise FrameError("an offer of this length makes no sense")
    version, port, reader = _OFFER.unpack_from(raw)
    host = raw[_OFFER.size :]
    if version != VERSION:
        raise FrameError(f"the owner speaks version {version} of the TCP transport, we {VERSION}")
    if not (port and host.isascii() and host.decode("latin-1").isprintable()):
        raise FrameError("the offer has no address")
    return Offer(host.decode("ascii"), port, Incarnation(reader))


def pack_greeting(challenge: bytes) -> bytes:
    """The owner's first word.

    Args:
        challenge: NONCE_BYTES, drawn for this stream.
    """
    return _GREETING.pack(_MAGIC, VERSION, challenge)


def unpack_greeting(raw: bytes) -> bytes:
    """The challenge.

    Raises:
        FrameError: whoever listens there is no owner, or speaks another version.
    """
    magic, version, challenge = _GREETING.unpack(raw)
    _same(magic, version)
    return bytes(challenge)


def pack_hello(hello: Hello) -> bytes:
    """The reader's answer to the greeting."""
    return _HELLO.pack(*(_MAGIC, VERSION, hello.stream, hello.reader), *(hello.nonce, hello.proof))


def unpack_hello(raw: bytes) -> Hello:
    """Not to be believed before its proof has been compared.

    Raises:
        FrameError: it is none.
    """
    magic, version, stream, reader, nonce, proof = _HELLO.unpack(raw)
    _same(magic, version)
    return Hello(stream, Incarnation(reader), nonce, proof)


def pack_welcome(proof: bytes) -> bytes:
    """The owner's proof."""
    return _WELCOME.pack(proof)


def unpack_welcome(raw: bytes) -> bytes:
    """The proof, to be compared."""
    return bytes(_WELCOME.unpack(raw)[0])


def proof(token: bytes, by: str, challenge: bytes, hello: Hello) -> bytes:
    """What only who knows the token can say, of this stream.

    Args:
        by: who proves it, "owner" or "reader": what one has said does not serve the other.
        challenge: of the owner.
        hello: of the reader; its proof is not looked at.
    """
    name = _NAME.pack(hello.stream, hello.reader)
    said = b"".join((by.encode(), name, challenge, hello.nonce))
    return hmac.digest(token, said, "sha256")


def pack_request(head: Request, places: Sequence[Extent]) -> bytes:
    """All of a request.

    Args:
        places: as many as the head says.
    """
    first = _REQUEST.pack(head.number, head.pieces, head.sums, head.lease)
    return first + pack("<" + "QI" * len(places), *chain.from_iterable(places))


def unpack_request(raw: bytes) -> Request:
    """The head; PLACE_BYTES for each of its pieces follow.

    Raises:
        FrameError: it asks for nothing, or for too much.
    """
    number, count, sums, lease = _REQUEST.unpack(raw)
    if not 1 <= count <= BATCH_PIECES or sums > 1:
        raise FrameError(f"a request for {count} pieces")
    return Request(number, count, bool(sums), lease)


def unpack_places(raw: bytes) -> list[Extent]:
    """The places of a request; whether they are lent is for somebody else to say.

    Raises:
        FrameError: they are of no size, or too large.
    """
    places = list(_PLACE.iter_unpack(raw))
    sizes = [size for _, size in places]
    if not all(sizes) or sum(sizes) > (BATCH_BYTES if len(sizes) > 1 else PIECE_BYTES):
        raise FrameError(f"a request for {sum(sizes)} bytes in {len(sizes)} pieces")
    return places


def pack_reply(request: Request, status: Status, sums: Sequence[int]) -> bytes:
    """What comes before the bytes.

    Args:
        status: OK or NO_SUCH_LEASE, which no bytes follow.
        sums: one for each piece, if they were asked for and the status is OK.
    """
    head = _REPLY.pack(request.number & 0xFFFFFFFF, request.pieces, status, request.sums)
    return (head + pack(f"<{len(sums)}Q", *sums)).ljust(reply_bytes(request), b"\0")


def reply_bytes(request: Request) -> int:
    """Of the reply to this, without the bytes of the pieces."""
    sums = 8 * request.pieces if request.sums else 0
    return _REPLY.size + -(-sums // ALIGN) * ALIGN


def unpack_reply(raw: bytes, request: Request) -> tuple[Status, Sequence[int]]:
    """Whether the bytes follow; and the checksums, if they were asked for and the bytes follow.

    Args:
        request: what this has to be the answer to.

    Raises:
        FrameError: it is not.
    """
    number, count, status, sums = _REPLY.unpack_from(raw)
    if (number, count, sums) != (request.number, request.pieces, request.sums):
        raise FrameError("an answer to what was not asked")
    if status == Status.NO_SUCH_LEASE:
        return Status.NO_SUCH_LEASE, ()
    if status != Status.OK:
        raise FrameError(f"an answer with status {status}")
    return Status.OK, unpack_from(f"<{count}Q", raw, _REPLY.size) if sums else ()


def _same(magic: bytes, version: int) -> None:
    if magic != _MAGIC:
        raise FrameError("this is no stream of ours")
    if version != VERSION:
        raise FrameError(f"the other host speaks version {version} of the stream, we {VERSION}")
