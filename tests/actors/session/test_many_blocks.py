"""A save of many blocks: few messages, lists said as blobs, no step of Python for each block."""

from collections import Counter
from dataclasses import replace
from functools import partial

import pytest

from pegaflow.actors.session import batches, reservation
from pegaflow.actors.session.actor import Session
from pegaflow.actors.session.reservation import READY_PAGES_MAX
from pegaflow.core.pool.columns import column
from pegaflow.core.pool.columns import said as as_said
from pegaflow.wire.allocator import Reserve, Reserved, Return
from pegaflow.wire.control import BEAT_NS
from pegaflow.wire.envelope import Envelope, pack, unpack
from pegaflow.wire.identities import NO_CLAIM, NO_KEY, ClaimId, GrantId, Key
from pegaflow.wire.index import Claim, Claimed, Seal, Sealed
from pegaflow.wire.jobs import Done, DrawProof, MapEngine, ProofDrawn, ReadBlocks
from pegaflow.wire.layout import LayerLayout
from pegaflow.wire.message import Message
from pegaflow.wire.session import BatchCopied, Keep, Proven, Save, Saved
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address, PackedKeys, PackedU64s
from tests.actors.rig import ALLOC, CLIENT_7, IDX, PAGE, WELCOME, one, pick
from tests.actors.rig import said as said_in
from tests.actors.session.test_ranks import DIRECT, PROOF
from tests.actors.sessions import LAYOUT, serving
from tests.actors.steps import steps

FEW, MANY = 64, 1024
SIZE = 2 * MANY * PAGE
KEYS = tuple(Key(n.to_bytes(32, "little")) for n in range(1, MANY + 1))


class Service:
    """A session by process_vm, with the pages ready that it keeps, and whoever answers it.

    Args:
        ready: of these pages; it has asked for more.
        page: bytes of each.
        pool: bytes of the pool.
    """

    def __init__(self, ready: int = FEW, page: int = PAGE, pool: int = SIZE) -> None:
        layout = replace(LAYOUT, blocks=MANY, layers=(LayerLayout(0, 0, page, page),))
        welcome = replace(WELCOME, pool_bytes=pool, extent_bytes=pool)
        self.rig, _ = serving(welcome=welcome)
        self.said: Counter[str] = Counter()  # what it has said in `run`
        self.granted = 0
        self.rig.ask(CLIENT_7, replace(DIRECT, layout=layout, region_bytes=(MANY * page,)))
        self.rig.done(DrawProof, ProofDrawn(PROOF))
        self.rig.ask(CLIENT_7, Proven())
        reserve = one(self.rig.done(MapEngine), Reserve)
        self.rig.jobs.clear()
        self.tell(ALLOC, self.grant(ready), answer=reserve.question)

    def grant(self, count: int) -> Reserved:
        pages = column(range(self.granted, self.granted + count))
        self.granted += count
        return Reserved(Status.OK, GrantId(self.granted), as_said(pages), as_said(pages + 1))

    def save(self, count: int) -> list[Envelope]:
        """What the session says to a save of so many blocks."""
        blocks = as_said(column(range(count)))
        return self.tell(CLIENT_7, Save(1, 0, KEYS[:count], NO_KEY, blocks=blocks), question=99)

    def tell(
        self, sender: Address, msg: Message, *, question: int = 0, answer: int = 0
    ) -> list[Envelope]:
        envelope = Envelope(sender, self.rig.me, msg, question, answer=answer)
        step = self.rig.host.deliver(unpack(pack(envelope)), self.rig.now)
        self.rig.jobs += step.jobs
        return [unpack(pack(e)) for e in step.envelopes]

    def read(self) -> list[Envelope]:
        """The oldest copy is done; what is said to that."""
        number, job = self.rig.jobs.pop(0)
        assert isinstance(job, ReadBlocks)
        step = self.rig.host.complete(number, Done(Status.OK), self.rig.now)
        self.rig.jobs += step.jobs
        return [unpack(pack(e)) for e in step.envelopes]

    def run(self, count: int) -> None:
        """A whole save: everybody answers in the order in which he is asked."""
        waiting = self.save(count)
        while waiting or self.rig.jobs:
            if not waiting:
                waiting = self.read()
                continue
            envelope = waiting.pop(0)
            msg, to = envelope.message, envelope.receiver
            self.said[type(msg).__name__] += 1
            answer = self._answer(msg)
            if answer is not None:
                waiting += self.tell(to, answer, answer=envelope.question)
            elif isinstance(msg, BatchCopied):
                waiting += self.tell(CLIENT_7, Keep(msg.save, msg.batch))

    def _answer(self, msg: Message) -> Message | None:
        if isinstance(msg, Claim):
            return Claimed(ClaimId(1), as_said(column(range(len(msg.keys)))))
        if isinstance(msg, Reserve):
            return self.grant(msg.count)
        if isinstance(msg, Seal):
            return Sealed(Status.OK, as_said(column(range(len(msg.keys)))))
        return None


def test_a_save_of_a_thousand_blocks_takes_few_messages() -> None:
    service = Service(READY_PAGES_MAX)
    service.run(MANY)
    said = service.said
    assert said["Saved"] == said["Claim"] == said["EndClaim"] == 1
    assert said["BatchCopied"] <= 1 + -(-MANY // batches.BATCH_BLOCKS)
    assert said["Reserve"] <= 2 + -(-MANY // reservation.RESERVE_MAX)
    assert said["Return"] <= said["Reserve"]
    assert said["Seal"] <= said["BatchCopied"]


@pytest.mark.parametrize(
    ("pool", "sizes"),
    [(1 << 30, [32]), (256 << 20, [16, 16]), (64 << 20, [8, 8, 8, 8])],
)
def test_few_large_blocks_move_in_few_batches(pool: int, sizes: list[int]) -> None:
    """They are as large as the pool allows."""
    service = Service(4, page=2 << 20, pool=pool)
    sent = service.save(32)
    every = as_said(column(range(32)))
    service.tell(IDX, Claimed(ClaimId(1), every), answer=one(sent, Claim).question)
    reserve = one(sent, Reserve)
    assert isinstance(reserve.message, Reserve)
    service.tell(ALLOC, service.grant(reserve.message.count), answer=reserve.question)
    jobs = [job for _, job in service.rig.jobs]
    assert [len(job.blocks) for job in jobs if isinstance(job, ReadBlocks)] == sizes


def test_what_ended_saves_have_left_is_said_when_it_is_as_much_as_is_kept_ready() -> None:
    service = Service(4 * READY_PAGES_MAX)
    for returns in (0, 1, 1, 2):
        service.run(READY_PAGES_MAX // 2)
        assert service.said["Return"] == returns and not service.said["Reserve"]


def test_a_save_takes_no_step_for_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name in ((batches, "BATCH_BLOCKS"), (reservation, "RESERVE_MAX")):
        monkeypatch.setattr(module, name, 2 * MANY)
    monkeypatch.setattr(batches, "BATCH_BYTES", 2 * SIZE)
    monkeypatch.setattr(reservation, "RESERVE_BYTES", 2 * SIZE)
    took = []
    for count in (FEW, MANY):
        service = Service(FEW // 2 + 1)  # two batches of either
        took.append(steps(partial(service.run, count)))
        assert service.said["Saved"] == 1
    assert took[1] <= 1.1 * took[0], took


def test_pages_are_asked_for_while_the_index_is_asked_what_is_new() -> None:
    service = Service()
    sent = service.save(MANY)
    assert [type(e.message) for e in sent] == [Claim, Reserve]
    count = said_in(sent, Reserve).count
    assert count >= reservation.RESERVE_MAX - FEW
    assert service.tell(ALLOC, service.grant(count), answer=sent[1].question) == []
    (reserve,) = service.tell(IDX, Claimed(NO_CLAIM, ()), answer=sent[0].question)
    assert isinstance(reserve.message, Saved) and reserve.message.known == MANY


def test_what_a_claim_has_brought_is_not_expected_any_more() -> None:
    service = Service(ready=2 * FEW)
    for save in (1, 2):
        blocks = tuple(range(FEW))
        msg = Save(save, 0, KEYS[:FEW], NO_KEY, blocks=blocks)
        claim, *others = service.tell(CLIENT_7, msg, question=save)
        assert [type(e.message) for e in others] in ([], [Reserve])
        service.tell(IDX, Claimed(NO_CLAIM, ()), answer=claim.question)
    actor = service.rig.host.actor
    assert isinstance(actor, Session) and actor.reservation._demand is not None
    assert actor.reservation._demand.wanted() == (0, 0)


def test_what_is_sealed_is_returned_before_other_pages_are_asked_for_or_by_the_beat(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batches, "BATCH_BLOCKS", MANY // 4)
    monkeypatch.setattr(reservation, "RESERVE_MAX", MANY // 2)
    service = Service(ready=MANY // 4)
    sent = service.save(MANY)
    everything = as_said(column(range(MANY)))
    service.tell(IDX, Claimed(ClaimId(1), everything), answer=sent[0].question)
    (copied,) = service.read()
    assert isinstance(copied.message, BatchCopied)
    first = len(copied.message.positions)
    (seal,) = service.tell(CLIENT_7, Keep(1, copied.message.batch))
    answer = Sealed(Status.OK, as_said(column(range(first))))
    assert service.tell(IDX, answer, answer=seal.question) == [], "the save goes on"
    actor = service.rig.host.actor
    assert isinstance(actor, Session)
    statement = actor.reservation.statement()
    assert set(statement.pages).isdisjoint(range(first)), "they are the index's already"
    told = service.tell(ALLOC, service.grant(sent[1].message.count), answer=sent[1].question)  # type: ignore[attr-defined]
    assert [type(e.message) for e in told] == [Return, Reserve]
    assert sorted(said_in(told, Return).pages) == list(range(first))
    assert not pick(service.rig.wait(BEAT_NS), Return), "it was said"


def test_lists_are_said_as_blobs_and_pages_in_their_order() -> None:
    service = Service(ready=4 * FEW)
    claim = one(service.save(FEW), Claim)
    every = as_said(column(range(FEW)))
    service.tell(IDX, Claimed(ClaimId(1), every), answer=claim.question)
    ((_, job),) = service.rig.jobs
    assert isinstance(job, ReadBlocks) and isinstance(job.blocks, PackedU64s)
    assert job.offsets == tuple(range(0, FEW * PAGE, PAGE)), "neighbours, which are one piece"
    copied = said_in(service.read(), BatchCopied)
    assert copied.positions == tuple(every)
    seal = said_in(service.tell(CLIENT_7, Keep(1, copied.batch)), Seal)
    assert isinstance(seal.keys, PackedKeys) and isinstance(seal.parents, PackedKeys)
    assert isinstance(seal.pages, PackedU64s) and isinstance(seal.stamps, PackedU64s)
    assert tuple(seal.keys) == KEYS[:FEW]
    assert tuple(seal.parents) == (bytes(32), *KEYS[: FEW - 1])
