"""The saves of a session: from Save to Saved, over all ranks of its engine.

    claimed ──→ in batches into the pool (batches.py) ──→ in place at every shard ──→ published
            ── Drop ──→ what has no Keep is given up, and nothing of it is published

An *order* is what the ranks save together, of one chain or several; a *save* is one rank's part in
it.  Of the first save
the leading blocks that we see in memory ourselves are known already; of the others the index is
asked which are new, and the other ranks join that claim; replicas each with a stripe of it.
Without an index those are refused.

The only rank of an engine, whose blocks we read ourselves, claims nothing: what is not in memory as
far as we see is read at once.  If somebody else has saved some of it meanwhile, the index says so
when it is asked to publish it.

Saved is said when the blocks are sealed, not when their bytes have left the engine's blocks: the
engine waits some microseconds longer for its blocks, and in return Saved means that the next lookup
hits.
"""

from collections import Counter
from collections.abc import Hashable, Iterable
from itertools import pairwise

import numpy as np

from pegaflow.actors.runtime.contract import (
    MS,
    Ask,
    Effect,
    NoAnswer,
    On,
    Part,
    Reply,
    Sender,
    on,
)
from pegaflow.actors.runtime.member import Member
from pegaflow.core.pool.columns import Places, column, places, said_keys
from pegaflow.wire.identities import NO_CLAIM
from pegaflow.wire.index import Claim, Claimed
from pegaflow.wire.message import Message
from pegaflow.wire.session import ORDER_NS, Drop, Keep, Save, Saved, Skip, Way
from pegaflow.wire.status import Status
from pegaflow.wire.units import Nanoseconds
from pegaflow.wire.values import CLIENT, INDEX, NOBODY

from .batches import Batches
from .engine import Engine
from .hazards import HazardBook
from .orders import Orders, count_dropped
from .publish import INDEX_NS
from .ranks import Rank
from .records import Order, RankSave
from .space import Space
from .touches import Touches

SAVE_NS: Nanoseconds = 120_000 * MS
"""An order of a single rank that is not saved within this time is given up: a client waits less."""


class Saves(Part):
    """What the clients say of their saves."""

    def __init__(
        self,
        member: Member,
        engine: Engine,
        *,
        hazards: HazardBook,
        touches: Touches,
        orders: Orders,
        batches: Batches,
        counts: Counter[str],
    ) -> None:
        self._member, self._engine = member, engine
        self._hazards, self._touches = hazards, touches
        self._orders, self._batches, self._counts = orders, batches, counts

    def handlers(self) -> Iterable[On]:
        """The words of clients that save."""
        return (
            on(Save, self._on_save, CLIENT),
            on(Keep, self._on_keep, CLIENT),
            on(Drop, self._on_drop, CLIENT),
            on(Skip, self._on_skip, CLIENT),
        )

    def beat(self, now: int) -> list[Effect]:
        """Give up the orders that not every rank has saved, or nobody committed, in time; go on
        with the others."""
        if self._engine.space is None:
            return []
        effects: list[Effect] = []
        for order in list(self._orders.open.values()):
            patience_ns = SAVE_NS if order.ranks == 1 and not order.waits else ORDER_NS
            if now - order.born_ns > patience_ns:
                effects += self._end(order, Status.EXPIRED)
        return effects + self._batches.feed(now)

    def busy(self) -> bool:
        """Whether pages are in use."""
        return bool(self._orders.open)

    def start_anew(self) -> None:
        """The engine has other blocks now."""
        self._orders.start_anew()
        self._batches.start_anew()

    def forget(self, rank: Rank) -> list[Effect]:
        """The rank's client goes: as if it had dropped all its saves, and what it has kept but no
        page was found for yet goes with its bounce file.  What is not in place at every other rank
        will never be published."""
        saves = self._orders.saves.items()
        mine = [save for (client, _), save in saves if client == rank.client]
        effects = [e for save in mine for e in self._cut(save)]
        for save in mine:
            waiting = self._batches.waiting_of(save)
            effects += self._kill(save.order, waiting) if len(waiting) else []
        for order in list(self._orders.open.values()):
            if order.ranks > 1:
                effects += self._end(order, Status.DROPPED)
        return effects

    # a rank saves

    def _on_save(self, sender: Sender, msg: Save, now: int) -> list[Effect]:
        engine, rank = self._engine, self._engine.rank(sender.address, msg.rank)
        space = engine.space
        if rank is None or space is None or not engine.complete:
            count_dropped(self._counts, Status.NOT_ATTACHED, len(msg.keys))
            return [Reply(sender, Saved(Status.NOT_ATTACHED, 0, 0))]
        if not _makes_sense(msg):
            return self._refuse(rank, sender, msg, Status.BAD_REQUEST)
        return self._begin(space, rank, sender, msg, now=now)

    def _begin(
        self, space: Space, rank: Rank, sender: Sender, msg: Save, *, now: int
    ) -> list[Effect]:
        """A rank's save: of a new order, or of one that is open."""
        key, ranks = (sender.address, msg.save), space.ranks
        chains = _chains(msg) if ranks > 1 or msg.commits or msg.starts else {}
        name: Hashable = msg.order if chains else key
        if self._orders.are_over(chains):
            return self._refuse(rank, sender, msg, Status.DROPPED)
        order = self._orders.open.get(name)
        taken = order is None and not self._orders.chains.keys().isdisjoint(chains)
        if not _may_join(order, rank, msg, chains) or key in self._orders.saves or taken:
            return self._refuse(rank, sender, msg, Status.BAD_REQUEST)
        if self._orders.is_full(len(msg.keys), order is None):
            return self._refuse(rank, sender, msg, Status.BUSY)
        joins = order is not None
        if order is None:
            waits = self._orders.uncommitted(chains)
            order = Order(
                name=name,
                said=msg,
                born_ns=now,
                shard_of=space.shard_of,
                chains=chains,
                waits=waits if msg.commits else set(),
            )
        save = RankSave(order, rank, sender, msg)
        self._orders.add(order, save)
        if joins:
            return self._start(order, [save], now) if order.claim is not None else []
        return self._claim(space, order, rank, now)

    def _claim(self, space: Space, order: Order, rank: Rank, now: int) -> list[Effect]:
        """Claim what is not in memory already, as far as we see it ourselves: mostly not even the
        first block is.  What is there counts as used, for the pages of the rest must not be its."""
        index = self._member.peer(INDEX)
        run = self._hazards.find(space, said_keys(order.rows[:1]))
        if run is not None and run.blocks:
            self._hazards.clear(run.rows)
            run = self._hazards.find(space, order.keys)
        if run is not None:
            self._hazards.clear(run.rows)
            order.known = run.blocks
        asked = len(order.keys) - order.known
        if not asked:
            return self._claimed(order, Claimed(NO_CLAIM, ()), now)
        if index == NOBODY:
            return self._claimed(order, NoAnswer(Status.PEER_GONE), now)

        used = self._touches.add(run.pages[:: space.shards]) if run is not None else []
        if run is not None and space.ranks == 1 and rank.saves is not Way.STAGED:
            order.claim, order.new = NO_CLAIM, np.arange(order.known, len(order.keys))
            return used + self._start(order, list(order.saves.values()), now)

        stripe = -(-asked // len(rank.replicas))

        def claimed(answer: Message, now: int) -> list[Effect]:
            self._batches.expect(rank, -stripe, now)
            return self._claimed(order, answer, now)

        keys = said_keys(order.rows[order.known :]) if order.known else order.keys
        ask = Ask(index, Claim(space.namespace, keys), now + INDEX_NS, claimed)
        return [*used, ask, *self._batches.expect(rank, stripe, now)]

    def _refuse(self, rank: Rank, sender: Sender, msg: Save, why: Status) -> list[Effect]:
        """Nothing of it is saved; of an order its first rank's word is counted."""
        count_dropped(self._counts, why, 0 if rank.number else len(msg.keys))
        return [Reply(sender, Saved(why, 0, 0))]

    def _claimed(self, order: Order, answer: Message, now: int) -> list[Effect]:
        if not isinstance(answer, Claimed):
            order.claim = NO_CLAIM
            order.new = np.arange(order.known, len(order.keys))
            why = answer.status if isinstance(answer, NoAnswer) else Status.UNKNOWN
            return self._end(order, why)
        order.claim = answer.number
        if order.claim:
            self._orders.claims.hold(order.claim, order)
        order.new = places(answer.positions, len(order.keys) - order.known) + order.known
        order.known = len(order.keys) - len(order.new)
        return self._start(order, list(order.saves.values()), now)

    def _start(self, order: Order, saves: list[RankSave], now: int) -> list[Effect]:
        """Begin saves, once it is known what is new; none may end before all have their part
        of it to do."""
        for save in saves:
            save.begin()
        gone = self._orders.over(order)
        effects = self._kill(order, gone) if len(gone) else []
        for save in saves:
            if save.cut:
                effects += self._kill(order, save.todo)
            else:
                effects += self._batches.begin(save, now)
        return effects + self._orders.finish(order)

    # what becomes of it

    def _on_keep(self, sender: Sender, msg: Keep, now: int) -> list[Effect]:
        save = self._orders.saves.get((sender.address, msg.save))
        return self._batches.keep(save, msg.batch, now) if save else []

    def _on_drop(self, sender: Sender, msg: Drop, now: int) -> list[Effect]:
        """The engine takes its blocks back: whatever has no Keep is not saved."""
        save = self._orders.saves.get((sender.address, msg.save))
        return self._cut(save) if save else []

    def _on_skip(self, sender: Sender, msg: Skip, now: int) -> list[Effect]:
        """A rank will not save this order, or the engine does not stand by it."""
        if self._engine.space is None or sender.address not in self._engine.clients:
            return []
        self._orders.remember((msg.order,))
        order = self._orders.chains.get(msg.order)
        return self._kill(order, order.of(msg.order)) if order else []

    def _cut(self, save: RankSave) -> list[Effect]:
        """Give up what has no Keep, by the client's word that it copies nothing of it any more."""
        save.cut = True
        if save.order.claim is None:
            return []
        open_ = [(n, b) for n, b in save.batches.items() if not b.kept]
        lost = np.concatenate([save.todo, *(batch.positions for _, batch in open_)])
        effects = self._kill(save.order, lost)
        for number, batch in open_:
            if batch.slots and number in save.batches:
                effects += self._batches.forget(save, number)
        return effects

    def _end(self, order: Order, why: Status) -> list[Effect]:
        """What of it is not published already never will be."""
        self._orders.remember(order.chains)
        return self._batches.kill(order, order.new, why)

    def _kill(self, order: Order, positions: Places) -> list[Effect]:
        return self._batches.kill(order, positions, Status.DROPPED)


def _makes_sense(msg: Save) -> bool:
    """Whether its lists fit each other."""
    width = len(msg.keys[0] if msg.keys else b"")
    edges = (0, *msg.starts, len(msg.keys))
    return (
        len(msg.parent) in (0, width)
        and len(msg.starts) == len(msg.parents) == len(msg.orders)
        and (not msg.starts or len(msg.parents[0]) == width)
        and (not msg.starts or all(a < b for a, b in pairwise(edges)))
    )


def _chains(msg: Save) -> dict[int, slice]:
    """Where each of its orders is in the keys."""
    edges = pairwise((0, *msg.starts, len(msg.keys)))
    return dict(zip((msg.order, *msg.orders), (slice(*edge) for edge in edges), strict=True))


def _may_join(order: Order | None, rank: Rank, msg: Save, chains: dict[int, slice]) -> bool:
    if not msg.keys or (chains and (0 in chains or len(chains) <= len(msg.starts))):
        return False
    if rank.saves is not Way.STAGED and not (
        len(msg.blocks) == len(msg.keys) and column(msg.blocks).max() < rank.layout.blocks
    ):
        return False
    if order is None:
        return True
    first = order.said
    same = (first.keys, first.parent, first.parents) == (msg.keys, msg.parent, msg.parents)
    return same and order.chains == chains and rank.number not in order.saves
