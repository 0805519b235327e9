"""The session: one engine's process.  See wire/session.py.

    pagetables.py    the pool in our page tables, ahead of need
    registration.py  and registered with the driver of a GPU
    devices.py       GPUs: contexts ahead of need
    engine.py        the engine: who it is, its clients, its ranks, and the end with it
    hazards.py       what keeps in place what we find ourselves
    pins.py          how much stays in place for the engine, and how much may
    touches.py       what was used, for the index
    leases.py        what stays in place for the engine's requests
    lookup.py        what the engine finds
    lending.py       what it finds by itself
    loads.py         what it gets
    orders.py        what it saves: orders, each rank's save, claims
    reservation.py   pages of the allocator, to save into
    publish.py       blocks in place, to the index
    batches.py       how blocks get there
    saves.py         what the clients say of their saves
    attach.py        how ranks come and go
    holdings.py      leases and claims, as the index is told of them

Each of them is made of those above it.  One tells a later part something: reservation.py feeds
batches.py, which waits for pages.  Plain records are ranks.py (one rank), space.py (what the pages
mean) and records.py (orders and what ranks save of them).

It outlives index and allocator.  Without an index a lookup finds what is in memory, loads go on,
and a save is refused; a new one is told of all hazards, leases and claims, a new allocator of all
pages.
"""

from pegaflow.actors.roles.holder import Holder
from pegaflow.actors.runtime.contract import Actor
from pegaflow.actors.runtime.member import Member
from pegaflow.wire.control import Hello
from pegaflow.wire.values import ALLOCATOR, INDEX, Address

from .attach import Attachment
from .batches import Batches
from .devices import Devices
from .engine import Engine
from .hazards import HazardBook, OpenFinder, OpenHazards
from .holdings import LeasesAndClaims
from .leases import Leases
from .lending import Lending
from .loads import Loads
from .lookup import Lookups
from .orders import Orders
from .pagetables import PageTables
from .pins import Pins
from .publish import Publishing
from .registration import Registration
from .reservation import Reservation
from .saves import Saves
from .touches import Touches


class Session(Actor):
    """Moves one engine's blocks."""

    def __init__(
        self,
        address: Address,
        supervisor: Address,
        hello: Hello,
        *,
        open_hazards: OpenHazards,
        open_finder: OpenFinder,
    ) -> None:
        super().__init__(address)
        counts = self.counts
        member = Member(address, supervisor, hello, (ALLOCATOR, INDEX), counts=counts)
        self.tables = tables = PageTables()
        self.registration = registration = Registration(tables)
        devices = Devices(member, registration)
        self.engine = engine = Engine(member, devices)
        self.hazards = hazards = HazardBook(member, engine, open_hazards, open_finder)
        self.pins = pins = Pins(engine, hazards, counts)
        touches = Touches(member, counts)
        self.leases = leases = Leases(
            member, engine, hazards=hazards, pins=pins, touches=touches, counts=counts
        )
        lookups = Lookups(member, engine, hazards=hazards, pins=pins, leases=leases, counts=counts)
        lending = Lending(
            member, engine, hazards=hazards, leases=leases, touches=touches, counts=counts
        )
        self.loads = loads = Loads(
            member, engine, registration, leases=leases, lending=lending, counts=counts
        )
        self.orders = orders = Orders(member)
        self.reservation = reservation = Reservation(member, engine, touches)
        publishing = Publishing(
            member,
            engine,
            orders=orders,
            reservation=reservation,
            touches=touches,
            counts=counts,
        )
        batches = Batches(
            engine,
            orders=orders,
            reservation=reservation,
            publishing=publishing,
            registration=registration,
            counts=counts,
        )
        reservation.feeds(batches)
        saves = Saves(
            member,
            engine,
            hazards=hazards,
            touches=touches,
            orders=orders,
            batches=batches,
            counts=counts,
        )
        attachment = Attachment(
            member,
            engine,
            devices=devices,
            hazards=hazards,
            leases=leases,
            loads=loads,
            saves=saves,
            reservation=reservation,
        )
        claimed = LeasesAndClaims(
            member, engine, hazards=hazards, leases=leases, orders=orders, publishing=publishing
        )
        holder = Holder(member, {INDEX: claimed, ALLOCATOR: reservation})
        memory = (tables, registration, devices)
        found = (engine, hazards, pins, leases, touches, lookups, lending, loads)
        saved = (orders, reservation, publishing, batches, saves)
        crew = (*memory, *found, *saved, attachment, holder)
        member.lead(*crew)
        self.compose(member, *crew)
