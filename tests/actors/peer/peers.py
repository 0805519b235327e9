"""A peer process with two places, and what other hosts, index and allocator say to it."""

from collections.abc import Sequence
from dataclasses import replace

from pegaflow.actors.peer.actor import PeerActor
from pegaflow.core.directory.plan import Place
from pegaflow.wire.allocator import Reserve, Reserved
from pegaflow.wire.control import Neighbour
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import GrantId, Incarnation, Key, LeaseId, Namespace
from pegaflow.wire.jobs import Done
from pegaflow.wire.message import Message
from pegaflow.wire.peer import Cut, Follow, Have, Holding, Met
from pegaflow.wire.peerjobs import AskOfReader, ReaderAsks
from pegaflow.wire.status import Status
from pegaflow.wire.values import PEER, REMOTE_PEER, Address
from tests.actors.rig import ALLOC, BOSS, EXTENT, HELLO, IDX, PAGE, WELCOME, Rig, one, said
from tests.naming import as_pages, as_stamps

PEER_5 = Address(PEER, Incarnation(5))
LIFE = Incarnation(1 << 61 | 5)
US = Address(REMOTE_PEER, LIFE)
ANNA = Address(REMOTE_PEER, Incarnation(1 << 60 | 1))
BERT = Address(REMOTE_PEER, Incarnation(1 << 60 | 2))
ANNA_AGAIN = Address(REMOTE_PEER, Incarnation(1 << 60 | 3))
PLACES = (Place("tcp://anna:7000", b"key of anna"), Place("tcp://[::1]:7000", b""))

NS = Namespace(bytes(range(16)))
OTHER = Namespace(bytes(range(1, 17)))
KEYS = tuple(Key(bytes([n]) * 32) for n in range(1, 9))
ROOT = Key(bytes(32))
CUT = Cut(NS, PAGE, 1)
BIG = replace(WELCOME, pool_bytes=16 * EXTENT)


class Peer:
    """A peer process that is up."""

    def __init__(self, places: Sequence[Place] = PLACES) -> None:
        self.actor = PeerActor(PEER_5, BOSS, HELLO, life=LIFE, name="us", places=places)
        self.rig = Rig(self.actor)
        self.rig.start()
        self.rig.tell(BOSS, BIG)
        self.rig.done(AskOfReader, ReaderAsks(b""))
        self.rig.tell(BOSS, Neighbour(ALLOC, "ipc://a", 1))
        self.rig.tell(BOSS, Neighbour(IDX, "ipc://i", 2))
        self.rig.wait(0)

    def meet(self, host: Address, place: int = 0) -> Follow:
        """Somebody is at a place; how it is followed."""
        return said(self.rig.tell(host, Met(place, str(host))), Follow, host)

    def hold(self, number: int, *added: int, removed: Sequence[int] = ()) -> list[Envelope]:
        """The word of our index, its first and whole word being number 1."""
        msg = Holding(number, number == 1, True, (CUT,), added=added, removed=tuple(removed))
        return self.rig.tell(IDX, msg)

    def grant(self, sent: list[Envelope], number: int, first: int = 0) -> list[Envelope]:
        """The allocator grants what was asked for."""
        ask = one(sent, Reserve, ALLOC)
        assert isinstance(ask.message, Reserve)
        pages = range(first, first + ask.message.count)
        stamps = as_stamps(*(100 + page for page in pages))
        answer = Reserved(Status.OK, GrantId(number), as_pages(*pages), stamps)
        return self.rig.answer(ask, answer)


def have(
    follow: Follow,
    part: int,
    *added: int,
    removed: Sequence[int] = (),
    of: tuple[int, int] = (1, 0),
    cut: Cut = CUT,
) -> Have:
    """A part of a host's word; news unless it says of which fingerprints it is all."""
    first, last = of
    return Have(follow.number, part, first, last, cuts=(cut,), added=added, removed=tuple(removed))


def lease(number: int) -> LeaseId:
    return LeaseId(number)


def messages(sent: list[Envelope], to: Address) -> list[Message]:
    return [envelope.message for envelope in sent if envelope.receiver == to]


DONE = Done(Status.OK)
