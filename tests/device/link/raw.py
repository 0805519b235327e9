"""Either side of a stream by hand: for a peer that does what ours never would."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

from pegaflow.device.link.tcpframes import (
    GREETING_BYTES,
    HELLO_BYTES,
    PLACE_BYTES,
    REQUEST_BYTES,
    WELCOME_BYTES,
    Hello,
    Offer,
    Request,
    pack_greeting,
    pack_hello,
    pack_offer,
    pack_welcome,
    proof,
    unpack_greeting,
    unpack_hello,
    unpack_offer,
    unpack_request,
)

from .rig import HOST, PATIENCE_S, READER, TOKEN

NONCE, CHALLENGE = b"n" * 32, b"c" * 32


def exactly(sock: socket.socket, size: int) -> bytes:
    """So many bytes, or fewer if the other side ends the stream."""
    raw = b""
    try:
        while len(raw) < size and (more := sock.recv(size - len(raw))):
            raw += more
    except ConnectionResetError:
        pass
    return raw


def connect(offer: bytes) -> socket.socket:
    """To an owner; nothing is said yet."""
    found = unpack_offer(offer)
    return socket.create_connection((found.host, found.port), timeout=PATIENCE_S)


def hello(offer: bytes, challenge: bytes, stream: int = 0, token: bytes = TOKEN) -> Hello:
    """A good one."""
    empty = Hello(stream, unpack_offer(offer).reader, NONCE, b"")
    return empty._replace(proof=proof(token, "reader", challenge, empty))


def welcome(offer: bytes, stream: int = 0, token: bytes = TOKEN) -> socket.socket | None:
    """A stream of a reader, if the owner takes it."""
    sock = connect(offer)
    challenge = unpack_greeting(exactly(sock, GREETING_BYTES))
    sock.sendall(pack_hello(hello(offer, challenge, stream, token)))
    if len(exactly(sock, WELCOME_BYTES)) == WELCOME_BYTES:
        return sock
    sock.close()
    return None


def ended(sock: socket.socket) -> bool:
    """Whether the other side ends the stream, with nothing more to say."""
    return exactly(sock, 1) == b""


class FakeOwner:
    """Greets as an owner does, and then does as it is told.

    Args:
        serve: with each stream that is welcome, and its number; the stream ends with it.
        token: that its proof is of.
    """

    def __init__(self, serve: Callable[[socket.socket, int], None], token: bytes = TOKEN) -> None:
        self._serve = serve
        self._token = token
        self._listener = socket.create_server((HOST, 0))
        self.offer = pack_offer(Offer(HOST, self._listener.getsockname()[1], READER))
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        """When all its streams have ended."""
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock = self._listener.accept()[0]
            except OSError:
                return
            thread = threading.Thread(target=self._greet, args=(sock,))
            self._threads.append(thread)
            thread.start()

    def _greet(self, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(PATIENCE_S)
            sock.sendall(pack_greeting(CHALLENGE))
            raw = exactly(sock, HELLO_BYTES)
            if len(raw) < HELLO_BYTES:
                return
            found = unpack_hello(raw)
            sock.sendall(pack_welcome(proof(self._token, "owner", CHALLENGE, found)))
            self._serve(sock, found.stream)


def asked(sock: socket.socket) -> Request | None:
    """The next request; None if the reader has ended the stream."""
    raw = exactly(sock, REQUEST_BYTES)
    if len(raw) < REQUEST_BYTES:
        return None
    request = unpack_request(raw)
    exactly(sock, request.pieces * PLACE_BYTES)
    return request
