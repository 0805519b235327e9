"""What was used without the index is told to it before what is published after the use."""

import pytest

from pegaflow.actors.session import reservation
from pegaflow.wire.allocator import Reserve
from pegaflow.wire.control import BEAT_NS
from pegaflow.wire.identities import NO_KEY, ClaimId
from pegaflow.wire.index import Claim, Claimed, Seal, Touched
from pegaflow.wire.jobs import FillPages
from pegaflow.wire.message import Message
from pegaflow.wire.session import (
    Copied,
    CopyBatch,
    Found,
    Keep,
    Load,
    Lookup,
    Pages,
    Release,
    Save,
)
from tests.actors.rig import ALLOC, CLIENT_7, IDX, Rig, one, pick, said
from tests.actors.sessions import KEYS, attached, grant
from tests.actors.shared import Shared
from tests.naming import as_pages

from .test_hazards import note_late


def test_a_use_is_told_before_what_is_published_after_it() -> None:
    shared = Shared()
    rig, actor, reserve = attached(shared)
    note_late(rig)
    rig.answer(reserve, grant(1, 4))
    shared.seal(actor, KEYS[:3], (5, 6, 7))
    found = said(rig.ask(CLIENT_7, Lookup(KEYS[:3])), Found)
    pages = said(rig.ask(CLIENT_7, Load(found.lease, 0, 0, 3)), Pages)
    rig.ask(CLIENT_7, Copied(pages.copy, True))
    claim = one(rig.ask(CLIENT_7, Save(7, 0, KEYS[3:4], NO_KEY)), Claim, IDX)
    batch = said(rig.answer(claim, Claimed(ClaimId(1), (0,))), CopyBatch).batch
    rig.tell(CLIENT_7, Keep(7, batch))
    told = [e.message for e in rig.done(FillPages) if e.receiver == IDX]
    assert [type(msg) for msg in told] == [Touched, Seal], "or the use would look younger"
    assert not pick(rig.wait(BEAT_NS), Touched)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    """A session that keeps four pages ready; the first three KEYS are in memory."""
    monkeypatch.setattr(reservation, "READY_PAGES_MAX", 4)
    shared = Shared()
    found, actor, reserve = attached(shared)
    found.answer(reserve, grant(1, 4))
    note_late(found)
    shared.seal(actor, KEYS[:3], (5, 6, 7))
    return found


def told_of(rig: Rig, msg: Save, new: int) -> list[Message]:
    """What index and allocator hear of this save, of which so many blocks are new, up to Keep."""
    sent = rig.ask(CLIENT_7, msg)
    sent += rig.answer(one(sent, Claim, IDX), Claimed(ClaimId(1), tuple(range(new))))
    sent += rig.tell(CLIENT_7, Keep(msg.save, said(sent, CopyBatch).batch))
    return [e.message for e in sent if e.receiver in (IDX, ALLOC)]


def test_a_use_is_told_before_pages_are_asked_for(rig: Rig) -> None:
    """Else what is saved could have the pages of its own head, which looks old."""
    found = said(rig.ask(CLIENT_7, Lookup(KEYS[:3])), Found)
    rig.tell(CLIENT_7, Release(found.lease))
    _, touched, reserve = told_of(rig, Save(7, 0, KEYS[3:8], KEYS[2]), 5)
    assert touched == Touched(as_pages(5, 6, 7)) and isinstance(reserve, Reserve)


def test_so_is_what_a_save_finds_in_memory(rig: Rig) -> None:
    _, touched, reserve = told_of(rig, Save(7, 0, KEYS[:8], NO_KEY), 5)
    assert touched == Touched(as_pages(5, 6, 7)) and isinstance(reserve, Reserve)
