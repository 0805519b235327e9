"""Ranks that hold the same bytes: one page per block, saved by stripes, loaded by each of them."""

from dataclasses import replace

import pytest

from pegaflow.actors.session.actor import Session
from pegaflow.wire.control import BEAT_NS, Refused
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import NO_KEY, ClaimId, Incarnation, Key, LeaseId
from pegaflow.wire.index import Claim, Claimed, EndClaim, Find, Held, Release, Seal, Sealed
from pegaflow.wire.jobs import ReadBlocks, WriteBlocks
from pegaflow.wire.layout import Layout
from pegaflow.wire.session import (
    ORDER_NS,
    Attach,
    BatchCopied,
    Commit,
    Drop,
    Found,
    Keep,
    Load,
    Loaded,
    Lookup,
    Save,
    Saved,
    Skip,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address
from tests.actors.rig import ALLOC, CLIENT_7, CLIENT_8, IDX, PAGE, Rig, one, pick, said
from tests.actors.sessions import KEYS, LAYOUT, grant, serving
from tests.naming import as_pages

from .test_ranks import DIRECT, attach, idle

RANKS = (CLIENT_7, CLIENT_8, *(Address("client", Incarnation(n)) for n in (9, 10)))
BLOCKS = (20, 21, 22, 23, 24)


def engine(world: int = 2, replicas: int = 2) -> tuple[Rig, Session]:
    """An engine by process_vm, with eight pages ready."""
    rig, actor = serving()
    for rank, client in enumerate(RANKS[:world]):
        attach(rig, client, replace(DIRECT, rank=rank, world=world, replicas=replicas))
    rig.tell(ALLOC, grant(1, 8))
    return rig, actor


def begin(
    rig: Rig, rank: int, keys: tuple[Key, ...] = KEYS[:5], *, commits: bool = False
) -> list[Envelope]:
    """A rank's save under order 1."""
    blocks = BLOCKS[: len(keys)]
    msg = Save(1, rank, keys, NO_KEY, order=1, blocks=blocks, commits=commits)
    return rig.ask(RANKS[rank], msg)


def claimed(rig: Rig, count: int = 5, *, commits: bool = False) -> None:
    """Rank 0 has begun, and all of so many blocks are new.  In this order it begins with the
    second, and rank 1 with the first."""
    claim = one(begin(rig, 0, KEYS[:count], commits=commits), Claim)
    rig.answer(claim, Claimed(ClaimId(1), tuple(range(count))))


def kept(rig: Rig, rank: int) -> list[Envelope]:
    """The oldest read ends, and its rank, this one, keeps it; what is said then."""
    copied = said(rig.done(ReadBlocks), BatchCopied, RANKS[rank])
    return rig.tell(RANKS[rank], Keep(copied.save, copied.batch))


def seal_of(sent: list[Envelope]) -> tuple[Envelope, Seal]:
    """The only Seal."""
    envelope = one(sent, Seal)
    assert isinstance(envelope.message, Seal)
    return envelope, envelope.message


# who they are


@pytest.mark.parametrize(("world", "replicas", "shards"), [(2, 2, 1), (4, 2, 2), (4, 4, 1)])
def test_shards_of_ranks(world: int, replicas: int, shards: int) -> None:
    _, actor = engine(world, replicas)
    space = actor.engine.space
    assert space is not None and (space.ranks, space.shards) == (world, shards)
    assert space.block_bytes == shards * PAGE
    assert space.shard_of == tuple(rank // replicas for rank in range(world))


def test_pipeline_stages_may_differ_in_it() -> None:
    rig, actor = serving()
    for rank, alike in enumerate((2, 2, 1, 1)):
        attach(rig, RANKS[rank], replace(DIRECT, rank=rank, world=4, replicas=alike))
    assert actor.engine.space is not None and actor.engine.space.shard_of == (0, 0, 1, 2)


def namespace(world: int, replicas: int, *names: str) -> bytes:
    """Of an engine whose ranks call their layouts so."""
    rig, actor = serving()
    for rank, client in enumerate(RANKS[:world]):
        layout = replace(LAYOUT, name=names[rank % len(names)])
        msg = replace(DIRECT, rank=rank, world=world, replicas=replicas, layout=layout)
        attach(rig, client, msg)
    assert actor.engine.space is not None
    return actor.engine.space.namespace


def test_replicas_share_with_an_engine_of_one_rank_if_they_say_what_it_says() -> None:
    alone = namespace(1, 1, "a")
    assert namespace(2, 2, "a") == alone == namespace(4, 4, "a")
    apart = [namespace(2, 1, "a"), namespace(2, 2, "a", "b"), namespace(2, 1, "a", "b")]
    apart += [namespace(2, 2, "b", "a"), namespace(4, 2, "a", "b"), namespace(4, 2, "a")]
    assert len({alone, *apart}) == 6 and apart[0] == apart[-1]


TWO_LAYERS = tuple(
    replace(LAYOUT.layers[0], segment_bytes=PAGE // 2, offset=offset) for offset in (0, PAGE // 2)
)


@pytest.mark.parametrize(
    "other",
    [
        {"replicas": 1},
        {"replicas": 3},
        {"replicas": 0},
        {"layout": replace(LAYOUT, dtype="uint8")},
        {"layout": replace(LAYOUT, layers=TWO_LAYERS)},
    ],
)
def test_ranks_that_contradict_each_other_are_refused(other: dict[str, int | Layout]) -> None:
    rig, _ = serving()
    attach(rig, CLIENT_7, replace(DIRECT, world=2, replicas=2))
    wrong: Attach = replace(DIRECT, **{"rank": 1, "world": 2, "replicas": 2, **other})  # type: ignore[arg-type]
    assert said(rig.ask(CLIENT_8, wrong), Refused).status is Status.BAD_REQUEST


def test_blocks_of_another_place_in_memory_are_the_same() -> None:
    rig, actor = serving()
    attach(rig, CLIENT_7, replace(DIRECT, world=2, replicas=2))
    moved = replace(LAYOUT, blocks=32, layers=(replace(LAYOUT.layers[0], block_stride=2 * PAGE),))
    attach(rig, CLIENT_8, replace(DIRECT, rank=1, world=2, replicas=2, layout=moved))
    assert actor.engine.complete


# saves


def test_each_saves_a_stripe_and_what_one_has_in_place_is_sealed() -> None:
    rig, actor = engine()
    claimed(rig)
    assert [job.blocks for job in rig.wanted(ReadBlocks)] == [(21, 23)]
    envelope, seal = seal_of(kept(rig, 0))
    assert (seal.shards, seal.keys) == (1, (KEYS[1], KEYS[3])) and len(seal.pages) == 2
    assert seal.parents == (KEYS[0], KEYS[2]) and tuple(seal.depths) == (1, 3)
    sent = rig.answer(envelope, Sealed(Status.OK, (0, 1)))
    assert said(sent, Saved, CLIENT_7) == Saved(Status.OK, 2, 3)
    assert not pick(begin(rig, 1), Claim) and not pick(sent, EndClaim)
    assert [job.blocks for job in rig.wanted(ReadBlocks)] == [(20, 22, 24)]
    envelope, seal = seal_of(kept(rig, 1))
    assert seal.keys == (KEYS[0], KEYS[2], KEYS[4])
    sent = rig.answer(envelope, Sealed(Status.OK, (0, 1, 2)))
    assert said(sent, Saved, CLIENT_8) == Saved(Status.OK, 3, 2)
    one(sent, EndClaim)
    assert idle(actor)


def test_a_single_block_is_saved_by_another_rank_in_each_order() -> None:
    rig, _ = engine()
    for order in range(1, 5):
        for rank in (0, 1):
            msg = Save(order, rank, KEYS[order : order + 1], NO_KEY, order=order, blocks=(order,))
            sent = rig.ask(RANKS[rank], msg)
            for claim in pick(sent, Claim):
                sent = rig.answer(claim, Claimed(ClaimId(order), (0,)))
            if rank != order % 2:
                assert said(sent, Saved, RANKS[rank]) == Saved(Status.OK, 0, 1)
        envelope, _ = seal_of(kept(rig, order % 2))
        sent = rig.answer(envelope, Sealed(Status.OK, (0,)))
        assert said(sent, Saved, RANKS[order % 2]) == Saved(Status.OK, 1, 0)


def test_a_block_of_two_shards_is_sealed_with_a_page_of_each() -> None:
    rig, actor = engine(4, 2)
    claimed(rig, 3)
    for rank in (1, 2, 3):
        begin(rig, rank, KEYS[:3])
    stripes = [(21,), (20, 22), (21,), (20, 22)]
    assert [job.blocks for job in rig.wanted(ReadBlocks)] == stripes
    assert not pick(kept(rig, 0), Seal) and not pick(kept(rig, 1), Seal)
    pages = next(iter(actor.orders.open.values())).blocks.pages
    first, seal = seal_of(kept(rig, 2))
    assert (seal.shards, seal.keys) == (2, (KEYS[1],))
    assert tuple(seal.pages) == tuple(pages[1, [0, 2]])
    second, seal = seal_of(kept(rig, 3))
    assert seal.keys == (KEYS[0], KEYS[2])
    assert tuple(seal.pages) == tuple(pages[[0, 2]][:, [1, 3]].ravel())
    assert len(set(seal.stamps)) == 4 and 0 not in seal.stamps
    sent = rig.answer(first, Sealed(Status.OK, (0,)))
    sent += rig.answer(second, Sealed(Status.OK, (0, 1)))
    for rank in range(4):
        saved = len(stripes[rank])
        assert said(sent, Saved, RANKS[rank]) == Saved(Status.OK, saved, 3 - saved)
    assert idle(actor)


def test_what_one_takes_back_costs_its_stripe_alone() -> None:
    rig, actor = engine()
    claimed(rig)
    begin(rig, 1)
    rig.tell(CLIENT_7, Drop(1))
    assert not pick(rig.done(ReadBlocks), BatchCopied)
    envelope, seal = seal_of(kept(rig, 1))
    assert seal.keys == (KEYS[0], KEYS[2], KEYS[4])
    sent = rig.answer(envelope, Sealed(Status.OK, (0, 1, 2)))
    assert said(sent, Saved, CLIENT_8).saved == 3 and idle(actor)


def test_so_does_what_it_takes_back_before_the_index_has_answered() -> None:
    rig, actor = engine()
    claim = one(begin(rig, 0), Claim)
    begin(rig, 1)
    rig.tell(CLIENT_7, Drop(1))
    sent = rig.answer(claim, Claimed(ClaimId(1), (0, 1, 2, 3, 4)))
    assert said(sent, Saved, CLIENT_7) == Saved(Status.DROPPED, 0, 3)
    envelope, seal = seal_of(kept(rig, 1))
    assert seal.keys == (KEYS[0], KEYS[2], KEYS[4])
    rig.answer(envelope, Sealed(Status.OK, (0, 1, 2)))
    assert idle(actor)


def test_what_one_cannot_copy_costs_its_stripe_alone() -> None:
    rig, actor = engine()
    claimed(rig)
    begin(rig, 1)
    sent = rig.done(ReadBlocks, Status.COPY_FAILED)
    assert said(sent, Saved, CLIENT_7) == Saved(Status.COPY_FAILED, 0, 3)
    envelope, seal = seal_of(kept(rig, 1))
    rig.answer(envelope, Sealed(Status.OK, (0, 1, 2)))
    assert seal.keys == (KEYS[0], KEYS[2], KEYS[4]) and idle(actor)


@pytest.mark.parametrize("end", ["skips", "never comes", "goes"])
def test_a_replica_that_saves_nothing_takes_nothing_of_what_was_sealed(end: str) -> None:
    rig, actor = engine()
    claimed(rig)
    envelope, _ = seal_of(kept(rig, 0))
    rig.answer(envelope, Sealed(Status.OK, (0, 1)))
    if end == "skips":
        sent = rig.tell(CLIENT_8, Skip(1))
    elif end == "never comes":
        sent = rig.wait(ORDER_NS + 2 * BEAT_NS)
    else:
        sent = rig.ask(CLIENT_8, replace(DIRECT, rank=1, world=2, replicas=2))
    one(sent, EndClaim)
    assert idle(actor)
    late = begin(rig, 1) if end != "goes" else []
    assert not late or said(late, Saved).status is Status.DROPPED


def test_nothing_is_sealed_before_the_engine_stands_by_it() -> None:
    rig, actor = engine()
    claimed(rig, commits=True)
    assert not pick(kept(rig, 0), Seal)
    begin(rig, 1, commits=True)
    envelope, seal = seal_of(rig.tell(CLIENT_7, Commit((1,))))
    assert seal.keys == (KEYS[1], KEYS[3])
    late, seal = seal_of(kept(rig, 1))
    assert seal.keys == (KEYS[0], KEYS[2], KEYS[4])
    rig.answer(envelope, Sealed(Status.OK, (0, 1)))
    rig.answer(late, Sealed(Status.OK, (0, 1, 2)))
    assert idle(actor)


def test_blocks_that_were_sealed_by_somebody_else_are_known_to_their_rank() -> None:
    rig, actor = engine()
    claimed(rig)
    begin(rig, 1)
    envelope, _ = seal_of(kept(rig, 0))
    sent = rig.answer(envelope, Sealed(Status.OK, (1,), 1))
    assert said(sent, Saved, CLIENT_7) == Saved(Status.OK, 1, 4)
    envelope, _ = seal_of(kept(rig, 1))
    rig.answer(envelope, Sealed(Status.OK, (0, 1, 2)))
    assert idle(actor)


# loads


def test_every_replica_loads_the_same_pages_and_the_last_one_ends_the_lease() -> None:
    rig, actor = engine(4, 2)
    find = one(rig.ask(CLIENT_7, Lookup(KEYS[:2])), Find)
    lease = said(rig.answer(find, Held(LeaseId(5), 2, as_pages(0, 1, 4, 5))), Found).lease
    for rank, pages in enumerate([(0, 4), (0, 4), (1, 5), (1, 5)]):
        rig.ask(RANKS[rank], Load(lease, rank, 0, 2, blocks=(9, 8)))
        (job,) = rig.wanted(WriteBlocks)
        assert (job.blocks, job.offsets) == ((9, 8), tuple(PAGE * page for page in pages))
        sent = rig.done(WriteBlocks)
        assert said(sent, Loaded, RANKS[rank]).status is Status.OK
        assert bool(pick(sent, Release)) == (rank == 3)
    assert not actor.leases.held and not pick(sent, Release, ALLOC) and pick(sent, Release, IDX)
