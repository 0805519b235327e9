"""A save of blocks that the session sees in memory itself."""

import pytest

from pegaflow.actors.session.space import Space
from pegaflow.core.pool.finder import Run
from pegaflow.wire.identities import NO_KEY, ClaimId
from pegaflow.wire.index import Claim, Claimed
from pegaflow.wire.session import CopyBatch, Drop, Save, Saved
from pegaflow.wire.status import Status
from pegaflow.wire.values import Keys
from tests.actors.rig import CLIENT_7, one, said
from tests.actors.session.test_hazards import gone
from tests.actors.sessions import KEYS, reading
from tests.actors.shared import Shared


def test_a_save_of_what_is_in_memory_asks_nobody() -> None:
    rig, actor = reading(Shared())
    sent = rig.ask(CLIENT_7, Save(1, 0, KEYS[:4], NO_KEY))
    assert [e.receiver for e in sent] == [CLIENT_7]
    assert said(sent, Saved) == Saved(Status.OK, 0, 4)
    assert not actor.orders.open and not actor.hazards.standing


def test_a_save_claims_what_is_not_in_memory() -> None:
    rig, _ = reading(Shared())
    claim = one(rig.ask(CLIENT_7, Save(1, 0, KEYS[:7], NO_KEY)), Claim)
    assert isinstance(claim.message, Claim) and claim.message.keys == KEYS[4:7]
    sent = rig.answer(claim, Claimed(ClaimId(1), (0, 2)))
    assert said(sent, CopyBatch).positions == (4, 6), "another session has claimed the sixth"
    assert said(rig.tell(CLIENT_7, Drop(1)), Saved) == Saved(Status.DROPPED, 0, 5)


def test_without_an_index_what_is_in_memory_is_known_and_the_rest_is_refused() -> None:
    rig, _ = reading(Shared())
    gone(rig)
    assert said(rig.ask(CLIENT_7, Save(1, 0, KEYS[:4], NO_KEY)), Saved) == Saved(Status.OK, 0, 4)
    refused = said(rig.ask(CLIENT_7, Save(2, 0, KEYS[:6], NO_KEY)), Saved)
    assert refused == Saved(Status.PEER_GONE, 0, 4)


def test_a_save_of_new_blocks_looks_for_the_first_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, actor = reading(Shared())
    looked, find = list[int](), actor.hazards.find

    def look(space: Space, keys: Keys) -> Run | None:
        looked.append(len(keys))
        return find(space, keys)

    monkeypatch.setattr(actor.hazards, "find", look)
    assert one(rig.ask(CLIENT_7, Save(1, 0, KEYS[4:8], NO_KEY)), Claim)
    assert looked == [1]
    one(rig.ask(CLIENT_7, Save(2, 0, KEYS[3:8], NO_KEY)), Claim)
    assert looked == [1, 1, 5]
