"""sd_notify: tells a service manager that we are ready, stopping, and how we are.

The protocol is one datagram of NAME=value lines to the Unix socket that NOTIFY_SOCKET names: a
path, or `@name` for an abstract one.  Where the variable is not set nothing is said; where it names
something that does not take a datagram, one line of the log says so and that is all.
"""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from pegaflow import logs

VARIABLE = "NOTIFY_SOCKET"


class Notifier:
    """Says lines to the service manager of this process."""

    def __init__(self, env: MutableMapping[str, str] = os.environ) -> None:
        # Taken out, as systemd advises: what a child says would be taken for ours.
        self._named = env.pop(VARIABLE, "")
        self._socket: socket.socket | None = None

    def say(self, lines: str) -> None:
        """One datagram; a service manager that does not take it is not spoken to again."""
        if not self._named:
            return
        try:
            self._send(lines.encode())
        except (OSError, ValueError) as err:
            reason = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
            logs.get_logger().warning(
                "notify_socket_broken",
                socket=self._named,
                why=reason,
                advice=f"the service runs on; unset {VARIABLE} or start it from its unit",
            )
            self._named = ""

    def _send(self, data: bytes) -> None:
        if self._named[0] not in "/@":
            raise ValueError("neither an absolute path nor @name")
        where = "\0" + self._named[1:] if self._named[0] == "@" else self._named
        if self._socket is None:
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            self._socket = socket.socket(socket.AF_UNIX, kind)
        self._socket.sendto(data, where)
