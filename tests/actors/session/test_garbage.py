"""What is over is freed at once: nothing of it waits for the garbage collector.

A collection takes the engine's answers with it: the longer it has been put off, the longer it is.
"""

import gc
from collections.abc import Iterator

import pytest

from pegaflow.actors.session.leases import Lease
from pegaflow.actors.session.records import Batch, Order, RankSave
from pegaflow.wire.identities import NO_CLAIM, NO_KEY
from pegaflow.wire.index import Claim, Claimed, Sealed
from pegaflow.wire.session import Copied, Drop, Save
from pegaflow.wire.status import Status
from tests.actors.rig import CLIENT_7, IDX, one
from tests.actors.sessions import KEYS, reading
from tests.actors.shared import Shared

from .test_hazards import load, look
from .test_saves import begin, fill, idle, with_pages


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def alive(*kinds: type) -> list[object]:
    return [it for it in gc.get_objects() if isinstance(it, kinds)]


def test_a_save_leaves_nothing() -> None:
    rig, actor = with_pages()
    rig.answer(fill(rig, begin(rig, 1)), Sealed(Status.OK, (0, 1, 2)))
    begin(rig, 2)
    assert alive(Order) and alive(RankSave) and alive(Batch)
    rig.tell(CLIENT_7, Drop(2))
    claim = one(rig.ask(CLIENT_7, Save(3, 0, KEYS[:3], NO_KEY)), Claim, IDX)
    rig.answer(claim, Claimed(NO_CLAIM, ()))
    del claim
    assert idle(actor) and alive(Order, RankSave, Batch) == []


def test_a_load_leaves_nothing() -> None:
    rig, actor = reading(Shared())
    pages = load(rig, look(rig, 3))
    assert alive(Lease)
    rig.ask(CLIENT_7, Copied(pages.copy, True))
    assert not actor.leases.items() and alive(Lease) == []
