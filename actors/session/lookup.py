"""What the engine finds: Lookup, answered with a lease of the index.

While there is no index a lookup misses.
"""

from collections import Counter
from collections.abc import Iterable

from pegaflow.actors.runtime.contract import Ask, Effect, NoAnswer, On, Part, Reply, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.wire.identities import NO_LEASE
from pegaflow.wire.index import Find, Held
from pegaflow.wire.message import Message
from pegaflow.wire.session import Found, Lookup
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count
from pegaflow.wire.values import CLIENT, INDEX, NOBODY

from .engine import Engine
from .leases import Leases
from .publish import INDEX_NS

LOOKUPS_MAX: Count = 4096
"""Lookups that the index has not answered: an engine has one per waiting request at most."""


class Lookups(Part):
    """Questions of the engine that go on to the index."""

    def __init__(
        self, member: Member, engine: Engine, leases: Leases, counts: Counter[str]
    ) -> None:
        self._member, self._engine, self._leases = member, engine, leases
        self._counts = counts
        self._open = 0  # asked of the index, without an end yet

    def handlers(self) -> Iterable[On]:
        """The engine's question."""
        return (on(Lookup, self._on_lookup, CLIENT),)

    def _on_lookup(self, sender: Sender, msg: Lookup, now: int) -> list[Effect]:
        engine, index = self._engine, self._member.peer(INDEX)
        engine.meet(sender)
        space = engine.space
        if space is None or not engine.complete:
            return [Reply(sender, Found(Status.NOT_ATTACHED, NO_LEASE, 0))]
        if index == NOBODY:
            return [Reply(sender, Found(Status.PEER_GONE, NO_LEASE, 0))]
        if self._open >= LOOKUPS_MAX or sender.address not in engine.clients:
            return [Reply(sender, Found(Status.BUSY, NO_LEASE, 0))]
        self._open += 1

        def held(answer: Message, now: int) -> list[Effect]:
            self._open -= 1
            if not isinstance(answer, Held):
                status = answer.status if isinstance(answer, NoAnswer) else Status.UNKNOWN
                return [Reply(sender, Found(status, NO_LEASE, 0))]
            if not answer.number:
                return [Reply(sender, Found(Status.OK, NO_LEASE, 0))]
            self._leases.hold(answer, space.world, now)
            other = engine.space is not space or answer.shards != space.world
            if other or sender.address not in engine.clients:
                miss = Reply(sender, Found(Status.OK, NO_LEASE, 0))
                return [miss, *self._leases.end_lease(answer.number)]
            blocks = len(answer.pages) // answer.shards
            return [Reply(sender, Found(Status.OK, answer.number, blocks, answer.disk))]

        self._counts["blocks_asked"] += len(msg.keys)
        ask = Find(space.namespace, msg.keys)
        deadline = min(sender.deadline or now + INDEX_NS, now + INDEX_NS)
        return [Ask(index, ask, deadline, held)]
