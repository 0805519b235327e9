"""The end of the service, in order.

Drain: sessions first, then the other holders (the flusher writes what is left), then the core, then
the rest.  The flusher's turn comes when all sessions have said Bye or are being killed, after which
they publish nothing: one that has much of the pool registered with a GPU's driver is dead only
seconds later (pegaflow/device/gpuusers.py), and the flusher's time would be over by then.  Whoever
is left after DRAIN_NS, and the time to write, is killed; so is everybody if we are told a second
time to stop, or to do it at once.

Sessions that give back what the driver has of the pool are not killed, which would end them no
sooner: they have the watchdog's patience.  The core waits for them, for their pages may be written
until they are dead, and has DRAIN_NS after them.
"""

from collections.abc import Iterable

from pegaflow.actors.roster import SPECS
from pegaflow.actors.runtime.contract import MS, Effect, On, Part, Send, Sender, Stop, on
from pegaflow.wire.control import Drain
from pegaflow.wire.jobs import Stopping
from pegaflow.wire.units import Nanoseconds
from pegaflow.wire.values import SESSION, SUPERVISOR

from .children import ChildRecord, Children, ChildState
from .manager import Manager
from .opens import Opens
from .stage import Lifecycle, Stage

DRAIN_NS: Nanoseconds = 2500 * MS
"""Time for a drain; with the kill after it the group is gone within five seconds."""


class Shutdown(Part):
    """Who is told to end, and when."""

    def __init__(
        self,
        children: Children,
        lifecycle: Lifecycle,
        *,
        opens: Opens,
        manager: Manager,
        flush_ns: int,
    ) -> None:
        self._children = children
        self._lifecycle = lifecycle
        self._opens = opens
        self._manager = manager
        self._flush_ns = flush_ns  # for what is still to be written
        self._until_ns = 0  # when whoever is left is killed
        self._core_until_ns = 0  # the same for those that wait for holders to be dead

    def handlers(self) -> Iterable[On]:
        """The shell has got a signal."""
        return (on(Stopping, self._on_stopping, SUPERVISOR),)

    def beat(self, now: int) -> list[Effect]:
        """Kill whoever is left after its time; whose turn it is may have come since."""
        if self._lifecycle.stage is Stage.KILLING:
            return self._kill_all()
        if self._lifecycle.stage is not Stage.DRAINING:
            return []
        if any(child.gives_back for child in self._children):
            self._core_until_ns = max(self._core_until_ns, now + DRAIN_NS)
        effects: list[Effect] = []
        for child in self._children:
            holds = SPECS[child.address.name].holds
            if now >= (self._until_ns if holds else self._core_until_ns) and not child.gives_back:
                effects += self._kill(child)
        return effects or self.go_on()

    def go_on(self) -> list[Effect]:
        """Drain whoever is next; without anybody left, stop."""
        children = list(self._children)
        if not children:
            return [Stop()]
        sessions = [c for c in self._children.named(SESSION) if not (c.said_bye or c.killed)]
        holders = [c for c in children if SPECS[c.address.name].holds]
        core = [c for c in children if SPECS[c.address.name].core]
        effects: list[Effect] = []
        for child in sessions or holders or core or children:
            told = child.state is ChildState.DRAINING or child.killed
            if child.endpoint and not told:
                child.state = ChildState.DRAINING
                effects.append(Send(child.address, Drain()))
        return effects

    def _on_stopping(self, sender: Sender, msg: Stopping, now: int) -> list[Effect]:
        effects: list[Effect] = []
        again = self._lifecycle.stopping
        if not again:
            self._lifecycle.stage = Stage.DRAINING
            self._until_ns = self._core_until_ns = now + DRAIN_NS + self._flush_ns
            effects = [*self._opens.close(), *self._manager.stopping()]
        if again or msg.at_once:
            self._lifecycle.stage = Stage.KILLING
            effects += self._kill_all()
        return effects + self.go_on()

    def _kill_all(self) -> list[Effect]:
        return [effect for child in self._children for effect in self._kill(child)]

    def _kill(self, child: ChildRecord) -> list[Effect]:
        return self._children.kill(child) if child.pid else []
