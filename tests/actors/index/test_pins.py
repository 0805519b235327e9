"""What one engine, and all together, may keep from eviction; who is said to want more."""

from dataclasses import replace

from pegaflow.actors.index.actor import Index
from pegaflow.actors.session.actor import Session
from pegaflow.actors.session.saves import SAVE_NS
from pegaflow.core.blocks.pins import PINNED_SHARE
from pegaflow.wire import index as to_index
from pegaflow.wire.allocator import Reserve
from pegaflow.wire.control import BEAT_NS, Gone, Neighbour
from pegaflow.wire.flusher import Fetch
from pegaflow.wire.index import Find, Held, Holding, Pinned, Release, Sealed
from pegaflow.wire.jobs import FillPages
from pegaflow.wire.session import LEASE_IDLE_NS, Copied, Found, Keep, Load, Lookup, Saved
from pegaflow.wire.status import Status
from pegaflow.wire.values import SESSION, Address
from tests.actors.rig import (
    ALLOC,
    BOSS,
    CLIENT_7,
    HELLO,
    IDX,
    NOBODY_ELSE,
    PAGE,
    POOL,
    SESSION_4,
    SESSION_5,
    WELCOME,
    Rig,
    one,
    pick,
    said,
)
from tests.actors.session.test_saves import begin, fill, stocked
from tests.actors.sessions import KEYS as SESSION_KEYS
from tests.actors.sessions import attached
from tests.actors.tier import BIG, FLUSHER_6, PATIENCE, TIER, big_ledger, in_log

from .test_index import KEYS, NS, find, new_ledger, press, save

SESSION_6 = Address(SESSION, 6)
HALF = 4 * PAGE  # of a pool of eight pages
MOST = int(POOL * PINNED_SHARE) // PAGE


def bounded(most: int = HALF) -> tuple[Rig, Index]:
    actor = Index(IDX, BOSS, HELLO, lambda welcome: new_ledger(WELCOME))
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, replace(WELCOME, max_pinned=most))
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
    assert actor.leasing.leases.pinned(SESSION_5) == HALF == actor.gauges()["pinned_bytes"]
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
    assert said(rig.tell(SESSION_4, Holding(2, (1, 2), 0, ())), Pinned).cut == 4
    told = said(rig.tell(SESSION_5, Holding(1, (1,), 0, ())), Pinned)
    assert told == Pinned(2 * PAGE, HALF, 0)


def test_pinned_is_said_when_it_has_changed() -> None:
    rig, _ = bounded()
    save(rig, KEYS)
    assert rig.tell(SESSION_5, Holding(0, (), 0, ())) == []
    find(rig, KEYS[:3], SESSION_5)
    told = rig.tell(SESSION_5, Holding(1, (1,), 0, ()))
    assert said(told, Pinned, SESSION_5) == Pinned(3 * PAGE, HALF, 0)
    assert rig.tell(SESSION_5, Holding(1, (1,), 0, ())) == []
    assert said(rig.tell(SESSION_5, Holding(1, (), 0, ())), Pinned) == Pinned(0, HALF, 0)
    rig.tell(BOSS, Gone(SESSION_5))


def test_leases_of_an_earlier_index_stand_whatever_they_pin() -> None:
    old, _ = bounded(POOL)
    save(old, KEYS)
    ledger = old.host.actor.residency.ledger  # type: ignore[attr-defined]
    actor = Index(IDX, BOSS, HELLO, lambda welcome: ledger)
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, replace(WELCOME, max_pinned=PAGE))
    rig.tell(BOSS, replace(NOBODY_ELSE, living=(SESSION_5,)))
    rig.tell(BOSS, Neighbour(ALLOC, "ipc://a", 1))
    rig.wait(0)
    rig.tell(SESSION_5, Held(1, 1, tuple(range(6))))
    assert said(rig.tell(SESSION_5, Holding(1, (1,), 0, ())), Pinned).bytes == 6 * PAGE
    assert len(actor.leasing.leases.held(SESSION_5)[0].blocks) == 6
    assert len(find(rig, KEYS, SESSION_5).pages) == 6, "those it has; no more"


def test_what_is_awaited_from_the_log_counts_too() -> None:
    actor = Index(IDX, BOSS, HELLO, big_ledger)
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, replace(BIG, max_pinned=2 * PAGE))
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


# the session


def grant(rig: Rig, number: int, pages: tuple[int, ...], keys: int = 8) -> Found:
    question = one(rig.ask(CLIENT_7, Lookup(SESSION_KEYS[:keys])), Find)
    return said(rig.answer(question, Held(number, 1, pages)), Found)


def test_asking_again_renews_no_idle_lease() -> None:
    rig, actor, _ = attached()
    turn = LEASE_IDLE_NS // 10
    released: list[int] = []
    for number in range(1, 11):
        grant(rig, number, (3, 4))
        grant(rig, 100 + number, (7,))
        released += _releases(rig, turn)
    assert not released
    released += _releases(rig, 3 * BEAT_NS)
    assert sorted(released) == [*range(1, 11), *range(101, 111)], "all of them, the newest too"
    assert not actor.leases.held and not actor.leases.runs


def test_loading_renews_the_leases_beside_it_and_not_for_ever() -> None:
    rig, actor, _ = attached()
    grant(rig, 1, (3, 4))
    rig.wait(LEASE_IDLE_NS - 2 * BEAT_NS)
    grant(rig, 2, (3, 4, 5))
    rig.ask(CLIENT_7, Load(2, 0, 0, 3))
    copy = next(iter(actor.loads.copies))
    rig.ask(CLIENT_7, Copied(copy, True))
    grant(rig, 3, (3,))
    assert _releases(rig, 4 * BEAT_NS) == [1]
    assert list(actor.leases.held.numbers()) == [3], "somebody loads what it begins with"


def _releases(rig: Rig, nanoseconds: int) -> list[int]:
    """Numbers of the leases that are given back meanwhile."""
    sent = (envelope.message for envelope in pick(rig.wait(nanoseconds), to_index.Release))
    return [msg.number for msg in sent if isinstance(msg, to_index.Release)]


def test_an_engine_that_wants_more_than_it_may_is_named_once() -> None:
    rig, actor, _ = attached()
    rig.notes.clear()
    rig.tell(IDX, Pinned(HALF, HALF, 0))
    assert not rig.notes and actor.remarks() == ()
    for cut in (1, 5, 9):
        rig.tell(IDX, Pinned(HALF, HALF, cut))
    (note,) = rig.notes
    assert note.event == "engine_pins_too_much" and ("engine", "engine") in note.facts
    (remark,) = actor.remarks()
    assert remark.startswith("engine engine holds ") and "--max-pinned" in remark
    assert actor.gauges()["session_greedy"] == 1
    assert actor.gauges()["session_pinned_bytes"] == HALF
    rig.tell(IDX, Pinned(HALF - PAGE, HALF, 9))
    assert actor.remarks(), "it holds much, still"
    rig.tell(IDX, Pinned(PAGE, HALF, 9))
    assert actor.remarks() == () and len(rig.notes) == 1
    rig.tell(IDX, Pinned(HALF, HALF, 10))
    assert len(rig.notes) == 2, "again"


def test_a_new_index_counts_from_nothing() -> None:
    rig, actor, _ = attached()
    rig.tell(IDX, Pinned(HALF, HALF, 9))
    rig.tell(IDX, Pinned(PAGE, HALF, 0))
    assert not actor.leases.greedy
    rig.tell(IDX, Pinned(HALF, HALF, 2))
    assert actor.leases.greedy


def bound(actor: Session, bytes_: int) -> None:
    """Pages of open saves may be so many bytes."""
    assert actor.engine.space is not None
    actor.engine.space = replace(actor.engine.space, used_bytes_max=bytes_)


def test_pages_of_open_saves_are_bounded_and_the_next_save_waits_for_them() -> None:
    rig, actor = stocked()
    bound(actor, 4 * PAGE)
    first = fill(rig, begin(rig, 1, SESSION_KEYS[:3]))
    second = begin(rig, 2, SESSION_KEYS[3:6])
    sent = rig.tell(CLIENT_7, Keep(second.save, second.batch))
    assert not rig.wanted(FillPages) and not pick(sent, Reserve), "nobody else's pages either"
    assert len(actor.reservation.used) == 3
    rig.answer(first, Sealed(Status.OK, (0, 1, 2)))
    assert said(rig.done(FillPages), to_index.Seal).keys == SESSION_KEYS[3:6]


def test_a_save_larger_than_the_bound_is_served_alone() -> None:
    rig, actor = stocked()
    bound(actor, PAGE)
    seal = fill(rig, begin(rig, 1, SESSION_KEYS[:6]))
    assert said(rig.answer(seal, Sealed(Status.OK, tuple(range(6)))), Saved).saved == 6


def test_a_save_that_its_engine_never_ends_is_given_up() -> None:
    rig, actor = stocked()
    take = begin(rig)
    rig.wait(SAVE_NS)
    assert take.batch and actor.orders.open
    rig.wait(2 * BEAT_NS)
    sent = rig.tell(CLIENT_7, Keep(take.save, take.batch))
    assert said(sent, Saved).status is Status.EXPIRED
    assert not actor.orders.open and not actor.reservation.used
