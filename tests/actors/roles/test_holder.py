"""What every holder does: it states, restates, goes on, and gives back what comes too late."""

from pegaflow.actors.roles.holder import Holder
from pegaflow.actors.runtime.contract import Actor, Ask, Effect, Send
from pegaflow.actors.runtime.member import Member
from pegaflow.core.grants import Holdings
from pegaflow.wire.allocator import PagesHeld, Reserve, Reserved, Return
from pegaflow.wire.control import BEAT_NS, Gone, Neighbour
from pegaflow.wire.identities import GrantId, Incarnation, PageId
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, INDEX, Address, Numbers
from tests.naming import as_pages, as_stamps

from ..rig import ALLOC, BOSS, HELLO, IDX, SESSION_4, WELCOME, Rig, pick, said


class Few:
    """A book of grants of some pages each."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.grants: Holdings[GrantId, Numbers[PageId]] = Holdings(GrantId)

    def restate(self, now: int) -> list[Effect]:
        to = self.member.peer(ALLOCATOR)
        return [Send(to, Return(pages)) for pages in self.grants.values()]

    def statement(self) -> PagesHeld:
        return PagesHeld(self.grants.upto, as_pages(*self.grants.numbers()))

    def go_on(self, now: int) -> list[Effect]:
        def reserved(answer: Message, now: int) -> list[Effect]:
            if isinstance(answer, Reserved) and self.grants.hear(answer.number):
                self.grants.hold(answer.number, answer.pages)
            return []

        return [Ask(self.member.peer(ALLOCATOR), Reserve(1, 1), now + BEAT_NS // 2, reserved)]

    def too_late(self, msg: Message, now: int) -> list[Effect]:
        assert isinstance(msg, Reserved)
        return (
            self.member.tell(ALLOCATOR, Return(msg.pages)) if self.grants.hear(msg.number) else []
        )


class Kept(Actor):
    """An actor that does nothing but hold."""

    def __init__(self) -> None:
        super().__init__(SESSION_4)
        member = Member(SESSION_4, BOSS, HELLO, (ALLOCATOR, INDEX), counts=self.counts)
        self.book = Few(member)
        holder = Holder(member, {ALLOCATOR: self.book})
        member.lead(holder)
        self.compose(member, holder)


def holding() -> tuple[Rig, Kept]:
    actor = Kept()
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, WELCOME)
    sent = rig.tell(BOSS, Neighbour(ALLOC, "a", 1))
    assert [type(e.message) for e in sent] == [PagesHeld, Reserve]
    rig.answer(sent[-1], Reserved(Status.OK, GrantId(1), as_pages(11, 12), as_stamps(1, 2)))
    return rig, actor


def test_a_beat_states_what_is_held() -> None:
    rig, _ = holding()
    assert said(rig.wait(BEAT_NS), PagesHeld, ALLOC) == PagesHeld(GrantId(1), as_pages(1))


def test_a_new_life_is_told_everything_before_it_is_asked() -> None:
    rig, _ = holding()
    rig.tell(BOSS, Gone(ALLOC))
    assert not pick(rig.wait(BEAT_NS), PagesHeld)
    again = Address(ALLOCATOR, Incarnation(9))
    sent = rig.tell(BOSS, Neighbour(again, "b", 1))
    assert [e.message for e in sent] == [
        Return(as_pages(11, 12)),
        PagesHeld(GrantId(1), as_pages(1)),
        Reserve(1, 1),
    ]
    assert {e.receiver for e in sent} == {again}


def test_who_grants_nothing_is_told_nothing() -> None:
    rig, _ = holding()
    assert rig.tell(BOSS, Neighbour(IDX, "i", 2)) == []


def test_a_late_grant_goes_back_once() -> None:
    actor = Kept()
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, WELCOME)
    ask = rig.tell(BOSS, Neighbour(ALLOC, "a", 1))[-1]
    rig.wait(BEAT_NS)
    late = Reserved(Status.OK, GrantId(1), as_pages(11), as_stamps(1))
    assert said(rig.answer(ask, late), Return, ALLOC).pages == (11,)
    assert actor.late(ALLOC, late, rig.now) == []
    assert actor.book.statement() == PagesHeld(GrantId(1), ())


def test_a_late_grant_of_a_former_life_is_nobodys() -> None:
    rig, actor = holding()
    rig.tell(BOSS, Neighbour(Address(ALLOCATOR, Incarnation(9)), "b", 1))
    assert (
        actor.late(ALLOC, Reserved(Status.OK, GrantId(2), as_pages(13), as_stamps(3)), rig.now)
        == []
    )
