"""The open orders of a session, the saves of their ranks, and the claims they are saved under.

An order ends with its last save, and is remembered, so that a rank that comes too late does not
start it anew.  The engine's word that it stands by an order (Commit) may come before the order: it
is remembered too.  All of that is said by number: each chain of an order has one.
"""

from collections import Counter, OrderedDict
from collections.abc import Collection, Hashable, Iterable

import numpy as np

from pegaflow.actors.runtime.contract import Effect, Part, Reply
from pegaflow.actors.runtime.member import Member
from pegaflow.core.grants import Holdings
from pegaflow.core.pool.columns import Places, said
from pegaflow.core.series import labelled
from pegaflow.wire.identities import ClaimId
from pegaflow.wire.index import EndClaim
from pegaflow.wire.session import Saved
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count
from pegaflow.wire.values import INDEX, Address, U64s

from .ranks import Rank
from .records import NO_PLACES, Order, RankSave

SAVES_MAX: Count = 4096
"""Open saves of one session: an engine step has at most one per running request and rank."""

KEYS_MAX: Count = 1 << 20
"""Keys of all open saves: more blocks than an engine has, and some 100 MB of our memory."""

ENDED_MAX: Count = 1 << 16
"""Orders remembered as ended: a step has one per request that fills a block, up to some thousand,
and no rank is sixteen steps behind."""

EARLY_MAX: Count = 1 << 16
"""Commits remembered that have come before their Save: seconds of an engine's orders."""


class Orders(Part):
    """Orders that have not ended, oldest first, and what is remembered of others."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self.open: dict[Hashable, Order] = {}  # by name
        self.chains: dict[int, Order] = {}  # the same by each of their numbers
        self.saves: dict[tuple[Address, int], RankSave] = {}  # open, by client and its number
        self.claims: Holdings[ClaimId, Order] = Holdings(ClaimId)  # by the index's number
        self._keys = 0  # of all open saves together
        self._ended: OrderedDict[Hashable, None] = OrderedDict()  # names of ended orders
        self._early: OrderedDict[int, None] = OrderedDict()  # committed, and not begun yet

    def gauges(self) -> dict[str, int]:
        """How much is being saved."""
        return {"session_saves_open": len(self.saves)}

    def check(self) -> None:
        """Keys add up; what is claimed is open."""
        assert self._keys == sum(len(save.msg.keys) for save in self.saves.values())
        claimed = sorted(order.claim for order in self.open.values() if order.claim)
        assert claimed == sorted(self.claims.numbers()), "a claim of no open order"
        named = {number: order for order in self.open.values() for number in order.chains}
        assert named == self.chains

    def start_anew(self) -> None:
        """The engine has other blocks now: its orders have nothing to do with those before."""
        assert not self.open and not self.saves
        self._ended.clear()
        self._early.clear()

    def used_slots(self, rank: Rank) -> list[int]:
        """Slots of a rank's bounce file that are in use."""
        mine = [s for s in self.saves.values() if s.rank is rank]
        return [slot for s in mine for b in s.batches.values() for slot in b.slots]

    def is_full(self, keys: int, opens: bool) -> bool:
        """Whether a save of so many keys, which may open an order, is one too many."""
        full = len(self.saves) >= SAVES_MAX or self._keys + keys > KEYS_MAX
        return full or (opens and len(self.open) >= SAVES_MAX)

    def add(self, order: Order, save: RankSave) -> None:
        """A rank's part in an order, which may be new."""
        self.open[order.name] = order
        self.chains.update(dict.fromkeys(order.chains, order))
        self.saves[save.sender.address, save.msg.save] = save
        order.saves[save.rank.number] = save
        self._keys += len(save.msg.keys)

    def finish(self, order: Order) -> list[Effect]:
        """Answer every save of which nothing is open; end the order with its last one."""
        if order.claim is None or self.open.get(order.name) is not order:
            return []
        effects: list[Effect] = []
        for save in order.saves.values():
            if not (save.ended or len(save.todo) or save.batches or save.placed):
                save.ended = True
                self._keys -= len(order.keys)
                del self.saves[save.sender.address, save.msg.save]
                saved = Saved(order.status, save.saved, save.known, _lost(save))
                effects.append(Reply(save.sender, saved))
        awaited = len(order.saves) < order.ranks and not self.are_over(order.chains)
        if not awaited and all(save.ended for save in order.saves.values()):
            del self.open[order.name]
            order.saves = {}  # they know their order: no cycle is left to a collector
            for number in order.chains:
                del self.chains[number]
            self.remember(order.chains)
            if self.claims.end(order.claim):
                effects += self._member.tell(INDEX, EndClaim(order.claim))
        return effects

    def remember(self, numbers: Iterable[int]) -> None:
        """Numbers that are over, or will be soon."""
        self._ended.update(dict.fromkeys(numbers))
        while len(self._ended) > ENDED_MAX:
            self._ended.popitem(last=False)

    def are_over(self, numbers: Collection[int]) -> bool:
        """Whether there are such, and nothing new may begin under any of them."""
        return bool(numbers) and self._ended.keys() >= set(numbers)

    def over(self, order: Order) -> Places:
        """What of an order is to be given up: who knows that came before it."""
        gone = [order.of(number) for number in order.chains if number in self._ended]
        return np.concatenate([NO_PLACES, *gone])

    def committed(self, numbers: Iterable[int]) -> list[Order]:
        """The open ones of which the engine stands by more from now on."""
        orders: dict[Hashable, Order] = {}
        for number in numbers:
            order = self.chains.get(number)
            if order is None and number not in self._ended:
                self._early[number] = None
            elif order is not None and number in order.waits:
                order.waits.remove(number)
                orders[order.name] = order
        while len(self._early) > EARLY_MAX:
            self._early.popitem(last=False)
        return list(orders.values())

    def uncommitted(self, numbers: Iterable[int]) -> set[int]:
        """Those of them that the engine's word has not come before; it is forgotten."""
        waits = {number for number in numbers if number not in self._early}
        for number in numbers:
            self._early.pop(number, None)
        return waits


def _lost(save: RankSave) -> U64s:
    """What Saved names of several chains."""
    if len(save.order.chains) < 2 or not save.order.lost:
        return ()
    return said(np.sort(save.lost))


def count_dropped(counts: Counter[str], why: Status, blocks: int) -> None:
    """So many blocks of saves are not published, and why."""
    if blocks:
        counts[labelled("save_blocks_dropped", why.label)] += blocks
