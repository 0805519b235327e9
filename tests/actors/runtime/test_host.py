"""The pure half of a process: matching answers, expiring questions, dropping other lives."""

from collections.abc import Iterable

import pytest

from pegaflow.actors.runtime.contract import (
    Actor,
    Ask,
    Do,
    Effect,
    NoAnswer,
    On,
    Part,
    Send,
    Sender,
    on,
)
from pegaflow.wire.control import Drain, Gone
from pegaflow.wire.identities import WHOEVER, Incarnation, LeaseId
from pegaflow.wire.jobs import Done, GrowExtent, RecordsRead
from pegaflow.wire.message import Message
from pegaflow.wire.session import Ping, Pong, Release
from pegaflow.wire.status import Status
from pegaflow.wire.values import CLIENT, INDEX, SUPERVISOR, Address
from tests.actors.rig import ALLOC, BOSS, CLIENT_7, IDX, MS, SESSION_4, Rig, one, pick
from tests.naming import as_pages

ASK_NS = 100 * MS


class Asker(Part):
    """On a Ping asks the index; on Release does a job; keeps all that comes back."""

    def __init__(self) -> None:
        self.ends: list[Message] = []
        self.lates: list[Message] = []
        self.again = False  # ask anew whenever a question ends without an answer

    def handlers(self) -> Iterable[On]:
        return (
            on(Ping, lambda s, m, now: self.ask(now), CLIENT),
            on(Release, self._job, CLIENT),
            on(Gone, lambda s, m, now: [], SUPERVISOR),
        )

    def ask(self, now: int) -> list[Effect]:
        def then(answer: Message, now: int) -> list[Effect]:
            self.ends.append(answer)
            return self.ask(now) if self.again and isinstance(answer, NoAnswer) else []

        return [Ask(IDX, Ping(), now + ASK_NS, then)]

    def late(self, sender: Address, msg: Message, now: int) -> list[Effect]:
        self.lates.append(msg)
        return [Send(sender, Release(LeaseId(1)))]

    def _job(self, sender: Sender, msg: Release, now: int) -> list[Effect]:
        def then(done: Done, now: int) -> list[Effect]:
            self.ends.append(done)
            return []

        return [Do(GrowExtent(msg.lease), then)]


def asker() -> tuple[Rig, Asker]:
    actor, part = Actor(SESSION_4), Asker()
    actor.compose(part)
    return Rig(actor), part


def test_a_question_ends_with_its_answer_once() -> None:
    rig, actor = asker()
    question = one(rig.tell(CLIENT_7, Ping()), Ping)
    assert (question.receiver, question.deadline) == (IDX, rig.now + ASK_NS)
    rig.answer(question, Pong())
    rig.wait(2 * ASK_NS)
    assert actor.ends == [Pong()]
    assert rig.host.outstanding() == (0, 0)


def test_a_question_ends_at_its_deadline_and_the_answer_is_late() -> None:
    rig, actor = asker()
    question = one(rig.tell(CLIENT_7, Ping()), Ping)
    rig.wait(ASK_NS - 1)
    assert actor.ends == []
    rig.wait(1)
    assert actor.ends == [NoAnswer(Status.EXPIRED)]
    one(rig.answer(question, Pong()), Release, IDX)
    assert (actor.lates, rig.count("answers_late")) == ([Pong()], 1)
    assert actor.ends == [NoAnswer(Status.EXPIRED)]


def test_a_second_answer_is_late() -> None:
    rig, actor = asker()
    question = one(rig.tell(CLIENT_7, Ping()), Ping)
    rig.answer(question, Pong())
    rig.answer(question, Pong())
    assert (actor.ends, actor.lates) == ([Pong()], [Pong()])


def test_an_answer_of_somebody_else_ends_nothing() -> None:
    rig, actor = asker()
    question = one(rig.tell(CLIENT_7, Ping()), Ping)
    for stranger in (ALLOC, Address(INDEX, Incarnation(IDX.incarnation + 1)), CLIENT_7):
        forged = type(question)(question.sender, stranger, Ping(), question.question)
        rig.answer(forged, Pong())
    assert actor.ends == []
    assert rig.host.outstanding() == (1, 0)


def test_gone_ends_the_questions_of_the_dead_and_drops_its_frames() -> None:
    rig, actor = asker()
    actor.again = True
    question = one(rig.tell(CLIENT_7, Ping()), Ping)
    one(rig.tell(BOSS, Gone(IDX)), Ping)
    assert actor.ends == [NoAnswer(Status.PEER_GONE)]
    assert rig.answer(question, Pong()) == []
    assert rig.count("frames_of_other_lives") == 1
    assert actor.lates == []


def test_only_the_supervisor_proves_a_death() -> None:
    rig, actor = asker()
    rig.tell(CLIENT_7, Ping())
    rig.tell(ALLOC, Gone(IDX))
    assert (actor.ends, rig.count("frames_unwanted")) == ([], 1)


def test_frames_to_other_lives_and_unwanted_ones_are_counted() -> None:
    rig, _ = asker()
    earlier = Address(SESSION_4.name, Incarnation(SESSION_4.incarnation - 1))
    assert rig.ask(CLIENT_7, Ping(), to=earlier) == []
    assert rig.ask(CLIENT_7, Ping(), to=Address(SESSION_4.name, WHOEVER)) == []
    assert rig.tell(IDX, Ping()) == []
    assert rig.tell(BOSS, Drain()) == []
    assert rig.count("frames_of_other_lives") == 2
    assert rig.count("frames_unwanted") == 2


def test_a_job_ends_with_its_completion() -> None:
    rig, actor = asker()
    rig.tell(CLIENT_7, Release(LeaseId(3)))
    assert rig.wanted(GrowExtent) == [GrowExtent(3)]
    rig.done(GrowExtent, Status.NO_SPACE)
    assert actor.ends == [Done(Status.NO_SPACE)]
    assert rig.host.outstanding() == (0, 0)


def test_a_job_ends_with_nothing_but_what_its_class_names() -> None:
    rig, _ = asker()
    rig.tell(CLIENT_7, Release(LeaseId(3)))
    with pytest.raises(AssertionError, match="GrowExtent ends with RecordsRead"):
        rig.done(GrowExtent, RecordsRead(as_pages(1)))


def test_many_questions_expire_each_at_its_own_time() -> None:
    rig, actor = asker()
    for n in range(5):
        assert pick(rig.tell(CLIENT_7, Ping()), Ping)
        rig.wait(MS)
        assert len(actor.ends) == 0, n
    for n in range(5):
        at = rig.host.wake_at()
        assert at is not None
        rig.now = at
        rig.wake()
        assert len(actor.ends) == n + 1
