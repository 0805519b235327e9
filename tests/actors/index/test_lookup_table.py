"""What sessions find by themselves, and what they say of it afterwards."""

from dataclasses import replace
from hashlib import sha256

import pytest

from pegaflow.actors.index import lookup_table
from pegaflow.actors.index.actor import Index
from pegaflow.actors.index.lookup_table import AGAIN_NS
from pegaflow.core.blocks import listing
from pegaflow.core.blocks.pins import PINNED_SHARE
from pegaflow.core.pool.finder import Finder
from pegaflow.core.pool.fingerprints import fingerprints
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.hazards import Hazards, hazard_bytes
from pegaflow.core.pool.table import TableReader, TierWord
from pegaflow.wire.control import BEAT_NS, Beat, Gone, Neighbour, Welcome
from pegaflow.wire.flusher import Forget
from pegaflow.wire.identities import NO_LEASE, ClaimId, Incarnation, Key, Namespace, PageId
from pegaflow.wire.index import (
    Claim,
    Claimed,
    Corrupt,
    EndClaim,
    HazardFile,
    HazardsNoted,
    Held,
    Release,
    Seal,
    Sealed,
    Touched,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address
from tests.actors.memory import IndexMemory, new_ledger, publish
from tests.actors.rig import (
    ALLOC,
    BOSS,
    EXTENT,
    HELLO,
    IDX,
    NOBODY_ELSE,
    PAGE,
    POOL,
    SESSION_4,
    SESSION_5,
    WELCOME,
    Rig,
    pick,
    said,
)
from tests.actors.tier import FLUSHER_6, TIER, in_log, saving, ssd_of
from tests.actors.tier import index as tiered_index
from tests.naming import as_pages, as_stamps

from .test_index import KEYS, NS, OTHER_NS, ROOT, claim, find, index_in, press, save, seal_of


def index() -> tuple[Rig, Index, IndexMemory]:
    """An index, and what it maps."""
    memory = IndexMemory(new_ledger(WELCOME))
    return *index_in(memory), memory


def test_who_waits_for_a_slow_supervisor_beats_before_it_knows_the_pool() -> None:
    rig = Rig(Index(IDX, BOSS, HELLO, IndexMemory(new_ledger(WELCOME))))
    rig.start()
    beats = pick(rig.wait(5 * BEAT_NS), Beat)
    assert len(beats) == 5
    rig.tell(BOSS, WELCOME)
    assert said(rig.wait(BEAT_NS), Beat)


def seen(
    memory: IndexMemory,
    keys: tuple[Key, ...] = KEYS,
    namespace: Namespace = NS,
    shards: int = 1,
    pool: Welcome = WELCOME,
) -> tuple[int, ...] | None:
    """The pages that a session finds by itself; None: it has to ask."""
    table = TableReader(memory.ledger._bytes, memory.ledger.records)
    finder = Finder(memory.ledger, table, Geometry(pool.pool_bytes, pool.extent_bytes))
    hazards = Hazards(bytearray(hazard_bytes(256)))
    run = finder.find(namespace, keys, hazards, shards=shards, most_bytes=1 << 40)
    return None if run is None else tuple(run.pages.tolist())


# the table


def test_what_is_sealed_is_seen_until_it_goes() -> None:
    rig, actor, memory = index()
    assert seen(memory) == ()
    save(rig, KEYS[:3])
    save(rig, KEYS[3:4], 6)
    assert seen(memory) == (0, 1, 2, 6) and seen(memory, namespace=OTHER_NS) == ()
    assert press(rig, 1) == (2,)
    assert seen(memory) == (0, 1)
    rig.tell(SESSION_4, Corrupt(as_pages(0)))
    assert seen(memory) == ()
    assert seen(memory, KEYS[1:2]) == (1,)
    found = actor.residency.listing.table.find(fingerprints(NS, KEYS[:3]))
    assert found is not None and found.tolist() == [-1, 1, -1]


def test_what_a_hazard_has_kept_is_still_seen() -> None:
    rig, _, memory = index()
    save(rig, KEYS[:2])
    hazards = memory.hazards("4.hazards")
    file = HazardFile("4.hazards", (1, 4))
    assert said(rig.ask(SESSION_4, file), HazardsNoted).status is Status.OK
    publish(hazards, memory.ledger, 1)
    assert press(rig, 2) == (0,)
    assert seen(memory, KEYS[1:2]) == (1,)


def sharded(number: ClaimId, keys: tuple[Key, ...], pages: tuple[PageId, ...]) -> Seal:
    """A Seal of blocks of two pages each."""
    parents, stamps = (ROOT, *keys[:-1]), as_stamps(*[700 + page for page in pages])
    return Seal(
        number, NS, PAGE, PAGE, shards=2, keys=keys, parents=parents, pages=pages, stamps=stamps
    )


def test_all_pages_of_a_block_are_seen() -> None:
    rig, _, memory = index()
    msg = sharded(claim(rig, KEYS[:2]).number, KEYS[:2], as_pages(4, 1, 0, 5))
    assert said(rig.ask(SESSION_4, msg), Sealed).status is Status.OK
    rig.tell(SESSION_4, EndClaim(msg.claim))
    assert seen(memory, shards=2) == (4, 1, 0, 5)
    assert seen(memory, shards=1) == ()
    heir, _ = index_in(memory, address=Address("index", Incarnation(90)))
    assert seen(memory, shards=2) == (4, 1, 0, 5)
    assert sorted(press(heir, 9)) == [0, 1, 4, 5] and seen(memory, shards=2) == ()


# the next index


def test_equal_keys_of_two_namespaces_are_two_blocks_in_the_next_life_too() -> None:
    rig, _, memory = index()
    save(rig, KEYS[:2])
    theirs = said(rig.ask(SESSION_4, Claim(OTHER_NS, KEYS[1:3])), Claimed).number
    msg = replace(seal_of(theirs, KEYS[1:3], 4), namespace=OTHER_NS)
    assert said(rig.ask(SESSION_4, msg), Sealed).status is Status.OK
    index_in(memory, address=Address("index", Incarnation(90)))
    assert seen(memory) == (0, 1) and seen(memory, KEYS[1:]) == (1,)
    assert seen(memory, KEYS[1:], OTHER_NS) == (4, 5)


def restarted(memory: IndexMemory) -> Rig:
    """The next index, which has not read anything yet."""
    rig = Rig(Index(Address("index", Incarnation(90)), BOSS, HELLO, memory))
    rig.start()
    rig.tell(BOSS, WELCOME)
    rig.tell(BOSS, NOBODY_ELSE)
    rig.tell(BOSS, Neighbour(ALLOC, "ipc://a", 1))
    return rig


def test_hits_go_on_while_the_next_index_makes_its_table() -> None:
    old, _, memory = index()
    save(old, KEYS[:4])
    rig = restarted(memory)
    looks = 0
    while (at := rig.host.wake_at()) is not None and at <= rig.now:
        assert seen(memory) == (0, 1, 2, 3)
        rig.wake()
        looks += 1
    assert looks > 3 and seen(memory) == (0, 1, 2, 3)
    assert find(rig, KEYS).pages == (0, 1, 2, 3)


@pytest.mark.parametrize("steps", range(9))
def test_blocks_that_come_and_go_meanwhile_are_in_it_once(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _, memory = index()
    save(old, KEYS[:3])
    monkeypatch.setattr(listing, "LEAST_BLOCKS", 1)
    monkeypatch.setattr(lookup_table, "STEP_PAGES", 2)
    rig = restarted(memory)
    actor = rig.host.actor
    assert isinstance(actor, Index)
    table = actor.residency.listing.table
    while not actor.residency.listing.running or table.clear_step(64):
        rig.wake()
    for _ in range(steps):
        rig.wake()
    save(rig, KEYS[3:4], 3)
    assert press(rig, 1) == (2,)
    save(rig, KEYS[2:3], 5)
    rig.wait(0)
    assert seen(memory) == (0, 1, 5, 3)
    assert sorted(press(rig, 9)) == [0, 1, 3, 5]
    half = table._own
    assert half is not None and not (half.words[:, :8] > 1).any(), "no block is there twice"


def test_what_the_last_index_has_said_to_readers_ends_with_it() -> None:
    _, actor, memory = index()
    table = actor.residency.listing.table
    table.set_clearing(1)
    table.set_closed(True)
    table.set_tiers(TierWord.ASK)
    restarted(memory)
    assert (table.clearing, table.closed, table.tiers) == (None, False, TierWord.NONE)


# room


LARGE = replace(WELCOME, pool_bytes=64 * EXTENT)
MANY = tuple(Key(sha256(bytes((n,))).digest()) for n in range(200))


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> tuple[Rig, Index, IndexMemory]:
    """An index whose table has 64 slots."""
    monkeypatch.setattr(listing, "LEAST_BLOCKS", 1)
    rig, actor, memory = begun(LARGE)
    rig.wait(0)
    return rig, actor, memory


def begun(pool: Welcome) -> tuple[Rig, Index, IndexMemory]:
    """An index that knows the pool, and has not read anything yet."""
    memory = IndexMemory(new_ledger(pool))
    actor = Index(IDX, BOSS, HELLO, memory)
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, pool)
    rig.tell(BOSS, NOBODY_ELSE)
    return rig, actor, memory


def test_a_table_grows_when_nobody_asks(crowded: tuple[Rig, Index, IndexMemory]) -> None:
    rig, actor, memory = crowded
    table = actor.residency.listing.table
    for first in range(0, len(MANY), 20):
        save(rig, MANY[first : first + 20], first)
        if table.wants_rebuild:
            assert rig.host.wake_at() == 0
        rig.wait(0)
    assert not table.wants_rebuild and table.lacks == 0
    assert seen(memory, MANY, pool=LARGE) == tuple(range(len(MANY)))


def test_a_table_has_room_for_all_that_came_while_it_was_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(listing, "LEAST_BLOCKS", 1)
    monkeypatch.setattr(lookup_table, "STEP_PAGES", 100)
    rig, actor, memory = begun(LARGE)
    listed = actor.residency.listing
    while not listed.running or listed.table.clear_step(1):
        rig.wake()
    rig.wake()
    for first in range(0, len(MANY), 20):
        save(rig, MANY[first : first + 20], first)
        assert listed.running, "it was made before all had come"
    assert listed.table.tiers == TierWord.ASK
    assert len(find(rig, MANY).pages) == len(MANY), "who asks finds what is not listed yet"
    rig.wait(0)
    listed.check()
    assert listed.table.tiers == TierWord.NONE
    assert listed.table.lacks == 0
    assert seen(memory, MANY, pool=LARGE) == tuple(range(len(MANY)))


def test_what_found_no_room_in_the_table_is_listed_later(
    crowded: tuple[Rig, Index, IndexMemory],
) -> None:
    rig, actor, memory = crowded
    memory.full = "No space left on device"
    save(rig, MANY)
    rig.wait(0)
    assert actor.gauges()["blocks_unlisted"] > 0
    assert actor.residency.listing.table.tiers == TierWord.ASK
    assert len(find(rig, MANY).pages) == len(MANY)
    memory.full = ""
    rig.wait(AGAIN_NS)
    assert actor.gauges()["blocks_unlisted"] == 0
    assert actor.residency.listing.table.tiers == TierWord.NONE
    assert seen(memory, MANY, pool=LARGE) == tuple(range(len(MANY)))
    assert rig.host.wake_at() != 0


def test_without_room_lookups_ask_and_it_is_tried_again() -> None:
    memory = IndexMemory(new_ledger(WELCOME))
    memory.full = "No space left on device"
    rig, actor = index_in(memory)
    save(rig, KEYS[:2])
    assert seen(memory) is None and find(rig, KEYS[:2]).pages == (0, 1)
    rig.wait(BEAT_NS)
    assert [n.event for n in rig.notes] == ["lookup_table_stuck"]
    assert memory.full in actor.remarks()[0]
    memory.full = ""
    rig.wait(AGAIN_NS)
    assert seen(memory) == (0, 1) and actor.remarks() == ()
    assert len(rig.notes) == 1


# the words beside it


def test_nothing_more_is_begun_while_too_much_is_pinned() -> None:
    memory = IndexMemory(new_ledger(WELCOME))
    actor = Index(IDX, BOSS, HELLO, memory)
    rig = Rig(actor)
    rig.start()
    rig.tell(BOSS, replace(WELCOME, max_pinned_bytes=POOL))
    rig.tell(BOSS, NOBODY_ELSE)
    rig.wait(0)
    save(rig, KEYS)
    hazards = memory.hazards("5.hazards")
    file = HazardFile("5.hazards", (1, 5))
    assert said(rig.ask(SESSION_5, file), HazardsNoted).status is Status.OK
    most = int(POOL * PINNED_SHARE) // PAGE
    rows = publish(hazards, memory.ledger, *range(most - 1))
    publish(hazards, memory.ledger, 0)
    memory.barrier()
    lease = find(rig, KEYS[6:])
    rig.wait(BEAT_NS)
    assert actor.gauges()["hazard_pinned_bytes"] == (most - 1) * PAGE, "each block once"
    assert seen(memory) is None, "nothing is said of what is here"
    assert find(rig, KEYS[:1]) == Held(NO_LEASE, 0, ()), "nor is anything leased"
    rig.tell(SESSION_4, Release(lease.number))
    rig.wait(BEAT_NS)
    assert seen(memory) == tuple(range(8))
    hazards.clear(rows)
    memory.barrier()
    rig.wait(BEAT_NS)
    assert actor.gauges()["hazard_pinned_bytes"] == PAGE


@pytest.mark.parametrize("end", ["cleared", "dead"])
def test_hazards_that_have_ended_cut_no_lease(end: str) -> None:
    """At once: to wait for the beat would be a miss."""
    memory = IndexMemory(new_ledger(WELCOME))
    rig = Rig(Index(IDX, BOSS, HELLO, memory))
    rig.start()
    rig.tell(BOSS, replace(WELCOME, max_pinned_bytes=POOL))
    rig.tell(BOSS, NOBODY_ELSE)
    rig.wait(0)
    save(rig, KEYS)
    hazards = memory.hazards("5.hazards")
    file = HazardFile("5.hazards", (1, 5))
    assert said(rig.ask(SESSION_5, file), HazardsNoted).status is Status.OK
    most = int(POOL * PINNED_SHARE) // PAGE
    rows = publish(hazards, memory.ledger, *range(most))
    memory.barrier()
    rig.wait(BEAT_NS)
    assert find(rig, KEYS[:2]) == Held(NO_LEASE, 0, ())
    if end == "dead":
        rig.tell(BOSS, Gone(SESSION_5))
    else:
        hazards.clear(rows)
        memory.barrier()
    assert find(rig, KEYS[:2]).pages == (0, 1)


def test_readers_know_whether_a_tier_may_go_on() -> None:
    rig, actor = tiered_index()
    table = actor.residency.listing.table
    assert table.tiers == TierWord.NONE
    in_log(rig, KEYS[:1])
    rig.wait(0)
    assert table.tiers == TierWord.FILTER
    rig.tell(FLUSHER_6, replace(TIER, prefetch=0))
    rig.wait(0)
    assert table.tiers == TierWord.NONE, "nothing is fetched from it"
    rig.tell(FLUSHER_6, TIER)
    rig.wait(0)
    assert table.tiers == TierWord.FILTER
    rig.tell(BOSS, Gone(FLUSHER_6))
    rig.wait(0)
    assert table.tiers == TierWord.NONE


def test_readers_know_of_which_blocks_a_tier_may_have_them() -> None:
    rig, actor = tiered_index()
    table = actor.residency.listing.table

    def asked_for() -> list[bool]:
        rig.wait(0)
        return [table.may_go_on(name) for name in fingerprints(NS, KEYS[:4]).tolist()]

    in_log(rig, KEYS[:3])
    in_log(rig, KEYS[1:3])  # said again
    assert asked_for() == [True, True, True, False]
    rig.tell(FLUSHER_6, Forget(NS, KEYS[1:2]))
    rig.tell(FLUSHER_6, Forget(NS, KEYS[1:2]))  # not there any more
    assert asked_for() == [True, False, True, False]
    rig.tell(BOSS, Gone(FLUSHER_6))
    assert asked_for() == [False, False, False, False]
    rig.host.check()


def test_without_room_for_what_it_has_a_tier_is_asked_for_anything() -> None:
    rig, actor = tiered_index()
    table = actor.residency.listing.table
    table.filter._reserve = lambda at, length: "no room"
    in_log(rig, KEYS[:1])
    rig.wait(0)
    assert table.tiers == TierWord.ASK


# Touched


def test_what_was_used_is_younger() -> None:
    rig, actor, _ = index()
    save(rig, KEYS[:2])
    save(rig, KEYS[2:3], 2)
    rig.tell(SESSION_4, Touched(as_pages(0, 1)))
    assert rig.count("blocks_touched") == 2 and rig.count("blocks_asked") == 0
    assert actor.leasing.loaded_ns == rig.now
    assert press(rig, 3) == (2, 1, 0)


def test_touched_pages_that_mean_nothing_are_passed_over() -> None:
    old, _, memory = index()
    save(old, KEYS[:1])
    rig, _ = index_in(memory, address=Address("index", Incarnation(90)))
    rig.tell(SESSION_4, Touched(as_pages(3, memory.ledger.records, 1 << 60)))
    rig.tell(SESSION_4, Touched(as_pages(0, 0)))
    assert rig.count("blocks_touched") == 1
    rig.tell(SESSION_4, Touched(()))


def test_what_was_touched_is_worth_writing() -> None:
    rig, actor = tiered_index(replace(TIER, reused_only=True))
    saving(rig, KEYS[:2])
    assert not ssd_of(actor).writes.backlog
    rig.tell(SESSION_4, Touched(as_pages(1)))
    assert [b.pages for b in ssd_of(actor).writes.backlog] == [(1,)]
