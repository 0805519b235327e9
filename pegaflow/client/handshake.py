"""Why a connection over TCP came to nothing.

A service that keeps us out sends no message, and libzmq dials again without a word: only the
socket's monitor tells what became of a handshake.  It has to be there before the socket connects,
and is closed with it.  Who is first to see that the two do not fit hangs up, so the same trouble
may be told in detail or not.
"""

from __future__ import annotations

from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

_AUTH = int(zmq.EVENT_HANDSHAKE_FAILED_AUTH)
_PROTOCOL = int(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
_NO_DETAIL = int(zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL)

_WANTED = "wants a key: name a key file of `pegaflow keygen`"


class Monitor:
    """Watches the handshakes of one socket with the service at this URL.

    Args:
        url: for the lines of `read`.
        keyed: whether the socket has a key pair of ours.
    """

    def __init__(self, socket: zmq.Socket[bytes], url: str, keyed: bool) -> None:
        self._watched = socket
        self._url = url
        self._keyed = keyed
        self.socket: zmq.Socket[Any] = socket.get_monitor_socket(_AUTH | _PROTOCOL | _NO_DETAIL)

    def read(self) -> str:
        """Why the newest handshake failed, in one line; empty if there is nothing new."""
        why = ""
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return why
            why = self._why(int(parse_monitor_message(frames)["event"])) or why

    def _why(self, event: int) -> str:
        service, ended = f"the service at {self._url}", f"{self._url} ended the handshake"
        if event == _AUTH:
            return f"{service} does not let our key in: it has no file for it in `allowed`"
        if event == _PROTOCOL and self._keyed:
            return f"{service} takes no key (--insecure-tcp): name none"
        if event == _PROTOCOL:
            return f"{service} {_WANTED}"
        if event == _NO_DETAIL and self._keyed:
            return f"{ended}: our key is of another service, or it takes no key (--insecure-tcp)"
        return f"{ended}: if it is a service of ours, it {_WANTED}" if event == _NO_DETAIL else ""

    def close(self) -> None:
        """Before the watched socket is, if that is still open."""
        if not self._watched.closed:
            self._watched.disable_monitor()
        self.socket.close(0)
