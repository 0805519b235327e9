"""What must be true after every event, and what must be true once the faults are over.

The ledger, the pool and every living process's books are compared with each other, whoever wrote
them last.  The actors' own `check` runs for each process that did something.
"""

from pegaflow.actors.allocator import Allocator
from pegaflow.actors.index import Index
from pegaflow.actors.session import Session
from pegaflow.cache.geometry import Geometry
from pegaflow.cache.ledger import Ledger, Record
from pegaflow.cache.slab import Slab
from pegaflow.wire.values import ALLOCATOR, INDEX, SESSION, Address

from .client import Client, content
from .engine import ALL_CHAINS
from .memory import ChildProc, House
from .world import World

SWEEP = 32
"""Every so many looks at the pool, the pages already judged are judged again."""


class Checks:
    """The judge of one run."""

    def __init__(self, world: World, house: House) -> None:
        self.world = world
        self.house = house
        self.kinds: dict[bytes, tuple[int, int]] = {}  # namespace -> bytes of a shard, shards
        self._judged: dict[int, Record] = {}  # sealed pages whose bytes were right
        self._looks = 0

    def step(self) -> None:
        """After each event."""
        stepped = self.world.stepped
        if not stepped:
            return
        for proc in stepped:
            if isinstance(proc, Client):
                proc.check()
                if proc.namespace:
                    kind = proc.size, proc.role.world
                    assert self.kinds.setdefault(proc.namespace, kind) == kind
            elif proc.alive and isinstance(proc, ChildProc | House) and proc.host is not None:
                proc.host.check()
        ledger = self.ledger()
        if ledger is None or not any(isinstance(proc, ChildProc) for proc in stepped):
            return
        sealed = dict(ledger.sealed())
        self._bytes(sealed)
        self._pages(ledger, sealed)
        self._index(sealed)

    def ledger(self) -> Ledger | None:
        """The present ledger."""
        raw = self.house.files.named.get(self.house.paths[1])
        return Ledger(raw) if raw is not None else None

    def actor(self, name: str) -> ChildProc | None:
        """The living child of this name that knows the pool."""
        for proc in self.world.living(name):
            if isinstance(proc, ChildProc) and proc.actor.welcome is not None:
                return proc
        return None

    def sessions(self) -> dict[Address, Session]:
        """Living sessions."""
        procs = self.world.living(SESSION)
        actors = [p.actor for p in procs if isinstance(p, ChildProc)]
        return {a.address: a for a in actors if isinstance(a, Session)}

    def slab(self) -> Slab | None:
        """The living allocator's book of the present pool."""
        proc = self.actor(ALLOCATOR)
        return proc.actor.slab if proc and isinstance(proc.actor, Allocator) else None

    def index(self) -> Index | None:
        """The living index."""
        proc = self.actor(INDEX)
        return proc.actor if proc and isinstance(proc.actor, Index) else None

    def _bytes(self, sealed: dict[int, Record]) -> None:
        """A sealed page holds the bytes of its key."""
        plan = self.house.plan
        geometry = Geometry(plan.pool_bytes, plan.extent_bytes)
        pool = self.house.files.named[self.house.paths[0]]
        self._looks += 1
        if self._looks % SWEEP == 0:
            self._judged.clear()
        for page, record in sealed.items():
            if self._judged.get(page) == record:
                continue
            size, shards = self.kinds[record.namespace]
            assert (size, shards) == (record.length, record.shards)
            offset = geometry.offset(page, -(-size // 4096) * 4096)
            right = pool[offset : offset + size] == content(size, record.key, record.shard)
            assert right, f"page {page} is sealed with wrong bytes"
        self._judged = sealed

    def _pages(self, ledger: Ledger, sealed: dict[int, Record]) -> None:
        """A page is free, or somebody's: never both, never two's; the free ones are void."""
        slab = self.slab()
        if slab is None:
            return
        for page in sealed:
            assert slab.is_left(page) or slab.is_granted(page), f"page {page}: free but sealed"
        owners: dict[int, Address] = {}
        for address, session in self.sessions().items():
            if session.saves is None:
                continue
            for page in (*session.saves.stock.free, *session.saves.stock.used):
                assert slab.holder_of(page) == address, f"page {page} is not {address}'s"
                assert owners.setdefault(page, address) == address, f"page {page} has two owners"
            for page in session.saves.stock.free:
                assert page not in sealed, f"page {page}: in stock but sealed"
        proc = self.actor(ALLOCATOR)
        assert proc is not None and proc.host is not None
        for dead in proc.fenced & proc.host._gone.keys():
            assert not slab.held_by(dead), f"pages of {dead}, which is dead"

    def _index(self, sealed: dict[int, Record]) -> None:
        """What is leased is here; the dead hold nothing."""
        index = self.index()
        if index is None:
            return
        proc = self.actor(INDEX)
        assert proc is not None and proc.host is not None
        pages = {page for block in index.blocks for page in block.pages}
        assert pages == sealed.keys(), "the index and its ledger disagree"
        sessions = [a for a in self.world.procs if a.name == SESSION]
        for address in sessions:
            leases = index.leases.held(address)
            assert not (leases and address in proc.host._gone), f"{address} is dead and has leases"
            for lease in leases:
                for block in lease.blocks:
                    here = index.blocks.get(block.namespace, block.key)
                    assert here is block, f"a block leased by {address} was evicted"

    def end(self) -> None:
        """Once the faults are over and everything has come to rest."""
        assert self.house.supervisor.state == "up", self.house.supervisor.state
        sessions = self.sessions()
        index, slab, ledger = self.index(), self.slab(), self.ledger()
        assert index is not None and slab is not None and ledger is not None
        self._no_page_lost(slab, dict(ledger.sealed()), sessions)
        for session in sessions.values():
            assert not session.copies, f"{session.address} waits for the end of a copy for ever"
        assert len(index.leases) == 0, "a lease is held by nobody"
        assert len(index.claims) == 0, "a claim is held by nobody"
        for session in sessions.values():
            saves = session.saves
            books = (session.leases, session.leaving, saves and (saves.orders or saves.shares))
            assert not any(books), f"{session.address} still has {books}"
            for rank in session.ranks.values():
                assert len(rank.free_slots) == rank.slots, "a slot is lost"
                assert not rank.running, "a job is lost"
        self._all_hit(index, dict(ledger.sealed()))

    def _no_page_lost(
        self, slab: Slab, sealed: dict[int, Record], sessions: dict[Address, Session]
    ) -> None:
        t = slab.totals()
        parts = (t.free_bytes, t.granted_bytes, t.left_bytes, t.absent_bytes, t.waste_bytes)
        assert sum(parts) == t.total_bytes and t.absent_bytes == 0
        left = set(slab.left_pages())
        assert left == sealed.keys(), f"left {sorted(left ^ sealed.keys())} neither sealed nor free"
        for address in self.world.procs:
            session = sessions.get(address)
            saves = session.saves if session else None
            stated = {*saves.stock.free, *saves.stock.used} if saves else set()
            assert slab.held_by(address).keys() == stated, f"{address}'s pages are not all stated"

    def _all_hit(self, index: Index, sealed: dict[int, Record]) -> None:
        """Every sealed block whose chain is resident is a hit."""
        here = {(record.namespace, record.key) for record in sealed.values()}
        for namespace in self.kinds:
            for keys in ALL_CHAINS:
                resident = [(namespace, key) in here for key in keys]
                hit = len(index.blocks.find(namespace, keys))
                assert hit == (resident + [False]).index(False), "a resident prefix is no hit"
