"""The allocator: grants pages to those who fill them, and takes them back.  See wire/allocator.py.

Its parts, each of which is made of those above it:

    Member        its place in the group
    Recovery      who is to state what it holds, and which messages wait until the pool is known
    Pages         the slab: who has which page
    IndexPeer     the living index, and whom it has fenced
    Growth        extents that are still to come
    Reclaim       no page is free before its ledger record was read
    Reservations  who asks for pages gets them, waits, or is refused
    Adoption      how the slab comes to be
    Returns       what leaves its holder

Two tell a later part something, their listener: Growth tells Reservations that there is room,
Recovery tells Adoption that it is known who has to state.
"""

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.runtime.contract import Actor, Effect, Sender
from pegaflow.actors.runtime.member import Member
from pegaflow.core.grants import Grants
from pegaflow.wire.allocator import Reserved, Return
from pegaflow.wire.control import Hello
from pegaflow.wire.identities import GrantId
from pegaflow.wire.message import Message
from pegaflow.wire.values import Address

from .adoption import STATEMENTS, Adoption
from .growth import Growth
from .pages import Pages
from .peer import IndexPeer
from .reclaim import Reclaim
from .reservations import Reservations
from .returns import Returns


class Allocator(Actor):
    """Who may fill which page."""

    def __init__(self, address: Address, supervisor: Address, hello: Hello) -> None:
        super().__init__(address)
        counts = self.counts
        self.grants: Grants[GrantId, Reserved] = Grants(GrantId)  # not stated yet
        member = Member(address, supervisor, hello, (), counts=counts)
        self.recovery = recovery = Recovery(address, counts, STATEMENTS | {Return})
        self.pages = pages = Pages()
        index = IndexPeer()
        growth = Growth(pages, counts)
        reclaim = Reclaim(pages, counts)
        self.reservations = reservations = Reservations(
            address,
            pages,
            index=index,
            growth=growth,
            reclaim=reclaim,
            grants=self.grants,
            counts=counts,
        )
        growth.listener = reservations
        self.adoption = adoption = Adoption(
            pages, recovery, index=index, growth=growth, grants=self.grants, counts=counts
        )
        recovery.listener = adoption
        returns = Returns(
            pages,
            recovery,
            index=index,
            adoption=adoption,
            reclaim=reclaim,
            reservations=reservations,
            grants=self.grants,
            counts=counts,
        )
        crew = (recovery, pages, index, growth, reclaim, reservations, adoption, returns)
        member.lead(*crew)
        self.compose(member, *crew)

    def receive(self, sender: Sender, msg: Message, now: int) -> list[Effect]:
        """Effects of one message, unless it has to wait."""
        if self.recovery.must_wait(sender, msg) or self.adoption.must_wait(msg):
            return self.recovery.defer(sender, msg)
        return super().receive(sender, msg, now)
