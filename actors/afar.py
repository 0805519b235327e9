"""Clients on TCP: how a session knows that they live.

A client of this host is watched by its pid.  The pids of one that came over TCP may be those of
another pid namespace, so its life is its connection: ZeroMQ closes one that is silent (tcp.py), the
session says a word to each of these clients with every beat, and the shell tells it of one that
could not be reached (Unreachable).  Then the session ends, as it does when a process has died.

That is no proof of death, and none is needed: such a client writes nothing but its bounce file,
which ends with the session, and what it has read of the pool it uses only when the session has
confirmed the lease afterwards.
"""

from pegaflow.wire.session import Pong
from pegaflow.wire.values import Address

from .actor import MS, Effect, Send, Sender

JOIN_NS = 10_000 * MS
"""An engine on TCP that was given a session dials it at once, or was gone before it could."""


class Afar:
    """The clients of one session that came over TCP."""

    def __init__(self) -> None:
        self.clients: set[Address] = set()  # those of the session's clients that are on TCP
        self.join_by = 0  # when one of them must have spoken; 0: no more

    def expect(self, now: int) -> None:
        """The engine is on TCP: nothing but its dialling shows that it is there."""
        self.join_by = now + JOIN_NS

    def meet(self, sender: Sender, known: set[Address]) -> None:
        """A client of the session, if it is one of the known, has spoken."""
        self.join_by = 0
        if sender.remote and sender.address in known:
            self.clients.add(sender.address)

    def overdue(self, now: int) -> bool:
        """Whether the engine never came."""
        return 0 < self.join_by <= now

    def beat(self) -> list[Effect]:
        """A word to each: who cannot be reached is told by the shell."""
        return [Send(client, Pong()) for client in sorted(self.clients)]
