"""The peer process: what it reads of other hosts, and lends to them.  See wire/peer.py.

Its parts, each of which is made of those above it:

    Places      where other hosts may be, and who is there: Meet, Met, Ping, Pong
    Telling     what our host has, for those who follow it: Holding, Follow, Have
    Following   what other hosts have, for our index: Have, Elsewhere, Around
    Lending     what other hosts read of us: Enter, Borrow, GiveBack
    Pages       what the allocator has granted: Reserve, Return, PagesHeld
    Holder      states leases and pages, as every holder does
    Reading     from other hosts into the pool: Fetch, Seal, Fetched

Places tells of each host that comes and goes to Following and Reading, which listen to it.
"""

from collections.abc import Sequence

from pegaflow.actors.roles.holder import Holder
from pegaflow.actors.roles.pages import Pages
from pegaflow.actors.runtime.contract import Actor
from pegaflow.actors.runtime.member import Member
from pegaflow.core.directory.plan import Place
from pegaflow.wire.control import Hello
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.values import ALLOCATOR, INDEX, REMOTE_PEER, Address

from .following import Following
from .lending import Lending
from .places import Places
from .reading import Reading
from .telling import Telling


class PeerActor(Actor):
    """Reads blocks of other hosts, and lends ours.

    Args:
        life: number of this life between hosts, drawn at random.
        name: of our host, for people.
        places: of other hosts.
    """

    def __init__(
        self,
        address: Address,
        supervisor: Address,
        hello: Hello,
        *,
        life: Incarnation,
        name: str,
        places: Sequence[Place],
    ) -> None:
        super().__init__(address)
        self.abroad = Address(REMOTE_PEER, life)
        counts = self.counts
        member = Member(address, supervisor, hello, (ALLOCATOR, INDEX), counts=counts)
        self.places = Places(self.abroad, name, places, counts)
        self.telling = Telling(member, counts)
        self.following = Following(member, self.places, self.telling, counts)
        self.lending = Lending(member, self.telling, counts)
        self.pages = Pages(member)
        self.reading = Reading(
            member=member,
            places=self.places,
            following=self.following,
            pages=self.pages,
            counts=counts,
        )
        self.places.lead(self.following, self.reading)
        crew = (
            Holder(member, {INDEX: self.lending, ALLOCATOR: self.pages}),  # states first
            self.telling,
            self.following,
            self.places,
            self.lending,
            self.pages,
            self.reading,
        )
        member.lead(*crew)
        self.compose(member, *crew)
