"""Tells the allocator of deaths, once nothing of the dead reaches the ledger any more.

It is the last part to hear of a death, so whatever the others had of the dead has ended.
"""

from collections.abc import Iterable

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.roster import HOLDERS
from pegaflow.actors.runtime.contract import Effect, On, Part, Send, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.wire.allocator import Fence, Freed
from pegaflow.wire.control import Fenced
from pegaflow.wire.values import ALLOCATOR, Address


class Fencing(Part):
    """What the allocator hears of the dead."""

    def __init__(self, member: Member, recovery: Recovery) -> None:
        self._member, self._recovery = member, recovery

    def handlers(self) -> Iterable[On]:
        """The allocator asks again."""
        return (on(Fence, self._on_fence, ALLOCATOR),)

    def met(self, neighbour: Address, now: int) -> list[Effect]:
        """An allocator, perhaps a new one: say that we are here, and of all deaths we know."""
        fenced = [Send(neighbour, Fenced(dead)) for dead in self._recovery.dead]
        return [*fenced, Send(neighbour, Freed(()))]

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """A holder is fenced: no ledger write of it comes after this."""
        return self._member.tell(ALLOCATOR, Fenced(dead)) if dead.name in HOLDERS else []

    def _on_fence(self, sender: Sender, msg: Fence, now: int) -> list[Effect]:
        """Only if we have heard of the death ourselves: what is queued of it is dropped then."""
        known = msg.address in self._recovery.dead
        return [Send(sender.address, Fenced(msg.address))] if known else []
