"""The engine of a session: its clients, its ranks, and the end with them.

A spare waits until the supervisor gives it an engine (Serve).  From then on it lives exactly as
long as its engine: when a client process is proven dead, or the last client leaves, the session
stops, and with one process all goes that the engine left behind.

Who comes and goes as a rank, attach.py decides; the other parts ask here who is there.
"""

from collections.abc import Iterable

from pegaflow.actors.runtime.contract import MS, Do, Effect, Note, On, Part, Reply, Send, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.wire.control import Serve, Serving
from pegaflow.wire.jobs import Done, WatchProcess
from pegaflow.wire.session import Left, Ping, Pong
from pegaflow.wire.units import Count, Nanoseconds
from pegaflow.wire.values import CLIENT, SUPERVISOR, Address

from .devices import Devices
from .ranks import Rank
from .space import Space

CLIENTS_MAX: Count = 1024
"""Clients of one engine: its scheduler and workers, and all that they were before a reconnect."""

DIAL_NS: Nanoseconds = 10_000 * MS
"""Patience with an engine that came over TCP and has not said a word to us."""


class Engine(Part):
    """One engine's clients and ranks."""

    def __init__(self, member: Member, devices: Devices) -> None:
        self._member, self._devices = member, devices
        self.serve: Serve | None = None  # the engine; None: a spare
        self.clients: set[Address] = set()  # that have spoken and not left
        self.remote: set[Address] = set()  # those of them whose pids mean nothing here
        self.watched: set[tuple[int, int]] = set()  # (pid, start) of client processes
        self.ranks: dict[int, Rank] = {}  # attached, or about to be
        self.leaving: list[Rank] = []  # given up, but a job of theirs still runs
        self.complete = False  # all ranks are there: lookups and saves are served
        self.space: Space | None = None  # of when all ranks were there the last time
        self.served_ns = 0  # since when there is an engine

    def handlers(self) -> Iterable[On]:
        """Who the engine is, and a sign of life."""
        return (on(Serve, self._on_serve, SUPERVISOR), on(Ping, self._on_ping, CLIENT))

    def gauges(self) -> dict[str, int]:
        """Who is there."""
        return {
            "session_clients": len(self.clients),
            "session_ranks": sum(rank.there for rank in self.ranks.values()),
            "session_attached": int(self.complete),
        }

    def beat(self, now: int) -> list[Effect]:
        """A word to every client whose process we cannot watch: who is gone turns out to be
        unreachable.  An engine that never comes is not waited for."""
        late = now - self.served_ns > DIAL_NS
        if self.serve is not None and self.serve.remote and not self.clients and late:
            return self._member.farewell()
        return [Send(client, Pong()) for client in self.remote]

    @property
    def name(self) -> str:
        """What people call it; empty: a spare's."""
        return self.serve.engine if self.serve is not None else ""

    def rank(self, client: Address, number: int) -> Rank | None:
        """The rank that a client speaks for.

        Args:
            number: as the client says it.

        Returns:
            None if that rank is not this client's, or not served yet.
        """
        rank = self.ranks.get(number)
        served = rank is not None and rank.there and rank.client == client
        return rank if served and self.space is not None else None

    def meet(self, sender: Sender) -> None:
        """Know a client from now on, unless there are too many."""
        if len(self.clients) < CLIENTS_MAX:
            self.clients.add(sender.address)
            if self.is_blind(sender):
                self.remote.add(sender.address)

    def is_blind(self, sender: Sender) -> bool:
        """Whether this client's pid means nothing here."""
        return sender.remote or (self.serve is not None and self.serve.foreign)

    def has_room_for(self, client: Address, pid: int, started_ticks: int) -> bool:
        """Whether this client is one of ours, and its process is watched or may be.

        Args:
            pid: of the client's process.
            started_ticks: its start time, in ticks since boot; with the pid it names one process.
        """
        there = (pid, started_ticks) in self.watched or len(self.watched) < CLIENTS_MAX
        return there and client in self.clients

    def watch(self, pid: int, started_ticks: int) -> list[Effect]:
        """End when this process ends.

        Args:
            pid: of a client's process.
            started_ticks: its start time, in ticks since boot.
        """
        if (pid, started_ticks) in self.watched:
            return []
        self.watched.add((pid, started_ticks))

        def dead(done: Done, now: int) -> list[Effect]:
            facts = (("engine", self.name), ("engine_pid", pid))
            return [Note("engine_died", facts), *self._member.farewell()]

        return [Do(WatchProcess(pid, started_ticks), dead)]

    def left(self, rank: Rank) -> list[Effect]:
        """If nothing of a rank that was given up runs any more, say so."""
        if rank.running or rank not in self.leaving:
            return []
        self.leaving.remove(rank)
        if rank.leaving is None:
            return []
        return [Reply(rank.leaving, Left()), *self.end_if_alone()]

    def end_if_alone(self) -> list[Effect]:
        """With the last client the session goes, once nothing runs any more."""
        return self._member.farewell() if not self.clients and not self.leaving else []

    def _on_serve(self, sender: Sender, msg: Serve, now: int) -> list[Effect]:
        if self.serve is None:
            self.serve, self.served_ns = msg, now
            watch = [] if msg.remote else self.watch(msg.pid, msg.started_ticks)
            return [Reply(sender, Serving()), *watch, *self._devices.serve()]
        same = (self.serve.engine, self.serve.generation) == (msg.engine, msg.generation)
        assert same, "a session serves one engine"
        return [Reply(sender, Serving())]

    def _on_ping(self, sender: Sender, msg: Ping, now: int) -> list[Effect]:
        self.meet(sender)
        return [Reply(sender, Pong())]
