"""The records of machine.py: operations and questions without an end yet."""

from collections.abc import Callable
from dataclasses import dataclass

from pegaflow.wire.message import Message
from pegaflow.wire.status import Status

from .effects import Effect
from .results import Done, LoadDone, LookupDone, SaveDone


@dataclass(slots=True)
class Operation:
    """What the engine has started and has not heard the end of."""

    kind: str  # lookup, load, save
    deadline: int
    blocks: tuple[int, ...] = ()  # of the engine
    question: int = 0  # newest one asked for it; forgotten with it
    copy: int = 0  # staged load: the session's number for it
    direct: bool = False  # load: the session may write into our blocks
    valid: Callable[[], bool] = lambda: True  # save: the engine's blocks still hold these keys

    def failed(self, ticket: int, status: Status) -> Done:
        """Its end without success."""
        if self.kind == "lookup":
            return LookupDone(ticket, status, None, 0)
        if self.kind == "load":
            return LoadDone(ticket, status, self.blocks)
        return SaveDone(ticket, status, 0, 0)


@dataclass(slots=True)
class Question:
    """What the machine has asked; `then` hears of its end once."""

    deadline: int
    then: Callable[[Message | None, int], list[Effect]]  # None: no answer
