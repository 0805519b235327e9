"""Who is about to save which keys."""

from collections import Counter
from collections.abc import Iterable

import numpy as np

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.runtime.contract import Effect, On, Part, Reply, Sender, on
from pegaflow.core.blocks.claims import ClaimTable
from pegaflow.wire.identities import NO_CLAIM
from pegaflow.wire.index import CLAIM_NS, Claim, Claimed, EndClaim
from pegaflow.wire.units import Count
from pegaflow.wire.values import SESSION, Address

from .residency import Residency

CLAIMS_MAX: Count = 8192
"""Claims of one session: twice the saves that it may have open."""


class Claims(Part):
    """The claims of all sessions."""

    def __init__(self, recovery: Recovery, residency: Residency, counts: Counter[str]) -> None:
        self._recovery, self._residency, self._counts = recovery, residency, counts
        self.table = ClaimTable(CLAIM_NS)

    def handlers(self) -> Iterable[On]:
        """Claims begin and end."""
        return (
            on(Claim, self._on_claim, SESSION),
            on(EndClaim, self._on_end_claim, SESSION),
        )

    def wake_at(self) -> int | None:
        """When the next one expires."""
        return self.table.wake_at()

    def wake(self, now: int) -> list[Effect]:
        """Claims expire: they own no memory."""
        self.table.expire(now)
        return []

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """Its claims end."""
        self.table.fence(dead)
        return []

    def has_room(self, holder: Address) -> bool:
        """Whether the holder may have one more."""
        return self.table.held(holder) < CLAIMS_MAX

    def check(self) -> None:
        """The claims' books."""
        self.table.check()

    def _on_claim(self, sender: Sender, msg: Claim, now: int) -> list[Effect]:
        if not self.has_room(sender.address):
            return [Reply(sender, Claimed(NO_CLAIM, ()))]
        if not self._recovery.gathered():
            # somebody may still restate the key: two save it then, one wins
            self._counts["claims_early"] += 1
        every = tuple(msg.keys)
        absent = np.flatnonzero(self._residency.blocks.known(msg.namespace, msg.keys) < 0).tolist()
        keys = every if len(absent) == len(every) else [every[at] for at in absent]
        claim = self.table.claim(sender.address, msg.namespace, keys, now)
        positions = claim.new if keys is every else tuple([absent[at] for at in claim.new])
        return [Reply(sender, Claimed(claim.number if positions else NO_CLAIM, positions))]

    def _on_end_claim(self, sender: Sender, msg: EndClaim, now: int) -> list[Effect]:
        self.table.end(sender.address, msg.number)
        return []
