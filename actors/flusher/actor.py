"""The flusher: the SSD tier's process.  See wire/flusher.py.

Its parts, each of which is made of those above it:

    Volumes      what is known of the directories, and the catalog of the blocks in them
    TierState    what the index is told of the tier: Tier
    Inventory    what the index is told of the blocks in the log: Manifest, Forget
    SegmentLog   the files of the log: made, written, synced, closed, recycled
    WriteBack    from the pool to the log: Flush, Flushed
    Directories  opens and loads volumes, closes them, tries again; Watch looks after them
    Pages        what the allocator has granted: Reserve, Return, PagesHeld
    Holder       states leases and pages, as every holder does
    Reading      from the log to the pool: Fetch, Seal, Fetched
    Shutdown     what becomes of it all when we have to end

SegmentLog tells a later part something: WriteBack, which listens to it, hears where it may write on
and where it no longer can.

To an index, perhaps a new one, it says first what the tier is, then which leases it holds, then
what it has read meanwhile, then all that is in the log: the parts hear of everything in this order.
"""

from pegaflow.actors.roles.holder import Holder
from pegaflow.actors.roles.pages import Pages
from pegaflow.actors.runtime.contract import Actor
from pegaflow.actors.runtime.member import Member
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.wire.control import Hello
from pegaflow.wire.values import ALLOCATOR, INDEX, Address

from .directories import Directories, Watch
from .inventory import Inventory
from .reading import Reading
from .segments import SegmentLog
from .shutdown import Shutdown
from .tier import TierState
from .volumes import Volumes
from .write_back import WriteBack


class Flusher(Actor):
    """Writes blocks to the log and reads them back."""

    def __init__(
        self, address: Address, supervisor: Address, hello: Hello, plan: FlushPlan
    ) -> None:
        super().__init__(address)
        counts = self.counts
        member = Member(address, supervisor, hello, (ALLOCATOR, INDEX), counts=counts)
        self.volumes = Volumes(plan, counts)
        self.tier = TierState(member, self.volumes)
        self.inventory = Inventory(member, self.volumes)
        self.segments = SegmentLog(self.volumes, self.tier, self.inventory, counts)
        self.write_back = WriteBack(member, self.volumes, self.segments, counts)
        self.segments.listen(self.write_back)
        directories = Directories(
            volumes=self.volumes,
            tier=self.tier,
            inventory=self.inventory,
            segments=self.segments,
            write_back=self.write_back,
            counts=counts,
        )
        self.pages = Pages(member)
        self.reading = Reading(
            member=member,
            volumes=self.volumes,
            segments=self.segments,
            directories=directories,
            pages=self.pages,
            counts=counts,
        )
        shutdown = Shutdown(
            member=member,
            tier=self.tier,
            segments=self.segments,
            write_back=self.write_back,
            drain_ns=plan.drain_ns,
            counts=counts,
        )
        crew = (
            Holder(member, {INDEX: self.write_back, ALLOCATOR: self.pages}),  # states first
            self.volumes,
            self.segments,
            directories,
            self.tier,
            self.write_back,
            self.pages,
            self.reading,
            self.inventory,
            Watch(self.volumes, directories),
            shutdown,
        )
        member.lead(*crew)
        member.drained = shutdown.drain
        self.compose(member, *crew)
