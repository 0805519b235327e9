"""Several ranks in one session, and engines whose memory the session reaches by itself."""

from dataclasses import replace

import pytest

from pegaflow.actors.session.actor import Session
from pegaflow.wire import session as to_session
from pegaflow.wire.allocator import Return
from pegaflow.wire.control import BEAT_NS, Bye, Refused
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import NO_KEY, ClaimId, Incarnation, Key, LeaseId
from pegaflow.wire.index import Claim, Claimed, Corrupt, EndClaim, Find, Held, Release, Seal, Sealed
from pegaflow.wire.jobs import (
    BounceOpened,
    DrawProof,
    FillPages,
    MapEngine,
    OpenBounce,
    PagesDiffer,
    ProofDrawn,
    ReadBlocks,
    UnmapEngine,
    WriteBlocks,
)
from pegaflow.wire.session import (
    ORDER_NS,
    Attach,
    Attached,
    BatchCopied,
    CopyBatch,
    Drop,
    Found,
    Keep,
    Leave,
    Left,
    Load,
    Loaded,
    Lookup,
    Pages,
    Prove,
    Proven,
    Save,
    Saved,
    Skip,
    Way,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address
from tests.actors.rig import ALLOC, BOSS, CLIENT_7, CLIENT_8, IDX, MS, PAGE, Rig, one, pick, said
from tests.actors.sessions import ATTACH, KEYS, LAYOUT, grant, serving
from tests.naming import as_pages

PROOF = bytes(range(32))
DIRECT = replace(ATTACH, way=Way.PROCESS_VM, bases=(1 << 40,), scratch=1 << 41)
RANKS = (CLIENT_7, CLIENT_8)
BLOCKS = (20, 21, 22)
Begun = tuple[Rig, Session]


def attach(rig: Rig, client: Address, msg: Attach) -> Attached:
    """One rank, whatever way it asks for."""
    sent = rig.ask(client, msg)
    if msg.way is not Way.STAGED:
        assert said(rig.done(DrawProof, ProofDrawn(PROOF)), Prove, client).proof == PROOF
        assert rig.ask(client, Proven()) == []
        sent = rig.done(MapEngine)
    if rig.wanted(OpenBounce):
        sent = rig.done(OpenBounce, BounceOpened(f"bounce of {client}", ()))
    return said(sent, Attached, client)


def direct(way: Way = Way.PROCESS_VM, begun: Begun | None = None) -> Begun:
    """One rank by process_vm, with eight pages ready."""
    rig, actor = begun or serving()
    attach(rig, CLIENT_7, replace(DIRECT, way=way))
    rig.tell(ALLOC, grant(1, 8))
    return rig, actor


def pair(base: Attach = ATTACH, begun: Begun | None = None) -> Begun:
    """Two ranks, with eight pages ready."""
    rig, actor = begun or serving()
    for number, client in enumerate(RANKS):
        attach(rig, client, replace(base, rank=number, world=2))
    rig.tell(ALLOC, grant(1, 8))
    return rig, actor


def begin(rig: Rig, rank: int, order: int = 1, keys: tuple[Key, ...] = KEYS[:3]) -> list[Envelope]:
    """A rank's save, numbered like its order."""
    blocks = BLOCKS[: len(keys)]
    return rig.ask(RANKS[rank], Save(order, rank, keys, NO_KEY, order=order, blocks=blocks))


def idle(actor: Session) -> bool:
    orders = actor.orders
    return not orders.open and not orders.saves and not actor.reservation.used


# process_vm: attach


def test_a_proof_is_read_back_before_a_rank_is_served() -> None:
    rig, _ = serving()
    assert rig.ask(CLIENT_7, DIRECT) == []
    assert said(rig.done(DrawProof, ProofDrawn(PROOF)), Prove).proof == PROOF
    rig.ask(CLIENT_7, Proven())
    (job,) = rig.wanted(MapEngine)
    assert (job.pid, job.started_ticks, job.bases, job.scratch) == (4242, 99, DIRECT.bases, 1 << 41)
    assert job.proof == PROOF
    attached = said(rig.done(MapEngine), Attached)
    assert (attached.loads, attached.saves) == (Way.PROCESS_VM, Way.PROCESS_VM)
    assert (attached.bounce_path, attached.slots) == ("", 0)


@pytest.mark.parametrize("way", [Way.AUTO, Way.PROCESS_VM])
def test_who_cannot_be_reached_is_served_staged_unless_nothing_else_will_do(way: Way) -> None:
    rig, actor = serving()
    rig.ask(CLIENT_7, replace(DIRECT, way=way))
    rig.done(DrawProof, ProofDrawn(PROOF))
    rig.ask(CLIENT_7, Proven())
    sent = rig.done(MapEngine, Status.COPY_FAILED, "another pid namespace")
    if way is Way.PROCESS_VM:
        refused = said(sent, Refused, CLIENT_7)
        assert refused == Refused(Status.COPY_FAILED, "another pid namespace")
        assert actor.engine.ranks == {} and rig.wanted(UnmapEngine)
        return
    attached = said(rig.done(OpenBounce, BounceOpened("bounce", ())), Attached)
    assert (attached.loads, attached.saves) == (Way.STAGED, Way.STAGED)
    assert attached.note == "another pid namespace"


def test_proven_without_attach_and_twice() -> None:
    rig, _ = serving()
    assert said(rig.ask(CLIENT_7, Proven()), Refused).status is Status.NOT_READY
    rig.ask(CLIENT_7, DIRECT)
    rig.done(DrawProof, ProofDrawn(PROOF))
    rig.ask(CLIENT_7, Proven())
    assert said(rig.ask(CLIENT_7, Proven()), Refused).status is Status.NOT_READY


def test_addresses_that_do_not_fit_the_regions_are_not_used() -> None:
    rig, _ = serving()
    rig.ask(CLIENT_7, replace(DIRECT, way=Way.AUTO, bases=()))
    assert said(rig.done(OpenBounce, BounceOpened("b", ())), Attached).saves is Way.STAGED


# process_vm: copies


def test_a_load_is_written_by_the_session() -> None:
    rig, actor = direct()
    find = one(rig.ask(CLIENT_7, Lookup(KEYS[:3])), Find)
    lease = said(rig.answer(find, Held(LeaseId(5), 1, as_pages(0, 1, 4))), Found).lease
    assert rig.ask(CLIENT_7, Load(lease, 0, 1, 2, blocks=(9, 8)), deadline=rig.now + 7 * MS) == []
    (job,) = rig.wanted(WriteBlocks)
    assert (job.blocks, job.offsets) == ((9, 8), (PAGE, 4 * PAGE))
    assert job.deadline == rig.now + 7 * MS
    sent = rig.done(WriteBlocks)
    assert said(sent, Loaded, CLIENT_7).status is Status.OK
    assert said(sent, Release, IDX).number == 5 and not actor.leases.held


def test_pages_that_are_not_what_was_sealed_are_told_and_the_load_fails() -> None:
    rig, actor = direct()
    find = one(rig.ask(CLIENT_7, Lookup(KEYS[:3])), Find)
    rig.answer(find, Held(LeaseId(5), 1, as_pages(0, 1, 4), (7, 8, 9)))
    rig.ask(CLIENT_7, Load(LeaseId(5), 0, 1, 2, blocks=(9, 8)))
    assert rig.wanted(WriteBlocks)[0].checksums == (8, 9)
    sent = rig.done(WriteBlocks, PagesDiffer((4 * PAGE,)))
    assert said(sent, Loaded, CLIENT_7).status is Status.CORRUPT
    assert said(sent, Corrupt, IDX) == Corrupt(as_pages(4))
    assert not actor.leases.held


@pytest.mark.parametrize("blocks", [(), (1,), (1, 64)])
def test_impossible_blocks(blocks: tuple[int, ...]) -> None:
    rig, _ = direct()
    find = one(rig.ask(CLIENT_7, Lookup(KEYS[:3])), Find)
    rig.answer(find, Held(LeaseId(5), 1, as_pages(0, 1, 4)))
    load = rig.ask(CLIENT_7, Load(LeaseId(5), 0, 0, 2, blocks=blocks))
    assert said(load, Loaded).status is Status.BAD_REQUEST
    save = rig.ask(CLIENT_7, Save(1, 0, KEYS[:2], NO_KEY, blocks=blocks))
    assert said(save, Saved).status is Status.BAD_REQUEST


def test_a_save_is_sealed_after_keep_only() -> None:
    rig, actor = direct()
    claim = one(begin(rig, 0), Claim)
    assert rig.answer(claim, Claimed(ClaimId(1), (0, 2))) == []
    (job,) = rig.wanted(ReadBlocks)
    assert job.blocks == (20, 22)
    copied = said(rig.done(ReadBlocks), BatchCopied, CLIENT_7)
    assert copied.positions == (0, 2)
    seal = one(rig.tell(CLIENT_7, Keep(1, copied.batch)), Seal)
    sent = rig.answer(seal, Sealed(Status.OK, (0, 1)))
    assert said(sent, Saved) == Saved(Status.OK, 2, 1)
    assert idle(actor)


def test_a_keep_before_copied_means_nothing() -> None:
    rig, _ = direct()
    rig.answer(one(begin(rig, 0), Claim), Claimed(ClaimId(1), (0,)))
    assert rig.tell(CLIENT_7, Keep(1, 1)) == []
    assert not pick(rig.done(ReadBlocks), Seal)


@pytest.mark.parametrize("when", ["waiting", "reading", "read"])
def test_a_drop_before_keep_gives_the_pages_back(when: str) -> None:
    rig, actor = direct()
    if when == "waiting":
        actor.reservation.free.clear()
    rig.answer(one(begin(rig, 0), Claim), Claimed(ClaimId(1), (0, 1, 2)))
    sent: list[Envelope] = []
    if when == "read":
        said(rig.done(ReadBlocks), BatchCopied)
    sent += rig.tell(CLIENT_7, Drop(1))
    if when == "reading":
        assert not pick(sent, Saved), "a copy still names the pages"
        sent += rig.done(ReadBlocks)
    assert said(sent, Saved) == Saved(Status.DROPPED, 0, 0)
    assert bool(pick(sent, Return)) == (when != "waiting") and one(sent, EndClaim)
    assert idle(actor)


def test_a_failed_read_seals_nothing() -> None:
    rig, actor = direct()
    rig.answer(one(begin(rig, 0), Claim), Claimed(ClaimId(1), (0, 1, 2)))
    sent = rig.done(ReadBlocks, Status.COPY_FAILED)
    assert said(sent, Saved) == Saved(Status.COPY_FAILED, 0, 0)
    assert len(said(sent, Return).pages) == 3 and idle(actor)


def test_left_is_said_when_nothing_runs_any_more() -> None:
    rig, _ = direct()
    find = one(rig.ask(CLIENT_7, Lookup(KEYS[:1])), Find)
    rig.answer(find, Held(LeaseId(5), 1, as_pages(0)))
    rig.ask(CLIENT_7, Load(LeaseId(5), 0, 0, 1, blocks=(3,)))
    sent = rig.ask(CLIENT_7, Leave())
    assert rig.wanted(UnmapEngine) and not pick(sent, Left) and rig.stop is None
    sent = rig.done(WriteBlocks, Status.COPY_FAILED)
    assert said(sent, Loaded).status is Status.COPY_FAILED
    one(sent, Left, CLIENT_7)
    one(sent, Bye, BOSS)
    assert rig.stop == ""


def test_a_rank_is_not_copied_over_while_its_memory_is_written() -> None:
    rig, _ = direct()
    find = one(rig.ask(CLIENT_7, Lookup(KEYS[:1])), Find)
    rig.answer(find, Held(LeaseId(5), 1, as_pages(0)))
    rig.ask(CLIENT_7, Load(LeaseId(5), 0, 0, 1, blocks=(3,)))
    assert said(rig.ask(CLIENT_8, ATTACH), Refused).status is Status.NOT_READY
    rig.done(WriteBlocks, Status.COPY_FAILED)
    attach(rig, CLIENT_8, ATTACH)


# ranks


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_nothing_is_served_before_every_rank_is_there(order: tuple[int, int]) -> None:
    rig, actor = serving()
    first, second = order
    early = attach(rig, RANKS[first], replace(ATTACH, rank=first, world=2))
    assert early.namespace == b"" and not actor.engine.complete
    lookup = rig.ask(BOSS_CLIENT, Lookup(KEYS))
    assert said(lookup, Found).status is Status.NOT_ATTACHED
    assert said(begin(rig, first), Saved).status is Status.NOT_ATTACHED
    late = attach(rig, RANKS[second], replace(ATTACH, rank=second, world=2))
    assert len(late.namespace) == 16 and actor.engine.complete
    one(rig.ask(BOSS_CLIENT, Lookup(KEYS)), Find)


BOSS_CLIENT = Address("client", Incarnation(99))  # a scheduler: it has no memory


@pytest.mark.parametrize(
    "other",
    [
        replace(ATTACH, rank=1, world=3),
        replace(ATTACH, rank=2, world=2),
        replace(
            ATTACH,
            rank=1,
            world=2,
            layout=replace(
                LAYOUT, layers=(replace(LAYOUT.layers[0], block_stride=2 * PAGE),) * 2, blocks=2
            ),
            region_bytes=(4 * PAGE,),
        ),
    ],
)
def test_ranks_that_do_not_fit_together(other: Attach) -> None:
    rig, _ = serving()
    attach(rig, CLIENT_7, replace(ATTACH, rank=0, world=2))
    refused = said(rig.ask(CLIENT_8, other), Refused)
    assert refused.status in (Status.BAD_REQUEST, Status.BAD_LAYOUT)


def staged_batch(rig: Rig, rank: int, sent: list[Envelope]) -> list[Envelope]:
    """Keep and fill what a rank was told to take."""
    take = said(sent, CopyBatch, RANKS[rank])
    rig.tell(RANKS[rank], Keep(take.save, take.batch))
    return rig.done(FillPages)


def test_a_block_is_sealed_with_a_page_of_every_rank() -> None:
    rig, actor = pair()
    sent = rig.answer(one(begin(rig, 0), Claim), Claimed(ClaimId(1), (0, 1, 2)))
    assert not pick(staged_batch(rig, 0, sent), Seal)
    sent = begin(rig, 1)
    assert not pick(sent, Claim), "it joins the claim of the other"
    seal = one(staged_batch(rig, 1, sent), Seal)
    msg = seal.message
    assert isinstance(msg, Seal) and (msg.shards, len(msg.pages)) == (2, 6)
    sent = rig.answer(seal, Sealed(Status.OK, (0, 1, 2)))
    for client in RANKS:
        assert said(sent, Saved, client) == Saved(Status.OK, 3, 0)
    one(sent, EndClaim)
    assert idle(actor)


def test_shards_of_two_orders_never_meet() -> None:
    """Rank 1 has computed wrong bytes for order 1; rank 0, which knows it, saves order 2."""
    rig, actor = pair()
    key = KEYS[:1]
    sent = rig.answer(one(begin(rig, 1, 1, key), Claim), Claimed(ClaimId(1), (0,)))
    staged_batch(rig, 1, sent)
    sent = begin(rig, 0, 2, key)
    sent = rig.answer(one(sent, Claim), Claimed(ClaimId(2), (0,)))
    assert not pick(staged_batch(rig, 0, sent), Seal)
    sent = rig.tell(CLIENT_7, Skip(1))
    assert said(sent, Saved, CLIENT_8) == Saved(Status.DROPPED, 0, 0)
    assert len(said(sent, Return).pages) == 1
    one(staged_batch(rig, 1, begin(rig, 1, 2, key)), Seal)
    assert list(actor.orders.open) == [2]


def test_who_comes_too_late_does_not_start_an_order_anew() -> None:
    rig, actor = pair()
    rig.tell(CLIENT_7, Skip(1))
    assert said(begin(rig, 1), Saved).status is Status.DROPPED
    assert idle(actor)


def test_an_order_that_a_rank_never_saves_is_given_up() -> None:
    rig, actor = pair()
    sent = rig.answer(one(begin(rig, 0), Claim), Claimed(ClaimId(1), (0, 1, 2)))
    staged_batch(rig, 0, sent)
    sent = rig.wait(ORDER_NS + 2 * BEAT_NS)
    assert said(sent, Saved, CLIENT_7) == Saved(Status.EXPIRED, 0, 0)
    one(sent, EndClaim)
    assert idle(actor)
    assert said(begin(rig, 1), Saved).status is Status.DROPPED


def test_what_one_rank_drops_is_dead_for_all_and_the_rest_is_sealed() -> None:
    rig, actor = pair()
    for rank in actor.engine.ranks.values():
        rank.slots, rank.free_slots = 2, [0, 1]
    sent = rig.answer(one(begin(rig, 0), Claim), Claimed(ClaimId(1), (0, 1, 2)))
    first = staged_batch(rig, 0, sent)
    assert said(first, CopyBatch, CLIENT_7).positions == (2,)
    rig.tell(CLIENT_7, Drop(1))
    sent = begin(rig, 1)
    assert said(sent, CopyBatch, CLIENT_8).positions == (0, 1), "position 2 is dead"
    seal = one(staged_batch(rig, 1, sent), Seal)
    sent = rig.answer(seal, Sealed(Status.OK, (0, 1)))
    for client in RANKS:
        assert said(sent, Saved, client) == Saved(Status.DROPPED, 2, 0)
    assert idle(actor)


def test_ranks_must_name_an_order_and_agree_on_it() -> None:
    rig, _ = pair()
    assert said(begin(rig, 0, 0), Saved).status is Status.BAD_REQUEST
    begin(rig, 0, 1)
    assert said(begin(rig, 1, 1, KEYS[3:6]), Saved).status is Status.BAD_REQUEST


def test_a_lease_is_consumed_when_every_rank_has_loaded() -> None:
    rig, actor = pair(DIRECT)
    find = one(rig.ask(BOSS_CLIENT, Lookup(KEYS[:2])), Find)
    found = said(rig.answer(find, Held(LeaseId(5), 2, as_pages(0, 1, 4, 5))), Found)
    assert found.blocks == 2
    for rank, offsets in ((1, (PAGE, 5 * PAGE)), (0, (0, 4 * PAGE))):
        rig.ask(RANKS[rank], Load(LeaseId(5), rank, 0, 2, blocks=(3, 4)))
        assert rig.wanted(WriteBlocks)[0].offsets == offsets
        sent = rig.done(WriteBlocks)
        assert said(sent, Loaded, RANKS[rank]).status is Status.OK
        assert bool(pick(sent, Release)) == (rank == 0)
        again = rig.ask(RANKS[rank], Load(LeaseId(5), rank, 0, 2, blocks=(3, 4)))
        assert said(again, Loaded).status is Status.NO_SUCH_LEASE
    assert not actor.leases.held


def test_a_scheduler_that_releases_does_not_cut_a_ranks_load() -> None:
    rig, actor = pair(DIRECT)
    find = one(rig.ask(BOSS_CLIENT, Lookup(KEYS[:1])), Find)
    rig.answer(find, Held(LeaseId(5), 2, as_pages(0, 1)))
    rig.ask(CLIENT_7, Load(LeaseId(5), 0, 0, 1, blocks=(3,)))
    assert not pick(rig.tell(BOSS_CLIENT, to_session.Release(LeaseId(5))), Release)
    assert (
        said(rig.ask(CLIENT_8, Load(LeaseId(5), 1, 0, 1, blocks=(3,))), Loaded).status
        is Status.NO_SUCH_LEASE
    )
    one(rig.done(WriteBlocks), Release)
    assert not actor.leases.held


def test_a_lease_of_another_number_of_shards_is_a_miss() -> None:
    rig, actor = pair()
    find = one(rig.ask(BOSS_CLIENT, Lookup(KEYS[:2])), Find)
    assert said(rig.answer(find, Held(LeaseId(5), 1, as_pages(0, 1))), Found).blocks == 0
    assert not actor.leases.held


def test_one_rank_may_load_for_itself_alone() -> None:
    rig, _ = pair()
    find = one(rig.ask(BOSS_CLIENT, Lookup(KEYS[:1])), Find)
    rig.answer(find, Held(LeaseId(5), 2, as_pages(0, 1)))
    assert said(rig.ask(CLIENT_7, Load(LeaseId(5), 1, 0, 1)), Pages).status is Status.NOT_ATTACHED
    assert said(rig.ask(CLIENT_8, Load(LeaseId(5), 1, 0, 1)), Pages).offsets == (PAGE,)


def test_when_a_rank_leaves_nothing_is_served_until_it_is_back() -> None:
    rig, actor = pair()
    sent = rig.answer(one(begin(rig, 0), Claim), Claimed(ClaimId(1), (0, 1, 2)))
    staged_batch(rig, 0, sent)
    sent = rig.ask(CLIENT_8, Leave())
    one(sent, Left, CLIENT_8)
    assert said(sent, Saved, CLIENT_7).status is Status.DROPPED
    assert said(rig.ask(BOSS_CLIENT, Lookup(KEYS)), Found).status is Status.NOT_ATTACHED
    attach(rig, CLIENT_8, replace(ATTACH, rank=1, world=2))
    assert actor.engine.complete and idle(actor)
