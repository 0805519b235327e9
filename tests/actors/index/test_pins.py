"""What one engine, and all together, may keep from eviction; who is said to want more."""

from dataclasses import replace

from pegaflow.actors.index.actor import Index
from pegaflow.core.blocks.pins import PINNED_SHARE
from pegaflow.wire.control import Gone, Neighbour
from pegaflow.wire.flusher import Fetch
from pegaflow.wire.identities import NO_CLAIM, NO_LEASE, Incarnation, LeaseId
from pegaflow.wire.index import Find, Held, LeasesHeld, Pinned, Release
from pegaflow.wire.values import SESSION, Address
from tests.actors.memory import IndexMemory, new_ledger
from tests.actors.rig import (
    ALLOC,
    BOSS,
    HELLO,
    IDX,
    NOBODY_ELSE,
    PAGE,
    POOL,
    SESSION_4,
    SESSION_5,
    WELCOME,
    Rig,
    said,
)
from tests.actors.tier import BIG, FLUSHER_6, PATIENCE, TIER, big, in_log
from tests.naming import as_leases, as_pages

from .test_index import KEYS, NS, find, press, save

SESSION_6 = Address(SESSION, Incarnation(6))
HALF = 4 * PAGE  # of a pool of eight pages
MOST = int(POOL * PINNED_SHARE) // PAGE


def bounded(most: int = HALF) -> tuple[Rig, Index]:
    actor = Index(IDX, BOSS, HELLO, IndexMemory(new_ledger(WELCOME)))
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, replace(WELCOME, max_pinned_bytes=most))
    rig.tell(BOSS, NOBODY_ELSE)
    rig.tell(BOSS, Neighbour(ALLOC, "ipc://a", 1))
    rig.wait(0)
    return rig, actor


# the index


def test_an_engine_that_asks_again_and_again_leaves_room_for_everybodys_saves() -> None:
    rig, actor = bounded()
    save(rig, KEYS)
    for _ in range(20):
        assert len(find(rig, KEYS, SESSION_5).pages) == 4, "a lookup ends early, every time"
        assert len(find(rig, KEYS[4:], SESSION_5).pages) == 0
    assert len(press(rig, 8)) == 4, "the other half can be evicted"
    assert actor.leasing.leases.bytes_of(SESSION_5) == HALF == actor.gauges()["pinned_bytes"]
    assert rig.count("blocks_unpinned") == 20 * 8


def test_what_is_pinned_already_costs_nothing() -> None:
    rig, _ = bounded()
    save(rig, KEYS)
    first = find(rig, KEYS[:4], SESSION_5)
    again = find(rig, KEYS[:4], SESSION_5)
    assert again.pages == first.pages and again.number != first.number
    rig.tell(SESSION_5, Release(first.number))
    assert not find(rig, KEYS[4:], SESSION_5).pages, "the other lease holds them"
    rig.tell(SESSION_5, Release(again.number))
    assert len(find(rig, KEYS[4:], SESSION_5).pages) == 4


def test_all_together_leave_a_part_of_the_pool() -> None:
    rig, actor = bounded()
    save(rig, KEYS)
    assert len(find(rig, KEYS[:4], SESSION_4).pages) == 4
    assert len(find(rig, KEYS[4:], SESSION_5).pages) == MOST - 4
    assert not find(rig, KEYS[7:], SESSION_6).pages
    assert len(find(rig, KEYS[:4], SESSION_6).pages) == 4, "what others hold can be had"
    assert actor.gauges()["pinned_bytes"] == MOST * PAGE
    assert len(press(rig, 8)) == 8 - MOST


def test_a_neighbour_is_not_blamed_for_what_others_hold() -> None:
    rig, _ = bounded()
    save(rig, KEYS)
    find(rig, KEYS[:4], SESSION_4)
    find(rig, KEYS[4:], SESSION_5)
    find(rig, KEYS, SESSION_4)
    assert (
        said(rig.tell(SESSION_4, LeasesHeld(LeaseId(2), as_leases(1, 2), NO_CLAIM, ())), Pinned).cut
        == 4
    )
    told = said(rig.tell(SESSION_5, LeasesHeld(LeaseId(1), as_leases(1), NO_CLAIM, ())), Pinned)
    assert told == Pinned(2 * PAGE, HALF, 0)


def test_pinned_is_said_when_it_has_changed() -> None:
    rig, _ = bounded()
    save(rig, KEYS)
    assert rig.tell(SESSION_5, LeasesHeld(NO_LEASE, (), NO_CLAIM, ())) == []
    find(rig, KEYS[:3], SESSION_5)
    told = rig.tell(SESSION_5, LeasesHeld(LeaseId(1), as_leases(1), NO_CLAIM, ()))
    assert said(told, Pinned, SESSION_5) == Pinned(3 * PAGE, HALF, 0)
    assert rig.tell(SESSION_5, LeasesHeld(LeaseId(1), as_leases(1), NO_CLAIM, ())) == []
    assert said(rig.tell(SESSION_5, LeasesHeld(LeaseId(1), (), NO_CLAIM, ())), Pinned) == Pinned(
        0, HALF, 0
    )
    rig.tell(BOSS, Gone(SESSION_5))


def test_leases_of_an_earlier_index_stand_whatever_they_pin() -> None:
    old, _ = bounded(POOL)
    save(old, KEYS)
    ledger = old.host.actor.residency.ledger  # type: ignore[attr-defined]
    actor = Index(IDX, BOSS, HELLO, IndexMemory(ledger))
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, replace(WELCOME, max_pinned_bytes=PAGE))
    rig.tell(BOSS, replace(NOBODY_ELSE, living=(SESSION_5,)))
    rig.tell(BOSS, Neighbour(ALLOC, "ipc://a", 1))
    rig.wait(0)
    rig.tell(SESSION_5, Held(LeaseId(1), 1, as_pages(*range(6))))
    assert (
        said(rig.tell(SESSION_5, LeasesHeld(LeaseId(1), as_leases(1), NO_CLAIM, ())), Pinned).bytes
        == 6 * PAGE
    )
    assert len(actor.leasing.leases.held(SESSION_5)[0].blocks) == 6
    assert len(find(rig, KEYS, SESSION_5).pages) == 6, "those it has; no more"


def test_what_is_awaited_from_the_log_counts_too() -> None:
    actor = Index(IDX, BOSS, HELLO, big())
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, replace(BIG, max_pinned_bytes=2 * PAGE))
    rig.tell(BOSS, NOBODY_ELSE)
    rig.tell(BOSS, Neighbour(ALLOC, "ipc://a", 1))
    rig.wait(0)
    rig.tell(FLUSHER_6, TIER)
    save(rig, KEYS[:1])
    in_log(rig, KEYS[1:4])
    sent = rig.ask(SESSION_5, Find(NS, KEYS[:2]), rig.now + PATIENCE)
    assert said(sent, Fetch).keys == KEYS[1:2]
    beside = rig.ask(SESSION_5, Find(NS, KEYS[2:3]), rig.now + PATIENCE)
    assert said(beside, Held).number == 0, "it awaits as much as it may hold"
    sent = rig.ask(SESSION_4, Find(NS, KEYS[:4]), rig.now + PATIENCE)
    assert said(sent, Held).pages == (0,), "what it could not lease it does not wait for"
