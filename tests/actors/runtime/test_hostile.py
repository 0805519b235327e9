"""What a broken client or session can say: each is refused with a status or counted, no more.

Most of these were found by tests/fuzz; here each stands by itself.
"""

from dataclasses import replace

import pytest

from pegaflow.actors.allocator import reservations
from pegaflow.actors.index import claims, leasing, residency
from pegaflow.actors.runtime import host as asks
from pegaflow.actors.runtime.contract import Sender
from pegaflow.actors.session import engine, lookup, orders
from pegaflow.actors.supervisor import attach as front_desk
from pegaflow.actors.supervisor.attach import ENGINE_MAX
from pegaflow.actors.supervisor.children import ChildState
from pegaflow.actors.supervisor.opens import Open
from pegaflow.actors.supervisor.stage import Stage
from pegaflow.core.pool.ledger import MAX_SHARDS, PAYLOAD_BYTES_MAX
from pegaflow.device.procs import open_pidfd
from pegaflow.wire.allocator import PagesHeld, Reserve, Reserved, Return
from pegaflow.wire.control import (
    SILENT_NS,
    Beat,
    Bye,
    Gone,
    Hello,
    OpenSession,
    Refused,
    Serve,
    Welcome,
)
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import (
    NO_CLAIM,
    NO_GRANT,
    NO_KEY,
    NO_LEASE,
    EngineNamespace,
    GrantId,
    Incarnation,
    Key,
    LeaseId,
    Namespace,
    PageId,
)
from pegaflow.wire.index import Claim, Claimed, EndClaim, Find, Held, Release, Sealed
from pegaflow.wire.jobs import Exited, ReadRecords, RecordsRead, Stopping
from pegaflow.wire.message import Message
from pegaflow.wire.session import Found, Leave, Lookup, Ping, Pong, Save, Saved
from pegaflow.wire.status import Status
from pegaflow.wire.values import CLIENT, INDEX, SUPERVISOR, Address
from tests.actors.allocator.test_allocator import allocator, granted
from tests.actors.group import OPEN, Group
from tests.actors.index.test_index import RECORDS, claim, find, index, press, save, seal_of
from tests.actors.rig import (
    ALLOC,
    BOSS,
    CLIENT_7,
    CLIENT_8,
    EXTENT,
    IDX,
    PAGE,
    SESSION_4,
    SESSION_5,
    one,
    said,
)
from tests.actors.sessions import ATTACH, KEYS, attached, grant, serving, spare
from tests.naming import as_pages, as_stamps

U64_MAX = (1 << 64) - 1


# names


@pytest.mark.parametrize("msg", [Stopping(), Exited(Address(INDEX, Incarnation(3)), 0)])
def test_what_only_the_shell_says_comes_through_no_socket(msg: Message) -> None:
    group = Group()
    assert (
        group.tell(BOSS, msg) == [] and group.tell(Address(SUPERVISOR, Incarnation(9)), msg) == []
    )
    assert group.count("frames_of_other_lives") == 2
    assert (
        group.boss.lifecycle.stage is Stage.UP
        and Address(INDEX, Incarnation(3)) in group.boss.children
    )


def test_another_life_of_the_supervisor_or_of_a_neighbour_is_not_heard() -> None:
    rig, actor, reserve = attached()
    rig.tell(Address(SUPERVISOR, Incarnation(9)), Gone(IDX))
    rig.tell(
        Address(SUPERVISOR, Incarnation(9)), Welcome("other", "other", 0, EXTENT, run_dir="run")
    )
    rig.tell(Address(INDEX, Incarnation(9)), Held(LeaseId(7), 1, as_pages(0)))
    rig.tell(
        Address(ALLOC.name, Incarnation(9)),
        Reserved(Status.OK, GrantId(1), as_pages(5), as_stamps(6)),
    )
    assert rig.count("frames_of_other_lives") == 4
    assert not actor.reservation.free and actor.leases.held.upto == 0
    for stranger in (Address("nobody", Incarnation(1)), Address("", Incarnation(0)), SESSION_5):
        late = Envelope(
            stranger, rig.me, Reserved(Status.OK, GrantId(1), as_pages(5), ()), answer=99
        )
        assert rig.host.deliver(late, rig.now).envelopes == []
    assert not actor.reservation.free
    rig.answer(reserve, grant(1, 8))
    assert len(actor.reservation.free) == 8


def test_large_frames_do_not_fill_the_black_box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asks, "INPUTS_BYTES_MAX", 10_000)
    rig, _, _ = attached()
    for _ in range(20):
        rig.ask(CLIENT_7, Lookup(tuple(Key(n.to_bytes(32, "big")) for n in range(100))))
    assert len(rig.host.inputs) == 3, "the last ones"
    assert rig.host._input_bytes == sum(len(h) + len(b) for _, _, h, b in rig.host.inputs)


# index


def test_a_seal_that_no_ledger_or_pool_can_hold_is_a_bad_request() -> None:
    rig, actor = index()
    good = seal_of(claim(rig, KEYS[:1]).number, KEYS[:1])
    many = tuple(range(MAX_SHARDS + 1))
    short = said(rig.ask(SESSION_4, Claim(Namespace(b"short"), KEYS[:1])), Claimed).number
    for bad in (
        replace(good, claim=short, namespace=Namespace(b"short")),
        replace(good, page_size=0),
        replace(good, page_size=PAGE + 1),
        replace(good, page_size=U64_MAX),
        replace(good, page_size=EXTENT, pages=as_pages(1)),
        replace(good, payload_bytes=0),
        replace(good, payload_bytes=PAGE + 1),
        replace(good, page_size=2 * PAGE, payload_bytes=PAYLOAD_BYTES_MAX + 1),
        replace(good, shards=MAX_SHARDS + 1, pages=as_pages(*many), stamps=as_stamps(*many)),
        replace(good, pages=as_pages(U64_MAX)),
    ):
        assert said(rig.ask(SESSION_4, bad), Sealed) == Sealed(Status.BAD_REQUEST, ()), bad
    assert rig.count("seals_malformed") == 10 and len(actor.residency.blocks) == 0
    assert said(rig.ask(SESSION_4, good), Sealed).positions == (0,)


def test_blocks_of_one_namespace_are_cut_alike() -> None:
    rig, _ = index()
    save(rig, KEYS[:1])
    good = seal_of(claim(rig, KEYS[1:2]).number, KEYS[1:2], first_page=RECORDS)
    for bad in (
        replace(good, page_size=2 * PAGE),
        replace(good, shards=2, pages=as_pages(RECORDS, RECORDS + 1), stamps=as_stamps(1, 2)),
    ):
        assert said(rig.ask(SESSION_4, bad), Sealed) == Sealed(Status.BAD_REQUEST, ())
    assert said(rig.ask(SESSION_4, good), Sealed).positions == (0,)


def test_no_answer_is_longer_than_a_message_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residency, "LIST_MAX", 2)
    rig, _ = index()
    save(rig, KEYS[:4])
    assert find(rig, KEYS[:4]).pages == (0, 1)
    assert len(press(rig, 9)) == 2
    rig, _ = allocator()
    monkeypatch.setattr(reservations, "LIST_MAX", 2)
    assert said(rig.ask(SESSION_4, Reserve(PAGE, 3)), Reserved).status is Status.BAD_REQUEST


def test_a_chain_that_bites_its_tail_is_walked_once() -> None:
    rig, actor = index()
    one_, two = KEYS[:2]
    for key, parent, page in ((one_, two, 0), (two, one_, 1)):
        msg = replace(seal_of(claim(rig, (key,)).number, (key,), page), parents=(parent,))
        assert said(rig.ask(SESSION_4, msg), Sealed).positions == (0,)
    assert [len(actor.residency._chain(block.pages[0])) for block in actor.residency.blocks] == [
        2,
        2,
    ]


def test_claims_and_leases_of_one_session_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "CLAIMS_MAX", 2)
    monkeypatch.setattr(leasing, "LEASED_MAX", 4)
    rig, _ = index()
    save(rig, KEYS[:2])
    assert find(rig, KEYS[:2]).number and find(rig, KEYS[:2]).number
    assert find(rig, KEYS[:1]).pages == (), "four blocks are leased"
    rig.tell(SESSION_4, Release(LeaseId(1)))
    assert len(find(rig, KEYS[:1]).pages) == 1
    first = claim(rig, KEYS[2:3]).number
    assert claim(rig, KEYS[3:4]).number
    assert claim(rig, KEYS[4:5]) == Claimed(NO_CLAIM, ())
    rig.tell(SESSION_4, EndClaim(first))
    assert claim(rig, KEYS[4:5]).number


# allocator


def test_pages_that_are_not_there_are_not_looked_up() -> None:
    rig, _ = allocator()
    pages = granted(rig.ask(SESSION_4, Reserve(PAGE, 1))).pages
    rig.tell(SESSION_4, Return((PageId(U64_MAX), *pages, PageId(1 << 40))))
    assert rig.wanted(ReadRecords) == [ReadRecords(pages)]
    assert rig.count("pages_not_held") == 2


def test_a_grant_whose_pages_came_back_is_not_said_again() -> None:
    rig, _ = allocator()
    pages = granted(rig.ask(SESSION_4, Reserve(PAGE, 2))).pages
    rig.tell(SESSION_4, Return(pages[:1]))
    rig.done(ReadRecords, RecordsRead(()))
    assert rig.tell(SESSION_4, PagesHeld(NO_GRANT, pages[1:])) == []


def test_who_never_states_is_granted_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "UNSTATED_MAX", 2)
    rig, _ = allocator()
    pages = [granted(rig.ask(SESSION_4, Reserve(PAGE, 1))).pages[0] for _ in range(2)]
    assert said(rig.ask(SESSION_4, Reserve(PAGE, 1)), Reserved).status is Status.BUSY
    rig.tell(SESSION_4, PagesHeld(GrantId(2), tuple(pages)))
    assert said(rig.ask(SESSION_4, Reserve(PAGE, 1)), Reserved).status is Status.OK


# session


def test_a_stranger_that_leaves_ends_no_session() -> None:
    rig, _ = spare()
    rig.tell(CLIENT_8, Leave())
    assert rig.stop is None


def test_clients_of_a_session_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CLIENTS_MAX", 2)
    rig, actor = serving()
    rig.ask(CLIENT_7, Ping())
    rig.ask(CLIENT_8, Ping())
    late = Address(CLIENT, Incarnation(9))
    assert said(rig.ask(late, Ping()), Pong) and late not in actor.engine.clients
    assert said(rig.ask(late, ATTACH), Refused).status is Status.BUSY
    rig.ask(CLIENT_7, ATTACH)
    sent = rig.ask(CLIENT_7, replace(ATTACH, pid=5))
    assert said(sent, Refused).status is Status.NOT_READY, "known, but its rank is being made"
    assert said(rig.ask(CLIENT_7, replace(ATTACH, pid=6)), Refused).status is Status.BUSY
    again = rig.ask(CLIENT_7, replace(ATTACH, pid=5))
    assert said(again, Refused).status is Status.NOT_READY, "it is watched already"


def test_lookups_without_an_answer_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "LOOKUPS_MAX", 2)
    rig, _, _ = attached()
    first = one(rig.ask(CLIENT_7, Lookup(KEYS)), Find, IDX)
    rig.ask(CLIENT_7, Lookup(KEYS))
    assert said(rig.ask(CLIENT_7, Lookup(KEYS)), Found) == Found(Status.BUSY, NO_LEASE, 0)
    rig.answer(first, Held(NO_LEASE, 0, ()))
    one(rig.ask(CLIENT_7, Lookup(KEYS)), Find, IDX)


def test_keys_of_open_saves_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "KEYS_MAX", 5)
    rig, _, _ = attached()
    question = one(rig.ask(CLIENT_7, Save(1, 0, KEYS[:3], NO_KEY)), Claim, IDX)
    assert said(rig.ask(CLIENT_7, Save(2, 0, KEYS[:3], NO_KEY)), Saved).status is Status.BUSY
    assert said(rig.answer(question, Claimed(NO_CLAIM, ())), Saved).known == 3
    one(rig.ask(CLIENT_7, Save(2, 0, KEYS[:3], NO_KEY)), Claim, IDX)


# front desk and supervisor


@pytest.mark.parametrize(
    "bad",
    [
        replace(OPEN, engine="x" * (ENGINE_MAX + 1)),
        replace(OPEN, engine="two\nlines"),
        replace(OPEN, probe=bytes(65)),
        replace(OPEN, namespace=EngineNamespace(bytes(15))),
        replace(OPEN, generation=b""),
    ],
)
def test_opens_that_make_no_sense(bad: OpenSession) -> None:
    refused = said(Group().open(bad), Refused)
    assert refused.status is Status.BAD_REQUEST and "\n" not in refused.why


def test_engines_of_one_service_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(front_desk, "ENGINES_MAX", 2)
    group = Group()
    group.serve()
    one(group.open(replace(OPEN, engine="second")), Serve)
    refused = said(group.open(replace(OPEN, engine="third")), Refused)
    assert refused.status is Status.BUSY
    assert not [e for e in group.open() if isinstance(e.message, Refused)], "known ones are served"


def test_who_asks_again_and_again_waits_once() -> None:
    opens = Group().boss.opens
    for question in range(1, 21):
        opens.add(Open(Sender(CLIENT_7, question), OPEN))
    assert len(opens) == 20 and opens.openers() == 1


def test_a_session_that_says_hello_again_stays_with_its_engine() -> None:
    group = Group()
    at = group.serve()
    assert group.tell(at, Hello(1, 1, "ipc://elsewhere")) == []
    assert group.boss.children[at].state is ChildState.SERVING
    fresh = said(group.open(replace(OPEN, engine="other")), Serve)
    assert fresh.engine == "other"


def test_a_child_that_says_bye_and_stays_is_killed() -> None:
    group = Group()
    liar = group.now_living(INDEX)
    group.tell(liar, Bye())
    for _ in range(5):
        group.wait(SILENT_NS // 4)
        for child in list(group.living):
            group.tell(child, Bye() if child == liar else Beat(()))
    group.settle()
    assert group.killed == [liar]


@pytest.mark.parametrize("pid", [0, 1 << 31, 1 << 63, U64_MAX])
def test_a_pid_that_cannot_be_is_a_dead_process(pid: int) -> None:
    assert open_pidfd(pid, 1) is None
