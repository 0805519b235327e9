"""The states and records of machine.py: operations and questions without an end yet."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pegaflow.wire.message import Message
from pegaflow.wire.status import Status

from .effects import Effect
from .patience import GRACE_NS
from .results import Done, LoadDone, LookupDone, SaveDone


class State(Enum):
    """Where the machine is on its way to a session, or from one."""

    LOST = "lost"  # no session; the front desk is asked again, later and later
    OPENING = "opening"  # it is asked
    JOINING = "joining"  # it has named a session, which is dialled and attached
    READY = "ready"  # the session serves us
    LEAVING = "leaving"  # we said Leave and await Left
    DYING = "dying"  # it is killed, and its death not proven yet

    @property
    def is_going(self) -> bool:
        """Whether the session may still write into our blocks, though we are done with it."""
        return self in (State.LEAVING, State.DYING)


class Kind(Enum):
    """What is done with blocks."""

    LOOKUP = "lookup"
    LOAD = "load"
    SAVE = "save"


@dataclass(slots=True)
class Operation:
    """What the engine has started and has not heard the end of."""

    kind: Kind
    deadline: int
    blocks: tuple[int, ...] = ()  # of the engine
    question: int = 0  # newest one asked for it; forgotten with it
    copy: int = 0  # staged load: the session's number for it
    direct: bool = False  # load: the session may write into our blocks
    valid: Callable[[], bool] = lambda: True  # save: the engine's blocks still hold these keys

    def failed(self, ticket: int, status: Status) -> Done:
        """Its end without success."""
        if self.kind is Kind.LOOKUP:
            return LookupDone(ticket, status, None, 0)
        if self.kind is Kind.LOAD:
            return LoadDone(ticket, status, self.blocks)
        return SaveDone(ticket, status, 0, 0)


@dataclass(slots=True)
class Question:
    """What the machine has asked; `then` hears of its end once."""

    deadline: int
    then: Callable[[Message | None, int], list[Effect]]  # None: no answer
    fatal: bool = False  # without an answer a session that may write our blocks is killed


def expire(
    questions: dict[int, Question], now: int, spared: Callable[[], bool]
) -> tuple[bool, list[Effect]]:
    """End the questions without an answer in time.

    Args:
        questions: by number; what has expired is taken out, or its deadline moved.
        now: CLOCK_MONOTONIC, in nanoseconds, like their deadlines.
        spared: whether the session that may write our blocks is ready to run: either it has no
            core, and then it needs one to die as much as to answer, or it is in a loop, and the
            watchdog's.

    Returns:
        Whether any had expired, and what follows.
    """
    effects: list[Effect] = []
    expired = [number for number, question in questions.items() if question.deadline <= now]
    for number in expired:
        question = questions.get(number)
        if question is not None and question.fatal and spared():
            question.deadline = now + GRACE_NS
        elif question is not None:
            del questions[number]
            effects += question.then(None, now)
    return bool(expired), effects
