"""What index and allocator have in common: they begin with what an earlier life has left.

Until such an actor knows the pool (`ready`), questions wait in the order in which they came; what
it needs to get there is heard at once.  The supervisor's message Members tells whose statements it
has to wait for; a holder that is proven dead is not waited for any more.  See wire/control.py.

The part does not know how its actor gets to know the pool.  The actor asks it of every message
whether that has to wait, and hands on the others; whichever part has learned the pool says `begin`.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from typing import Protocol

from pegaflow.actors.roster import HOLDERS
from pegaflow.actors.runtime.contract import Effect, On, Part, Redeliver, Sender, on
from pegaflow.wire.control import DEAD_MAX, Members
from pegaflow.wire.links import QUEUE_MAX
from pegaflow.wire.message import Message
from pegaflow.wire.units import Count
from pegaflow.wire.values import SUPERVISOR, Address

LATER_MAX: Count = QUEUE_MAX
"""Messages that wait until the pool is known: a link's queue holds as many."""


class MembershipListener(Protocol):
    """Who has to know when the supervisor has said who lives."""

    def membership(self, now: int) -> list[Effect]:
        """`Recovery.awaited` is known."""


class Recovery(Part):
    """Who is still to state what it holds, who is dead, and which messages wait.

    Args:
        address: of the actor; what it hears in its own name never waits.
        counts: of the actor.
        at_once: what is heard before the pool is known.
    """

    def __init__(
        self,
        address: Address,
        counts: Counter[str],
        at_once: frozenset[type[Message]] = frozenset(),
    ) -> None:
        self.ready = False  # the pool is known
        self.awaited: set[Address] | None = None  # holders still to state; None: no membership yet
        self.stated: set[Address] = set()  # living holders that have, in this life
        self.dead: OrderedDict[Address, None] = OrderedDict()  # holders, the newest last
        self.listener: MembershipListener | None = None  # set once, by the actor's constructor
        self._never_wait = (SUPERVISOR, address.name)
        self._counts = counts
        self._at_once = at_once
        self._deferred: deque[tuple[Sender, Message]] = deque()  # empty once `ready`

    def handlers(self) -> Iterable[On]:
        """The membership."""
        return (on(Members, self._on_members, SUPERVISOR),)

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """What it has asked needs no answer, and it has nothing to state any more."""
        self.stated.discard(dead)
        kept = [entry for entry in self._deferred if entry[0].address != dead]
        self._deferred = deque(kept)
        if dead.name in HOLDERS:
            self._bury(dead)
        return []

    def must_wait(self, sender: Sender, msg: Message) -> bool:
        """Whether this message has to wait until the pool is known."""
        own = sender.address.name in self._never_wait
        return not (self.ready or own or type(msg) in self._at_once)

    def defer(self, sender: Sender, msg: Message) -> list[Effect]:
        """Keep a message until we are ready, or count it as lost if too many wait; then whoever
        asked hears of its deadline.
        """
        if len(self._deferred) < LATER_MAX:
            self._deferred.append((sender, msg))
        else:
            self._counts["messages_not_kept"] += 1
        return []

    def begin(self) -> list[Effect]:
        """The pool is known: whoever waits is heard."""
        self.ready = True
        deferred, self._deferred = self._deferred, deque()
        return [Redeliver(sender, msg) for sender, msg in deferred]

    def gathered(self) -> bool:
        """Whether every holder that may have something has stated or is gone."""
        return self.awaited is not None and not self.awaited

    def may_grant(self, holder: Address) -> bool:
        """Whether this holder may be granted anything: not before it has stated what it holds by
        the numbers of an earlier life, or a number would mean two things."""
        awaited = self.awaited is None or holder in self.awaited
        return holder in self.stated or not awaited

    def await_no_longer(self, *holders: Address) -> None:
        """These have stated, or are proven dead."""
        if self.awaited is not None:
            self.awaited.difference_update(holders)

    def check(self) -> None:
        """Nothing waits for what is known."""
        assert not (self.ready and self._deferred)

    def _bury(self, dead: Address) -> None:
        self.dead[dead] = None
        while len(self.dead) > DEAD_MAX:
            self.dead.popitem(last=False)

    def _on_members(self, sender: Sender, msg: Members, now: int) -> list[Effect]:
        for dead in msg.dead:
            self._bury(dead)
        self.awaited = {address for address in msg.living if address not in self.dead}
        return self.listener.membership(now) if self.listener is not None else []
