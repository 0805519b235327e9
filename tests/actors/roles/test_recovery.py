"""Who is awaited, and what waits, in an actor that begins with what an earlier life has left."""

from collections import Counter

from pegaflow.actors.roles.recovery import LATER_MAX, Recovery
from pegaflow.actors.runtime.contract import Effect, Redeliver, Sender
from pegaflow.wire.allocator import Freed, Pressure
from pegaflow.wire.control import DEAD_MAX, Members
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.values import SESSION, Address
from tests.actors.rig import ALLOC, BOSS, IDX, SESSION_4, SESSION_5

ASKED, OTHER = Sender(SESSION_4, 1), Sender(SESSION_5, 2)
QUESTION = Pressure(4096, 1, False)


def recovery() -> tuple[Recovery, Counter[str]]:
    counts: Counter[str] = Counter()
    return Recovery(IDX, counts, frozenset({Freed})), counts


def membership(part: Recovery, living: tuple[Address, ...], dead: tuple[Address, ...] = ()) -> None:
    (heard,) = part.handlers()
    assert heard.handler(Sender(BOSS), Members(living, dead), 0) == []


def test_what_waits_is_heard_in_order_once_the_pool_is_known() -> None:
    part, _ = recovery()
    assert part.must_wait(ASKED, QUESTION)
    assert not part.must_wait(ASKED, Freed(())), "it is heard at once"
    assert not part.must_wait(Sender(BOSS), QUESTION) and not part.must_wait(Sender(IDX), QUESTION)
    for sender in (ASKED, OTHER, ASKED):
        part.defer(sender, QUESTION)
    part.check()
    assert part.begin() == [Redeliver(sender, QUESTION) for sender in (ASKED, OTHER, ASKED)]
    assert part.ready and not part.must_wait(ASKED, QUESTION)
    assert part.begin() == []
    part.check()


def test_what_the_dead_have_asked_is_forgotten() -> None:
    part, _ = recovery()
    part.defer(ASKED, QUESTION)
    part.defer(OTHER, QUESTION)
    part.gone(SESSION_4, 0)
    assert list(part.dead) == [SESSION_4]
    part.gone(ALLOC, 0)
    assert list(part.dead) == [SESSION_4], "an allocator holds nothing"
    assert part.begin() == [Redeliver(OTHER, QUESTION)]


def test_no_more_wait_than_a_link_holds() -> None:
    part, counts = recovery()
    for _ in range(LATER_MAX + 2):
        part.defer(ASKED, QUESTION)
    assert counts["messages_not_kept"] == 2 and len(part.begin()) == LATER_MAX


def test_all_are_gathered_once_each_of_the_membership_has_stated_or_is_dead() -> None:
    part, _ = recovery()
    part.await_no_longer(SESSION_4)
    assert not part.gathered(), "nobody has said yet who lives"
    membership(part, (SESSION_4, SESSION_5))
    part.await_no_longer(SESSION_4)
    assert not part.gathered() and part.awaited == {SESSION_5}
    part.await_no_longer(SESSION_5, SESSION_5)
    assert part.gathered()


def test_the_dead_are_not_awaited() -> None:
    part, _ = recovery()
    part.gone(SESSION_4, 0)
    membership(part, (SESSION_4,), (SESSION_5,))
    assert part.gathered() and list(part.dead) == [SESSION_4, SESSION_5]
    for number in range(DEAD_MAX):
        part.gone(Address(SESSION, Incarnation(100 + number)), 0)
    assert len(part.dead) == DEAD_MAX and SESSION_4 not in part.dead


class _Told:
    def __init__(self) -> None:
        self.at: list[int] = []

    def membership(self, now: int) -> list[Effect]:
        self.at.append(now)
        return []


def test_whoever_needs_the_membership_is_told() -> None:
    part, _ = recovery()
    part.listener = told = _Told()
    (heard,) = part.handlers()
    heard.handler(Sender(BOSS), Members((SESSION_4,), ()), 7)
    assert told.at == [7] and part.awaited == {SESSION_4}
