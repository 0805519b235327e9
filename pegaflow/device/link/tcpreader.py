"""The reader's side of the TCP transport: asks for pieces, and receives them into the pool.

Each stream of a link has a thread.  It takes a batch, asks for it, asks for the next while the
first is on its way, receives the bytes straight into their pages, and makes their checksums while
they are in the processor's cache.  A thread that has nothing to do leaves the last batches to those
that have even less.  One more thread of the link keeps the deadlines: what is past its own no
stream begins, and the streams that are in the middle of it are cut off, for only they know when the
pages are theirs no more.
"""

import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from hmac import compare_digest

from pegaflow.core.limits import MIB
from pegaflow.core.segments.codec import page_sum
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Constant, Count

from . import CONNECT_S, STREAMS, TOKEN_BYTES, Done, LinkError, Outcome, Piece
from .tcpbatches import TRIES, Batch, Read, Waiting, check
from .tcpframes import (
    GREETING_BYTES,
    NONCE_BYTES,
    WELCOME_BYTES,
    FrameError,
    Hello,
    Offer,
    Request,
    pack_hello,
    pack_request,
    proof,
    reply_bytes,
    unpack_greeting,
    unpack_offer,
    unpack_reply,
    unpack_welcome,
)
from .tcplending import NS
from .tcpstream import Stream

DEPTH: Count = 2
"""Requests of a stream that are not answered yet: while the bytes of one arrive the owner has the
next."""


NEVER: Constant = 1 << 63
"""Later than every deadline."""

HOT_BYTES: Bytes = MIB
"""Received, then looked at: this much is in a core's own cache still, and smaller calls cost more
than they save."""


class _Lane:
    """A stream of the link, and what it has asked for."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.sent: deque[tuple[Request, Batch]] = deque()  # oldest first
        self.number = 0  # of the last request


class TcpLink:
    """See `Link`.

    Args:
        pool: ours, where pieces go to.
        streams: connected and welcome; owned from now on.
    """

    def __init__(self, pool: memoryview, streams: Sequence[Stream]) -> None:
        self._pool = pool
        self._waiting = Waiting()
        self._reads: set[Read] = set()  # that have not ended
        self._lanes = [_Lane(stream) for stream in streams]  # that work
        self._idle = 0  # threads of lanes that wait for a batch
        self._closed = False
        self._wakes_at = NEVER  # when the deadlines' thread looks again by itself
        self._lock = threading.Lock()  # for all of that
        self._work = threading.Condition(self._lock)
        self._clock = threading.Condition(self._lock)
        self._threads = [
            threading.Thread(target=self._run, args=(lane,), name="link-recv", daemon=True)
            for lane in self._lanes
        ]
        self._threads.append(threading.Thread(target=self._keep, name="link-clock", daemon=True))
        for thread in self._threads:
            thread.start()

    @property
    def streams(self) -> int:
        """See `Link.streams`."""
        return len(self._lanes)

    def read(self, lease: int, pieces: Sequence[Piece], done: Done, deadline: int) -> None:
        """See `Link.read`."""
        check(pieces, len(self._pool))
        read = Read(lease, pieces, done, deadline)
        batches = read.cut()
        with self._lock:
            status = Status.DISCONNECTED if self._closed else Status.PEER_GONE
            if broken := self._closed or not self._lanes:
                for batch in batches:
                    batch.fail(status)
            else:
                self._reads.add(read)
                self._waiting.put(batches)
                self._work.notify(len(batches))
                if deadline < self._wakes_at:
                    self._clock.notify()
        if broken:
            read.end()

    def close(self) -> None:
        """See `Link.close`."""
        with self._lock:
            self._closed = True
            ended = self._ended(self._waiting.drop(), Status.DISCONNECTED)
            for lane in self._lanes:
                lane.stream.cut()
            self._work.notify_all()
            self._clock.notify()
        for read in ended:
            read.end()
        for thread in self._threads:
            thread.join()

    def _ended(self, batches: Iterable[Batch], status: Status) -> list[Read]:
        """Fail these; the reads that have ended with them, to be told without the lock."""
        ended = [batch.read for batch in batches if batch.fail(status)]
        self._reads.difference_update(ended)
        return ended

    # a stream's thread

    def _run(self, lane: _Lane) -> None:
        try:
            while self._ask(lane):
                self._receive(lane)
        except (OSError, FrameError):
            pass  # what is known of it by now is that the stream is of no use
        finally:
            self._lose(lane)

    def _ask(self, lane: _Lane) -> bool:
        """Ask for as much as can be on its way; False: the link is closed."""
        while len(lane.sent) < DEPTH:
            found = self._take(lane)
            if found is None:
                break
            request, batch = found
            places = [(piece.remote, piece.bytes) for piece in batch.pieces]
            lane.stream.send([memoryview(pack_request(request, places))])
        return bool(lane.sent)

    def _take(self, lane: _Lane) -> tuple[Request, Batch] | None:
        """The next batch, entered as sent.  Who has nothing waits for one, unless the link is
        closed; who has something takes no more than those leave who wait."""
        with self._lock:
            while not self._closed:
                if len(self._waiting) > (self._idle if lane.sent else 0):
                    batch = self._waiting.take()
                    lane.number += 1
                    request = Request(
                        number=lane.number & 0xFFFFFFFF,
                        pieces=len(batch.pieces),
                        sums=batch.sums,
                        lease=batch.read.lease,
                    )
                    lane.sent.append((request, batch))
                    return request, batch
                if lane.sent:
                    return None
                self._idle += 1
                self._work.wait()
                self._idle -= 1
        return None

    def _receive(self, lane: _Lane) -> None:
        """The answer to the oldest request, into the pages."""
        request, batch = lane.sent[0]
        status, sums = unpack_reply(lane.stream.frame(reply_bytes(request)), request)
        if status == Status.OK:
            outcomes = self._arrived(lane.stream, batch, sums)
        else:
            outcomes = [Outcome(status)] * len(batch.pieces)
        with self._lock:
            lane.sent.popleft()
            if last := batch.end(outcomes):
                self._reads.discard(batch.read)
        if last:
            batch.read.end()

    def _arrived(self, stream: Stream, batch: Batch, sums: Sequence[int]) -> list[Outcome]:
        """A few pieces at a time: their checksums are made while the processor still has them."""
        pool = self._pool
        views = [pool[local : local + size] for _, local, size, _ in batch.pieces]
        outcomes: list[Outcome] = []
        size = 0
        for at, view in enumerate(views):
            size += len(view)
            if size >= HOT_BYTES or at == len(views) - 1:
                first, size = len(outcomes), 0
                stream.receive(views[first : at + 1])
                for now in range(first, at + 1):
                    told = batch.pieces[now].sum
                    here, there = page_sum(views[now]), sums[now] if told is None else told
                    status = Status.OK if here == there else Status.CORRUPT
                    outcomes.append(Outcome(status, here, there))
        return outcomes

    def _lose(self, lane: _Lane) -> None:
        """The stream is no more, and writes into no page: others have what it had, or nobody."""
        lane.stream.close()
        with self._lock:
            self._lanes.remove(lane)
            gone = not self._lanes
            ended = []
            for _, batch in reversed(lane.sent):
                batch.tries += 1
                if self._closed:
                    ended += self._ended([batch], Status.DISCONNECTED)
                elif batch.read.expired:
                    ended += self._ended([batch], Status.EXPIRED)
                elif gone or batch.tries >= TRIES:
                    ended += self._ended([batch], Status.PEER_GONE)
                else:
                    self._waiting.put(deque([batch]), first=True)
                    self._work.notify()
            if gone:
                ended += self._ended(self._waiting.drop(), Status.PEER_GONE)
                self._clock.notify()
        for read in ended:
            read.end()

    # the deadlines' thread

    def _keep(self) -> None:
        while True:
            with self._lock:
                if not self._lanes:
                    return
                now = time.monotonic_ns()
                ended: list[Read] = []
                for read in [read for read in self._reads if read.deadline <= now]:
                    if not read.expired:
                        ended += self._expire(read)
                due = [read.deadline for read in self._reads if not read.expired]
                self._wakes_at = min(due, default=NEVER)
                if not ended:
                    self._clock.wait(max(0, self._wakes_at - now) / NS if due else None)
            for read in ended:
                read.end()

    def _expire(self, read: Read) -> list[Read]:
        read.expired = True
        for lane in self._lanes:
            if any(batch.read is read for _, batch in lane.sent):
                lane.stream.cut()
        return self._ended(self._waiting.drop(read), Status.EXPIRED)


class TcpReader:
    """See `Reader`.

    Args:
        pool: ours, writable.
        tls: as the owners have it; the context is a client's.
    """

    def __init__(self, pool: memoryview, *, tls: ssl.SSLContext | None = None) -> None:
        self._pool = pool
        self._tls = tls
        self._links: list[TcpLink] = []
        self._closed = False
        self._lock = threading.Lock()  # for both: links are made and closed by several threads

    def ask(self) -> bytes:
        """See `Reader.ask`: nothing."""
        return b""

    def connect(self, offer: bytes, token: bytes) -> TcpLink:
        """See `Reader.connect`."""
        until = time.monotonic() + CONNECT_S
        streams: list[Stream] = []
        try:
            found = unpack_offer(offer)
            for number in range(STREAMS):
                streams.append(self._stream(found, token, number, until=until))
        except (OSError, FrameError) as error:
            if not streams:
                raise LinkError(f"no link to the owner: {error}") from None
        with self._lock:
            if not self._closed:
                self._links = [link for link in self._links if link.streams]
                self._links.append(link := TcpLink(self._pool, streams))
                return link
        for stream in streams:
            stream.close()
        raise LinkError("no link to the owner: this side has been closed")

    def close(self) -> None:
        """See `Reader.close`."""
        with self._lock:
            self._closed, links = True, self._links
        for link in links:
            link.close()

    def _stream(self, offer: Offer, token: bytes, number: int, *, until: float) -> Stream:
        """One that is welcome."""
        stream = Stream(_connected(offer, until))
        try:
            if self._tls is not None:
                stream.secure(self._tls, name=offer.host, timeout=_left(until))
            challenge = unpack_greeting(stream.frame_within(GREETING_BYTES, _left(until)))
            hello = Hello(number, offer.reader, os.urandom(NONCE_BYTES), bytes(TOKEN_BYTES))
            hello = hello._replace(proof=proof(token, "reader", challenge, hello))
            stream.send([memoryview(pack_hello(hello))])
            theirs = unpack_welcome(stream.frame_within(WELCOME_BYTES, _left(until)))
            if not compare_digest(theirs, proof(token, "owner", challenge, hello)):
                raise FrameError("whoever answers there is not the owner")
        except (OSError, FrameError):
            stream.close()
            raise
        return stream


def _connected(offer: Offer, until: float) -> socket.socket:
    place = socket.getaddrinfo(
        *(offer.host, offer.port), type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    sock = socket.socket(place[0], place[1] | socket.SOCK_CLOEXEC)
    try:
        sock.settimeout(_left(until))
        sock.connect(place[4])
    except OSError:
        sock.close()
        raise
    return sock


def _left(until: float) -> float:
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError("it takes too long to answer")
    return left
