"""Who belongs to the group: each child hears of those it needs, and of every proven death.

A child that comes up is told how the pool is cut and whom it may dial, and they are told of it; one
that keeps the books of the pool (index, allocator) also who may hold something of the pool, and who
has died.  A dead child is announced (Gone) to everyone who may hold something of it, then replaced:
a session by a fresh spare, an index or allocator by one that adopts the pool as it is.  Nobody else
is taken down.
"""

from collections import deque
from collections.abc import Iterable

from pegaflow.actors.roster import SPECS
from pegaflow.actors.runtime.contract import Effect, Note, On, Part, Send, Sender, on
from pegaflow.wire.control import DEAD_MAX, Drain, Gone, Hello, LogLevel, Members
from pegaflow.wire.jobs import Exited
from pegaflow.wire.values import SESSION, SUPERVISOR, Address

from .attach import Attach
from .children import Children, ChildState, neighbour, who
from .operator import Operator
from .pool import Pool
from .reporting import Totals
from .restarts import Restarts
from .shutdown import Shutdown
from .stage import Lifecycle, Stage
from .warmth import Warmth


class Membership(Part):
    """Who joins and who is gone."""

    def __init__(
        self,
        children: Children,
        lifecycle: Lifecycle,
        *,
        pool: Pool,
        restarts: Restarts,
        totals: Totals,
        operator: Operator,
        shutdown: Shutdown,
        attach: Attach,
        warmth: Warmth,
    ) -> None:
        self._children = children
        self._lifecycle = lifecycle
        self._pool = pool
        self._restarts = restarts
        self._totals = totals
        self._operator = operator
        self._shutdown = shutdown
        self._attach = attach
        self._warmth = warmth
        self._dead: deque[Address] = deque(maxlen=DEAD_MAX)  # holders, the newest last

    def handlers(self) -> Iterable[On]:
        """A child is up; a child is proven dead."""
        return (on(Hello, self._on_hello, *SPECS), on(Exited, self._on_exited, SUPERVISOR))

    def _on_hello(self, sender: Sender, msg: Hello, now: int) -> list[Effect]:
        child = self._children.get(sender.address)
        if child is None or child.endpoint:
            return []  # not ours, or it has said so before
        assert self._pool.known is not None
        name = child.address.name
        child.heard_ns, child.endpoint, child.port, child.pid = now, msg.endpoint, msg.port, msg.pid
        child.state = ChildState.SPARE if name == SESSION else ChildState.UP
        spec = SPECS[name]
        welcome = self._pool.known if spec.pool else self._pool.welcome()
        effects: list[Effect] = [Send(child.address, welcome), *self._operator.greet(child)]
        if spec.core:
            effects.append(Send(child.address, self._members()))
        for other in self._children.heard_of():
            if other is child:
                continue
            if other.address.name in spec.hears_of:
                effects.append(Send(child.address, neighbour(other)))
            if name in SPECS[other.address.name].hears_of:
                effects.append(Send(other.address, neighbour(child)))
        if self._lifecycle.stage is Stage.DRAINING:
            effects.append(Send(child.address, Drain()))
        effects += self._attach.go_on(now)  # an engine may wait for this one
        return effects + self._warmth.greet(child)

    def _on_exited(self, sender: Sender, msg: Exited, now: int) -> list[Effect]:
        child = self._children.remove(msg.address)
        if child is None:
            return []
        self._totals.bury(child)
        if not msg.code:
            child.state = ChildState.DRAINING  # it ended cleanly; its Bye may come later, or never
        if SPECS[child.address.name].holds:
            self._dead.append(child.address)
        effects: list[Effect] = [
            Send(other.address, Gone(msg.address)) for other in self._children.heard_of()
        ]
        if self._lifecycle.stopping:
            return effects + self._shutdown.go_on()
        clean = child.state is ChildState.DRAINING and not msg.code
        facts = (*who(child), ("how", msg.how))
        effects.append(Note("child_gone", facts, LogLevel.INFO if clean else LogLevel.WARNING))
        effects += self._warmth.ended(child, now)
        return effects + self._restarts.ended(child, now) + self._attach.go_on(now)

    def _members(self) -> Members:
        """Those who may hold something of the pool, and those that are dead."""
        holders = [c.address for c in self._children.heard_of() if SPECS[c.address.name].holds]
        return Members(tuple(holders), tuple(self._dead))
