"""The session: one engine's process.  See wire/session.py.

    engine.py        the engine: who it is, its clients, its ranks, and the end with it
    leases.py        what the index keeps in place for the engine's requests
    lookup.py        what the engine finds
    loads.py         what it gets
    orders.py        what it saves: orders, shares, claims
    reservation.py   pages of the allocator, to save into
    publish.py       blocks in place, to the index
    batches.py       how blocks get there
    saves.py         what the clients say of their saves
    attach.py        how ranks come and go
    holdings.py      leases and claims, as the index is told of them

Each of them uses those above it, and none those below; plain records are ranks.py (one rank),
space.py (what the pages mean) and records.py (orders and their parts).

It outlives index and allocator.  Without an index a lookup misses and a save is refused, while
loads go on; a new one is told all leases and claims, a new allocator all pages.
"""

from pegaflow.actors.roles.holder import Holder
from pegaflow.actors.runtime.contract import Actor
from pegaflow.actors.runtime.member import Member
from pegaflow.wire.control import Hello
from pegaflow.wire.values import ALLOCATOR, INDEX, Address

from .attach import Attachment
from .batches import Batches
from .engine import Engine
from .holdings import LeasesAndClaims
from .leases import Leases
from .loads import Loads
from .lookup import Lookups
from .orders import Orders
from .publish import Publishing
from .reservation import Reservation
from .saves import Saves


class Session(Actor):
    """Moves one engine's blocks."""

    def __init__(self, address: Address, supervisor: Address, hello: Hello) -> None:
        super().__init__(address)
        counts = self.counts
        member = Member(address, supervisor, hello, (ALLOCATOR, INDEX), counts=counts)
        self.engine = engine = Engine(member)
        self.leases = leases = Leases(member, engine, counts)
        lookups = Lookups(member, engine, leases, counts)
        self.loads = loads = Loads(member, engine, leases, counts)
        self.orders = orders = Orders(member)
        self.reservation = reservation = Reservation(member, engine)
        publishing = Publishing(
            member, engine, orders=orders, reservation=reservation, counts=counts
        )
        batches = Batches(
            engine, orders=orders, reservation=reservation, publishing=publishing, counts=counts
        )
        reservation.feeds(batches)
        saves = Saves(member, engine, orders=orders, batches=batches, counts=counts)
        attachment = Attachment(
            member, engine, leases=leases, loads=loads, saves=saves, reservation=reservation
        )
        claimed = LeasesAndClaims(
            member, engine, leases=leases, orders=orders, publishing=publishing
        )
        holder = Holder(member, {INDEX: claimed, ALLOCATOR: reservation})
        crew = (engine, leases, lookups, loads, orders, reservation, publishing, batches, saves)
        member.lead(*crew, attachment, holder)
        self.compose(member, *crew, attachment, holder)
