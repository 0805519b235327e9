"""What holders say of themselves: with each beat what they hold, and all of it to a new index.

A holder restates its leases and claims (Held, Claiming) until it has said that this was all
(LeasesHeld); from then on we know better.  Nothing is evicted before every holder of the membership
has said a LeasesHeld of which every lease is known, and the file of its hazards if any may stand,
or is proven dead.
"""

from collections import Counter
from collections.abc import Iterable

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.runtime.contract import Effect, On, Part, Send, Sender, on
from pegaflow.core.blocks.table import Block
from pegaflow.wire.identities import ClaimId, LeaseId
from pegaflow.wire.index import Claiming, Held, LeasesHeld, LeasesLost
from pegaflow.wire.values import NUMBER_MAX, SESSION, Address

from .claims import Claims
from .hazards import Hazards
from .leasing import Leasing
from .residency import Residency
from .tiers import Tiers


class Statements(Part):
    """Mends what was lost on the way, and takes over what an earlier index has granted."""

    def __init__(
        self,
        *,
        recovery: Recovery,
        residency: Residency,
        leasing: Leasing,
        claims: Claims,
        hazards: Hazards,
        tiers: Tiers,
        counts: Counter[str],
    ) -> None:
        self._recovery, self._residency, self._hazards = recovery, residency, hazards
        self._leasing, self._claims, self._tiers = leasing, claims, tiers
        self._counts = counts

    def handlers(self) -> Iterable[On]:
        """Statements, and what comes before the first one."""
        holders = (SESSION, *self._tiers.actors)
        return (
            on(Held, self._on_held, *holders),
            on(Claiming, self._on_claiming, SESSION),
            on(LeasesHeld, self._on_leases_held, *holders),
        )

    def gauges(self) -> dict[str, int]:
        """How many have not stated yet."""
        return {"sessions_awaited": len(self._recovery.awaited or ())}

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """It has nothing to state any more."""
        self._recovery.await_no_longer(dead)
        return []

    def _on_held(self, sender: Sender, msg: Held, now: int) -> list[Effect]:
        """A holder restates a lease that an earlier index has granted; of a tier's processes only
        the one that lives."""
        holder, leases = sender.address, self._leasing.leases
        tier = self._tiers.served_by(holder.name)
        if tier is not None and not tier.hears(holder, now):
            return []
        if holder in self._recovery.stated or leases.get(holder, msg.number) is not None:
            return []
        blocks = self._named(msg)
        stray = not leases.last(holder) < msg.number <= NUMBER_MAX
        if stray or not blocks or not self._leasing.has_room(holder, blocks):
            self._counts["leases_unknown"] += 1
            return []
        lease = leases.adopt(holder, msg.number, blocks, now)
        if tier is not None:
            tier.lease_restated(lease)
        return []

    def _named(self, msg: Held) -> list[Block]:
        """The blocks of these pages, all of one namespace; none if it is not exactly so that they
        are resident."""
        here, pages, shards = self._residency, msg.pages, msg.shards
        if not (shards and msg.number) or any(p >= here.ledger.records for p in pages):
            return []
        parts = [pages[at : at + shards] for at in range(0, len(pages), shards)]
        found = [here.blocks.by_page(part[0]) for part in parts]
        blocks = [b for b, part in zip(found, parts, strict=True) if b and b.pages == part]
        alike = len({(b.namespace, b.page_size) for b in blocks}) == 1
        return blocks if alike and len(blocks) == len(parts) else []

    def _on_claiming(self, sender: Sender, msg: Claiming, now: int) -> list[Effect]:
        """A session restates a claim that an earlier index has given, be it sealed by now or not:
        it does not know, and seals again."""
        holder = sender.address
        full = not self._claims.has_room(holder)
        if holder in self._recovery.stated or full or msg.number > NUMBER_MAX:
            return []
        self._claims.table.adopt(holder, msg.number, msg.namespace, msg.keys, now=now)
        return []

    def _on_leases_held(self, sender: Sender, msg: LeasesHeld, now: int) -> list[Effect]:
        """Mend lost releases and lost grants of a holder."""
        holder = sender.address
        leases, claims = self._leasing.leases, self._claims.table
        if holder not in self._recovery.stated:
            leases.go_on_from(holder, LeaseId(min(msg.lease_upto, NUMBER_MAX)))
            claims.go_on_from(holder, ClaimId(min(msg.claim_upto, NUMBER_MAX)))
        lost = tuple(n for n in msg.leases if leases.get(holder, n) is None)
        self._recovery.stated.add(holder)
        if lost:
            self._counts["leases_lost"] += len(lost)
        if msg.hazards and not self._hazards.noted(holder):
            self._counts["hazards_unknown"] += 1
        elif not lost:
            self._recovery.await_no_longer(holder)
        dropped, resend = leases.statement(holder, msg.lease_upto, msg.leases)
        tier = self._tiers.served_by(holder.name)
        stated = self._leasing.stated if tier is None else tier.leases_stated
        again = stated(holder, dropped, resend, now)
        claims.statement(holder, msg.claim_upto, msg.claims)
        return [*again, Send(holder, LeasesLost(lost))] if lost else again
