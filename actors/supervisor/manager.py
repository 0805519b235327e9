"""What a service manager is told: that we are ready, how we are, and, if it wants that, that we
live.

READY is said once an engine could have a session, and then what has changed since.  Nobody else's
state is in the sign of life: a child that hangs is our affair, and what the manager does about us
ends them all.
"""

from pegaflow.actors.runtime.contract import Do, Effect, Part
from pegaflow.wire.jobs import Announce
from pegaflow.wire.values import SESSION

from .children import Children, ChildState
from .plan import Plan
from .restarts import Restarts
from .stage import Lifecycle, Stage
from .ticks import TICK_NS


class Manager(Part):
    """Tells a service manager how the service is."""

    def __init__(
        self, plan: Plan, children: Children, restarts: Restarts, lifecycle: Lifecycle
    ) -> None:
        self._plan = plan
        self._children = children
        self._restarts = restarts
        self._lifecycle = lifecycle
        self._next_ping_ns = 0  # when to tell it that we live, if it wants to know
        self._ready_said = False
        self._status_said = ""  # the last one

    def start(self, now: int) -> list[Effect]:
        """The first sign of life is due a little later."""
        self._next_ping_ns = now + TICK_NS
        return []

    def wake_at(self) -> int | None:
        """The next sign of life."""
        return self._next_ping_ns if self._plan.ping_ns else None

    def wake(self, now: int) -> list[Effect]:
        """Say that we live, if it is time."""
        if not self._plan.ping_ns or now < self._next_ping_ns:
            return []
        self._next_ping_ns = now + self._plan.ping_ns
        return [_announce("WATCHDOG=1")]

    def beat(self, now: int) -> list[Effect]:
        """Say what has changed."""
        if self._lifecycle.stopping:
            return []
        states = [child.state for child in self._children.named(SESSION)]
        spares, engines = states.count(ChildState.SPARE), states.count(ChildState.SERVING)
        broken = self._restarts.broken(now)
        status = f"{self._lifecycle.shown()}: {engines} engines, {spares} spare sessions"
        status += f"; broken: {', '.join(broken)}" if broken else ""
        lines = [f"STATUS={status}"]
        up = self._lifecycle.stage is Stage.UP
        if not self._ready_said and up and spares >= min(self._plan.spares, 1):
            self._ready_said = True
            lines.insert(0, "READY=1")
        elif status == self._status_said:
            return []
        self._status_said = status
        return [_announce("\n".join(lines))]

    def stopping(self) -> list[Effect]:
        """Say that the service is on its way to its end."""
        return [_announce("STOPPING=1\nSTATUS=draining")]


def _announce(lines: str) -> Effect:
    return Do(Announce(lines), lambda done, now: [])
