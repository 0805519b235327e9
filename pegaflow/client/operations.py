"""The records of machine.py: operations and questions without an end yet."""

from collections.abc import Callable
from dataclasses import dataclass

from pegaflow.wire.message import Message

from .effects import Effect


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


@dataclass(slots=True)
class Question:
    """What the machine has asked; `then` hears of its end once."""

    deadline: int
    then: Callable[[Message | None, int], list[Effect]]  # None: no answer
