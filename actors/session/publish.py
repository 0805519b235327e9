"""How blocks that are in place are published: Commit, and Seal to the index.

Of an order that waits for the engine's word nothing is sealed before Commit names it.  Until then
its pages are given up like those of any other block that is not whole.

While a Seal is unanswered it is asked again with the same content, of the next index if this one is
gone, and its pages are neither used nor returned: the index may have published them.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from pegaflow.actors.runtime.contract import MS, Ask, Effect, NoAnswer, On, Part, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.core.pool.columns import Places, places, said, said_keys
from pegaflow.wire.identities import NO_CLAIM
from pegaflow.wire.index import Seal, Sealed
from pegaflow.wire.message import Message
from pegaflow.wire.session import Commit
from pegaflow.wire.status import Status
from pegaflow.wire.units import Nanoseconds
from pegaflow.wire.values import CLIENT, INDEX, LIST_MAX, NOBODY

from .engine import Engine
from .orders import Orders, count_dropped
from .records import Order
from .reservation import Reservation
from .space import Space

INDEX_NS: Nanoseconds = 1000 * MS
"""Patience with the index: a hundred times its worst answer on a busy host."""


class Publishing(Part):
    """Blocks that the index is asked to publish."""

    def __init__(
        self,
        member: Member,
        engine: Engine,
        *,
        orders: Orders,
        reservation: Reservation,
        counts: Counter[str],
    ) -> None:
        self._member, self._engine = member, engine
        self._orders, self._reservation = orders, reservation
        self._counts = counts
        self._unsealed: list[tuple[Order, Places]] = []  # Seals for the next index

    def handlers(self) -> Iterable[On]:
        """The engine's word."""
        return (on(Commit, self._on_commit, CLIENT),)

    def seal_again(self, now: int) -> list[Effect]:
        """The Seals that the last index did not answer."""
        again, self._unsealed = self._unsealed, []
        return [e for order, whole in again for e in self._ask_seal(order, whole, now)]

    def publish(self, order: Order, whole: Places, now: int) -> list[Effect]:
        """These positions are whole: seal them, or let them wait for Commit.

        Args:
            whole: positions in the order's keys, in place at every rank.
        """
        if not order.committed:
            return []
        if len(whole):
            order.blocks.whole[whole] = True
            order.seals.unasked.append(whole)
        return self._seal(order, now)

    def _on_commit(self, sender: Sender, msg: Commit, now: int) -> list[Effect]:
        """The engine stands by these orders."""
        if self._engine.space is None or sender.address not in self._engine.clients:
            return []
        effects: list[Effect] = []
        for order in self._orders.committed(msg.orders):
            whole = np.flatnonzero(order.blocks.here.all(axis=1))
            effects += self.publish(order, whole, now)
        return effects

    def _seal(self, order: Order, now: int) -> list[Effect]:
        """Seal what is whole, unless a Seal is unanswered: then it goes with the next, so that a
        busy index is asked less often."""
        seals = order.seals
        if seals.asked or not seals.unasked:
            return []
        seals.asked = True
        most = LIST_MAX // order.world
        every = np.sort(np.concatenate(seals.unasked))
        whole, left = every[:most], every[most:]
        seals.unasked = [left] if len(left) else []
        return self._ask_seal(order, whole, now)

    def _ask_seal(self, order: Order, whole: Places, now: int) -> list[Effect]:
        index, space = self._member.peer(INDEX), self._engine.space
        assert space is not None
        if index == NOBODY:
            self._unsealed.append((order, whole))
            return []

        def sealed(answer: Message, now: int) -> list[Effect]:
            if isinstance(answer, NoAnswer):
                return self._ask_seal(order, whole, now)
            order.seals.asked = False
            positions = answer.positions if isinstance(answer, Sealed) else ()
            accepted = len(np.unique(places(positions, len(whole))))
            effects = self._sealed(order, whole, accepted) + self._seal(order, now)
            return effects + self._reservation.pass_on(now)

        return [Ask(index, _seal_of(space, order, whole), now + INDEX_NS, sealed)]

    def _sealed(self, order: Order, whole: Places, accepted: int) -> list[Effect]:
        blocks = order.blocks
        pages = blocks.pages[whole].ravel()
        blocks.here[whole] = False
        for save in order.saves.values():
            save.placed -= len(whole)
            save.saved += accepted
        count_dropped(self._counts, Status.STALE_CLAIM, len(whole) - accepted)
        if accepted < len(whole) and order.status is Status.OK:
            order.status = Status.STALE_CLAIM
        self._reservation.leave(pages)
        ended = self._orders.finish(order)
        return [*self._reservation.return_(), *ended] if ended else []


def _seal_of(space: Space, order: Order, whole: Places) -> Seal:
    blocks = order.blocks
    return Seal(
        claim=order.claim or NO_CLAIM,
        namespace=space.namespace,
        page_size=space.page_size,
        payload_bytes=space.payload_bytes,
        shards=space.world,
        keys=said_keys(order.rows[whole]),
        parents=said_keys(order.parents[whole]),
        pages=said(blocks.pages[whole]),
        stamps=said(blocks.stamps[whole]),
        checksums=said(blocks.sums[whole]) if blocks.sums is not None else (),
    )
