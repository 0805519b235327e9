"""A side that does what it must not costs itself its streams, and the other side nothing."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegaflow.core.segments.codec import page_sum
from pegaflow.device.link import Link, LinkError, Piece, tcpbatches, tcpowner, tcpstream
from pegaflow.device.link.tcpframes import (
    GREETING_BYTES,
    Request,
    pack_greeting,
    pack_hello,
    pack_reply,
    pack_request,
    reply_bytes,
    unpack_greeting,
    unpack_reply,
)
from pegaflow.device.link.tcpreader import TcpReader
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.status import Status

from .raw import NONCE, FakeOwner, asked, connect, ended, exactly, hello, welcome
from .rig import LEASE, POOL, READER, TOKEN, Ends, Pair, Word, pair, soon

MIB = 1 << 20
LONG = 12 * MIB  # more than the buffers of a stream take
REQUEST = Request(number=1, pieces=1, sums=False, lease=LEASE)

Serve = Callable[[socket.socket, int], None]


# a hostile reader


def test_no_stream_without_the_token() -> None:
    with pair(MIB) as both:
        offer = both.owner.admit(READER, TOKEN, b"")
        other = both.owner.admit(Incarnation(8), b"o" * 32, b"")
        both.owner.dismiss(Incarnation(8))
        assert welcome(offer, token=b"x" * 32) is None
        assert welcome(other, token=b"o" * 32) is None
        assert welcome(other, token=bytes(32)) is None  # what is compared where there is no token
        assert welcome(offer, stream=4) is None
        with pytest.raises(LinkError):
            both.reader.connect(offer, b"x" * 32)


def test_a_token_opens_a_stream_once() -> None:
    with pair(MIB) as both:
        offer = both.owner.admit(READER, TOKEN, b"")
        first = welcome(offer, 1)
        assert first is not None and welcome(offer, 1) is None
        first.close()
        assert welcome(offer, 1) is None
        both.owner.admit(READER, b"n" * 32, b"")
        assert welcome(offer, 2) is None  # the token before
        again = welcome(offer, 1, b"n" * 32)
        assert again is not None
        again.close()


def test_what_was_said_on_one_stream_opens_no_other() -> None:
    with pair(MIB) as both:
        offer = both.owner.admit(READER, TOKEN, b"")
        overheard = connect(offer)
        said = pack_hello(hello(offer, unpack_greeting(exactly(overheard, GREETING_BYTES))))
        with connect(offer) as mine:
            exactly(mine, GREETING_BYTES)
            mine.sendall(said)
            assert ended(mine)
        overheard.close()


def test_the_streams_of_a_reader_are_bounded() -> None:
    with pair(MIB) as both:
        tokens = [bytes([n]) * 32 for n in range(5)]
        links = [both.link(token) for token in tokens]
        both.lend()
        piece = [Piece(0, 0, 10)]
        statuses: list[Status] = []
        for link in links:
            ends = Ends()
            link.read(LEASE, piece, ends, soon())
            statuses += ends.statuses()
        assert statuses == [Status.PEER_GONE] * 3 + [Status.OK] * 2


def test_strangers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcpowner, "STRANGERS_MAX", 3)
    with pair(MIB) as both:
        offer = both.owner.admit(READER, TOKEN, b"")
        silent = [connect(offer) for _ in range(3)]
        for sock in silent:
            exactly(sock, GREETING_BYTES)
        with connect(offer) as late:
            assert ended(late)
        assert both.owner.counts["strangers_refused"] == 1
        for sock in silent:
            sock.close()


def test_a_stranger_has_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcpowner, "CONNECT_S", 0.2)
    with pair(MIB) as both, connect(both.owner.admit(READER, TOKEN, b"")) as sock:
        exactly(sock, GREETING_BYTES)
        sock.sendall(b"PEGA")
        assert ended(sock)


def test_readers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcpowner, "READERS_MAX", 1)
    with pair(MIB) as both:
        both.owner.admit(READER, TOKEN, b"")
        both.owner.admit(READER, b"n" * 32, b"")
        with pytest.raises(ValueError, match="1 readers"):
            both.owner.admit(Incarnation(8), TOKEN, b"")


@given(st.binary(min_size=1, max_size=200), st.booleans())
@settings(max_examples=20)
def test_whatever_a_reader_says(raw: bytes, proven: bool) -> None:
    with pair(MIB) as both:
        both.lend()
        offer = both.owner.admit(READER, TOKEN, b"")
        sock = welcome(offer) if proven else connect(offer)
        assert sock is not None
        sock.sendall(raw)
        sock.close()
        link, ends = both.link(b"n" * 32), Ends()
        link.read(LEASE, [Piece(5, 6, 1000)], ends, soon())
        assert ends.statuses() == {Status.OK}
        assert both.ours == both.expected([Piece(5, 6, 1000)])


@pytest.mark.parametrize("size", [0, LONG * 100])
def test_a_request_that_makes_no_sense(size: int) -> None:
    with pair(MIB) as both:
        both.lend()
        sock = welcome(both.owner.admit(READER, TOKEN, b""))
        assert sock is not None
        with sock:
            sock.sendall(pack_request(REQUEST, [(0, size)]))
            assert ended(sock)


def test_half_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcpstream, "STALL_S", 0.1)
    with pair(MIB) as both:
        sock = welcome(both.owner.admit(READER, TOKEN, b""))
        assert sock is not None
        with sock:
            sock.sendall(b"x")
            assert ended(sock)


@contextmanager
def taking_nothing() -> Iterator[tuple[Pair, socket.socket]]:
    """A reader that has asked for more than fits into its stream, and has taken the first byte."""
    with pair() as both:
        both.lend()
        sock = welcome(both.owner.admit(READER, TOKEN, b""))
        assert sock is not None
        with sock:
            sock.sendall(pack_request(REQUEST, [(0, LONG)]))
            raw = exactly(sock, reply_bytes(REQUEST))
            assert unpack_reply(raw, REQUEST) == (Status.OK, ())
            yield both, sock


def test_who_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcpstream, "STALL_S", 0.1)
    with taking_nothing() as (both, _):
        broken = threading.Event()
        while not both.owner.counts["streams_broken"]:
            broken.wait(0.01)
        back = Word()
        both.owner.recall(LEASE, back)
        back.wait()


def test_what_is_recalled_comes_back_from_who_takes_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pegaflow.device.link.tcplending.RECALL_S", 0.1)
    monkeypatch.setattr(tcpstream, "STALL_S", 100.0)  # nobody else cuts it off
    with taking_nothing() as (both, sock):
        back = Word()
        both.owner.recall(LEASE, back)
        assert not back.said
        back.wait()
        assert len(exactly(sock, LONG)) < LONG


def test_what_is_recalled_comes_back_with_its_last_byte() -> None:
    with taking_nothing() as (both, sock):
        back = Word()
        both.owner.recall(LEASE, back)
        assert not back.said
        assert exactly(sock, LONG) == both.theirs[:LONG]
        back.wait()


@pytest.mark.parametrize("way", ["dismiss", "close"])
def test_what_is_recalled_comes_back_when_it_is_cut_off(way: str) -> None:
    with taking_nothing() as (both, _):
        back = Word()
        both.owner.recall(LEASE, back)
        both.owner.close() if way == "close" else both.owner.dismiss(READER)
        if way == "dismiss":
            back.wait()
        assert back.said


# a hostile owner


@contextmanager
def reading(serve: Serve, token: bytes = TOKEN) -> Iterator[tuple[bytearray, Link]]:
    """A link to an owner that does as it is told once it has greeted."""
    ours = bytearray(POOL)
    owner, reader = FakeOwner(serve, token), TcpReader(memoryview(ours))
    try:
        yield ours, reader.connect(owner.offer, TOKEN)
    finally:
        reader.close()
        owner.close()


def answer(sock: socket.socket, request: Request, content: bytes) -> None:
    """As an owner does, if all pieces are alike."""
    sums = [page_sum(content)] * request.pieces if request.sums else []
    sock.sendall(pack_reply(request, Status.OK, sums) + content * request.pieces)


def test_whoever_does_not_know_the_token_is_no_owner() -> None:
    with pytest.raises(LinkError, match="not the owner"):
        with reading(lambda sock, number: None, b"x" * 32):
            pass


def test_whoever_speaks_another_version_is_named() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    owner = FakeOwner(lambda sock, number: None)
    owner.close()

    def greet() -> None:
        with listener, listener.accept()[0] as sock:
            raw = bytearray(pack_greeting(NONCE))
            raw[8] = 9
            sock.sendall(bytes(raw))

    thread = threading.Thread(target=greet)
    thread.start()
    port = listener.getsockname()[1]
    offer = owner.offer[:2] + port.to_bytes(2, "little") + owner.offer[4:]
    with pytest.raises(LinkError, match="speaks version 9"):
        TcpReader(memoryview(bytearray(1))).connect(offer, TOKEN)
    thread.join()


@given(st.binary(max_size=60))
@settings(max_examples=20)
def test_whatever_an_owner_answers(raw: bytes) -> None:
    def serve(sock: socket.socket, number: int) -> None:
        if asked(sock):
            sock.sendall(raw)

    with reading(serve) as (ours, link):
        ends = Ends()
        link.read(LEASE, [Piece(0, 100, 50)], ends, soon())
        assert ends.statuses() == {Status.PEER_GONE}
        assert ours[:100] == bytes(100) and ours[150:] == bytes(POOL - 150)


def test_a_stream_that_breaks_costs_its_pieces_a_second_try() -> None:
    """One stream ends in the middle of a piece; what it had another one asks again."""
    content = bytes(range(256)) * (MIB // 256)
    first = threading.Lock()  # taken by the stream that breaks

    def serve(sock: socket.socket, number: int) -> None:
        while request := asked(sock):
            if first.acquire(blocking=False):
                sock.sendall(pack_reply(request, Status.OK, (1,) * request.pieces) + b"wrong")
                return
            answer(sock, request, content)

    with reading(serve) as (ours, link):
        ends = Ends()
        link.read(LEASE, [Piece(0, at * MIB, MIB) for at in range(12)], ends, soon())
        assert ends.statuses() == {Status.OK}
        assert ours[: 12 * MIB] == content * 12
        assert link.streams == 3


def test_half_a_piece_and_then_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcpstream, "STALL_S", 0.1)

    def serve(sock: socket.socket, number: int) -> None:
        if request := asked(sock):
            sock.sendall(pack_reply(request, Status.OK, (1,) * request.pieces) + b"h")
            assert ended(sock)

    with reading(serve) as (ours, link):
        ends = Ends()
        link.read(LEASE, [Piece(0, 0, MIB)], ends, soon())
        assert ends.statuses() == {Status.PEER_GONE}
        assert link.streams == 2
        assert ours[1:] == bytes(POOL - 1)


def test_the_deadline_passes_in_the_middle_of_a_piece() -> None:
    """The pages are ours again: what comes after that is not written into them."""
    go_on = threading.Event()

    def serve(sock: socket.socket, number: int) -> None:
        if request := asked(sock):
            sock.sendall(pack_reply(request, Status.OK, (1,) * request.pieces) + b"h" * 1000)
            go_on.wait(20)
            try:
                sock.sendall(b"x" * MIB)
            except OSError:
                pass

    with reading(serve) as (ours, link):
        ends, later = Ends(), Ends()
        link.read(LEASE, [Piece(0, at * MIB, MIB) for at in range(9)], ends, soon(0.2))
        link.read(LEASE, [Piece(0, 10 * MIB, MIB)], later, soon())
        assert ends.statuses() == {Status.EXPIRED}
        ours[:] = bytes(POOL)
        assert later.statuses() <= {Status.PEER_GONE}
        go_on.set()
        link.close()
        assert ours == bytes(POOL)


def test_the_link_is_closed_in_the_middle_of_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcpstream, "STALL_S", 100.0)  # nobody else cuts it off
    begun = threading.Semaphore(0)

    def serve(sock: socket.socket, number: int) -> None:
        if request := asked(sock):
            sock.sendall(pack_reply(request, Status.OK, (1,) * request.pieces) + b"h" * 1000)
            begun.release()
            ended(sock)

    with reading(serve) as (ours, link):
        ends = Ends()
        link.read(LEASE, [Piece(0, at * MIB, MIB) for at in range(9)], ends, soon())
        for _ in range(4):
            assert begun.acquire(timeout=20)
        link.close()
        assert ends.said and ends.statuses() == {Status.DISCONNECTED}


def test_a_short_read_does_not_wait_for_all_of_a_long_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pegaflow.device.link.tcpbatches.BATCH_BYTES", MIB)
    order: list[int] = []
    take = tcpbatches.Waiting.take
    begun, go_on = threading.Semaphore(0), threading.Event()

    def taken(waiting: tcpbatches.Waiting) -> tcpbatches.Batch:
        batch = take(waiting)
        order.append(batch.read.lease)
        return batch

    monkeypatch.setattr(tcpbatches.Waiting, "take", taken)

    def serve(sock: socket.socket, number: int) -> None:
        while request := asked(sock):
            begun.release()
            go_on.wait(20)
            answer(sock, request, b"\1" * MIB if request.lease == 1 else b"\2")

    with reading(serve) as (ours, link):
        long, short = Ends(), Ends()
        link.read(1, [Piece(0, at * MIB, MIB) for at in range(12)], long, soon())
        for _ in range(4):
            assert begun.acquire(timeout=20)
        link.read(2, [Piece(0, 13 * MIB, 1)], short, soon())
        go_on.set()
        assert long.statuses() == short.statuses() == {Status.OK}
        assert order.index(2) < len(order) - 1
