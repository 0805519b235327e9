"""What both ends of a link keep to, whoever they are: an actor, or the client in an engine."""

from .units import Count, Milliseconds, Nanoseconds

QUEUE_MAX: Count = 10_000
"""Messages queued per link and direction: far above what one engine has under way; a neighbour that
far behind is about to be killed."""

DRAIN_MAX: Count = 256
"""Messages taken from one socket per turn: whoever floods it starves no other socket, and does not
keep the thread of an engine."""

DRAIN_NS: Nanoseconds = 5_000_000
"""Nor does an actor take more of them for so long, though few have come: what is due is done in
between, and so is what other sockets have."""

HEARTBEAT_MS: Milliseconds = 500
"""How often a TCP link is tried when nothing is said on it."""

HEARTBEAT_TIMEOUT_MS: Milliseconds = 3000
"""A TCP link that is silent so long is closed: as patient as the watchdog is with a process."""
