"""Who is missing, and is started; which spare is one too many.

Every start is a new incarnation, bumped in the ledger's header before the spawn.  Whoever may still
live is not replaced: a successor is spawned only after its predecessor's proof of death.  Spares
that nobody wants any more drain one by one.
"""

from typing import Protocol

from pegaflow.actors.roster import ROSTER, SPECS
from pegaflow.actors.runtime.contract import Do, Effect, Part, Send, Stop
from pegaflow.wire.control import Drain
from pegaflow.wire.jobs import (
    Done,
    IncarnationDrawn,
    NextIncarnation,
    OpenPool,
    PoolOpened,
    Spawn,
    Spawned,
)
from pegaflow.wire.values import SESSION, Address

from .children import ChildRecord, Children, ChildState
from .opens import Opens
from .plan import Plan
from .pool import Pool
from .restarts import Restarts
from .shutdown import Shutdown
from .stage import Lifecycle, Stage


class SpawnListener(Protocol):
    """Who has to know when a spawn is over."""

    def go_on(self, now: int) -> list[Effect]:
        """A child was spawned, or could not be."""


class Staffing(Part):
    """Spawns children, one at a time."""

    def __init__(
        self,
        plan: Plan,
        children: Children,
        *,
        lifecycle: Lifecycle,
        restarts: Restarts,
        opens: Opens,
        pool: Pool,
        shutdown: Shutdown,
    ) -> None:
        self.listener: SpawnListener | None = None  # set once, by the actor's constructor
        self._plan = plan
        self._children = children
        self._lifecycle = lifecycle
        self._restarts = restarts
        self._opens = opens
        self._pool = pool
        self._shutdown = shutdown
        self._spawning = False  # an incarnation was asked for, and its child is not spawned yet

    def start(self, now: int) -> list[Effect]:
        """Open the pool, then start the children."""
        return [Do(OpenPool(), self._opened)]

    def beat(self, now: int) -> list[Effect]:
        """Start what is due."""
        return [] if self._lifecycle.stopping else self._thin() + self.staff(now)

    def staff(self, now: int) -> list[Effect]:
        """Start a child that is missing and may start; once it is spawned, the next one."""
        if self._pool.known is None or self._spawning or self._lifecycle.stopping:
            return []
        for spec in ROSTER:
            here = self._children.named(spec.name)
            if spec.name == SESSION:
                free = (ChildState.STARTING, ChildState.SPARE)
                here = [child for child in here if child.state in free]
            if len(here) < self._wanted(spec.name) and self._restarts.may_start(spec.name, now):
                return self._spawn(spec.name)
        if self._lifecycle.stage is Stage.STARTING and self._lifecycle.ready():
            self._lifecycle.stage = Stage.UP
        return []

    def _opened(self, result: PoolOpened | Done, now: int) -> list[Effect]:
        if isinstance(result, Done):
            return [Stop(result.note)]
        self._pool.opened(result)
        return self._shutdown.go_on() if self._lifecycle.stopping else self.staff(now)

    def _thin(self) -> list[Effect]:
        """Let a spare go that was started for an engine which got another one, or gave up."""
        spares = self._children.spares()
        if len(spares) <= self._wanted(SESSION):
            return []
        spares[-1].state = ChildState.DRAINING
        return [Send(spares[-1].address, Drain())]

    def _wanted(self, name: str) -> int:
        """Children of a kind; of sessions, those without an engine."""
        if name == SESSION:
            return self._plan.spares + self._opens.openers()
        return 1 if SPECS[name].wanted(self._plan) else 0

    def _spawn(self, name: str) -> list[Effect]:
        self._spawning = True

        def numbered(drawn: IncarnationDrawn, now: int) -> list[Effect]:
            child = ChildRecord(Address(name, drawn.incarnation), born_ns=now, heard_ns=now)
            self._children.add(child)
            return [Do(Spawn(child.address), lambda r, n: self._spawned(child, r, n))]

        return [Do(NextIncarnation(), numbered)]

    def _spawned(self, child: ChildRecord, result: Spawned | Done, now: int) -> list[Effect]:
        self._spawning = False
        if isinstance(result, Done):
            self._children.remove(child.address)
            return self._restarts.ended(child, now) + self._go_on(now)
        child.pid = result.pid
        if self._lifecycle.stage is Stage.KILLING:
            return self._children.kill(child)
        return self._go_on(now)

    def _go_on(self, now: int) -> list[Effect]:
        return self.listener.go_on(now) if self.listener is not None else []
