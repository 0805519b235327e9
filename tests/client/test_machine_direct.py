"""Loads and saves by process_vm: who writes our blocks, and when may we say that it is over."""

from dataclasses import replace

from pegaflow.client.effects import HangUp, KillSession, MapFiles, Memory, WriteProof
from pegaflow.client.machine import State
from pegaflow.client.patience import GRACE_NS, LEAVE_NS
from pegaflow.client.results import Chain, LoadDone, LookupDone, SaveDone
from pegaflow.wire.control import OpenSession, Refused, SessionAt
from pegaflow.wire.identities import NO_KEY, LeaseId, Namespace
from pegaflow.wire.session import (
    Attach,
    Attached,
    BatchCopied,
    Drop,
    Keep,
    Leave,
    Left,
    Load,
    Loaded,
    Lookup,
    Pages,
    Ping,
    Prove,
    Proven,
    Save,
    Saved,
    Skip,
    Way,
)
from pegaflow.wire.status import Status

from .test_machine import BLOCKS, BOSS, KEYS, LAYOUT, MS, PEER, Client

BASES, SCRATCH, PROOF = (1 << 40,), 1 << 41, bytes(range(32))
DIRECT = Memory(0, LAYOUT, (64 * 64,), Way.AUTO, bases=BASES, scratch=SCRATCH)
ATTACHED = Attached(
    "pool",
    1 << 20,
    "",
    0,
    page_size=4096,
    namespace=Namespace(bytes(16)),
    loads=Way.PROCESS_VM,
    saves=Way.PROCESS_VM,
)


def dialled(visible: bool = True) -> tuple[Client, Attach]:
    """A client that has asked to be attached."""
    c = Client(memory=DIRECT, visible=visible)
    c.wait(0)
    c.answer(c.question(OpenSession), SessionAt(PEER, "ipc://s", 77), BOSS)
    attach = c.sent[0].message
    assert isinstance(attach, Attach)
    return c, attach


def ready() -> Client:
    """A client that is served by process_vm both ways."""
    c, _ = dialled()
    c.answer(c.question(Attach), Prove(PROOF))
    assert c.others.pop() == WriteProof(PROOF)
    c.answer(c.question(Proven), ATTACHED)
    assert c.others.pop() == MapFiles(ATTACHED)
    c.do(c.m.mapped(True, "", c.now))
    assert c.m.state is State.READY
    c.others.clear()
    return c


def test_an_attach_names_where_the_memory_is() -> None:
    _, attach = dialled()
    assert (attach.way, attach.bases, attach.scratch) == (Way.AUTO, BASES, SCRATCH)


def test_without_proof_of_death_the_session_gets_no_address() -> None:
    _, attach = dialled(visible=False)
    assert (attach.way, attach.bases, attach.scratch) == (Way.STAGED, (), 0)


def test_who_wants_nothing_else_does_without_a_session_that_it_cannot_see() -> None:
    c = Client(memory=replace(DIRECT, way=Way.PROCESS_VM), visible=False)
    c.wait(0)
    c.answer(c.question(OpenSession), SessionAt(PEER, "ipc://s", 0), BOSS)
    assert c.m.state is State.LOST and c.m.refusal.startswith("no process_vm")


def test_a_refused_proof_is_a_loss() -> None:
    c, _ = dialled()
    c.answer(c.question(Attach), Prove(PROOF))
    c.answer(c.question(Proven), Refused(Status.COPY_FAILED, "another pid namespace"))
    assert (c.m.state, c.m.refusal) == (State.LOST, "another pid namespace")


def test_a_load_names_its_blocks_and_ends_by_the_sessions_word() -> None:
    c = ready()
    ticket, question = c.load()
    assert question.message == Load(LeaseId(5), 0, 0, 3, blocks=BLOCKS)
    c.answer(question, Loaded(Status.OK))
    assert (c.done, c.others) == ([LoadDone(ticket, Status.OK, ())], [])
    ticket, question = c.load()
    c.answer(question, Loaded(Status.COPY_FAILED))
    assert c.done[1:] == [LoadDone(ticket, Status.COPY_FAILED, BLOCKS)]


def test_a_load_is_not_over_at_its_deadline() -> None:
    c = ready()
    ticket, question = c.load()
    until = c.m.operations.open[ticket].deadline
    assert question.deadline == until - (until - c.now) // 2, "it has to stop before"
    c.wait(until - 1 - c.now)
    assert c.done == [], "the session may still write"
    c.answer(question, Loaded(Status.EXPIRED))
    assert c.done == [LoadDone(ticket, Status.EXPIRED, BLOCKS)]


def test_a_session_that_does_not_stop_in_time_is_killed_and_its_death_awaited() -> None:
    c = ready()
    ticket, question = c.load()
    other, _ = c.lookup()
    c.wait(c.m.operations.open[ticket].deadline - c.now)
    assert c.others == [KillSession()]
    assert [done.ticket for done in c.done] == [other]
    c.wait(60_000 * MS)
    assert len(c.done) == 1, "a stopped session may resume until it is proven dead"
    assert c.m.state is State.DYING
    later, effects = c.m.operations.lookup(KEYS, c.at())
    c.do(effects)
    assert c.done[1:] == [LookupDone(later, Status.DISCONNECTED, None, 0)]
    c.do(c.m.session_died(c.now))
    assert c.done[2:] == [LoadDone(ticket, Status.PEER_GONE, BLOCKS)]
    assert c.others == [KillSession(), HangUp()]


def test_a_session_that_has_no_core_is_not_killed_and_ends_its_load_late() -> None:
    c = ready()
    c.m.busy = lambda: True
    ticket, question = c.load()
    c.wait(60_000 * MS)
    assert c.others == [] and c.done == [], "neither for the load nor for a ping"
    assert c.m.state is State.READY
    c.answer(question, Loaded(Status.EXPIRED))
    assert c.done == [LoadDone(ticket, Status.EXPIRED, BLOCKS)]


def test_it_is_killed_as_soon_as_it_has_a_core_and_says_nothing() -> None:
    c = ready()
    c.m.busy = lambda: True
    ticket, _ = c.load()
    c.wait(60_000 * MS)
    c.m.busy = lambda: False
    c.wait(GRACE_NS)
    assert c.others == [KillSession()]


def test_who_leaves_waits_for_no_core() -> None:
    c = ready()
    c.m.busy = lambda: True
    c.load()
    c.do(c.m.leave(c.now))
    c.wait(LEAVE_NS)
    assert c.others == [KillSession()], "its memory is about to go"


def test_a_lost_link_does_not_end_a_load() -> None:
    c = ready()
    c.load(60_000 * MS)
    _, lookup = c.lookup()
    c.wait(lookup.deadline - c.now)
    (ping,) = [e for e in c.sent if isinstance(e.message, Ping)]
    c.wait(ping.deadline - c.now)
    assert c.others == [KillSession()]
    assert [d for d in c.done if isinstance(d, LoadDone)] == []


def test_a_load_of_a_dead_session_has_failed() -> None:
    c = ready()
    ticket, _ = c.load()
    c.do(c.m.session_died(c.now))
    assert c.done == [LoadDone(ticket, Status.PEER_GONE, BLOCKS)]


def test_staged_answers_do_not_pass_for_an_end() -> None:
    c = ready()
    _, question = c.load()
    c.answer(question, Pages(Status.OK, 6, (0, 1, 2)))
    assert c.others == [KillSession()] and not c.done


def test_a_rank_that_the_session_does_not_know_loads_nothing() -> None:
    c = ready()
    ticket, question = c.load()
    c.answer(question, Pages(Status.NOT_ATTACHED, 0, ()))
    assert c.done == [LoadDone(ticket, Status.NOT_ATTACHED, BLOCKS)] and c.others == []


def test_a_save_is_kept_after_the_session_has_copied() -> None:
    c = ready()
    ticket, question = c.save()
    assert question.message == Save(ticket, 0, KEYS, NO_KEY, blocks=BLOCKS)
    c.tell(BatchCopied(ticket, 2, (0, 1, 2)))
    assert c.look() == [Keep(ticket, 2)]
    c.answer(question, Saved(Status.OK, 3, 0))
    assert c.done == [SaveDone(ticket, Status.OK, 3, 0)]


def test_blocks_that_changed_under_the_copy_are_dropped() -> None:
    c = ready()
    true = [True]
    ticket, _ = c.save(lambda: true[0])
    true[0] = False
    c.tell(BatchCopied(ticket, 2, (0, 1, 2)))
    assert c.look() == [Drop(ticket)]
    assert c.done == [SaveDone(ticket, Status.DROPPED, 0, 0)]
    c.tell(BatchCopied(ticket, 3, (0,)))
    assert c.look() == [], "Drop was said"


def test_leaving_waits_for_the_running_loads() -> None:
    c = ready()
    ticket, load = c.load()
    save, _ = c.save()
    c.do(c.m.leave(c.now))
    assert c.done == [SaveDone(save, Status.DISCONNECTED, 0, 0)]
    leave = c.question(Leave)
    c.answer(load, Loaded(Status.COPY_FAILED))
    assert c.done[1:] == [LoadDone(ticket, Status.COPY_FAILED, BLOCKS)]
    c.answer(leave, Left())
    assert (c.m.state, c.others) == (State.LOST, [HangUp()])


def test_a_session_that_does_not_let_go_is_killed() -> None:
    c = ready()
    c.do(c.m.leave(c.now))
    c.question(Leave)
    c.wait(LEAVE_NS)
    assert (c.m.state, c.others) == (State.DYING, [KillSession()])
    c.do(c.m.session_died(c.now))
    assert c.m.state is State.LOST


def test_lookups_need_no_memory() -> None:
    c = ready()
    ticket, question = c.lookup()
    assert isinstance(question.message, Lookup)


def test_ranks_name_their_order() -> None:
    c = ready()
    ticket, effects = c.m.operations.save([Chain(KEYS, BLOCKS, 7)], c.at())
    c.do(effects)
    saved = c.question(Save).message
    assert isinstance(saved, Save) and saved.order == 7
    c.do(c.m.operations.skip(8))
    assert c.look() == [Skip(8)]
