"""What must be true after every event, and what must be true once the faults are over.

The ledger, the pool and every living process's books are compared with each other, whoever wrote
them last; each comparison is made when one of the two sides has changed.  The actors' own `check`
is slow and runs once in a while.

    pool     a sealed page holds the bytes of its key and rank, also after anybody wrote near it
    pages    a GPU writes only into those of the session for which it does, dead or alive
    ledger   a block has all its shards, sealed together
    slab     a page is free or somebody's: never both, never two's; the free ones are void
    index    what is leased is here; the dead hold nothing; once ready it agrees with the ledger
    leases   a page that a session holds under a lease stays what it is, whoever dies
    session  only an opener has opened it
    client   an operation ends once (client.py); no byte moves after a load's end or after Left
"""

from pegaflow.actors.allocator.actor import Allocator
from pegaflow.actors.flusher.actor import Flusher
from pegaflow.actors.flusher.volumes import State
from pegaflow.actors.index.actor import Index
from pegaflow.actors.roster import HOLDERS, SPECS
from pegaflow.actors.runtime.member import member_of
from pegaflow.actors.session.actor import Session
from pegaflow.actors.supervisor.stage import Stage
from pegaflow.core.pool.geometry import slot_size
from pegaflow.core.pool.ledger import HEADER_BYTES, LEAVING, RECORD_BYTES, Ledger, Record
from pegaflow.core.pool.slab import Slab
from pegaflow.core.segments.codec import block_sum, sums_of
from pegaflow.wire.identities import Namespace, PageId
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.values import (
    ALLOCATOR,
    CLIENT,
    FLUSHER,
    GATEWAY,
    INDEX,
    SESSION,
    SUPERVISOR,
    Address,
)
from tests.actors.tier import ssd_of

from .books import content
from .client import Client
from .engine import ALL_CHAINS
from .memory import ChildProc, House
from .world import S, World

SELDOM = 16
"""Steps of a process from one `check` of its actor to the next."""

ALONE = (SUPERVISOR, *(name for name in SPECS if name != SESSION))
"""Of each of these one process lives at most."""


class Checks:
    """The judge of one run."""

    def __init__(self, world: World, house: House) -> None:
        self.world = world
        self.house = house
        self.kinds: dict[Namespace, tuple[int, int]] = {}  # namespace -> bytes of a shard, shards
        self._looks = 0
        self._early = False  # some index has given a claim before all had stated theirs
        self._pool = bytearray()
        self._raw = bytearray()
        self.memory_lost()
        self.goes_on(house)

    def memory_lost(self) -> None:
        """The host has gone down: there is no pool."""
        self.sealed: dict[int, Record] = {}  # the ledger, by page
        self._words: list[int] = []  # state words as of the last look
        self._doubtful: set[int] = set()  # sealed while no index was ready: perhaps not whole
        self._places: dict[int, int] = {}  # PAGE_ALIGN-sized place of the pool -> sealed page

    def goes_on(self, house: House) -> None:
        """Another service has started, perhaps with another pool."""
        self.house = house
        assert house.files.paths is not None
        self._pool, self._raw = (house.files.named[path] for path in house.files.paths)
        self._ledger = Ledger(self._raw)
        self._words = self._words or [0] * self._ledger.records

    def step(self) -> None:
        """After each event."""
        children: set[str] = set()
        self._looks += 1
        for name in ALONE:
            assert len(self.world.living(name)) <= 1, f"two living processes are {name}"
        for proc in self.world.stepped:
            if isinstance(proc, Client):
                self._client(proc)
            elif proc.alive and isinstance(proc, ChildProc | House) and proc.host is not None:
                if self._looks % SELDOM == 0:
                    proc.host.check()
                children.add(proc.address.name)
                if isinstance(proc, ChildProc) and isinstance(proc.actor, Session):
                    self._session(proc.actor)
        if INDEX in children or ALLOCATOR in children:
            self._read_ledger()
            self._pages(ALLOCATOR in children)
            self._leases()
        if INDEX in children:
            self._index()
        if self.house.files.written:
            self._written()
        if self.house.files.saved:
            self._saved()

    def actor(self, name: str) -> ChildProc | None:
        """The living child of this name that knows the pool."""
        for proc in self.world.living(name):
            if isinstance(proc, ChildProc) and member_of(proc.actor).welcome is not None:
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
        return proc.actor.pages.slab if proc and isinstance(proc.actor, Allocator) else None

    def index(self) -> Index | None:
        """The living index, once it has read the ledger."""
        proc = self.actor(INDEX)
        actor = proc.actor if proc else None
        return actor if isinstance(actor, Index) and actor.recovery.ready else None

    def flusher(self) -> Flusher | None:
        """The living flusher that knows the pool."""
        proc = self.actor(FLUSHER)
        return proc.actor if proc and isinstance(proc.actor, Flusher) else None

    def _client(self, client: Client) -> None:
        client.check()
        if client.namespace:
            kind = client.size, client.role.world // client.role.replicas
            assert self.kinds.setdefault(client.namespace, kind) == kind

    # pool and ledger

    def _read_ledger(self) -> None:
        """Which pages have been sealed or voided since the last look?  One that is leaving stays
        what it is until then."""
        every = memoryview(self._raw)[HEADER_BYTES:].cast("Q")[:: RECORD_BYTES // 8]
        words = every.tolist()[: len(self._words)]
        if words == self._words:
            return
        fresh: list[int] = []
        for page, (now, before) in enumerate(zip(words, self._words, strict=True)):
            if now >> 32 == LEAVING >> 32:
                words[page] = before
            elif now != before:
                if page in self.sealed:
                    self._void(page)
                if self._ledger.read(PageId(page)) is not None:
                    fresh.append(page)
        self._words = words
        for page in fresh:
            self._seal(page)
        self._doubtful.update(fresh)
        if self.index() is not None:
            for page in self._doubtful & self.sealed.keys():
                self._whole(self.sealed[page])
            self._doubtful.clear()

    def _void(self, page: int) -> None:
        self.world.counts["pages evicted"] += 1
        del self.sealed[page]
        self.house.files.flipped.discard(page)
        self._places = {place: at for place, at in self._places.items() if at != page}

    def _seal(self, page: int) -> None:
        record = self._ledger.read(PageId(page))
        assert record is not None, f"page {page} has a torn record"
        self.sealed[page] = record
        size, shards = self.kinds[record.namespace]
        assert (size, shards) == (record.payload_bytes, record.shards)
        first = self._offset(page) // PAGE_ALIGN
        for place in range(first, first + -(-size // PAGE_ALIGN)):
            assert place not in self._places, f"pages {page} and {self._places[place]} overlap"
            self._places[place] = page
        self._judge(page)

    def _whole(self, record: Record) -> None:
        """The record's block has all its shards, under one seal."""
        name = (record.namespace, record.key)
        same = [r for r in self.sealed.values() if (r.namespace, r.key) == name]
        shards = sorted(r.shard for r in same)
        assert shards == list(range(record.shards)), f"a block with the shards {shards}"
        assert len({r.seal for r in same}) == 1, "a block of two seals"

    def _offset(self, page: int) -> int:
        size, _ = self.kinds[self.sealed[page].namespace]
        return self.house.geometry.offset(PageId(page), -(-size // PAGE_ALIGN) * PAGE_ALIGN)

    def _judge(self, page: int) -> None:
        """A sealed page holds the bytes of its key."""
        record = self.sealed[page]
        if page in self.house.files.flipped:
            return
        offset, size = self._offset(page), record.payload_bytes
        right = self._pool[offset : offset + size] == content(size, record.key, record.shard)
        assert right, f"page {page} is sealed with wrong bytes"

    def turn_bit(self, page: int) -> None:
        """The memory does what it should not."""
        record = self.sealed[page]
        at = self._offset(page) + self.world.between(0, record.payload_bytes)
        self._pool[at] ^= 1 << self.world.between(0, 8)
        self.house.files.flipped.add(page)
        self.world.note("--", f"a bit of page {page} turns")

    def _written(self) -> None:
        """Somebody wrote into the pool: not into a sealed page, or it is still right."""
        pages: set[int] = set()
        for start, end in self.house.files.written:
            for place in range(start // PAGE_ALIGN, -(-end // PAGE_ALIGN)):
                if place in self._places:
                    pages.add(self._places[place])
        self.house.files.written.clear()
        for page in pages:
            self._judge(page)

    def _saved(self) -> None:
        """A GPU wrote into pages for a session, which may be dead: they are still its own."""
        slab, geometry = self.slab(), self.house.geometry
        for offset, size, session in self.house.files.saved:
            extent, rest = divmod(offset, geometry.extent_bytes)
            slot = rest // slot_size(-(-size // PAGE_ALIGN) * PAGE_ALIGN)
            page = geometry.page_id(extent, slot)
            mine = slab is None or slab.owners.holder_of(page) == session
            assert mine, f"page {page} is written for {session}, whose it is not"
        self.house.files.saved.clear()

    # the books

    def _pages(self, allocated: bool) -> None:
        slab, proc = self.slab(), self.actor(ALLOCATOR)
        if slab is None:
            return
        for page in self.sealed:
            assert slab.owners.is_left(PageId(page)) or slab.owners.is_granted(PageId(page)), (
                f"page {page}: free but sealed"
            )
        for session in self.sessions().values() if allocated else ():
            self._session(session)
        assert proc is not None and proc.host is not None
        idle = not proc.host.outstanding()[1]  # else it may be reading what becomes of them
        for dead, index in proc.fenced.items() if idle else ():
            if dead not in proc.host._gone or index in proc.host._gone:
                continue  # what a dead index has said may be lost, and is asked for again
            assert not len(slab.owners.held_by(dead).pages), f"pages of {dead}, which is dead"

    def _session(self, session: Session) -> None:
        """What it holds is its own; it is there for an opener."""
        serve, slab = session.engine.serve, self.slab()
        free, used = session.reservation.free, session.reservation.used
        if serve is not None:
            opened = self.world.openers.get(serve.generation) == (serve.pid, serve.started_ticks)
            assert opened, f"{session.address} was opened by a joiner"
        if slab is None:
            return
        for page in (*free, *used):
            assert slab.owners.holder_of(page) == session.address, (
                f"page {page} is not {session.address}'s"
            )
        for page in free:
            assert page not in self.sealed, f"page {page}: ready but sealed"

    def _leases(self) -> None:
        """What a session holds under a lease stays what it is, whatever the index knows."""
        for session in self.sessions().values():
            for _, lease in session.leases.items():
                pages = lease.pages.tolist()
                bad = any(map(self._ledger.is_quarantined, pages))
                lost = f"a lease that {session.address} keeps by hazards is lost"
                assert bad or not (lease.lost and lease.own), lost
                for page in () if lease.lost else pages:
                    kept = page in self.sealed or self._ledger.is_quarantined(page)
                    assert kept, f"page {page}, which {session.address} holds, is void"
        for client in [proc for proc in self.world.living(CLIENT) if isinstance(proc, Client)]:
            self._found(client)
        flusher = self.flusher()
        for flush in flusher.write_back.flushes.values() if flusher else ():
            for page in flush.pages:
                kept = page in self.sealed or self._ledger.is_quarantined(page)
                assert kept, f"page {page}, which {flusher} writes, is void"

    def _found(self, client: Client) -> None:
        """And so does what a client has found by itself, as long as its session lives."""
        session = self.world.procs.get(client.machine.link.session)
        if session is None or not session.alive or not client.finding._current:
            return
        for own in client.finding._own.values():
            pages, stamps = own.run.pages.tolist(), own.run.stamps.tolist()
            for page, stamp in zip(pages, stamps, strict=True):
                kept = page in self.sealed and self.sealed[page].stamp == stamp
                kept = kept or self._ledger.is_quarantined(page)
                assert kept, f"page {page}, which {client.address} holds, is void"

    def _index(self) -> None:
        index, proc = self.index(), self.actor(INDEX)
        if index is None:
            return
        assert proc is not None and proc.host is not None
        here = index.residency.blocks
        assert here.pages() == self.sealed.keys(), "the index and its ledger disagree"
        # A claim lasts longer than a run, and is restated, unless a full link swallows that or
        # somebody else has claimed the key before.
        self._early |= index.counts["claims_early"] > 0
        excused = self.world.counts["dropped by a full link"] or self._early
        assert excused or not index.counts["seals_stale"], "a claim was lost"
        for address in [a for a in self.world.procs if a.name in HOLDERS]:
            held = index.leasing.leases.held(address)
            assert not held or address not in proc.host._gone, f"{address} is dead and has leases"
            if address.name == SESSION:
                noted = index.hazards.noted(address) and address in proc.host._gone
                assert not noted, f"{address} is dead and its hazards are honoured"
                pinned = index.leasing.leases.bytes_of(address)
                assert pinned <= index.leasing.pins.most_bytes, (
                    f"{address} keeps too much from eviction"
                )
            for lease in held:
                for block in lease.blocks:
                    found = here.get(block.namespace, block.key)
                    lost = any(map(self._ledger.is_quarantined, block.pages))
                    assert found is block or lost, f"a block leased by {address} was evicted"

    # the end

    def end(self) -> None:
        """Once the faults are over and everything has come to rest."""
        for proc in self.world.alive():
            if isinstance(proc, ChildProc | House) and proc.host is not None:
                proc.host.check()
        assert self.house.supervisor.lifecycle.stage is Stage.UP, self.house.supervisor.lifecycle
        gateway = self.actor(GATEWAY)
        assert gateway is not None and gateway.shown is not None, "HTTP shows nothing"
        age = self.world.now - gateway.shown.at
        assert age < 3 * S and gateway.shown.processes[0].state == "up", "HTTP shows old things"
        sessions = self.sessions()
        index, slab = self.index(), self.slab()
        assert index is not None and slab is not None
        self._no_page_lost(slab, sessions)
        self._ssd_at_rest(index)
        assert len(index.leasing.leases) == 0, "a lease is held by nobody"
        assert len(index.claims.table) == 0, "a claim is held by nobody"
        for session in sessions.values():
            self._at_rest(session)
        for page in self.sealed:
            self._judge(page)
        self._all_hit(index)

    def _at_rest(self, session: Session) -> None:
        assert not session.loads.copies, f"{session.address} waits for the end of a copy for ever"
        orders, engine = session.orders, session.engine
        opened = session.hazards.opened
        standing = opened.lent.standing if opened is not None else 0
        books = (session.leases.items(), engine.leaving, orders.open, orders.saves, standing)
        assert not any(books), f"{session.address} still has {books}"
        for rank in engine.ranks.values():
            assert len(rank.free_slots) == rank.slots, "a slot is lost"
            assert not rank.running, "a job is lost"

    def _no_page_lost(self, slab: Slab, sessions: dict[Address, Session]) -> None:
        t = slab.totals()
        parts = (t.free_bytes, t.granted_bytes, t.left_bytes, t.absent_bytes, t.waste_bytes)
        assert sum(parts) == t.total_bytes
        bad = {
            page
            for page in range(self._ledger.records)
            if self._ledger.is_quarantined(PageId(page))
        }
        left, sealed = (
            set(slab.owners.left_from(PageId(0), 1 << 20)[0].tolist()),
            self.sealed.keys() | bad,
        )
        assert left == sealed, f"left {sorted(left ^ sealed)} neither sealed nor free"
        flusher = self.flusher()
        for address in self.world.procs:
            session = sessions.get(address)
            pages = session.reservation if session else None
            stated = {*pages.free, *pages.used} if pages else set()
            if address.name == FLUSHER and flusher is not None and flusher.address == address:
                stated = set(flusher.pages.held())
            held = slab.owners.held_by(address).pages.tolist()
            assert set(held) == stated, f"{address}'s pages are not all stated"

    def _ssd_at_rest(self, index: Index) -> None:
        """Everything that is worth it is in the log, and the log agrees with what is said of it."""
        flusher = self.flusher()
        assert (flusher is not None) == self.house.plan.ssd
        assert not index.lookup.waits and not index.lookup.awaited, "somebody waits for ever"
        if flusher is None:
            return
        volumes, catalog = flusher.volumes, flusher.volumes.catalog
        assert all(v.state is State.UP and v.writable for v in volumes), "a disk stays broken"
        assert not flusher.write_back.flushes, "leases without an end"
        assert not flusher.reading.running and not flusher.pages.held()
        ssd = ssd_of(index)
        assert not ssd.writes.backlog and not ssd.writes.in_flight, "blocks that are never written"
        for namespace, keys in ssd.log.stored.items():
            for key in keys:
                assert catalog.has(namespace, key), "a key that is not in the log any more"
        said = len(ssd.log)
        assert said == catalog.blocks, "blocks that the index does not know to be in the log"

    def durable(self) -> None:
        """What the flusher takes for written is durable, but for bits that have turned."""
        flusher = self.flusher()
        if flusher is None:
            return
        catalog = flusher.volumes.catalog
        for volume in flusher.volumes:
            medium, lost = self.house.files.media[volume.path], 0
            for segment in volume.segments.values():
                file = medium.files.get(f"{segment.number:016x}.segment")
                for at in range(segment.count):
                    row = segment.row(at)
                    place = catalog.find(row.namespace, row.key)
                    data = file.durable[row.offset : row.offset + row.bytes_] if file else b""
                    whole = len(data) == row.bytes_ and (
                        block_sum(sums_of(memoryview(data), row)) == row.checksum
                    )
                    lost += place == (segment, at) and not whole
            assert lost <= medium.rots, f"{lost} blocks that count as written are not durable"

    def _all_hit(self, index: Index) -> None:
        """Every sealed block whose chain is resident is a hit."""
        here = {(record.namespace, record.key) for record in self.sealed.values()}
        for namespace in self.kinds:
            for keys in ALL_CHAINS:
                resident = [(namespace, key) in here for key in keys]
                hit = len(index.residency.blocks.find(namespace, keys))
                assert hit == (resident + [False]).index(False), "a resident prefix is no hit"
