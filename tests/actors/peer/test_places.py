"""Who is at which place: meetings, pings, silence, lives."""

from pegaflow.actors.runtime.contract import Dial, Hangup
from pegaflow.wire.identities import NO_LEASE, Incarnation
from pegaflow.wire.peer import ALL, AWAY_NS, PING_NS, Elsewhere, Meet, Met, Ping, Pong
from pegaflow.wire.peerjobs import LeaveHost
from pegaflow.wire.values import INDEX, PEER_PLACE, Address
from tests.actors.rig import IDX, pick, said

from .peers import ANNA, ANNA_AGAIN, BERT, PEER_5, PLACES, US, Peer

DOORS = [Address(PEER_PLACE, Incarnation(n)) for n in (1, 2)]


def test_every_place_is_dialled_and_asked_until_somebody_answers() -> None:
    peer = Peer()
    assert peer.rig.links[:2] != [] and [
        Dial(door, place.endpoint, place.key) for door, place in zip(DOORS, PLACES, strict=True)
    ] == [link for link in peer.rig.links if isinstance(link, Dial) and link.address in DOORS]
    sent = peer.rig.wait(PING_NS)
    assert [(e.receiver, e.sender, e.message) for e in pick(sent, Meet)] == [
        (door, US, Meet(n)) for n, door in enumerate(DOORS)
    ]
    peer.meet(ANNA)
    sent = peer.rig.wait(PING_NS)
    assert [e.receiver for e in pick(sent, Meet)] == [DOORS[1]]
    assert [e.receiver for e in pick(sent, Ping)] == [ANNA]


def test_who_answers_is_dialled_by_name_with_the_key_of_the_place() -> None:
    peer = Peer()
    peer.meet(ANNA)
    assert Dial(ANNA, PLACES[0].endpoint, PLACES[0].key) in peer.rig.links
    assert peer.actor.places.hosts[ANNA].where == "anna"
    peer.meet(BERT, 1)
    assert peer.actor.places.hosts[BERT].where == "::1"


def test_whoever_asks_is_told_who_we_are() -> None:
    peer = Peer()
    (answer,) = pick(peer.rig.tell(BERT, Meet(7)), Met)
    assert (answer.sender, answer.receiver, answer.message) == (US, BERT, Met(7, "us"))
    assert not peer.actor.places.hosts, "who asks is not read from for that"


def test_we_are_nobody_else_and_nobody_is_at_two_places() -> None:
    peer = Peer()
    assert not peer.rig.tell(US, Met(0, "us"))
    peer.meet(ANNA, 1)
    assert not peer.rig.tell(ANNA, Met(0, "anna")), "our own place; and she is at the other"
    assert not pick(peer.rig.wait(PING_NS), Meet), "nobody is looked for any more"
    assert list(peer.actor.places.hosts) == [ANNA]


def test_a_place_that_there_is_not_is_nobodys() -> None:
    peer = Peer()
    assert not peer.rig.tell(ANNA, Met(len(PLACES), "anna"))
    assert not peer.actor.places.hosts


def test_who_is_silent_is_gone_and_its_successor_is_met() -> None:
    peer = Peer()
    peer.meet(ANNA)
    sent = peer.rig.wait(AWAY_NS + 2 * PING_NS)
    first, last = ALL
    assert said(sent, Elsewhere, IDX) == Elsewhere(0, first, last, (), added=(), removed=())
    assert Hangup(ANNA) in peer.rig.links and peer.rig.wanted(LeaveHost)
    assert DOORS[0] in [e.receiver for e in pick(peer.rig.wait(PING_NS), Meet)]
    assert any("anna:7000" in line for line in peer.actor.places.remarks())
    peer.meet(ANNA_AGAIN)
    assert list(peer.actor.places.hosts) == [ANNA_AGAIN]
    assert not peer.rig.tell(ANNA, Pong(1, 9)), "an earlier life is not heard"


def test_pongs_keep_a_host_alive() -> None:
    peer = Peer()
    follow = peer.meet(ANNA)
    for _ in range(20):
        peer.rig.wait(PING_NS)
        peer.rig.tell(ANNA, Pong(follow.number, 0))
    assert ANNA in peer.actor.places.hosts


def test_whoever_was_stopped_itself_blames_nobody() -> None:
    peer = Peer()
    peer.meet(ANNA)
    peer.rig.now += 10 * AWAY_NS
    peer.rig.wake()
    assert ANNA in peer.actor.places.hosts
    peer.rig.wait(AWAY_NS + 2 * PING_NS)
    assert ANNA not in peer.actor.places.hosts


def test_an_address_between_hosts_is_no_address_within_ours() -> None:
    peer = Peer()
    peer.meet(ANNA)
    before = peer.rig.count("frames_of_other_lives")
    peer.rig.ask(ANNA, Ping(1, 0, NO_LEASE, ()), to=PEER_5)
    peer.rig.ask(ANNA, Meet(0), to=Address(INDEX, Incarnation(3)))
    assert peer.rig.count("frames_of_other_lives") == before + 2
