"""What a client asks its session, and who hears of the answer.

Every question has a number, a deadline and a `then`, which is called exactly once: with the answer,
or with None when there is none in time; or never, if the question is forgotten because nobody wants
the answer any more.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

from pegaflow.wire.envelope import Envelope
from pegaflow.wire.message import Message
from pegaflow.wire.values import NOBODY, Address

from .effects import Effect, ToSession
from .patience import GRACE_NS

Then = Callable[[Message | None, int], list[Effect]]
"""What follows from an answer, or from its absence (None), at a time."""


@dataclass(slots=True)
class Question:
    """What was asked; `then` hears of its end once."""

    deadline: int
    then: Then
    fatal: bool = False  # without an answer a session that may write our blocks is killed


class Link:
    """The questions of one client without an end yet.

    Args:
        me: who asks.
    """

    def __init__(self, me: Address) -> None:
        self.session = NOBODY  # whom we ask
        self._me = me
        self._questions: dict[int, Question] = {}
        self._last = 0  # newest number of a question or an operation

    def __len__(self) -> int:
        return len(self._questions)

    def number(self) -> int:
        """A new one."""
        self._last += 1
        return self._last

    def tell(self, msg: Message) -> ToSession:
        """A message that has no answer."""
        return ToSession(Envelope(self._me, self.session, msg))

    def ask(
        self, msg: Message, deadline: int, then: Then, *, grace_ns: int = 0, fatal: bool = False
    ) -> ToSession:
        """A question to the session.

        Args:
            grace_ns: so long after the deadline its end without an answer comes.
            fatal: without an answer a session that may write our blocks is killed.
        """
        number = self.expect(deadline + grace_ns, then, fatal)
        envelope = Envelope(self._me, self.session, msg, question=number, deadline=deadline)
        return ToSession(envelope)

    def expect(self, deadline: int, then: Then, fatal: bool = False) -> int:
        """Await an answer, of whomever; the number of the question."""
        number = self.number()
        self._questions[number] = Question(deadline, then, fatal)
        return number

    def answered(self, number: int) -> Then | None:
        """What follows from the answer to this question; None if nobody awaits it any more."""
        question = self._questions.pop(number, None)
        return None if question is None else question.then

    def forget(self, number: int) -> None:
        """Nobody wants this answer."""
        self._questions.pop(number, None)

    def forget_all(self, but: Collection[int] = ()) -> None:
        """Nobody wants any answer, but for those to these questions."""
        for number in [number for number in self._questions if number not in but]:
            del self._questions[number]

    def wake_at(self) -> int | None:
        """When the next question expires."""
        return min((question.deadline for question in self._questions.values()), default=None)

    def expire(self, now: int, spared: Callable[[], bool]) -> tuple[bool, list[Effect]]:
        """End the questions without an answer in time.

        Args:
            now: CLOCK_MONOTONIC, in nanoseconds, like their deadlines.
            spared: whether the session that may write our blocks is ready to run: either it has no
                core, and then it needs one to die as much as to answer, or it is in a loop, and the
                watchdog's.

        Returns:
            Whether any had expired, and what follows.
        """
        effects: list[Effect] = []
        expired = [n for n, question in self._questions.items() if question.deadline <= now]
        for number in expired:
            question = self._questions.get(number)
            if question is not None and question.fatal and spared():
                question.deadline = now + GRACE_NS
            elif question is not None:
                del self._questions[number]
                effects += question.then(None, now)
        return bool(expired), effects
