"""Other hosts as a tier of the index: what they have, what is fetched, what they hear of us."""

import numpy as np
import pytest

from pegaflow.actors.index.actor import Index
from pegaflow.actors.index.peers import elsewhere
from pegaflow.actors.index.peers.holding import HOLD_NS, net
from pegaflow.actors.index.peers.tier import LOOK_KEYS, PeersTier
from pegaflow.core.pool.fingerprints import U64, fingerprints
from pegaflow.wire.control import Gone
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.flusher import Fetch, Fetched
from pegaflow.wire.identities import NO_LEASE, Incarnation, Key, LeaseId
from pegaflow.wire.index import Find, Held, LeasesHeld, Release
from pegaflow.wire.peer import ALL, NONE, Around, Cut, Elsewhere, Holding
from pegaflow.wire.status import Status
from pegaflow.wire.values import PEER, Address
from tests.actors.index.test_index import KEYS, NS
from tests.actors.rig import BOSS, PAGE, Rig, one, pick, said
from tests.actors.tier import PATIENCE, fetched_seal, index, look_up, saving

PEER_6 = Address(PEER, Incarnation(16))
PEER_9 = Address(PEER, Incarnation(19))
CUT = Cut(NS, PAGE, 1)


def names(keys: tuple[Key, ...]) -> tuple[int, ...]:
    return tuple(fingerprints(NS, keys).tolist())


def tier_of(actor: Index) -> PeersTier:
    tier = actor.tiers.served_by(PEER)
    assert isinstance(tier, PeersTier)
    return tier


def hosts(prefetch: int = 100, peer: Address = PEER_6) -> tuple[Rig, Index]:
    """An index whose peer process is there."""
    rig, actor = index(tier=None)
    rig.tell(peer, Around(prefetch, 4))
    rig.wait(HOLD_NS)
    return rig, actor


def has(rig: Rig, slot: int, keys: tuple[Key, ...], peer: Address = PEER_6) -> None:
    first, last = NONE
    rig.tell(peer, Elsewhere(slot, first, last, (CUT,), added=names(keys), removed=()))


def had(rig: Rig, slot: int, keys: tuple[Key, ...]) -> None:
    first, last = NONE
    rig.tell(PEER_6, Elsewhere(slot, first, last, (), added=(), removed=names(keys)))


def asked(actor: Index, keys: tuple[Key, ...]) -> list[bool]:
    """Whether a reader of the table would ask for each of these."""
    listing = actor.parts and tier_of(actor)._pool.residency.listing
    assert listing
    filter_ = listing.table.filter
    return [filter_.counts and filter_.may_have(name) for name in names(keys)]


def test_a_run_goes_on_at_other_hosts_and_says_so() -> None:
    rig, actor = hosts()
    saving(rig, KEYS[:1])
    has(rig, 0, KEYS[1:3])
    has(rig, 2, KEYS[2:4])
    fetch = one(look_up(rig, KEYS[:4]), Fetch, PEER_6)
    assert isinstance(fetch.message, Fetch)
    assert fetch.message.keys == KEYS[1:4] and tuple(fetch.message.hosts) == (1, 5, 4)
    sent = rig.ask(PEER_6, fetched_seal(fetch.message, 4, depths=()))
    held = said(sent, Held)
    assert len(held.pages) == 4 and tuple(held.peers) == (1, 2, 3)
    rig.answer(fetch, Fetched(Status.OK, ()))
    assert rig.count("blocks_hit_rdma") == 3
    assert not tier_of(actor).fetching


def test_what_nobody_has_is_asked_of_nobody() -> None:
    rig, actor = hosts()
    has(rig, 0, KEYS[:1])
    assert not pick(look_up(rig, KEYS[1:3]), Fetch)
    assert asked(actor, KEYS[:2]) == [True, False]
    assert not pick(look_up(hosts(prefetch=0)[0], KEYS[:1]), Fetch)


def test_a_host_that_asks_is_not_sent_on_and_counts_for_nothing() -> None:
    rig, _ = hosts()
    has(rig, 0, KEYS[1:3])
    saving(rig, KEYS[:1])
    sent = rig.ask(PEER_6, Find(NS, KEYS[:3], near=True), rig.now + PATIENCE)
    assert len(said(sent, Held, PEER_6).pages) == 1 and not pick(sent, Fetch)
    assert (rig.count("blocks_asked"), rig.count("blocks_hit")) == (0, 0)
    rig.tell(PEER_6, LeasesHeld(LeaseId(1), (LeaseId(1),), 0, ()))  # type: ignore[arg-type]
    rig.tell(PEER_6, Release(LeaseId(1)))
    rig.tell(PEER_6, LeasesHeld(LeaseId(1), (), 0, ()))  # type: ignore[arg-type]


def test_what_a_host_turned_out_not_to_have_is_not_asked_of_it_again() -> None:
    rig, actor = hosts()
    has(rig, 0, KEYS[:2])
    has(rig, 1, KEYS[1:2])
    fetch = one(look_up(rig, KEYS[:2]), Fetch, PEER_6)
    had(rig, 0, KEYS[:1])
    sent = rig.answer(fetch, Fetched(Status.OK, (0, 1)))
    assert said(sent, Held).number == NO_LEASE
    assert not pick(look_up(rig, KEYS[:1]), Fetch)
    assert asked(actor, KEYS[:2]) == [False, True]


def test_a_host_that_is_lost_is_forgotten_at_once_and_taken_out_by_and_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(elsewhere, "STEP_NAMES", 8)
    rig, actor = hosts()
    has(rig, 0, KEYS[:4])
    has(rig, 1, KEYS[3:4])
    first, last = ALL
    rig.tell(PEER_6, Elsewhere(0, first, last, (), added=(), removed=()))
    assert not pick(look_up(rig, KEYS[:1]), Fetch)
    rig.wait(0)
    assert asked(actor, KEYS[:4]) == [False, False, False, True]
    assert len(tier_of(actor).elsewhere) == 1 and not tier_of(actor).elsewhere.busy


def test_a_host_that_comes_to_a_slot_is_not_taken_for_the_one_before() -> None:
    rig, actor = hosts()
    has(rig, 0, KEYS[:2])
    first, last = ALL
    lost = Elsewhere(0, first, last, (), added=(), removed=())
    tier_of(actor).elsewhere.told(lost)
    has(rig, 0, KEYS[1:3])
    assert asked(actor, KEYS[:3]) == [False, True, True]


def test_a_piece_of_a_picture_replaces_what_was_there_and_nothing_else() -> None:
    rig, actor = hosts()
    ordered = tuple(sorted(KEYS[:4], key=lambda key: names((key,))[0]))
    has(rig, 0, ordered)
    low, high = names(ordered[1:2])[0], names(ordered[2:3])[0]
    piece = Elsewhere(0, low, high, (), added=names(ordered[2:3]), removed=())
    rig.tell(PEER_6, piece)
    assert asked(actor, ordered) == [True, False, True, True]


def test_two_hosts_that_have_a_block_are_counted_once() -> None:
    rig, actor = hosts()
    has(rig, 0, KEYS[:1])
    has(rig, 1, KEYS[:1])
    had(rig, 0, KEYS[:1])
    assert asked(actor, KEYS[:1]) == [True]
    had(rig, 1, KEYS[:1])
    had(rig, 1, KEYS[:1])
    assert asked(actor, KEYS[:1]) == [False]


def test_a_dead_peer_process_ends_all_waits_and_its_successor_begins_anew() -> None:
    rig, actor = hosts()
    has(rig, 0, KEYS[:2])
    fetch: Envelope = one(look_up(rig, KEYS[:2]), Fetch, PEER_6)
    sent = rig.tell(BOSS, Gone(PEER_6))
    assert said(sent, Held).number == NO_LEASE and fetch.question
    assert asked(actor, KEYS[:2]) == [False, False] and not len(tier_of(actor).elsewhere)
    rig.tell(PEER_9, Around(100, 4))
    has(rig, 0, KEYS[:1], PEER_9)
    assert pick(look_up(rig, KEYS[:1]), Fetch, PEER_9)


def heard(sent: list[Envelope]) -> tuple[set[int], set[int]]:
    """What is there and what is not, by what the peer process was told."""
    there: set[int] = set()
    gone: set[int] = set()
    for msg in [e.message for e in pick(sent, Holding)]:
        assert isinstance(msg, Holding)
        there = (there | set(msg.added)) - set(msg.removed)
        gone = (gone - set(msg.added)) | set(msg.removed)
    return there, gone


def test_the_peer_process_hears_all_that_is_there_and_what_comes() -> None:
    rig, _ = index(tier=None)
    saving(rig, KEYS[:2])
    rig.tell(PEER_6, Around(0, 4))
    sent = rig.wait(HOLD_NS)
    first = pick(sent, Holding, PEER_6)[0].message
    assert isinstance(first, Holding) and first.first and first.number == 1
    assert heard(sent)[0] == set(names(KEYS[:2]))
    last = pick(sent, Holding, PEER_6)[-1].message
    assert isinstance(last, Holding) and last.whole
    assert CUT in [cut for e in pick(sent, Holding) for cut in e.message.cuts]  # type: ignore[attr-defined]
    saving(rig, KEYS[2:4], first_page=2)
    assert heard(rig.wait(2 * HOLD_NS)) == (set(names(KEYS[2:4])), set())


def test_who_has_missed_something_hears_all_again() -> None:
    rig, _ = hosts()
    saving(rig, KEYS[:2])
    rig.wait(HOLD_NS)
    rig.tell(PEER_6, Around(0, 4, anew=True))
    sent = rig.wait(HOLD_NS)
    first = pick(sent, Holding)[0].message
    assert isinstance(first, Holding) and first.first
    assert heard(sent)[0] == set(names(KEYS[:2]))


def test_of_a_block_that_comes_and_goes_the_last_is_said() -> None:
    a, b, c = (np.array([n], np.uint64) for n in (5, 6, 7))
    added, removed = net([(a, True), (b, True), (a, False), (c, False), (c, True)])
    assert (added.tolist(), removed.tolist()) == ([6, 7], [5])
    added, removed = net([])
    assert not len(added) and not len(removed)


def test_a_picture_that_comes_in_the_order_of_its_fingerprints_is_taken_whole() -> None:
    rig, actor = hosts()
    told = np.sort(np.random.default_rng(3).integers(2, (1 << 64) - 1, 40_000, np.uint64))
    for at in range(0, len(told), 8192):
        some = told[at : at + 8192]
        first = 0 if at == 0 else int(some[0])
        last = int(told[at + 8192]) - 1 if at + 8192 < len(told) else (1 << 64) - 1
        names = tuple(some.tolist())
        piece = Elsewhere(0, first, last, (CUT,), added=names, removed=(), blocks=len(told))
        rig.tell(PEER_6, piece)
    rig.wait(HOLD_NS)
    picture = tier_of(actor).elsewhere
    assert len(picture) == len(np.unique(told)) and not picture.busy


def test_a_host_that_is_lost_while_its_picture_comes_keeps_no_room() -> None:
    rig, actor = hosts()
    first = Elsewhere(0, 0, 1 << 40, (CUT,), added=(5,), removed=(), blocks=1 << 20)
    rig.tell(PEER_6, first)
    rig.wait(HOLD_NS)
    start, last = ALL
    rig.tell(PEER_6, Elsewhere(0, start, last, (), added=(), removed=()))
    rig.wait(HOLD_NS)
    held = tier_of(actor).elsewhere._held
    assert held is not None and not any(held._expected) and not held.busy


def test_no_more_of_a_long_run_is_looked_at_than_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, actor = hosts()
    tier, asked_for = tier_of(actor), []
    owners_of = tier.elsewhere.owners_of

    def counted(names: U64) -> U64:
        asked_for.append(len(names))
        return owners_of(names)

    monkeypatch.setattr(tier.elsewhere, "owners_of", counted)
    has = tier.having(NS, [Key(n.to_bytes(32, "big")) for n in range(10_000)])
    assert not has(0) and not has(LOOK_KEYS - 1) and not has(LOOK_KEYS)
    assert asked_for == [LOOK_KEYS, LOOK_KEYS]
