"""The open orders of a session, the saves of their ranks, and the claims they are saved under.

An order ends with its last save, and is remembered, so that a rank that comes too late does not
start it anew.  The engine's word that it stands by an order (Commit) may come before the order: it
is remembered too.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable

from pegaflow.actors.runtime.contract import Effect, Part, Reply
from pegaflow.actors.runtime.member import Member
from pegaflow.core.grants import Holdings
from pegaflow.core.series import labelled
from pegaflow.wire.identities import ClaimId
from pegaflow.wire.index import EndClaim
from pegaflow.wire.session import Saved
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count
from pegaflow.wire.values import INDEX, Address

from .ranks import Rank
from .records import Order, RankSave

SAVES_MAX: Count = 4096
"""Open saves of one session: an engine step has at most one per running request and rank."""

KEYS_MAX: Count = 1 << 20
"""Keys of all open saves: more blocks than an engine has, and some 100 MB of our memory."""

ENDED_MAX: Count = 4096
"""Orders remembered as ended: a rank is never so many steps behind."""

EARLY_MAX: Count = 1 << 16
"""Commits remembered that have come before their Save: seconds of an engine's orders."""


class Orders(Part):
    """Orders that have not ended, oldest first, and what is remembered of others."""

    def __init__(self, member: Member) -> None:
        self._member = member
        self.open: dict[Hashable, Order] = {}  # by name
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
                saved = Saved(order.status, save.saved, order.known)
                effects.append(Reply(save.sender, saved))
        awaited = len(order.saves) < order.world and order.name not in self._ended
        if not awaited and all(save.ended for save in order.saves.values()):
            del self.open[order.name]
            order.saves = {}  # they know their order: no cycle is left to a collector
            self.remember(order.name)
            if self.claims.end(order.claim):
                effects += self._member.tell(INDEX, EndClaim(order.claim))
        return effects

    def remember(self, name: Hashable) -> None:
        """An order with a number that is over, or will be soon."""
        if isinstance(name, int):
            self._ended[name] = None
            while len(self._ended) > ENDED_MAX:
                self._ended.popitem(last=False)

    def is_over(self, name: Hashable) -> bool:
        """Whether nothing new may begin under this name."""
        return name in self._ended

    def committed(self, names: Iterable[int]) -> list[Order]:
        """The open ones that the engine stands by from now on."""
        orders: list[Order] = []
        for name in names:
            order = self.open.get(name)
            if order is None and name not in self._ended:
                self._early[name] = None
            elif order is not None and not order.committed:
                order.committed = True
                orders.append(order)
        while len(self._early) > EARLY_MAX:
            self._early.popitem(last=False)
        return orders

    def was_committed(self, name: int) -> bool:
        """Whether the engine's word has come before the order of this name; it is forgotten."""
        early = name in self._early
        self._early.pop(name, None)
        return early


def count_dropped(counts: Counter[str], why: Status, blocks: int) -> None:
    """So many blocks of saves are not published, and why."""
    if blocks:
        counts[labelled("save_blocks_dropped", why.label)] += blocks
