"""How blocks that are in place are published: the half of saves.py that talks to the index.

Of an order that waits for the engine's word nothing is sealed before Commit names it.  Until then
its pages are given up like those of any other block that is not whole.

While a Seal is unanswered it is asked again with the same content, of the next index if this one is
gone, and its pages are neither used nor returned: the index may have published them.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable

from pegaflow.actors.runtime.contract import MS, Ask, Effect, NoAnswer, Send
from pegaflow.core.series import labelled
from pegaflow.wire.index import Claiming, Seal, Sealed
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import LIST_MAX, NOBODY, Address

from .records import Order
from .stock import PageStock

INDEX_NS = 1000 * MS
"""Patience with the index: a hundred times its worst answer on a busy host."""

EARLY_MAX = 1 << 16
"""Commits remembered that have come before their Save: seconds of an engine's orders."""


class Sealing:
    """Open orders, and those of their blocks that the index is asked to publish."""

    def __init__(
        self, namespace: bytes, payload: int, world: int, stock: PageStock, counts: Counter[str]
    ) -> None:
        self.counts = counts  # the session's own
        self.namespace = namespace
        self.payload = payload  # bytes of a page that mean something
        self.world = world  # ranks, so pages per block
        self.stock = stock
        self.index = NOBODY  # the living one, or nobody
        self.orders: dict[Hashable, Order] = {}  # not ended, oldest first
        self.claimed_upto = 0  # newest claim number we have seen
        self._unsealed: list[tuple[Order, tuple[int, ...]]] = []  # Seals for the next index
        self._ended: OrderedDict[Hashable, None] = OrderedDict()  # names of ended orders
        self._early: OrderedDict[int, None] = OrderedDict()  # committed, and not begun yet

    def finish(self, order: Order) -> list[Effect]:
        """Hook: something of this order has ended."""
        return []

    def fed(self, now: int) -> list[Effect]:
        """Hook: pages have left our books."""
        return []

    def resume(self, index: Address, now: int) -> list[Effect]:
        """Another index: tell it what we claim, and let `seal_again` follow our statement."""
        self.index = index
        return [
            Send(index, Claiming(o.claim, self.namespace, tuple(o.keys[p] for p in o.new)))
            for o in self.orders.values()
            if o.claim and o.new
        ]

    def seal_again(self, now: int) -> list[Effect]:
        """The Seals that the last index did not answer."""
        again, self._unsealed = self._unsealed, []
        return [e for order, whole in again for e in self._ask_seal(order, whole, now)]

    def commit(self, names: Iterable[int], now: int) -> list[Effect]:
        """The engine stands by these orders."""
        effects: list[Effect] = []
        for name in names:
            order = self.orders.get(name)
            if order is None and name not in self._ended:
                self._early[name] = None
            elif order is not None and not order.committed:
                order.committed = True
                whole = [p for p, shards in order.shards.items() if len(shards) == self.world]
                effects += self.publish(order, whole, now)
        while len(self._early) > EARLY_MAX:
            self._early.popitem(last=False)
        return effects

    def publish(self, order: Order, whole: Iterable[int], now: int) -> list[Effect]:
        """These positions are whole: seal them, or let them wait for Commit."""
        if not order.committed:
            return []
        order.sealing.update(whole)
        order.whole += whole
        return self.seal(order, now)

    def seal(self, order: Order, now: int) -> list[Effect]:
        """Seal what is whole, unless a Seal is unanswered: then it goes with the next, so that a
        busy index is asked less often."""
        if order.asked or not order.whole:
            return []
        order.asked = True
        order.whole.sort()
        most = LIST_MAX // self.world
        whole, order.whole = tuple(order.whole[:most]), order.whole[most:]
        return self._ask_seal(order, whole, now)

    def _ask_seal(self, order: Order, whole: tuple[int, ...], now: int) -> list[Effect]:
        if self.index == NOBODY:
            self._unsealed.append((order, whole))
            return []
        pages = [order.shards[p][rank] for p in whole for rank in range(self.world)]
        ask = Seal(
            order.claim or 0,
            self.namespace,
            self.stock.page_size,
            self.payload,
            self.world,
            tuple(order.keys[p] for p in whole),
            tuple(map(order.parent_of, whole)),
            tuple(page for page, _ in pages),
            tuple(stamp for _, stamp in pages),
            tuple(order.sums.get(page, 0) for page, _ in pages) if order.sums else (),
        )

        def sealed(answer: Message, now: int) -> list[Effect]:
            if isinstance(answer, NoAnswer):
                return self._ask_seal(order, whole, now)
            order.asked = False
            positions = answer.positions if isinstance(answer, Sealed) else ()
            effects = self._sealed(order, whole, set(positions)) + self.seal(order, now)
            return effects + self.fed(now)

        return [Ask(self.index, ask, now + INDEX_NS, sealed)]

    def _sealed(self, order: Order, whole: tuple[int, ...], accepted: set[int]) -> list[Effect]:
        order.sealing.difference_update(whole)
        pages: list[int] = []
        for at, position in enumerate(whole):
            pages += [page for page, _ in order.shards.pop(position).values()]
            for share in order.shares.values():
                share.placed -= 1
                share.saved += at in accepted
        count_dropped(self.counts, Status.STALE_CLAIM, len(whole) - len(accepted))
        if len(accepted) < len(whole) and order.status is Status.OK:
            order.status = Status.STALE_CLAIM
        return self.stock.give_back(pages) + self.finish(order)


def count_dropped(counts: Counter[str], why: Status, blocks: int) -> None:
    """So many blocks of saves are not published, and why."""
    if blocks:
        counts[labelled("save_blocks_dropped", why.label)] += blocks
