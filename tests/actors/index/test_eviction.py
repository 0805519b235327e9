"""What goes is chosen as columns: one search, and no step of Python for each block."""

from dataclasses import replace

import pytest

from pegaflow.actors.index import eviction
from pegaflow.core.blocks.columns import Pages
from pegaflow.core.policy.lru import LOOK_FIRST, Lru
from pegaflow.wire.allocator import Pressure
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.flusher import Flush
from pegaflow.wire.identities import Key
from pegaflow.wire.index import EndClaim, Sealed
from pegaflow.wire.status import Status
from tests.actors.memory import IndexMemory, new_ledger
from tests.actors.rig import ALLOC, EXTENT, PAGE, SESSION_4, WELCOME, Rig, said
from tests.actors.steps import steps
from tests.actors.tier import TIER, flushed, saving
from tests.actors.tier import index as tiered_index

from .test_index import KEYS, claim, find, index, index_in, press, save, seal_of


def filled(blocks: int) -> tuple[Rig, tuple[Key, ...]]:
    """An index whose pool is full of a chain of so many blocks, not checked any more."""
    welcome = replace(WELCOME, pool_bytes=blocks * PAGE)
    rig, _ = index_in(IndexMemory(new_ledger(welcome)), welcome=welcome)
    keys = tuple(Key(n.to_bytes(32, "big")) for n in range(1, blocks + 1))
    msg = seal_of(claim(rig, keys).number, keys)
    assert said(rig.ask(SESSION_4, msg), Sealed).status is Status.OK
    rig.tell(SESSION_4, EndClaim(msg.claim))
    rig.host.check = lambda: None  # type: ignore[method-assign]
    return rig, keys


def test_an_extent_is_emptied_without_a_step_for_each_block_of_the_pool() -> None:
    def work(blocks: int) -> int:
        rig, keys = filled(blocks)
        assert find(rig, keys[:1]).number == 1
        question = Envelope(ALLOC, rig.me, Pressure(EXTENT, 1, True), 99)
        taken = steps(lambda: rig.host.deliver(question, rig.now))
        assert rig.count("blocks_evicted") == EXTENT // PAGE
        return taken

    few, many = 2 * LOOK_FIRST, 4096
    assert work(many) - work(few) < (many - few) // 8


def test_no_pressure_frees_more_than_one_turn_may(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eviction, "PRESSURE_PAGES", 3)
    rig, _ = index()
    save(rig, KEYS[:8])
    assert press(rig, 9) == (7, 6, 5)
    assert press(rig, 9) == (4, 3, 2)
    assert press(rig, 9) == (1, 0)


def test_victims_are_searched_once_with_a_tier_too(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, _ = tiered_index(replace(TIER, depth=1))
    first = said(saving(rig, KEYS[:4]), Flush)
    flushed(rig, first, 2)  # two are in the log, two are not
    searches: list[int] = []
    coldest = Lru.coldest

    def counted(policy: Lru, page_size: int, count: int) -> Pages:
        searches.append(count)
        return coldest(policy, page_size, count)

    monkeypatch.setattr(Lru, "coldest", counted)
    sent = rig.ask(ALLOC, Pressure(PAGE, 1, False))
    assert said(sent, Flush).keys == (KEYS[3], KEYS[2])
    assert searches == [1 + TIER.batch_blocks]
    assert rig.count("blocks_evicted") == 1
