"""How blocks that are in place are published: Commit, and Seal to the index.

Of a chain that waits for the engine's word nothing is sealed before Commit names it.  Until then
its pages are given up like those of any other block that is not whole.

While a Seal is unanswered it is asked again with the same content, of the next index if this one is
gone, and its pages are neither used nor returned: the index may have published them.  Seals of one
order name different blocks, and each stands for itself: they may be answered in any order, or some
by the next index.

What is sealed under no claim goes together, of whichever orders it is.  Requests that decode save
one block each, in the same step: while the index is busy with some, the others gather, and a Seal
of sixteen blocks costs it little more than one of one.
"""

from collections import Counter
from collections.abc import Hashable, Iterable

import numpy as np

from pegaflow.actors.runtime.contract import MS, Ask, Effect, NoAnswer, On, Part, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.core.pool.columns import Mask, Places, places, said, said_keys
from pegaflow.wire.identities import NO_CLAIM
from pegaflow.wire.index import Seal, Sealed
from pegaflow.wire.message import Message
from pegaflow.wire.session import Commit
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count, Nanoseconds
from pegaflow.wire.values import CLIENT, INDEX, LIST_MAX, NOBODY, U64s

from .engine import Engine
from .orders import Orders, count_dropped
from .records import NO_PLACES, Order, Seals
from .reservation import Reservation
from .space import Space
from .touches import Touches

INDEX_NS: Nanoseconds = 1000 * MS
"""Patience with the index: a hundred times its worst answer on a busy host."""


SEALS_MAX: Count = 2
"""Seals of one claim under way: an index that has answered one has the next at hand, and what comes
meanwhile goes together, so that a busy index is asked less often."""


_Parts = list[tuple[Order, Places]]
"""What one Seal names: of each order these positions."""


class Publishing(Part):
    """Blocks that the index is asked to publish."""

    def __init__(
        self,
        member: Member,
        engine: Engine,
        *,
        orders: Orders,
        reservation: Reservation,
        touches: Touches,
        counts: Counter[str],
    ) -> None:
        self._member, self._engine = member, engine
        self._orders, self._reservation = orders, reservation
        self._touches, self._counts = touches, counts
        self._unsealed: list[_Parts] = []  # Seals for the next index
        self._gathered: dict[Hashable, Order] = {}  # with something to seal under no claim, by name
        self._unclaimed = Seals()  # under no claim, of all orders

    def handlers(self) -> Iterable[On]:
        """The engine's word."""
        return (on(Commit, self._on_commit, CLIENT),)

    def seal_again(self, now: int) -> list[Effect]:
        """The Seals that the last index did not answer."""
        again, self._unsealed = self._unsealed, []
        return [e for parts in again for e in self._ask_seal(parts, now)]

    def publish(self, order: Order, whole: Places, now: int) -> list[Effect]:
        """These positions are whole: seal them, or let them wait for Commit.

        Args:
            whole: positions in the order's keys, of which every shard is in place.
        """
        self._note(order, whole)
        return self._seal(order, now)

    def _note(self, order: Order, whole: Places) -> None:
        whole = order.standing(whole)
        if not len(whole):
            return
        order.blocks.whole[whole] = True
        order.unsealed.append(whole)
        if not order.claim:
            self._gathered[order.name] = order

    def _on_commit(self, sender: Sender, msg: Commit, now: int) -> list[Effect]:
        """The engine stands by these orders."""
        if self._engine.space is None or sender.address not in self._engine.clients:
            return []
        orders = self._orders.committed(msg.orders)
        for order in orders:
            open_ = np.flatnonzero(~order.blocks.whole)
            self._note(order, order.blocks.complete(open_))
        return [e for order in orders for e in self._seal(order, now)]

    def _seal(self, order: Order, now: int) -> list[Effect]:
        """Seal what is whole, unless too many Seals are unanswered: then it goes with the next."""
        seals, orders = self._unclaimed, self._gathered
        if order.claim:
            seals, orders = order.seals, {order.name: order}
        if seals.asked >= SEALS_MAX:
            return []
        parts = _take(orders)
        if not parts:
            return []
        seals.asked += 1
        return self._ask_seal(parts, now)

    def _ask_seal(self, parts: _Parts, now: int) -> list[Effect]:
        index, space = self._member.peer(INDEX), self._engine.space
        assert space is not None
        if index == NOBODY:
            self._unsealed.append(parts)
            return []

        def sealed(answer: Message, now: int) -> list[Effect]:
            if isinstance(answer, NoAnswer):
                return self._ask_seal(parts, now)
            effects = self._sealed(parts, answer) + self._seal(parts[0][0], now)
            return effects + self._reservation.pass_on(now)

        ask = Ask(index, _seal_of(space, parts), now + INDEX_NS, sealed)
        return [*self._touches.tell(), ask]

    def _sealed(self, parts: _Parts, answer: Message) -> list[Effect]:
        """The index has answered for what a Seal has named."""
        claimed = parts[0][0]
        (claimed.seals if claimed.claim else self._unclaimed).asked -= 1
        sealed = answer if isinstance(answer, Sealed) else Sealed(Status.UNKNOWN, ())
        count = sum(len(whole) for _, whole in parts)
        published = np.zeros(count, np.bool_)
        published[places(sealed.positions, count)] = True
        effects: list[Effect] = []
        at, known = 0, sealed.known
        for order, whole in parts:
            ours = published[at : at + len(whole)]
            others = min(len(whole) - int(np.count_nonzero(ours)), known)
            effects += self._over(order, whole, ours, others)
            at, known = at + len(whole), known - others
        return [*self._reservation.return_much(), *effects] if effects else []

    def _over(self, order: Order, whole: Places, ours: Mask, known: int) -> list[Effect]:
        """Of these positions some are published, and so many were before."""
        blocks, lost = order.blocks, len(whole) - int(np.count_nonzero(ours)) - known
        pages = blocks.of_shards(blocks.pages, whole).ravel()
        here = blocks.here[whole]
        blocks.here[whole] = False
        order.known += known
        for save in order.saves.values():
            mine = here[:, save.rank.number]
            save.leave(int(np.count_nonzero(mine)))
            save.saved += int(np.count_nonzero(mine & ours))
        count_dropped(self._counts, Status.STALE_CLAIM, lost)
        order.lose(whole[~ours][known:], Status.STALE_CLAIM)
        self._reservation.leave(pages)
        return self._orders.finish(order)


def _take(orders: dict[Hashable, Order]) -> _Parts:
    """What one Seal may name of these orders, whose keys are then of one length; orders of which
    nothing is left are out of the dict."""
    parts: _Parts = []
    room = LIST_MAX
    for name, order in list(orders.items()):
        width = parts[0][0].rows.shape[1] if parts else order.rows.shape[1]
        shards = order.shard_of[-1] + 1
        most = room // shards
        if not most or order.rows.shape[1] != width:
            break
        every = np.sort(np.concatenate([NO_PLACES, *order.unsealed]))
        whole, left = every[:most], every[most:]
        order.unsealed = [left] if len(left) else []
        if len(whole):
            parts.append((order, whole))
            room -= len(whole) * shards
        if not order.unsealed:
            del orders[name]
    return parts


def _seal_of(space: Space, parts: _Parts) -> Seal:
    blocks = [(order.blocks, whole) for order, whole in parts]
    sums = [of.of_shards(of.sums, whole) for of, whole in blocks if of.sums is not None]
    return Seal(
        claim=parts[0][0].claim or NO_CLAIM,
        namespace=space.namespace,
        page_size=space.page_size,
        payload_bytes=space.payload_bytes,
        shards=space.shards,
        keys=said_keys(np.concatenate([order.rows[whole] for order, whole in parts])),
        parents=said_keys(np.concatenate([order.parents[whole] for order, whole in parts])),
        pages=said(np.concatenate([of.of_shards(of.pages, whole) for of, whole in blocks])),
        stamps=said(np.concatenate([of.of_shards(of.stamps, whole) for of, whole in blocks])),
        checksums=said(np.concatenate(sums)) if sums else (),
        depths=_depths_of(parts),
    )


def _depths_of(parts: _Parts) -> U64s:
    """Positions in an order of one chain, if there are others before or between them: what these go
    on from may not be here yet."""
    (order, whole), *others = parts
    if others or order.said.starts or whole[-1] == len(whole) - 1:
        return ()
    return said(whole)
