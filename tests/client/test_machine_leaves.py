"""The goodbyes of the client's state machine: nothing but the session's word or death ends one."""

from pegaflow.client.effects import HangUp, MapFiles
from pegaflow.client.machine import State
from pegaflow.client.patience import PING_NS
from pegaflow.client.results import LookupDone
from pegaflow.wire.control import OpenSession, Refused
from pegaflow.wire.identities import LeaseId
from pegaflow.wire.session import Attach, Copied, Found, Leave, Left, Pages, Ping, Release, Saved
from pegaflow.wire.status import Status

from .test_machine import ATTACHED, MEMORY, MS, joined, ready, start_all


def test_memory_is_given_up_with_the_sessions_word_and_new_memory_attached() -> None:
    c = ready()
    ticket, _ = c.lookup()
    c.do(c.m.leave(c.now, for_good=False))
    assert c.done == [LookupDone(ticket, Status.DISCONNECTED, None, 0)]
    assert c.m.state is State.LEAVING
    c.answer(c.question(Leave), Left())
    assert (c.m.state, c.others) == (State.LOST, [HangUp()])
    c.do(c.m.register(MEMORY))
    c.wait(50 * MS)
    c.question(OpenSession)


def test_answers_that_come_after_the_goodbye_leave_no_trace() -> None:
    c = ready()
    lookup, load, save = start_all(c)
    c.do(c.m.leave(c.now, for_good=False))
    assert [d.status for d in c.done] == [Status.DISCONNECTED] * 3
    c.look()
    c.answer(lookup, Found(Status.OK, LeaseId(9), 2))
    assert c.look() == [Release(LeaseId(9))]
    c.answer(load, Pages(Status.OK, 6, (0, 1, 2)))
    assert c.question(Copied).message == Copied(6, False)
    c.answer(save, Saved(Status.DROPPED, 0, 0))
    assert (len(c.done), c.sent, c.others, c.m.state) == (3, [], [], State.LEAVING)


def test_no_other_question_ends_a_goodbye() -> None:
    c = ready()
    c.lookup()
    c.wait(100 * MS)
    ping = c.question(Ping)
    c.do(c.m.leave(c.now, for_good=False))
    leave = c.question(Leave)
    c.wait(PING_NS - MS)
    c.answer(ping, Refused(Status.BUSY, ""))
    assert (c.m.state, c.others) == (State.LEAVING, [])
    c.answer(leave, Left())
    assert (c.m.state, c.others) == (State.LOST, [HangUp()])


def test_who_leaves_while_it_joins_does_not_attach_any_more() -> None:
    c = joined()
    attach = c.question(Attach)
    c.do(c.m.leave(c.now, for_good=False))
    leave = c.question(Leave)
    c.answer(attach, ATTACHED)
    assert (c.m.state, c.sent) == (State.LEAVING, [])
    assert not [e for e in c.others if isinstance(e, MapFiles)]
    c.answer(leave, Left())
    assert c.m.state is State.LOST


def test_who_has_left_for_good_asks_nobody() -> None:
    c = ready()
    c.do(c.m.leave(c.now))
    c.answer(c.question(Leave), Left())
    assert c.m.wake_at() is None
    c.wait(5000 * MS)
    assert c.sent == []
