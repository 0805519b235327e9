"""What an operator asks of a running service: to log otherwise, to say how it is.

The shell turns signals into these questions (pegaflow/service/asked.py).  The supervisor passes on
what concerns its children, to those that come later too.
"""

from collections import Counter
from collections.abc import Iterable

from pegaflow.actors.runtime.contract import MS, Effect, Note, On, Part, Send, Sender, on
from pegaflow.wire.control import LogTo
from pegaflow.wire.jobs import Relogging, Showing
from pegaflow.wire.values import SUPERVISOR

from .children import ChildRecord, Children, who
from .pool import Pool
from .reporting import Reporting
from .stage import Lifecycle


class Operator(Part):
    """The supervisor's ear for its operator."""

    def __init__(
        self,
        children: Children,
        lifecycle: Lifecycle,
        *,
        pool: Pool,
        reporting: Reporting,
        counts: Counter[str],
    ) -> None:
        self._children = children
        self._lifecycle = lifecycle
        self._pool = pool
        self._reporting = reporting
        self._counts = counts
        self._log: LogTo | None = None  # None: as at the start

    def handlers(self) -> Iterable[On]:
        """What the shell makes of signals."""
        return (
            on(Relogging, self._on_relogging, SUPERVISOR),
            on(Showing, self._on_showing, SUPERVISOR),
        )

    def greet(self, child: ChildRecord) -> list[Effect]:
        """A child that is new here has to log as the others do."""
        return [Send(child.address, self._log)] if self._log is not None else []

    def _on_relogging(self, sender: Sender, msg: Relogging, now: int) -> list[Effect]:
        """Everybody logs so from now on."""
        file = msg.file or (self._log.file if self._log is not None else "")
        self._log = LogTo(msg.level, file)
        told = LogTo(msg.level, msg.file)
        return [Send(child.address, told) for child in self._children.heard_of()]

    def _on_showing(self, sender: Sender, msg: Showing, now: int) -> list[Effect]:
        """A line for the service, and one for each child as of its last beat."""
        pool = self._pool.known
        where = (("pool", pool.pool_path), ("bytes", pool.pool_bytes)) if pool else ()
        own = {**self._counts, **self._reporting.own_gauges()}
        whole = (("state", self._lifecycle.shown()), ("children", len(self._children)))
        lines: list[Effect] = [Note("service_state", (*whole, *where, *own.items()))]
        for child in self._children:
            since = (("age_ms", child.born_ns), ("silent_ms", child.heard_ns))
            times = tuple((name, (now - at) // MS) for name, at in since)
            numbers = tuple((c.name, c.value) for c in child.beat.counters + child.beat.gauges)
            facts = (*who(child), ("state", child.shown()), *times, *numbers)
            lines.append(Note("child_state", facts))
        return lines
