"""Engines that wait for a session, oldest first."""

from collections import deque
from dataclasses import dataclass

from pegaflow.actors.runtime.contract import Effect, Part, Reply, Sender
from pegaflow.wire.control import OpenSession, Refused
from pegaflow.wire.status import Status


@dataclass(slots=True)
class Open:
    """One of their questions."""

    sender: Sender
    msg: OpenSession


class Opens(Part):
    """Engines that wait for a session."""

    def __init__(self) -> None:
        self._queue: deque[Open] = deque()

    def add(self, open_: Open) -> None:
        """It has to wait, perhaps once more."""
        self._queue.append(open_)

    def take(self) -> list[Open]:
        """All of them, once: who cannot be answered now is added again."""
        waiting = list(self._queue)
        self._queue.clear()
        return waiting

    def openers(self) -> int:
        """Those that want a spare; one that asked again waits once."""
        return len({open_.msg.engine for open_ in self._queue if open_.msg.opens})

    def engines(self) -> set[str]:
        """The ids of all that wait."""
        return {open_.msg.engine for open_ in self._queue}

    def gauges(self) -> dict[str, int]:
        """How many engines wait for a session."""
        return {"opens_waiting": self.openers()}

    def expire(self, now: int) -> None:
        """Forget who has waited beyond its deadline: it does not listen any more."""
        for open_ in [o for o in self._queue if o.sender.deadline and o.sender.deadline <= now]:
            self._queue.remove(open_)

    def close(self) -> list[Effect]:
        """Refuse everyone who waits."""
        return [Reply(open_.sender, stopping()) for open_ in self.take()]

    def __len__(self) -> int:
        return len(self._queue)


def stopping() -> Refused:
    """What an engine hears at the end of the service."""
    return Refused(Status.DRAINING, "the service is stopping")
