"""The frames of the TCP transport: what is packed is understood, and what nobody packed is not."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.device.link import Extent
from pegaflow.device.link.tcpframes import (
    BATCH_BYTES,
    BATCH_PIECES,
    GREETING_BYTES,
    HELLO_BYTES,
    PIECE_BYTES,
    PLACE_BYTES,
    REQUEST_BYTES,
    WELCOME_BYTES,
    FrameError,
    Hello,
    Offer,
    Request,
    pack_greeting,
    pack_hello,
    pack_offer,
    pack_reply,
    pack_request,
    proof,
    reply_bytes,
    unpack_greeting,
    unpack_hello,
    unpack_offer,
    unpack_places,
    unpack_reply,
    unpack_request,
)
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.status import Status

U32, U64 = (1 << 32) - 1, (1 << 64) - 1
HELLO = Hello(2, Incarnation(9), b"n" * 32, b"p" * 32)
REQUEST = Request(number=3, pieces=2, sums=True, lease=5)


@given(
    st.integers(0, U32),
    st.booleans(),
    st.integers(0, U64),
    st.lists(
        st.tuples(st.integers(0, U64), st.integers(1, BATCH_BYTES // BATCH_PIECES)), min_size=1
    ),
)
def test_a_request_is_understood(number: int, sums: bool, lease: int, places: list[Extent]) -> None:
    places = places[:BATCH_PIECES]
    request = Request(number, len(places), sums, lease)
    raw = pack_request(request, places)
    assert unpack_request(raw[:REQUEST_BYTES]) == request
    assert len(raw) == REQUEST_BYTES + PLACE_BYTES * len(places)
    assert unpack_places(raw[REQUEST_BYTES:]) == places


@pytest.mark.parametrize("count", [0, BATCH_PIECES + 1, 65535])
def test_a_request_for_nothing_or_too_many_is_none(count: int) -> None:
    with pytest.raises(FrameError):
        unpack_request(pack_request(REQUEST._replace(pieces=count), []))


@pytest.mark.parametrize(
    "sizes", [(0,), (1, 0), (PIECE_BYTES + 1,), (BATCH_BYTES, 1), (U32,), (U32, U32)]
)
def test_a_request_for_too_many_bytes_is_none(sizes: tuple[int, ...]) -> None:
    raw = pack_request(REQUEST, [(0, size) for size in sizes])
    with pytest.raises(FrameError):
        unpack_places(raw[REQUEST_BYTES:])


@given(st.binary(min_size=REQUEST_BYTES, max_size=REQUEST_BYTES), st.binary(max_size=900))
def test_whatever_comes_as_a_request_is_bounded(head: bytes, rest: bytes) -> None:
    try:
        request = unpack_request(head)
        places = unpack_places(rest[: len(rest) // PLACE_BYTES * PLACE_BYTES])
    except FrameError:
        return
    assert 1 <= request.pieces <= BATCH_PIECES
    assert sum(size for _, size in places) <= PIECE_BYTES


def test_a_reply_is_understood() -> None:
    raw = pack_reply(REQUEST, Status.OK, (1, U64))
    assert unpack_reply(raw, REQUEST) == (Status.OK, (1, U64))
    without = REQUEST._replace(sums=False)
    assert unpack_reply(pack_reply(without, Status.OK, ()), without) == (Status.OK, ())
    refused = pack_reply(REQUEST, Status.NO_SUCH_LEASE, ())
    assert len(refused) == len(raw) == reply_bytes(REQUEST)
    assert unpack_reply(refused, REQUEST) == (Status.NO_SUCH_LEASE, ())


@pytest.mark.parametrize(
    "raw",
    [
        pack_reply(REQUEST._replace(number=4), Status.OK, (1, 2)),
        pack_reply(REQUEST._replace(pieces=1), Status.OK, (1,)),
        pack_reply(REQUEST._replace(sums=False), Status.OK, ()),
        pack_reply(REQUEST, Status.CORRUPT, ()),
        bytes(128),
    ],
)
def test_another_reply_is_none(raw: bytes) -> None:
    with pytest.raises(FrameError):
        unpack_reply(raw, REQUEST)


def test_what_an_owner_says_leaves_its_bytes_where_they_were() -> None:
    """In the kernel's pages: the processor copies to other places at half the rate."""
    for pieces in range(1, BATCH_PIECES + 1):
        for sums in (True, False):
            assert not reply_bytes(REQUEST._replace(pieces=pieces, sums=sums)) % 64
    assert GREETING_BYTES == WELCOME_BYTES == 64


@given(st.binary(min_size=128, max_size=128))
def test_whatever_comes_as_a_reply_is_no_surprise(raw: bytes) -> None:
    try:
        assert unpack_reply(raw, REQUEST)[0] in (Status.OK, Status.NO_SUCH_LEASE)
    except FrameError:
        pass


def test_the_first_words_are_understood() -> None:
    assert unpack_greeting(pack_greeting(b"c" * 32)) == b"c" * 32
    assert unpack_hello(pack_hello(HELLO)) == HELLO


@given(st.binary(min_size=HELLO_BYTES, max_size=HELLO_BYTES))
def test_other_first_words_are_none(raw: bytes) -> None:
    with pytest.raises(FrameError):
        unpack_hello(raw)
    with pytest.raises(FrameError):
        unpack_greeting(raw[:GREETING_BYTES])


def test_another_version_is_named() -> None:
    raw = bytearray(pack_greeting(bytes(32)))
    raw[8] = 77
    with pytest.raises(FrameError, match="speaks version 77"):
        unpack_greeting(bytes(raw))


def test_a_proof_is_of_one_side_one_stream_and_one_token() -> None:
    one = (bytes(32), "reader", b"c" * 32, HELLO)
    others = [
        (b"t" * 32, "reader", b"c" * 32, HELLO),
        (bytes(32), "owner", b"c" * 32, HELLO),
        (bytes(32), "reader", b"d" * 32, HELLO),
        (bytes(32), "reader", b"c" * 32, HELLO._replace(stream=1)),
        (bytes(32), "reader", b"c" * 32, HELLO._replace(reader=Incarnation(8))),
        (bytes(32), "reader", b"c" * 32, HELLO._replace(nonce=b"m" * 32)),
    ]
    assert len({proof(*what) for what in (one, *others)}) == 7
    assert proof(*one) == proof(bytes(32), "reader", b"c" * 32, HELLO._replace(proof=b""))


@pytest.mark.parametrize("host", ["10.0.0.1", "fe80::1%eth0", "::1"])
def test_an_offer_is_understood(host: str) -> None:
    offer = Offer(host, 4711, Incarnation(3))
    assert unpack_offer(pack_offer(offer)) == offer


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        pack_offer(Offer("", 1, Incarnation(1))),
        pack_offer(Offer("::1", 0, Incarnation(1))),
        pack_offer(Offer("1" * 65, 1, Incarnation(1))),
        pack_offer(Offer("a\nb", 1, Incarnation(1))),
        pack_offer(Offer("::1", 1, Incarnation(1))) + b"\xff",
        b"\x09" + pack_offer(Offer("::1", 1, Incarnation(1)))[1:],
    ],
)
def test_another_offer_is_none(raw: bytes) -> None:
    with pytest.raises(FrameError):
        unpack_offer(raw)


@given(st.binary(max_size=100))
def test_whatever_comes_as_an_offer_is_no_surprise(raw: bytes) -> None:
    try:
        unpack_offer(raw)
    except FrameError:
        pass
