"""The places where other hosts may be, and who is there.  See wire/peer.py.

A place is asked Meet until somebody answers, who is dialled by his name and pinged from then on.
Who is silent for AWAY_NS is gone, whatever the reason: the link is closed, all that is known of
him is dropped, and his place is asked again.  Silence is what we have heard while we were awake: a
ping that is due late, since we were stopped, only begins a new count.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pegaflow.actors.runtime.contract import (
    Dial,
    Effect,
    Hangup,
    Note,
    On,
    Part,
    Send,
    Sender,
    on,
)
from pegaflow.core.directory.plan import Place
from pegaflow.wire.control import LogLevel, Welcome
from pegaflow.wire.identities import NO_LEASE, Incarnation
from pegaflow.wire.peer import AWAY_NS, PING_NS, Meet, Met, Ping, Pong
from pegaflow.wire.values import PEER_PLACE, REMOTE_PEER, Address


@dataclass(slots=True, eq=False)
class RemoteHost:
    """A host that we may read from."""

    slot: int  # its bit in a mask of hosts; of its place
    address: Address  # of this life
    name: str  # for people
    where: str  # how it is reached
    heard_ns: int  # when it was, last


class HostListener(Protocol):
    """Who has to know of hosts."""

    def host_met(self, host: RemoteHost, now: int) -> list[Effect]:
        """There is one more."""

    def host_lost(self, host: RemoteHost, now: int) -> list[Effect]:
        """It is gone: what it said is not true any more, what it is asked is not answered."""

    def ping_of(self, host: RemoteHost, ping: Ping) -> Ping:
        """Say your part of this ping."""

    def host_ponged(self, host: RemoteHost, pong: Pong, now: int) -> list[Effect]:
        """It has answered one."""


class Places(Part):
    """Who is where.

    Args:
        abroad: our own name between hosts.
        name: of our host, for people.
        places: in the order of their slots.
    """

    def __init__(
        self, abroad: Address, name: str, places: Sequence[Place], counts: Counter[str]
    ) -> None:
        self._abroad, self._name, self._places = abroad, name, tuple(places)
        self._counts = counts
        self.hosts: dict[Address, RemoteHost] = {}  # those that live
        self._there: list[Address | None] = [None] * len(places)  # who is at each place; or we are
        self._listeners: tuple[HostListener, ...] = ()
        self._next_ns: int | None = None  # when to ping again; None: not Welcomed yet

    @property
    def slots(self) -> int:
        """As many as there are places."""
        return len(self._places)

    def lead(self, *listeners: HostListener) -> None:
        """Said once: who hears of hosts, in this order."""
        assert not self._listeners
        self._listeners = listeners

    def knows(self, sender: Address) -> bool:
        """No other host is heard before we know our own pool."""
        return sender.name != REMOTE_PEER or self._next_ns is not None

    def handlers(self) -> Iterable[On]:
        """Other hosts."""
        return (
            on(Meet, self._on_meet, REMOTE_PEER),
            on(Met, self._on_met, REMOTE_PEER),
            on(Pong, self._on_pong, REMOTE_PEER),
        )

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """Dial every place."""
        self._next_ns = now
        return [
            Dial(_door(slot), place.endpoint, place.key) for slot, place in enumerate(self._places)
        ]

    def wake_at(self) -> int | None:
        """The next ping."""
        return self._next_ns

    def wake(self, now: int) -> list[Effect]:
        """Ask who is there, ping those who are, and miss those who are not."""
        if self._next_ns is None or now < self._next_ns:
            return []
        late = now - self._next_ns > PING_NS
        self._next_ns = now + PING_NS
        effects: list[Effect] = []
        for host in list(self.hosts.values()):
            if late:
                host.heard_ns = now
            if now - host.heard_ns > AWAY_NS:
                effects += self._lose(host, now, "silent")
            else:
                effects += self.ping(host)
        for slot, there in enumerate(self._there):
            if there is None:
                effects.append(Send(_door(slot), Meet(slot)))
        return effects

    def ping(self, host: RemoteHost) -> list[Effect]:
        """Say to a host that we are here, and what we have of it."""
        ping = Ping(0, 0, NO_LEASE, ())
        for listener in self._listeners:
            ping = listener.ping_of(host, ping)
        return [Send(host.address, ping)]

    def heard(self, sender: Sender, now: int) -> RemoteHost | None:
        """Whoever has said something, if we know it."""
        host = self.hosts.get(sender.address)
        if host is not None:
            host.heard_ns = now
        return host

    def gauges(self) -> dict[str, int]:
        """How many hosts are there."""
        return {"peers_configured": len(self._places), "peers_up": len(self.hosts)}

    def remarks(self) -> tuple[str, ...]:
        """Nobody is there."""
        away = [
            place.endpoint
            for place, there in zip(self._places, self._there, strict=True)
            if there is None
        ]
        return (f"peers: no answer from {', '.join(away)}",) if away else ()

    def check(self) -> None:
        """Who is here is at one place."""
        there = [address for address in self._there if address not in (None, self._abroad)]
        assert sorted(there) == sorted(self.hosts) and len(set(there)) == len(there)
        assert all(self._there[host.slot] == host.address for host in self.hosts.values())

    def _on_meet(self, sender: Sender, msg: Meet, now: int) -> list[Effect]:
        return [Send(sender.address, Met(msg.place, self._name))]

    def _on_met(self, sender: Sender, msg: Met, now: int) -> list[Effect]:
        slot, life = msg.place, sender.address
        if slot >= len(self._places) or self._there[slot] is not None:
            return []
        if life == self._abroad:
            self._there[slot] = life  # the list of a fleet names us too
            return []
        if life in self.hosts:
            return []
        place = self._places[slot]
        host = RemoteHost(slot, life, msg.name, where=place.where, heard_ns=now)
        self.hosts[life], self._there[slot] = host, life
        self._counts["peers_met"] += 1
        effects: list[Effect] = [Dial(life, place.endpoint, place.key)]
        facts = (("peer", host.name), ("place", place.endpoint))
        effects.append(Note("peer_met", facts, repeats=place.endpoint))
        for listener in self._listeners:
            effects += listener.host_met(host, now)
        return effects

    def _on_pong(self, sender: Sender, msg: Pong, now: int) -> list[Effect]:
        host = self.heard(sender, now)
        if host is None:
            return []
        return [e for some in self._listeners for e in some.host_ponged(host, msg, now)]

    def _lose(self, host: RemoteHost, now: int, why: str) -> list[Effect]:
        del self.hosts[host.address]
        self._there[host.slot] = None
        self._counts["peers_lost"] += 1
        place = self._places[host.slot].endpoint
        facts = (("peer", host.name), ("place", place), ("why", why))
        effects: list[Effect] = [Note("peer_lost", facts, LogLevel.WARNING, repeats=place)]
        for listener in self._listeners:
            effects += listener.host_lost(host, now)
        return [*effects, Hangup(host.address)]


def _door(slot: int) -> Address:
    return Address(PEER_PLACE, Incarnation(slot + 1))
