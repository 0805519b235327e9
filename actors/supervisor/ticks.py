"""The supervisor's clock: every TICK_NS it is looked after everything that time decides."""

from collections.abc import Sequence

from pegaflow.actors.runtime.contract import MS, Effect, Part
from pegaflow.wire.units import Nanoseconds

TICK_NS: Nanoseconds = 250 * MS
"""How often silence and back-off are looked at."""


class Ticks(Part):
    """Has each part of its crew do what is due, in this order."""

    def __init__(self, crew: Sequence[Part]) -> None:
        self._crew = crew
        self._next_ns = 0

    def start(self, now: int) -> list[Effect]:
        """The first tick is one TICK_NS from now."""
        self._next_ns = now + TICK_NS
        return []

    def wake_at(self) -> int | None:
        """The next tick."""
        return self._next_ns

    def wake(self, now: int) -> list[Effect]:
        """A tick, if it is time."""
        if now < self._next_ns:
            return []
        self._next_ns = now + TICK_NS
        return [effect for part in self._crew for effect in part.beat(now)]
