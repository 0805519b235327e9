"""The owner's side of the TCP transport: lends its pool, and sends what of it is asked for.

One thread accepts streams and cuts off whoever still takes bytes of a lease long after it was
recalled.  Each stream has a thread of its own, which answers one request after the other: it makes
the checksums, if they are asked for, and hands the bytes to the kernel straight from the pool.
When the call returns they are the kernel's, and the pages are read no more, whenever they leave.
"""

import errno
import os
import select
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from hmac import compare_digest

from pegaflow.core.segments.codec import page_sum
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count, Milliseconds

from . import CONNECT_S, STREAMS, TOKEN_BYTES, Extent
from .tcpframes import (
    HELLO_BYTES,
    NONCE_BYTES,
    PLACE_BYTES,
    REQUEST_BYTES,
    FrameError,
    Offer,
    pack_greeting,
    pack_offer,
    pack_reply,
    pack_welcome,
    proof,
    unpack_hello,
    unpack_places,
    unpack_request,
)
from .tcplending import NS, Lending, NotLentError
from .tcpstream import Stream

READERS_MAX: Count = 256
"""Admitted at once: each of them may have a few threads here, and a fleet in which more hosts than
this read from one has copied its blocks to more than one."""

READER_STREAMS: Count = 2 * STREAMS
"""Of one reader: those of a link, and of the one that it has just replaced."""

STRANGERS_MAX: Count = 32
"""Streams that have proven nothing yet: each may take CONNECT_S, and costs a thread."""

DEAF_MS: Milliseconds = 100
"""How long nobody is accepted when this process has no descriptor for him."""

_NO_MEANS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _Admitted:
    """A reader and its token."""

    def __init__(self, token: bytes, streams: list[Stream]) -> None:
        self.token = token
        self.used: set[int] = set()  # streams that this token has opened
        self.streams = streams  # of earlier tokens too; oldest first


class TcpOwner:
    """See `Owner`.

    Args:
        pool: the memory that is lent.
        listen: address in digits and port; port 0: any that is free.
        advertised: the address, in digits, that readers are told; None: that of `listen`.
        tls: bytes travel encrypted; the context is a server's.

    Raises:
        OSError: the address cannot be had.
    """

    def __init__(
        self,
        pool: memoryview,
        listen: tuple[str, int],
        *,
        advertised: str | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        family = socket.AF_INET6 if ":" in listen[0] else socket.AF_INET
        self._listener = socket.create_server(listen, family=family)
        self._listener.setblocking(False)
        self._host = advertised or listen[0]
        self.port: int = self._listener.getsockname()[1]
        self._pool = pool
        self._tls = tls
        self.counts: Counter[str] = Counter()
        self._lending: Lending[Stream] = Lending(len(pool))
        self._readers: dict[Incarnation, _Admitted] = {}
        self._strangers: set[Stream] = set()
        self._threads: dict[Stream, threading.Thread] = {}  # all streams
        self._lock = threading.Lock()  # for these and the counts
        self._closed = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._keeper = threading.Thread(target=self._keep, name="link-owner", daemon=True)
        self._keeper.start()

    def admit(self, reader: Incarnation, token: bytes, ask: bytes) -> bytes:
        """See `Owner.admit`."""
        if len(token) != TOKEN_BYTES or ask:
            raise ValueError("a token of another length, or a question that TCP does not have")
        with self._lock:
            before = self._readers.get(reader)
            if before is None and len(self._readers) >= READERS_MAX:
                raise ValueError(f"{READERS_MAX} readers are admitted already")
            self._readers[reader] = _Admitted(token, before.streams if before else [])
        return pack_offer(Offer(self._host, self.port, reader))

    def dismiss(self, reader: Incarnation) -> None:
        """See `Owner.dismiss`."""
        with self._lock:
            gone = self._readers.pop(reader, None)
            for stream in gone.streams if gone else ():
                stream.cut()

    def lend(self, lease: int, reader: Incarnation, extents: Sequence[Extent]) -> None:
        """See `Owner.lend`."""
        self._lending.lend(lease, reader, extents)

    def recall(self, lease: int, back: Callable[[], None]) -> None:
        """See `Owner.recall`."""
        if self._lending.recall(lease, back):
            with self._lock:
                if not self._closed:  # else its number may be somebody else's by now
                    os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """See `Owner.close`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for stream in self._threads:
                stream.cut()
            threads = list(self._threads.values())
        os.eventfd_write(self._wake, 1)
        for thread in (self._keeper, *threads):
            thread.join()
        self._listener.close()
        os.close(self._wake)

    # accepting, and cutting off

    def _keep(self) -> None:
        both, woken = select.poll(), select.poll()
        both.register(self._listener, select.POLLIN)
        for poll in (both, woken):
            poll.register(self._wake, select.POLLIN)
        wait, deaf = both, False
        while not self._closed:
            late, due = self._lending.overdue()
            for stream in late:
                stream.cut()
            pause = None if due is None else max(0, due - time.monotonic_ns()) * 1000 // NS + 1
            if deaf:
                pause = DEAF_MS if pause is None else min(pause, DEAF_MS)
            found = {fd for fd, _ in wait.poll(pause)}
            if self._wake in found:
                with suppress(BlockingIOError):
                    os.eventfd_read(self._wake)
            deaf = self._listener.fileno() in found and not self._accept()
            wait = woken if deaf else both

    def _accept(self) -> bool:
        """Whether another one can be accepted as well."""
        try:
            sock = self._listener.accept()[0]
            stream = Stream(sock)
        except BlockingIOError:
            return True
        except OSError as error:
            self._count("accepts_failed")
            return error.errno not in _NO_MEANS
        thread = threading.Thread(target=self._serve, args=(stream,), name="link-send", daemon=True)
        with self._lock:
            welcome = not self._closed and len(self._strangers) < STRANGERS_MAX
            with suppress(RuntimeError):  # there can be no more threads
                if welcome:
                    thread.start()
                    self._strangers.add(stream)
                    self._threads[stream] = thread
                    return True
        self._count("strangers_refused")
        stream.close()
        return True

    def _count(self, what: str, by: int = 1) -> None:
        with self._lock:
            self.counts[what] += by

    # one stream

    def _serve(self, stream: Stream) -> None:
        try:
            reader = self._greet(stream)
            while self._answer(stream, reader):
                pass
        except (FrameError, NotLentError):
            self._count("streams_hostile")
        except OSError:
            self._count("streams_broken")
        finally:
            stream.close()
            with self._lock:
                self._strangers.discard(stream)
                for admitted in self._readers.values():
                    if stream in admitted.streams:
                        admitted.streams.remove(stream)
                del self._threads[stream]

    def _greet(self, stream: Stream) -> Incarnation:
        """Who it is, proven."""
        if self._tls is not None:
            stream.secure(self._tls, name=None, timeout=CONNECT_S)
        challenge = os.urandom(NONCE_BYTES)
        stream.send([memoryview(pack_greeting(challenge))])
        hello = unpack_hello(stream.frame_within(HELLO_BYTES, CONNECT_S))
        with self._lock:
            admitted = self._readers.get(hello.reader)
        token = admitted.token if admitted else bytes(TOKEN_BYTES)
        proven = compare_digest(proof(token, "reader", challenge, hello), hello.proof)
        with self._lock:
            # Only now is it looked at whether that token still opens that stream.
            if not proven or admitted is None or self._readers.get(hello.reader) is not admitted:
                raise FrameError("whoever that is was not admitted")
            if hello.stream >= STREAMS or hello.stream in admitted.used:
                raise FrameError("this token has opened that stream before")
            admitted.used.add(hello.stream)
            admitted.streams.append(stream)
            self._strangers.discard(stream)
            for old in admitted.streams[:-READER_STREAMS]:
                old.cut()
        stream.send([memoryview(pack_welcome(proof(token, "owner", challenge, hello)))])
        return hello.reader

    def _answer(self, stream: Stream, reader: Incarnation) -> bool:
        """Answer one request; False: there was none, and none will come."""
        raw = stream.next_frame(REQUEST_BYTES)
        if raw is None:
            return False
        request = unpack_request(raw)
        places = unpack_places(stream.rest(request.pieces * PLACE_BYTES))
        if not self._lending.begin(request.lease, reader, places, stream):
            self._count("requests_refused")
            stream.send([memoryview(pack_reply(request, Status.NO_SUCH_LEASE, ()))])
            return True
        try:
            views = [self._pool[start : start + size] for start, size in places]
            sums = [page_sum(view) for view in views] if request.sums else []
            stream.send([memoryview(pack_reply(request, Status.OK, sums)), *views])
        finally:
            self._lending.end(request.lease, stream)
        self._count("bytes_sent", sum(map(len, views)))
        return True
