"""A second tier is a class of its own and an entry in the list: nothing else knows of it."""

import re
from collections.abc import Sequence
from pathlib import Path

import pytest

from pegaflow.actors.index import actor as index_actor
from pegaflow.actors.index.actor import Index
from pegaflow.actors.index.ssd.tier import SsdTier
from pegaflow.actors.index.tiers import Ended, Pool, Space, Tier, Wanted
from pegaflow.actors.runtime.contract import Ask, Effect
from pegaflow.core.blocks.table import Block
from pegaflow.wire.control import Drain, Gone
from pegaflow.wire.flusher import Fetch, Fetched, Flush, Forget
from pegaflow.wire.identities import (
    NO_CLAIM,
    NO_LEASE,
    ClaimId,
    Incarnation,
    Key,
    LeaseId,
    Namespace,
)
from pegaflow.wire.index import Held, LeasesHeld, Seal, Sealed
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address
from tests.actors.index.test_index import KEYS, NS, ROOT, find, press
from tests.actors.rig import BOSS, PAGE, SESSION_4, Rig, one, pick, said
from tests.actors.tier import FLUSHER_6, PATIENCE, TIER, fetched_seal, in_log, look_up, saving
from tests.actors.tier import index as tiered_index
from tests.naming import as_pages, as_stamps

PEER = "far"
PEER_7 = Address(PEER, Incarnation(7))


class PeerTier(Tier):
    """Memory of another host.  For lack of words of its own it asks with the flusher's."""

    def __init__(self, pool: Pool) -> None:
        self.there: set[bytes] = set()
        super().__init__("far", PEER, self.there)
        self.fetching: set[bytes] = set()
        self.calls: list[str] = []
        self.offered: list[tuple[bytes, bool]] = []
        self.lost: list[bytes] = []

    def space(self, namespace: Namespace) -> Space | None:
        return Space(PAGE, 1) if self.there else None

    def has(self, namespace: Namespace, key: Key) -> bool:
        self.calls.append("has")
        return key in self.there

    def most_awaited(self) -> int:
        return 3

    def offer(self, blocks: Sequence[Block], asked: bool) -> None:
        self.calls.append("offer")
        self.offered += [(block.key, asked) for block in blocks]

    def write(self, now: int) -> list[Effect]:
        return []

    def removed(self, block: Block) -> None:
        self.lost.append(block.key)

    def fetch(self, wanted: Wanted, ended: Ended, now: int) -> list[Effect]:
        self.calls.append("fetch")
        self.fetching |= set(wanted.keys)

        def over(answer: Message, now: int) -> list[Effect]:
            self.fetching -= set(wanted.keys)
            return [e for key in wanted.keys for e in ended(wanted.namespace, key, now)]

        ask = Fetch(
            ClaimId(1),
            wanted.namespace,
            wanted.keys,
            wanted.parents,
            engine=Incarnation(wanted.engine),
        )
        return [Ask(PEER_7, ask, now + PATIENCE, over)]

    def owns(self, number: int, namespace: Namespace, key: Key) -> bool:
        return key in self.fetching

    def delivered(self, held: Held, places: tuple[int, ...]) -> Held:
        self.calls += ["delivered"] * len(places)
        return held

    def stop(self, now: int) -> list[Effect]:
        self.calls.append("stop")
        return []


def index(monkeypatch: pytest.MonkeyPatch) -> tuple[Rig, Index, PeerTier]:
    """An index with an SSD tier and, below it, a peer."""
    monkeypatch.setattr(index_actor, "TIERS", (SsdTier, PeerTier))
    rig, actor = tiered_index(TIER)
    peer = actor.tiers.served_by(PEER)
    assert isinstance(peer, PeerTier)
    return rig, actor, peer


def waits(actor: Index) -> tuple[int, int]:
    """Lookups that wait for blocks of the SSD tier, and of the peer."""
    gauges = actor.gauges()
    return gauges["ssd_waits"], gauges["far_waits"]


def test_a_block_that_only_the_second_tier_has_is_fetched_from_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig, actor, peer = index(monkeypatch)
    peer.there = set(KEYS[:2])
    question = one(look_up(rig, KEYS[:3]), Fetch, PEER_7)
    fetch = question.message
    assert isinstance(fetch, Fetch) and fetch.keys == KEYS[:2] and fetch.parents == (ROOT, KEYS[0])
    assert waits(actor) == (0, 1)
    sent = rig.tell(PEER_7, fetched_seal(fetch, 4))
    assert said(sent, Held, SESSION_4) == Held(LeaseId(1), 1, as_pages(4, 5))
    assert peer.calls.count("delivered") == 2 and waits(actor) == (0, 0)
    assert rig.count("blocks_hit") == rig.count("blocks_hit_far") == 2
    assert rig.count("blocks_hit_ssd") == 0
    assert rig.count("blocks_fetched") == 2
    rig.answer(question, Fetched(Status.OK, ()))
    assert not actor.lookup.awaited and not peer.fetching
    assert find(rig, KEYS[:2]).pages == (4, 5)


def test_what_the_second_tier_does_not_bring_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, actor, peer = index(monkeypatch)
    peer.there = set(KEYS[:2])
    question = one(look_up(rig, KEYS[:2]), Fetch, PEER_7)
    assert said(rig.answer(question, Fetched(Status.OK, (0, 1))), Held).number == 0
    assert not actor.lookup.waits


def test_a_run_is_put_together_from_both_tiers(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, actor, peer = index(monkeypatch)
    in_log(rig, KEYS[:2])
    peer.there = set(KEYS[1:4])
    sent = look_up(rig, KEYS[:5])
    ssd, far = one(sent, Fetch, FLUSHER_6), one(sent, Fetch, PEER_7)
    assert isinstance(ssd.message, Fetch) and isinstance(far.message, Fetch)
    assert ssd.message.keys == KEYS[:2], "the first in the list that has it"
    assert far.message.keys == KEYS[2:3], "one engine awaits three blocks at most"
    assert waits(actor) == (1, 1)
    stray = rig.ask(PEER_7, fetched_seal(ssd.message, 0))
    assert said(stray, Sealed).positions == (), "it is not asked for these"
    rig.tell(FLUSHER_6, fetched_seal(ssd.message, 0))
    sent = rig.tell(PEER_7, fetched_seal(far.message, 2))
    assert said(sent, Held, SESSION_4) == Held(LeaseId(1), 1, as_pages(0, 1, 2), (), disk=(0, 1))
    assert rig.count("blocks_hit_ssd") == 2 and rig.count("blocks_hit_far") == 1
    assert peer.calls.count("delivered") == 1


def test_both_are_offered_what_is_saved_and_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, _, peer = index(monkeypatch)
    assert said(saving(rig, KEYS[:2]), Flush, FLUSHER_6).keys == KEYS[:2]
    assert find(rig, KEYS[:1]).number == 1
    assert peer.offered == [(KEYS[0], False), (KEYS[1], False), (KEYS[0], True)]
    assert "has" not in peer.calls and "fetch" not in peer.calls


def test_the_second_tier_hears_what_is_evicted(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, _, peer = index(monkeypatch)
    in_log(rig, KEYS[:1])
    saving(rig, KEYS[:1])
    assert press(rig, 1) == (0,) and peer.lost == [KEYS[0]]


def test_a_process_of_a_tier_is_believed_what_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, actor, peer = index(monkeypatch)
    rig.tell(PEER_7, LeasesHeld(NO_LEASE, (), NO_CLAIM, ()))
    seal = Seal(
        ClaimId(1),
        NS,
        PAGE,
        PAGE,
        shards=1,
        keys=KEYS[:1],
        parents=(ROOT,),
        pages=as_pages(0),
        stamps=as_stamps(9),
    )
    assert said(rig.ask(PEER_7, seal), Sealed) == Sealed(Status.STALE_CLAIM, ())
    assert not rig.tell(PEER_7, Forget(NS, KEYS[:1])), "these are the flusher's words"
    assert rig.count("frames_unwanted") == 1
    peer.there = set(KEYS[:1])
    look_up(rig, KEYS[:1])
    rig.tell(BOSS, Gone(PEER_7))
    assert not actor.lookup.waits, "its answer is that it is dead"


def test_all_tiers_end_with_the_index(monkeypatch: pytest.MonkeyPatch) -> None:
    rig, _, peer = index(monkeypatch)
    rig.tell(BOSS, Drain())
    assert peer.calls == ["stop"] and rig.stop == ""


def test_the_index_knows_no_tier_but_where_they_are_listed() -> None:
    home = Path(index_actor.__file__).parent
    folders = sorted(path.parent.name for path in home.glob("*/__init__.py"))
    words = re.compile("|".join(rf"from \.{name}\b|\b{name}_|_{name}\b" for name in folders))
    lines = [line for path in home.glob("*.py") for line in path.read_text().splitlines()]
    found = sorted(line for line in lines if words.search(line))
    assert [line.split(".")[1] for line in found] == folders, found


def test_without_the_entry_nobody_asks_a_peer() -> None:
    rig, actor = tiered_index(TIER)
    assert actor.tiers.served_by(PEER) is None
    assert not pick(look_up(rig, KEYS[:1]), Fetch)
    rig.tell(PEER_7, LeasesHeld(NO_LEASE, (), NO_CLAIM, ()))
    assert rig.count("frames_unwanted") == 1
