"""What a host has: our index's word to those who follow, and theirs to our index."""

import numpy as np
import pytest

from pegaflow.actors.peer import telling
from pegaflow.wire.control import BEAT_NS, Gone, Neighbour
from pegaflow.wire.identities import NO_LEASE, Incarnation
from pegaflow.wire.peer import (
    AHEAD,
    AWAY_NS,
    NONE,
    PING_NS,
    Around,
    Elsewhere,
    Follow,
    Have,
    Holding,
    Ping,
    Pong,
)
from pegaflow.wire.values import INDEX, Address
from tests.actors.rig import BOSS, IDX, pick, said

from .peers import ANNA, BERT, CUT, Peer, have, messages

INDEX_9 = Address(INDEX, Incarnation(9))
LAST = (1 << 64) - 1


class Picture:
    """What a follower makes of what it is told."""

    def __init__(self, peer: Peer, who: Address = BERT) -> None:
        self.peer, self.who = peer, who
        self.blocks: set[int] = set()
        self.number = self.seen = 0

    def follow(self) -> None:
        self.number, self.seen = self.number + 1, 0
        self.take(self.peer.rig.tell(self.who, Follow(self.number)))
        self.ping()

    def take(self, sent: list) -> None:  # type: ignore[type-arg]
        for msg in messages(sent, self.who):
            if not isinstance(msg, Have) or msg.number != self.number:
                continue
            assert msg.part == self.seen + 1, "numbered in their order"
            self.seen = msg.part
            if msg.first <= msg.last:
                self.blocks -= {b for b in self.blocks if msg.first <= b <= msg.last}
            self.blocks |= set(msg.added)
            self.blocks -= set(msg.removed)

    def ping(self) -> None:
        """Acknowledge until nothing more comes."""
        while True:
            before = self.seen
            sent = self.peer.rig.tell(self.who, Ping(self.number, self.seen, NO_LEASE, ()))
            pong = said(sent, Pong, self.who)
            self.take(sent)
            if self.seen == before:
                assert pong == Pong(self.number, self.seen)
                return


def test_a_follower_hears_all_and_then_what_changes() -> None:
    peer, anna = Peer(), Picture(Peer())
    anna.peer = peer
    peer.hold(1, 5, 9, 7)
    anna.follow()
    assert anna.blocks == {5, 7, 9}
    anna.take(peer.hold(2, 11, removed=(5,)))
    assert anna.blocks == {7, 9, 11}


def test_a_picture_comes_in_pieces_and_news_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "PART_BLOCKS", 8)
    peer = Peer()
    names = np.random.default_rng(1).integers(2, LAST, 48, np.uint64, endpoint=True)
    held = set(names.tolist())
    for at in range(0, 48, 16):
        some = tuple(names[at : at + 16].tolist())
        peer.rig.tell(IDX, Holding(at // 16 + 1, at == 0, at == 32, (), added=some, removed=()))
    anna = Picture(peer)
    anna.number = 1
    anna.take(peer.rig.tell(BERT, Follow(1)))
    for number, gone in enumerate(sorted(held)[::5], 4):
        held = held - {gone} | {2 * number}
        anna.take(peer.hold(number, 2 * number, removed=(gone,)))
        anna.ping()
    assert anna.blocks == held and anna.seen > 10


def test_a_follower_is_not_told_more_than_it_takes() -> None:
    peer = Peer()
    peer.hold(1, 2)
    peer.rig.tell(BERT, Follow(1))
    sent = [e for n in range(2, 3 * AHEAD) for e in pick(peer.hold(n, 2 * n), Have)]
    assert len(sent) == AHEAD - 1, "the first went with the picture"
    more = pick(peer.rig.tell(BERT, Ping(1, 4, NO_LEASE, ())), Have)
    assert len(more) == 4


def test_who_lags_too_far_behind_hears_all_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "JOURNAL_PARTS", 8)
    peer, anna = Peer(), Picture(Peer())
    anna.peer = peer
    peer.hold(1, 2)
    anna.follow()
    for number in range(2, 3 * AHEAD):
        anna.take(peer.hold(number, 2 * number))
    anna.ping()
    assert anna.blocks == {2 * n for n in range(1, 3 * AHEAD)}


def test_a_new_index_is_told_of_when_it_has_said_all() -> None:
    peer, anna = Peer(), Picture(Peer())
    anna.peer = peer
    peer.hold(1, 2, 4)
    anna.follow()
    peer.rig.tell(BOSS, Gone(IDX))
    peer.rig.tell(BOSS, Neighbour(INDEX_9, "ipc://i", 3))
    assert not peer.rig.tell(INDEX_9, Holding(1, True, False, (CUT,), added=(4,), removed=()))
    assert anna.blocks == {2, 4}
    anna.take(peer.rig.tell(INDEX_9, Holding(2, False, True, (), added=(6,), removed=())))
    anna.ping()
    assert anna.blocks == {4, 6}


def test_a_lost_word_of_our_index_is_asked_for_again() -> None:
    peer = Peer()
    peer.hold(1, 2)
    peer.hold(3, 6)
    beats = peer.rig.wait(BEAT_NS)
    assert said(beats, Around, IDX).anew
    peer.hold(1, 2, 4, 6)
    assert not said(peer.rig.wait(BEAT_NS), Around, IDX).anew
    anna = Picture(peer)
    anna.follow()
    assert anna.blocks == {2, 4, 6}


def test_who_is_silent_is_told_nothing_more() -> None:
    peer = Peer()
    peer.hold(1, 2)
    peer.rig.tell(BERT, Follow(1))
    peer.rig.tell(BERT, Ping(1, 0, NO_LEASE, ()))
    peer.rig.wait(2 * AWAY_NS)
    assert not messages(peer.hold(2, 4), BERT)


def test_what_a_host_has_is_handed_on_to_the_index() -> None:
    peer = Peer()
    follow = peer.meet(ANNA)
    sent = peer.rig.tell(ANNA, have(follow, 1, 3, 5, of=(0, LAST)))
    assert said(sent, Elsewhere, IDX) == Elsewhere(0, 0, LAST, (CUT,), added=(3, 5), removed=())
    sent = peer.rig.tell(ANNA, have(follow, 2, 7, removed=(3,)))
    first, last = NONE
    assert said(sent, Elsewhere, IDX) == Elsewhere(0, first, last, (CUT,), added=(7,), removed=(3,))
    assert said(peer.rig.wait(BEAT_NS), Around, IDX).prefetch > 0


def test_a_gap_asks_for_all_anew_and_what_belongs_to_before_is_not_heard() -> None:
    peer = Peer()
    follow = peer.meet(ANNA)
    peer.rig.tell(ANNA, have(follow, 1, 3, of=(0, LAST)))
    again = said(peer.rig.tell(ANNA, have(follow, 3, 7)), Follow, ANNA)
    assert again.number != follow.number
    assert not peer.rig.tell(ANNA, have(follow, 2, 5))
    assert peer.rig.tell(ANNA, have(again, 1, 3, 5, 7, of=(0, LAST)))
    assert not peer.rig.tell(ANNA, have(again, 1, 9)), "said twice"


def test_a_lost_last_part_and_a_lost_follow_are_found_by_pong() -> None:
    peer = Peer()
    follow = peer.meet(ANNA)
    peer.rig.tell(ANNA, have(follow, 1, 3))
    assert not pick(peer.rig.tell(ANNA, Pong(follow.number, 1)), Follow)
    again = said(peer.rig.tell(ANNA, Pong(follow.number, 2)), Follow, ANNA)
    assert not peer.rig.tell(ANNA, Pong(follow.number, 2)), "said before it could know better"
    for _ in range(4):
        peer.rig.wait(PING_NS)
        peer.actor.places.hosts[ANNA].heard_ns = peer.rig.now
    assert said(peer.rig.tell(ANNA, Pong(0, 0)), Follow, ANNA).number > again.number


def test_parts_are_acknowledged_before_the_other_side_runs_dry() -> None:
    peer = Peer()
    follow = peer.meet(ANNA)
    pings = [
        ping
        for part in range(1, 2 * AHEAD)
        for ping in pick(peer.rig.tell(ANNA, have(follow, part, 2 * part)), Ping)
    ]
    assert [ping.message.seen for ping in pings] == [8, 16, 24]  # type: ignore[attr-defined]


def test_a_new_index_hears_all_of_every_host() -> None:
    peer = Peer()
    before = peer.meet(ANNA)
    peer.rig.tell(BOSS, Gone(IDX))
    sent = peer.rig.tell(BOSS, Neighbour(INDEX_9, "ipc://i", 3))
    assert said(sent, Around, INDEX_9).hosts == 2
    assert said(sent, Follow, ANNA).number > before.number


def test_an_index_whose_first_word_was_lost_is_asked_for_all() -> None:
    peer = Peer()
    peer.hold(2, 4)
    assert said(peer.rig.wait(BEAT_NS), Around, IDX).anew
