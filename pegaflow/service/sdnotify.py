"""sd_notify: tells a service manager that we are ready, stopping, and how we are.

The protocol is one datagram of NAME=value lines to the Unix socket that NOTIFY_SOCKET names: a
path, or `@name` for an abstract one.  Where the variable is not set nothing is said; where it names
something that does not take a datagram, one line of the log says so and that is all.  A manager
that is only behind with reading gets what is unsaid before the next line.

WATCHDOG_USEC, meant for the process of WATCHDOG_PID (or for whoever gets it), asks for a sign of
life: WATCHDOG=1 in time, else this process is taken for hung and ended.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import MutableMapping

from pegaflow.wire.units import Count

from . import logs

VARIABLE = "NOTIFY_SOCKET"
WATCHDOG = "WATCHDOG_USEC"
WATCHDOG_PID = "WATCHDOG_PID"

UNSAID_MAX: Count = 16
"""Datagrams kept for a manager that is behind, the newest: it reads within milliseconds or not at
all."""


class Notifier:
    """Says lines to the service manager of this process."""

    def __init__(self, env: MutableMapping[str, str] = os.environ) -> None:
        # Taken out, as systemd advises: what a child says would be taken for ours.
        self._named = env.pop(VARIABLE, "")
        self._socket: socket.socket | None = None
        self.unsaid: deque[bytes] = deque(maxlen=UNSAID_MAX)  # oldest first
        self._watchdog = env.pop(WATCHDOG, "")
        self._watched = env.pop(WATCHDOG_PID, "")

    def ping_ns(self, pid: int) -> int:
        """How often this process has to say that it lives.

        Args:
            pid: our own: the manager may mean another process by it.

        Returns:
            Nanoseconds, half of what the manager waits; 0: never.
        """
        if not self._named or not self._watchdog or self._watched not in ("", str(pid)):
            return 0
        if not (self._watchdog.isascii() and self._watchdog.isdecimal()) or not int(self._watchdog):
            advice = "no sign of life is sent; WatchdogSec= of the unit sets it"
            logs.get_logger().warning("watchdog_unreadable", said=self._watchdog, advice=advice)
            return 0
        return int(self._watchdog) * 1000 // 2

    def say(self, lines: str) -> None:
        """One datagram; a service manager that does not take it is not spoken to again."""
        if not self._named:
            return
        self.unsaid.append(lines.encode())
        try:
            while self.unsaid:
                self._send(self.unsaid[0])
                self.unsaid.popleft()
        except BlockingIOError:
            return
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
