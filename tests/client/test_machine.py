"""The client's state machine: every operation ends exactly once, and leaves no trace if late."""

from collections.abc import Callable

import pytest

from pegaflow.client.effects import (
    CopyIn,
    CopyOut,
    DialSession,
    Effect,
    Finish,
    HangUp,
    Identity,
    MapFiles,
    Memory,
    ToDesk,
    ToSession,
)
from pegaflow.client.machine import Machine, State
from pegaflow.client.patience import PING_NS, RETRY_NS
from pegaflow.client.results import Chain, Done, Lease, LoadDone, LookupDone, SaveDone
from pegaflow.wire.control import OpenSession, Refused, SessionAt
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import NO_LEASE, Incarnation, Key, LeaseId, Namespace
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.message import Message
from pegaflow.wire.session import (
    Attach,
    Attached,
    Commit,
    Confirmed,
    Copied,
    CopyBatch,
    Drop,
    Found,
    Keep,
    Load,
    Lookup,
    Pages,
    Ping,
    Pong,
    Release,
    Save,
    Saved,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import CLIENT, SESSION, SUPERVISOR, Address
from tests.naming import MODEL

MS = 1_000_000
ME, BOSS, PEER = (
    Address(CLIENT, Incarnation(7)),
    Address(SUPERVISOR, Incarnation(1)),
    Address(SESSION, Incarnation(4)),
)
LAYOUT = Layout(64, (LayerLayout(0, 0, 64, 64),), "bfloat16")
MEMORY = Memory(0, LAYOUT, (64 * 64,))
KEYS = tuple(Key(bytes([n]) * 32) for n in range(1, 4))
BLOCKS = (10, 11, 12)
ATTACHED = Attached("pool", 1 << 20, "bounce", 8, page_size=4096, namespace=Namespace(bytes(16)))


class Client:
    """A machine, its clock and what it did: envelopes to the session, ends, copies."""

    def __init__(
        self, registered: bool = True, memory: Memory = MEMORY, visible: bool = True
    ) -> None:
        self.visible = visible  # whether the session's process can be watched
        self.m = Machine(
            Identity(ME, "engine", bytes(16), MODEL, probe=b"", world=1, pid=4242, started_ticks=99)
        )
        self.now = 1000 * MS
        self.sent: list[Envelope] = []  # since the last look
        self.done: list[Done] = []  # all ends so far
        self.others: list[Effect] = []  # all other effects so far
        if registered:
            self.do(self.m.register(memory))

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, ToDesk | ToSession):
                self.sent.append(effect.envelope)
            elif isinstance(effect, Finish):
                self.done.append(effect.done)
            else:
                self.others.append(effect)
            if isinstance(effect, DialSession):
                self.do(self.m.dialled(self.visible, self.now))

    def look(self) -> list[Message]:
        """What was sent since the last look."""
        sent, self.sent = self.sent, []
        return [e.message for e in sent]

    def question(self, kind: type[Message]) -> Envelope:
        """The only thing sent since the last look: a question of this kind."""
        (envelope,) = self.sent
        self.sent = []
        assert isinstance(envelope.message, kind) and envelope.question
        return envelope

    def answer(self, question: Envelope, msg: Message, sender: Address = PEER) -> None:
        self.do(self.m.receive(Envelope(sender, ME, msg, answer=question.question), self.now))

    def tell(self, msg: Message, sender: Address = PEER) -> None:
        self.do(self.m.receive(Envelope(sender, ME, msg), self.now))

    def wait(self, nanoseconds: int) -> None:
        self.now += nanoseconds
        self.do(self.m.wake(self.now))

    def at(self, nanoseconds: int = 100 * MS) -> int:
        """A deadline."""
        return self.now + nanoseconds

    def lookup(self) -> tuple[int, Envelope]:
        ticket, effects = self.m.operations.lookup(KEYS, self.at())
        self.do(effects)
        return ticket, self.question(Lookup)

    def load(self, nanoseconds: int = 100 * MS) -> tuple[int, Envelope]:
        ticket, effects = self.m.operations.load(
            Lease(PEER.incarnation, LeaseId(5), 3), BLOCKS, 0, self.at(nanoseconds), now=self.now
        )
        self.do(effects)
        return ticket, self.question(Load)

    def save(self, valid: Callable[[], bool] = lambda: True) -> tuple[int, Envelope]:
        ticket, effects = self.m.operations.save([Chain(KEYS, BLOCKS, valid=valid)], self.at())
        self.do(effects)
        return ticket, self.question(Save)


def joined(registered: bool = True) -> Client:
    """A client whose session is named but has not answered yet."""
    c = Client(registered)
    c.wait(0)
    c.answer(c.question(OpenSession), SessionAt(PEER, "ipc://s", 77), BOSS)
    assert c.others == [DialSession(PEER, "ipc://s", 77)]
    return c


def ready() -> Client:
    """A client that is served."""
    c = joined()
    c.answer(c.question(Attach), ATTACHED)
    assert c.others.pop() == MapFiles(ATTACHED)
    c.do(c.m.mapped(True, "", c.now))
    assert c.m.state is State.READY and c.others.pop()
    return c


def test_a_client_without_memory_is_ready_after_a_ping() -> None:
    c = joined(registered=False)
    c.answer(c.question(Ping), Pong())
    assert c.m.state is State.READY


def test_lookup() -> None:
    c = ready()
    ticket, question = c.lookup()
    c.answer(question, Found(Status.OK, LeaseId(9), 2, disk=(1,), peers=(0,)))
    lease = Lease(PEER.incarnation, LeaseId(9), 2)
    assert c.done == [LookupDone(ticket, Status.OK, lease, 2, disk=(1,), peers=(0,))]
    ticket, question = c.lookup()
    c.answer(question, Found(Status.OK, NO_LEASE, 0))
    assert c.done[1:] == [LookupDone(ticket, Status.OK, None, 0)]


def test_load() -> None:
    c = ready()
    ticket, question = c.load()
    c.answer(question, Pages(Status.OK, 6, (0, 1, 2)))
    assert c.others == [CopyIn(ticket, BLOCKS, (0, 1, 2), question.deadline)]
    c.do(c.m.operations.copied_in(ticket, True, c.now))
    copied = c.question(Copied)
    assert copied.message == Copied(6, True) and c.done == []
    c.answer(copied, Confirmed(Status.OK))
    assert c.done == [LoadDone(ticket, Status.OK, ())]


@pytest.mark.parametrize(
    ("ok", "confirmed", "status"),
    [
        (False, Status.OK, Status.COPY_FAILED),
        (True, Status.NO_SUCH_LEASE, Status.NO_SUCH_LEASE),
    ],
)
def test_a_load_that_was_not_confirmed_names_its_blocks(
    ok: bool, confirmed: Status, status: Status
) -> None:
    c = ready()
    ticket, question = c.load()
    c.answer(question, Pages(Status.OK, 6, (0, 1, 2)))
    c.do(c.m.operations.copied_in(ticket, ok, c.now))
    c.answer(c.question(Copied), Confirmed(confirmed))
    assert c.done == [LoadDone(ticket, status, BLOCKS)]


def test_a_refused_load() -> None:
    c = ready()
    ticket, question = c.load()
    c.answer(question, Pages(Status.NO_SUCH_LEASE, 0, ()))
    assert c.done == [LoadDone(ticket, Status.NO_SUCH_LEASE, BLOCKS)]


def test_a_lease_of_an_earlier_session_is_not_asked_for() -> None:
    c = ready()
    _, effects = c.m.operations.load(
        Lease(Incarnation(PEER.incarnation - 1), LeaseId(5), 3), BLOCKS, 0, c.at(), now=c.now
    )
    c.do(effects)
    c.do(c.m.operations.release(Lease(Incarnation(PEER.incarnation - 1), LeaseId(5), 3)))
    assert [d.status for d in c.done] == [Status.NO_SUCH_LEASE] and c.sent == []


def test_save() -> None:
    c = ready()
    ticket, question = c.save()
    c.tell(CopyBatch(ticket, 1, (2, 0), (7, 3)))
    assert c.others == [CopyOut(ticket, 1, (12, 10), (7, 3), deadline=question.deadline)]
    c.do(c.m.operations.copied_out(ticket, 1, True, c.now))
    assert c.look() == [Keep(ticket, 1)]
    c.answer(question, Saved(Status.OK, 2, 1))
    assert c.done == [SaveDone(ticket, Status.OK, 2, 1)]


def test_a_save_that_waits_for_commit() -> None:
    c = ready()
    _, effects = c.m.operations.save([Chain(KEYS, BLOCKS, 7)], c.at(), commits=True)
    c.do([*effects, *c.m.operations.commit((7,))])
    save, commit = c.look()
    assert isinstance(save, Save) and (save.order, save.commits) == (7, True)
    assert commit == Commit((7,))
    assert joined().m.operations.commit((7,)) == [], "nobody is there to hear it"


def test_blocks_taken_back_during_the_copy_are_never_kept() -> None:
    c = ready()
    answers = iter([True, False])
    ticket, question = c.save(lambda: next(answers))
    c.tell(CopyBatch(ticket, 1, (0, 1, 2), (0, 1, 2)))
    c.do(c.m.operations.copied_out(ticket, 1, True, c.now))
    assert c.look() == [Drop(ticket)]
    c.answer(question, Saved(Status.DROPPED, 0, 0))
    assert c.done == [SaveDone(ticket, Status.DROPPED, 0, 0)]


def test_a_copy_that_stopped_short_is_never_kept() -> None:
    c = ready()
    ticket, _ = c.save()
    c.tell(CopyBatch(ticket, 1, (0,), (0,)))
    c.do(c.m.operations.copied_out(ticket, 1, False, c.now))
    assert c.look() == [Drop(ticket)]


def test_blocks_taken_back_before_the_copy_are_not_copied() -> None:
    c = ready()
    ticket, _ = c.save(lambda: False)
    c.tell(CopyBatch(ticket, 1, (0,), (0,)))
    assert (c.look(), c.others) == ([Drop(ticket)], [])


def test_a_dropped_save_ends_once_and_its_take_is_dropped_again() -> None:
    c = ready()
    ticket, question = c.save()
    c.do(c.m.operations.drop(ticket))
    c.do(c.m.operations.drop(ticket))
    assert c.look() == [Drop(ticket)]
    c.tell(CopyBatch(ticket, 1, (0,), (0,)))
    c.do(c.m.operations.copied_out(ticket, 1, True, c.now))
    assert (c.look(), c.others) == ([Drop(ticket)], [])
    c.answer(question, Saved(Status.DROPPED, 0, 0))
    assert [d.status for d in c.done] == [Status.DROPPED]


@pytest.mark.parametrize("positions", [(3,), (0, 1)], ids=["no such block", "a slot is missing"])
def test_an_impossible_batch(positions: tuple[int, ...]) -> None:
    c = ready()
    ticket, _ = c.save()
    c.tell(CopyBatch(ticket, 1, positions, (0,)))
    assert (c.look(), c.others) == ([Drop(ticket)], [])


def start_all(c: Client) -> list[Envelope]:
    """A lookup, a load and a save; their questions."""
    return [c.lookup()[1], c.load()[1], c.save()[1]]


def test_each_operation_ends_at_its_deadline_and_never_again() -> None:
    c = ready()
    lookup, load, save = start_all(c)
    c.wait(100 * MS)
    assert [d.status for d in c.done] == [Status.EXPIRED] * 3
    assert c.m.operations.open == {}
    assert [type(m) for m in c.look()] == [Drop, Ping]
    c.answer(lookup, Found(Status.OK, LeaseId(9), 2))
    assert c.look() == [Release(LeaseId(9))]
    c.answer(load, Pages(Status.OK, 6, (0, 1, 2)))
    assert c.question(Copied).message == Copied(6, False)
    c.answer(save, Saved(Status.OK, 3, 0))
    c.answer(lookup, Found(Status.OK, NO_LEASE, 0))
    assert (len(c.done), c.sent, c.others) == (3, [], [])


def test_each_operation_ends_when_the_session_dies() -> None:
    c = ready()
    questions = start_all(c)
    c.do(c.m.session_died(c.now))
    assert [d.status for d in c.done] == [Status.PEER_GONE] * 3
    assert (c.others, c.m.state, c.m.operations.open) == ([HangUp()], State.LOST, {})
    for question in questions:
        c.answer(question, Found(Status.OK, LeaseId(9), 2))
    assert (len(c.done), c.sent) == (3, [])


def test_without_a_session_operations_end_at_once() -> None:
    c = Client()
    for _, effects in (
        c.m.operations.lookup(KEYS, c.at()),
        c.m.operations.load(Lease(Incarnation(4), LeaseId(5), 3), BLOCKS, 0, c.at(), now=c.now),
        c.m.operations.save([Chain(KEYS, BLOCKS)], c.at()),
    ):
        c.do(effects)
    assert [d.status for d in c.done] == [Status.DISCONNECTED] * 3
    assert c.m.operations.open == {} and c.sent == []


def test_an_expiry_is_followed_by_a_ping_that_clears_the_session() -> None:
    c = ready()
    c.lookup()
    c.wait(100 * MS)
    ping = c.question(Ping)
    c.lookup()
    c.wait(100 * MS)
    assert c.sent == [], "one Ping at a time"
    c.answer(ping, Pong())
    assert c.m.state is State.READY and c.others == []


def test_an_unanswered_ping_is_the_loss_of_the_session() -> None:
    c = ready()
    c.lookup()
    c.wait(100 * MS)
    c.question(Ping)
    c.wait(PING_NS)
    assert (c.m.state, c.others) == (State.LOST, [HangUp()])
    c.wait(RETRY_NS[0])
    c.question(OpenSession)


def test_retries_back_off_and_start_anew_after_a_success() -> None:
    c = Client()
    c.wait(0)
    for delay in (*RETRY_NS, RETRY_NS[-1]):
        c.answer(c.question(OpenSession), Refused(Status.DUPLICATE, "in use"), BOSS)
        assert (c.m.refusal, c.m.wake_at()) == ("in use", c.now + delay)
        assert c.m.refused
        c.wait(delay - 1)
        assert c.sent == []
        c.wait(1)
    c.answer(c.question(OpenSession), SessionAt(PEER, "ipc://s", 77), BOSS)
    c.answer(c.question(Attach), ATTACHED)
    c.do(c.m.mapped(True, "", c.now))
    assert c.m.refusal == ""
    c.do(c.m.session_died(c.now))
    assert not c.m.refused, "another one is on its way"
    assert c.m.wake_at() == c.now + RETRY_NS[0]


@pytest.mark.parametrize("kind", [OpenSession, Attach])
def test_silence_while_joining_is_a_loss(kind: type[Message]) -> None:
    c = Client()
    c.wait(0)
    if kind is Attach:
        c.answer(c.question(OpenSession), SessionAt(PEER, "ipc://s", 77), BOSS)
    deadline = c.question(kind).deadline
    c.wait(deadline - c.now)
    assert c.m.state is State.LOST and not c.m.refused, "it may be slow"


def test_a_refused_attach_and_files_that_cannot_be_mapped() -> None:
    c = joined()
    c.answer(c.question(Attach), Refused(Status.BAD_LAYOUT, "overlap"))
    assert (c.m.state, c.m.refusal) == (State.LOST, "overlap") and c.m.refused
    c = joined()
    c.answer(c.question(Attach), ATTACHED)
    c.do(c.m.mapped(False, "no such file", c.now))
    assert (c.m.state, c.m.refusal) == (State.LOST, "no such file") and c.m.refused


@pytest.mark.parametrize("name", ["", "index", "n" * 1000])
def test_what_is_no_session_is_not_dialled(name: str) -> None:
    c = Client()
    c.wait(0)
    c.answer(c.question(OpenSession), SessionAt(Address(name, Incarnation(5)), "ipc://s", 77), BOSS)
    assert c.sent == [] and c.m.state is State.LOST
    assert c.m.refusal == "the front desk named something else than a session"


def test_strangers_are_not_heard() -> None:
    c = ready()
    ticket, question = c.lookup()
    c.answer(
        question,
        Found(Status.OK, LeaseId(9), 2),
        Address(SESSION, Incarnation(PEER.incarnation - 1)),
    )
    c.tell(CopyBatch(ticket, 1, (0,), (0,)), Address(SESSION, Incarnation(99)))
    other = Envelope(
        PEER,
        Address(CLIENT, Incarnation(8)),
        Found(Status.OK, LeaseId(9), 2),
        answer=question.question,
    )
    c.do(c.m.receive(other, c.now))
    assert (c.done, c.sent, c.others) == ([], [], [])


def test_an_empty_take_is_no_copy() -> None:
    c = ready()
    ticket, _ = c.save()
    c.tell(CopyBatch(ticket, 1, (), ()))
    assert not [e for e in c.others if isinstance(e, CopyOut)]


def test_pages_of_the_wrong_number_fail_the_load_and_end_the_copy() -> None:
    c = ready()
    _, question = c.load()
    c.answer(question, Pages(Status.OK, 6, (0,)))
    assert not [e for e in c.others if isinstance(e, CopyIn)]
    assert Copied(6, False) in c.look()


def test_a_take_for_a_load_is_no_copy() -> None:
    c = ready()
    ticket, _ = c.load()
    c.tell(CopyBatch(ticket, 1, (0,), (0,)))
    assert not [e for e in c.others if isinstance(e, CopyOut)]
