"""What an operator asks of a running service: to log otherwise, to say how it is.

The shell turns signals into these questions (pegaflow/service/asked.py).  The supervisor passes on
what concerns its children, to those that come later too.
"""

from collections.abc import Mapping

from pegaflow.actors.runtime.contract import MS, Effect, Note, Send, Sender
from pegaflow.wire.control import LogTo
from pegaflow.wire.jobs import Relogging, Showing
from pegaflow.wire.values import Address

from .children import Kid, who


class Operator:
    """The supervisor's ear for its operator."""

    def __init__(self, kids: Mapping[Address, Kid]) -> None:
        self._kids = kids
        self._log: LogTo | None = None  # None: as at the start

    def greet(self, kid: Kid) -> list[Effect]:
        """A child that is new here has to log as the others do."""
        return [Send(kid.address, self._log)] if self._log is not None else []

    def relog(self, sender: Sender, msg: Relogging, now: int) -> list[Effect]:
        """Everybody logs so from now on."""
        file = msg.file or (self._log.file if self._log is not None else "")
        self._log = LogTo(msg.level, file)
        told = LogTo(msg.level, msg.file)
        return [Send(kid.address, told) for kid in self._kids.values() if kid.endpoint]

    def show(self, sender: Sender, msg: Showing, now: int) -> list[Effect]:
        """A line for each child, as of its last beat."""
        lines: list[Effect] = []
        for kid in self._kids.values():
            state = "killed" if kid.killed else kid.state
            times = (("age_ms", (now - kid.born) // MS), ("silent_ms", (now - kid.heard) // MS))
            numbers = tuple((c.name, c.value) for c in kid.counters + kid.gauges)
            lines.append(Note("child_state", (*who(kid), ("state", state), *times, *numbers)))
        return lines
