"""What index and allocator have in common: they begin with what an earlier life has left.

Until such an actor knows the pool (`ready`), questions wait in the order in which they came; what
it needs to get there is heard at once.  The Roll of the supervisor says whose statements it has to
wait for; a holder that is proven dead is not waited for any more.  See wire/control.py.
"""

from collections import OrderedDict, deque

from pegaflow.actors.roster import HOLDERS
from pegaflow.actors.runtime.child import Child
from pegaflow.actors.runtime.contract import Effect, Sender
from pegaflow.wire.control import Gone, Hello, Roll
from pegaflow.wire.message import Message
from pegaflow.wire.values import SUPERVISOR, Address

LATER_MAX = 10_000
"""Messages that wait until the pool is known: a link's queue holds as many."""

DEAD_MAX = 1024
"""Dead holders remembered: hours of an engine that crashes again and again."""


class Adopting(Child):
    """Adopts a pool.  Subclasses say `begin` once they know it."""

    AT_ONCE: frozenset[type[Message]] = frozenset()
    """What is heard before that."""

    def __init__(self, address: Address, supervisor: Address, hello: Hello) -> None:
        super().__init__(address, supervisor, hello)
        self.ready = False  # the pool is known
        self.awaited: set[Address] | None = None  # holders still to state; None: no Roll yet
        self.dead: OrderedDict[Address, None] = OrderedDict()  # holders, the newest last
        self._later: deque[tuple[Sender, Message]] = deque()  # empty once `ready`
        self.on(Roll, self._on_roll, SUPERVISOR)

    def receive(self, sender: Sender, msg: Message, now: int) -> list[Effect]:
        """Effects of one message, unless it has to wait."""
        own = sender.address.name in (SUPERVISOR, self.address.name)
        if self.ready or own or type(msg) in self.AT_ONCE:
            return super().receive(sender, msg, now)
        return self.defer(sender, msg)

    def defer(self, sender: Sender, msg: Message) -> list[Effect]:
        """Keep a message until we are ready."""
        if len(self._later) < LATER_MAX:
            self._later.append((sender, msg))
        else:
            self.counts["messages_not_kept"] += 1
        return []

    def begin(self, now: int) -> list[Effect]:
        """The pool is known: answer whoever waits."""
        self.ready = True
        effects: list[Effect] = []
        while self._later:
            sender, msg = self._later.popleft()
            effects += super().receive(sender, msg, now)
        return effects

    def gathered(self) -> bool:
        """Whether every holder that may have something has stated or is gone."""
        return self.awaited is not None and not self.awaited

    def stated(self, now: int) -> list[Effect]:
        """Hook: somebody is not awaited any more, or the Roll has come."""
        return []

    def bury(self, dead: Address) -> None:
        """A holder is proven dead."""
        self.dead[dead] = None
        while len(self.dead) > DEAD_MAX:
            self.dead.popitem(last=False)

    def _on_roll(self, sender: Sender, msg: Roll, now: int) -> list[Effect]:
        for dead in msg.dead:
            self.bury(dead)
        self.awaited = {address for address in msg.living if address not in self.dead}
        return self.stated(now)

    def _on_gone(self, sender: Sender, msg: Gone, now: int) -> list[Effect]:
        kept = [entry for entry in self._later if entry[0].address != msg.address]
        self._later = deque(kept)
        if msg.address.name in HOLDERS:
            self.bury(msg.address)
        return super()._on_gone(sender, msg, now)
