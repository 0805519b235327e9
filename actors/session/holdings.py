"""What a session holds of the index: leases and claims, a book of the index's (roles/holder.py).

A new index is told all of both, after hazards.py has told it where our hazards are; then the Seals
that its predecessor has not answered follow.
"""

from pegaflow.actors.runtime.contract import Effect
from pegaflow.actors.runtime.member import Member
from pegaflow.core.pool.columns import said, said_keys
from pegaflow.wire.index import Claimed, Claiming, EndClaim, Held, LeasesHeld
from pegaflow.wire.message import Message
from pegaflow.wire.values import INDEX

from .engine import Engine
from .hazards import HazardBook
from .leases import Leases
from .orders import Orders
from .publish import Publishing


class LeasesAndClaims:
    """The book of the index."""

    def __init__(
        self,
        member: Member,
        engine: Engine,
        *,
        hazards: HazardBook,
        leases: Leases,
        orders: Orders,
        publishing: Publishing,
    ) -> None:
        self._member, self._engine, self._hazards = member, engine, hazards
        self._leases, self._orders, self._publishing = leases, orders, publishing

    def restate(self, now: int) -> list[Effect]:
        """What we claim, and what is leased to us."""
        space, told = self._engine.space, list[Message]()
        if space is None:
            return []
        for claim, order in self._orders.claims.items():
            if len(order.new):
                keys = said_keys(order.rows[order.new])
                told.append(Claiming(claim, space.namespace, keys))
        for number, lease in sorted(self._leases.held.items()):
            told.append(Held(number, space.shards, said(lease.pages)))
        return [effect for msg in told for effect in self._member.tell(INDEX, msg)]

    def statement(self) -> LeasesHeld:
        """All leases and claims by number, and whether there are others that hazards keep."""
        leases, claims = self._leases.held, self._orders.claims
        return LeasesHeld(
            lease_upto=leases.upto,
            leases=leases.numbers(),
            claim_upto=claims.upto,
            claims=claims.numbers(),
            hazards=self._hazards.may_stand,
        )

    def go_on(self, now: int) -> list[Effect]:
        """What its predecessor was asked to publish."""
        return self._publishing.seal_again(now)

    def too_late(self, msg: Message, now: int) -> list[Effect]:
        """Leases and claims go back."""
        if isinstance(msg, Held):
            return self._leases.give_back(msg)
        if isinstance(msg, Claimed) and msg.number:
            return self._member.tell(INDEX, EndClaim(msg.number))
        return []
