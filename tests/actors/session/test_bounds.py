"""How much of the pool the saves of one engine take, and that they go on however little it is."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from pegaflow.actors.session import batches
from pegaflow.actors.session.actor import Session
from pegaflow.actors.session.reservation import READY_PAGES_MAX
from pegaflow.wire.allocator import Reserve, Return
from pegaflow.wire.control import BEAT_NS
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import NO_CLAIM, NO_KEY, ClaimId
from pegaflow.wire.index import Claim, Claimed, Seal, Sealed
from pegaflow.wire.jobs import ReadBlocks
from pegaflow.wire.session import BatchCopied, Keep, Save, Saved
from pegaflow.wire.status import Status
from tests.actors.rig import (
    ALLOC,
    CLIENT_7,
    CLIENT_8,
    IDX,
    PAGE,
    POOL,
    WELCOME,
    Rig,
    one,
    pick,
    said,
)
from tests.actors.sessions import KEYS, grant, serving

from .test_many_blocks import MANY, Service
from .test_ranks import DIRECT, idle, pair

SIX = tuple(range(6))


def bounded(pages: int) -> tuple[Rig, Session]:
    """Two ranks that may have so many pages in use together; sixteen are ready."""
    rig, actor = pair(DIRECT, serving(welcome=replace(WELCOME, pool_bytes=2 * POOL)))
    rig.tell(ALLOC, grant(2, 8))
    assert actor.engine.space is not None
    actor.engine.space = replace(actor.engine.space, used_bytes_max=pages * PAGE)
    return rig, actor


def go_on(rig: Rig, sent: list[Envelope], look: Callable[[], None]) -> list[Saved]:
    """Everybody answers; what is said at the end of the saves.

    Args:
        look: called after each step.
    """
    ended: list[Saved] = []
    while sent or rig.wanted(ReadBlocks):
        if not sent:
            sent = rig.done(ReadBlocks)
        envelope = sent.pop(0)
        msg = envelope.message
        if isinstance(msg, BatchCopied):
            sent += rig.tell(envelope.receiver, Keep(msg.save, msg.batch))
        elif isinstance(msg, Seal):
            sent += rig.answer(envelope, Sealed(Status.OK, tuple(range(len(msg.keys)))))
        elif isinstance(msg, Saved):
            ended.append(msg)
        look()
    return ended


@pytest.mark.parametrize("pages", [1, 4, 6])
def test_ranks_do_not_wait_for_each_others_pages(
    pages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A block's pages leave when every rank has filled its own: none may have what they lack."""
    monkeypatch.setattr(batches, "BATCH_BLOCKS", 2)
    rig, actor = bounded(pages)
    first = Save(1, 0, KEYS[:6], NO_KEY, order=1, blocks=SIX)
    claim = one(rig.ask(CLIENT_7, first), Claim)
    assert not pick(rig.ask(CLIENT_8, replace(first, rank=1)), Saved)
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, len(actor.reservation.used))

    sent = rig.answer(claim, Claimed(ClaimId(1), SIX))
    assert go_on(rig, sent, look) == [Saved(Status.OK, 6, 0)] * 2
    assert idle(actor) and most <= max(4, pages)


def test_pages_that_nobody_wants_after_all_go_back_with_the_beat() -> None:
    """Of a claim's keys none was new: what was evicted for them is of use to others."""
    service = Service()
    sent = service.save(MANY)
    reserve = one(sent, Reserve)
    assert isinstance(reserve.message, Reserve)
    reserved = service.grant(reserve.message.count)
    assert service.tell(ALLOC, reserved, answer=reserve.question) == []
    service.tell(IDX, Claimed(NO_CLAIM, ()), answer=one(sent, Claim).question)
    sent = service.rig.wait(BEAT_NS)
    actor = service.rig.host.actor
    assert isinstance(actor, Session)
    assert len(actor.reservation.free) == READY_PAGES_MAX
    assert len(said(sent, Return).pages) == service.granted - READY_PAGES_MAX
    assert not pick(sent, Reserve)
    assert not pick(service.rig.wait(BEAT_NS), Return)
