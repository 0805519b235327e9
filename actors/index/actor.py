"""The index: which block is where, who may use it, who may publish it.  See wire/index.py.

residency    which blocks are in memory, and the ledger     adoption    those of an earlier life
leasing      who may use them                               claims      who is to save which
tiers        what lies below the pool                       statements  what holders say they have
hazards      what sessions use without a lease              lookup_table  what they find unasked
eviction     what goes when pages are needed                lookup      what is there, and waits
publishing   blocks become visible                          integrity   blocks that are broken
fencing      the allocator hears of the dead
"""

from collections.abc import Callable

from pegaflow.actors.roles.recovery import Recovery
from pegaflow.actors.runtime.contract import Actor, Effect, Sender
from pegaflow.actors.runtime.member import Member
from pegaflow.wire.control import Hello
from pegaflow.wire.message import Message
from pegaflow.wire.values import ALLOCATOR, Address

from .adoption import PoolAdoption
from .claims import Claims
from .eviction import Eviction
from .fencing import Fencing
from .hazards import Hazards
from .integrity import Integrity
from .leasing import Leasing
from .lookup import Lookup
from .lookup_table import LookupTable
from .memory import Memory
from .peers.tier import PeersTier
from .publishing import Publishing
from .residency import Residency
from .ssd.tier import SsdTier
from .statements import Statements
from .tiers import Pool, Tier, Tiers

TIERS: tuple[Callable[[Pool], Tier], ...] = (SsdTier, PeersTier)
"""The tiers below the pool, the first to be asked first."""


class Index(Actor):
    """Key map, claims, leases, ledger."""

    def __init__(
        self,
        address: Address,
        supervisor: Address,
        hello: Hello,
        memory: Memory,
    ) -> None:
        super().__init__(address)
        counts = self.counts
        self.member = member = Member(address, supervisor, hello, (ALLOCATOR,), counts=counts)
        self.recovery = recovery = Recovery(address, counts)
        self.hazards = hazards = Hazards(memory, counts)
        self.residency = here = Residency(memory, hazards, counts)
        self.leasing = leasing = Leasing(member, here, hazards, counts)
        self.claims = claims = Claims(recovery, here, counts)
        adoption = PoolAdoption(member, recovery, here, counts)
        pool = Pool(member, recovery, here, leasing, counts=counts)
        self.tiers = tiers = Tiers([tier(pool) for tier in TIERS])
        self.eviction = eviction = Eviction(
            recovery=recovery,
            residency=here,
            leasing=leasing,
            hazards=hazards,
            tiers=tiers,
        )
        table = LookupTable(recovery=recovery, residency=here, leasing=leasing, tiers=tiers)
        self.lookup = lookup = Lookup(
            address,
            recovery=recovery,
            residency=here,
            leasing=leasing,
            tiers=tiers,
            eviction=eviction,
            counts=counts,
        )
        publishing = Publishing(
            address, residency=here, claims=claims, tiers=tiers, lookup=lookup, counts=counts
        )
        statements = Statements(
            recovery=recovery,
            residency=here,
            leasing=leasing,
            claims=claims,
            hazards=hazards,
            tiers=tiers,
            counts=counts,
        )
        integrity = Integrity(here, tiers, counts)
        crew = (
            *(
                recovery,
                hazards,
                here,
                adoption,
                table,
                *tiers.parts,
                lookup,
                leasing,
                claims,
                eviction,
                statements,
            ),
            Fencing(member, recovery),  # the last to hear of a death
        )
        member.lead(*crew)
        member.drained = lambda now: [*tiers.stop(now), *member.farewell()]
        first = (claims, adoption, member)  # woken before the others
        rest = tuple(part for part in (*crew, publishing, integrity) if part not in first)
        self.compose(*first, *rest)

    def receive(self, sender: Sender, msg: Message, now: int) -> list[Effect]:
        """Effects of one message, unless it has to wait until the pool is known."""
        if self.recovery.must_wait(sender, msg):
            return self.recovery.defer(sender, msg)
        return super().receive(sender, msg, now)
