"""What the engine finds: Lookup, answered with a lease.

Blocks in memory we find ourselves and keep by hazards (hazards.py).  That is the answer if it is
the whole run, or if no tier has anything with which the run could go on.  Else the index is asked,
which fetches from its tiers, and its lease is the answer; and so it is where hazards cannot be had.

While there is no index the answer is what is in memory, and without hazards a miss.

Each lookup is counted once, by whoever has found its blocks: by us, or by the index.
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
from pegaflow.wire.values import CLIENT, INDEX, NOBODY, Keys

from .engine import Engine
from .hazards import HazardBook
from .leases import Leases
from .pins import Pins
from .publish import INDEX_NS
from .space import Space

LOOKUPS_MAX: Count = 4096
"""Lookups that the index has not answered: an engine has one per waiting request at most."""


class Lookups(Part):
    """Questions of the engine."""

    def __init__(
        self,
        member: Member,
        engine: Engine,
        *,
        hazards: HazardBook,
        pins: Pins,
        leases: Leases,
        counts: Counter[str],
    ) -> None:
        self._member, self._engine, self._leases = member, engine, leases
        self._hazards, self._pins = hazards, pins
        self._counts = counts
        self._open = 0  # asked of the index, without an end yet

    def handlers(self) -> Iterable[On]:
        """The engine's question."""
        return (on(Lookup, self._on_lookup, CLIENT),)

    def _on_lookup(self, sender: Sender, msg: Lookup, now: int) -> list[Effect]:
        engine = self._engine
        engine.meet(sender)
        space = engine.space
        if space is None or not engine.complete:
            return [Reply(sender, Found(Status.NOT_ATTACHED, NO_LEASE, 0))]
        if sender.address not in engine.clients:
            return [Reply(sender, Found(Status.BUSY, NO_LEASE, 0))]
        found = self._find(sender, space, msg.keys, now)
        return found if found is not None else self._ask(sender, space, msg.keys, now)

    def _find(self, sender: Sender, space: Space, keys: Keys, now: int) -> list[Effect] | None:
        """Answer with what is in memory; None: that cannot be the answer."""
        run = self._hazards.find(space, keys)
        if run is None:
            return None
        lives = self._member.peer(INDEX) != NOBODY
        blocks = run.blocks
        goes_on = blocks < len(keys) and (run.cut or run.goes_on)
        if (lives and goes_on) or not (lives or blocks):
            self._hazards.clear(run.rows)
            return None
        effects: list[Effect] = []
        more = blocks - self._pins.afford(run, space)
        if more:
            blocks -= more
            self._hazards.clear(run.rows[blocks:])
            effects = self._pins.want_more(more)
        self._counts["lookups_local"] += 1
        self._counts["blocks_asked_local"] += len(keys)
        self._counts["blocks_hit_local"] += blocks
        number = self._leases.keep(run, blocks, space, now) if blocks else NO_LEASE
        return [*effects, Reply(sender, Found(Status.OK, number, blocks))]

    def _ask(self, sender: Sender, space: Space, keys: Keys, now: int) -> list[Effect]:
        """Answer with what the index leases to us."""
        engine, index = self._engine, self._member.peer(INDEX)
        if index == NOBODY:
            return [Reply(sender, Found(Status.PEER_GONE, NO_LEASE, 0))]
        if self._open >= LOOKUPS_MAX:
            return [Reply(sender, Found(Status.BUSY, NO_LEASE, 0))]
        self._open += 1

        def held(answer: Message, now: int) -> list[Effect]:
            self._open -= 1
            ours = engine.space is space and sender.address in engine.clients
            if not isinstance(answer, Held):
                status = answer.status if isinstance(answer, NoAnswer) else Status.UNKNOWN
                alone = status is Status.PEER_GONE and ours and engine.complete
                found = self._find(sender, space, keys, now) if alone else None
                return found if found is not None else [Reply(sender, Found(status, NO_LEASE, 0))]
            if not answer.number:
                return [Reply(sender, Found(Status.OK, NO_LEASE, 0))]
            self._leases.hold(answer, space, now)
            if not ours or answer.shards != space.shards:
                miss = Reply(sender, Found(Status.OK, NO_LEASE, 0))
                return [miss, *self._leases.end_lease(answer.number)]
            blocks = len(answer.pages) // answer.shards
            disk, peers = answer.disk, answer.peers
            return [Reply(sender, Found(Status.OK, answer.number, blocks, disk, peers=peers))]

        self._counts["lookups_by_message"] += 1
        self._counts["blocks_asked"] += len(keys)
        deadline = min(sender.deadline or now + INDEX_NS, now + INDEX_NS)
        return [Ask(index, Find(space.namespace, keys), deadline, held)]
