"""The end of the flusher: what is queued is written for as long as it may, then the footers."""

from collections import Counter

from pegaflow.actors.runtime.contract import MS, Ask, Effect, NoAnswer, Note, Part
from pegaflow.actors.runtime.member import Member
from pegaflow.wire.control import LogLevel
from pegaflow.wire.flusher import WriteAll, Written
from pegaflow.wire.message import Message
from pegaflow.wire.units import Nanoseconds
from pegaflow.wire.values import INDEX, NOBODY

from .segments import SegmentLog
from .tier import TierState
from .write_back import WriteBack

FOOTERS_NS: Nanoseconds = 1000 * MS
"""Time for footers at the end: without them the next start reads the last segments."""


class Shutdown(Part):
    """From Drain to farewell."""

    def __init__(
        self,
        *,
        member: Member,
        tier: TierState,
        segments: SegmentLog,
        write_back: WriteBack,
        drain_ns: int,
        counts: Counter[str],
    ) -> None:
        self._member, self._tier, self._counts = member, tier, counts
        self._segments, self._write_back = segments, write_back
        self._drain_ns = drain_ns  # time for what is still to be written
        self._end_ns = 0  # when we end, whatever is open; 0: we do not drain

    def drain(self, now: int) -> list[Effect]:
        """Write what is queued, for as long as we may; then the footers."""
        self._end_ns = now + self._drain_ns + FOOTERS_NS
        effects = self._tier.changed() + self._write_back.hurry(now)
        index = self._member.peer(INDEX)
        if index == NOBODY:
            return effects + self._finish(now)

        def written(answer: Message, now: int) -> list[Effect]:
            left = answer.left if isinstance(answer, Written) else 0
            note: list[Effect] = []
            if left or isinstance(answer, NoAnswer):
                self._counts["ssd_drain_left"] += left
                note = [Note("ssd_drain_left", (("blocks", left),), LogLevel.WARNING)]
            return note + self._finish(now)

        return [*effects, Ask(index, WriteAll(), now + self._drain_ns, written)]

    def _finish(self, now: int) -> list[Effect]:
        """Nothing more is written: the footers, then farewell."""
        told = self._tier.end_writes()
        return told + self._segments.finish(now, lambda now: self._member.farewell())

    def wake_at(self) -> int | None:
        """The end of our time."""
        return self._end_ns or None

    def wake(self, now: int) -> list[Effect]:
        """End when it is time."""
        if not self._end_ns or now < self._end_ns:
            return []
        self._end_ns = 0
        return self._member.farewell()
