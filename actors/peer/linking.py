"""Data links to other hosts: asked for when one is first needed, and made by the device."""

from collections import Counter
from collections.abc import Callable

from pegaflow.actors.runtime.contract import MS, Ask, Do, Effect, Note
from pegaflow.wire.control import LogLevel
from pegaflow.wire.jobs import Done
from pegaflow.wire.message import Message
from pegaflow.wire.peer import Enter, Entered
from pegaflow.wire.peerjobs import AskOfReader, ConnectHost, LeaveHost, ReaderAsks
from pegaflow.wire.status import Status
from pegaflow.wire.units import Nanoseconds

from .places import RemoteHost
from .pulls import Source

ENTER_NS: Nanoseconds = 1000 * MS
"""Patience with a host that is asked for an offer."""

AGAIN_NS: Nanoseconds = 1000 * MS
"""From a link that could not be made, or broke, to the next try."""


class Linking:
    """Makes links, for Reading."""

    def __init__(self, counts: Counter[str]) -> None:
        self._counts = counts
        self._ask: bytes | None = None  # what we say to an owner; None: not known yet

    def prepare(self) -> list[Effect]:
        """Learn what is to be said to an owner."""

        def asks(result: ReaderAsks | Done, now: int) -> list[Effect]:
            if isinstance(result, Done):
                facts = (("why", result.note),)
                return [Note("peers_unreadable", facts, LogLevel.WARNING, "peers_unreadable")]
            self._ask = result.ask
            return []

        return [Do(AskOfReader(), asks)]

    def may_try(self, source: Source, now: int) -> bool:
        """Whether a link to this host may be tried now."""
        return now >= source.again_ns

    def broke(self, source: Source, now: int) -> None:
        """A link has broken, or could not be made."""
        source.linked = source.linking = False
        source.again_ns = now + AGAIN_NS

    def make(
        self,
        host: RemoteHost,
        source: Source,
        now: int,
        over: Callable[[int], list[Effect]],
    ) -> list[Effect]:
        """Have a link to this host.

        Args:
            over: told when there is one, or cannot be (`Source.linked`).
        """
        if self._ask is None:
            self.broke(source, now)
            return self.prepare() + over(now)
        source.linking = True
        life = host.address.incarnation

        def entered(answer: Message, now: int) -> list[Effect]:
            if source.gone or not isinstance(answer, Entered) or answer.status is not Status.OK:
                self.broke(source, now)
                return over(now)
            connect = ConnectHost(life, host.where, answer.offer, answer.token)
            return [Do(connect, connected)]

        def connected(done: Done, now: int) -> list[Effect]:
            if source.gone:  # and this link, if it is one, has come after it was closed
                return [Do(LeaveHost(life), lambda done, now: [])] if done.ok else []
            if not done.ok:
                self.broke(source, now)
                facts = (("peer", host.name), ("why", done.note))
                note = Note("peer_not_linked", facts, LogLevel.WARNING, repeats=host.where)
                return [note, *over(now)]
            source.linking, source.linked = False, True
            self._counts["peer_links_made"] += 1
            return over(now)

        return [Ask(host.address, Enter(self._ask), now + ENTER_NS, entered)]
