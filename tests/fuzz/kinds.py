"""The cages: a session, an index, an allocator and a supervisor among hostile neighbours."""

from pegaflow.actors.allocator import Allocator
from pegaflow.actors.index import Index
from pegaflow.actors.session import Session
from pegaflow.actors.supervisor import Plan, Supervisor
from pegaflow.cache.geometry import Geometry
from pegaflow.cache.ledger import Header, Ledger, ledger_bytes
from pegaflow.wire import allocator as allocator_words
from pegaflow.wire import index as index_words
from pegaflow.wire.allocator import Freed, Pressure, Reserve, Reserved, Return
from pegaflow.wire.control import (
    Beat,
    Fenced,
    Gone,
    Hello,
    Neighbour,
    OpenSession,
    Serve,
    Serving,
    SessionAt,
)
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.index import Claim, Claimed, Find, Held, Seal, Sealed
from pegaflow.wire.jobs import (
    Announce,
    Done,
    Exited,
    FillPages,
    GrowExtent,
    Kill,
    MakePool,
    NextIncarnation,
    OpenBounce,
    ReadRecords,
    Spawn,
    WatchProcess,
)
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.message import Message
from pegaflow.wire.session import Attach, Copied, Drop, Found, Keep, Load, Lookup, Pages, Save, Take
from pegaflow.wire.status import Status
from pegaflow.wire.values import CLIENT, SESSION, Address

from .cage import ALLOC, BOSS, EXTENT, HELLO, IDX, PAGE, POOL, WELCOME, Cage

GEOMETRY = Geometry(POOL, EXTENT)
RECORDS = GEOMETRY.extents * GEOMETRY.records_per_extent
KEYS = tuple(bytes((n,)) * 32 for n in range(4))
LAYOUT = Layout(64, (LayerLayout(0, 0, PAGE, PAGE),), "bfloat16")
ATTACH = Attach(4242, 99, 0, 1, LAYOUT, (64 * PAGE,))


def new_ledger() -> Ledger:
    size = ledger_bytes(GEOMETRY.extents, GEOMETRY.records_per_extent)
    header = Header(bytes(16), b"boot", POOL, EXTENT, GEOMETRY.records_per_extent, 1)
    return Ledger.format(bytearray(size), header)


class SessionCage(Cage):
    """A session: its clients are hostile; index and allocator answer, late or never."""

    def build(self) -> Session:
        self.pages: set[int] = set()  # granted and not returned
        self.slots: dict[int, set[int]] = {}  # batch -> slots
        self.bounce = (0, 0)  # slots, page size
        self.number = 0
        self.honest: list[tuple[Address, Keep]] = []  # what a sound client would say next
        return Session(Address(SESSION, 4), BOSS, HELLO)

    def settle(self) -> None:
        self.senders = [Address(CLIENT, n) for n in (7, 7, 7, 7, 8, 9)]
        self.generator.addresses = [*self.senders, BOSS, ALLOC, IDX, self.host.actor.address]
        for msg in (
            ATTACH,
            Lookup(KEYS),
            Save(1, 0, KEYS, b""),
            Drop(1),
            Keep(1, 1),
            Load(1, 0, 0, 1),
            Copied(1, True),
        ):
            self.generator.learn(msg, sound=True)
        self.tell(BOSS, WELCOME)
        self.tell(BOSS, Neighbour(ALLOC, "a", 1))
        self.tell(BOSS, Neighbour(IDX, "i", 2))
        self.tell(BOSS, Serve("engine", bytes(16), 4242, 99, bytes(16)), question=1)
        self.tell(self.senders[0], ATTACH, question=1)

    @property
    def actor(self) -> Session:
        actor = self.host.actor
        assert isinstance(actor, Session)
        return actor

    def one(self) -> None:
        super().one()
        if self.honest and self.rng.random() < 0.1:
            sender, keep = self.honest.pop(0)
            if self.rng.random() < 0.8:
                self.tell(sender, keep)

    def step(self) -> None:
        """The engine attaches properly again; another client comes."""
        if self.rng.random() < 0.3:
            self.tell(self.senders[0], ATTACH, question=1)
        if self.rng.random() < 0.1:
            self.senders[-1] = Address(CLIENT, self.rng.randrange(10, 1 << 62))

    def answer(self, question: Envelope) -> Message | None:
        rng, msg = self.rng, question.message
        if isinstance(msg, Find):
            count = rng.randrange(len(msg.keys) + 1)
            self.number += bool(count)
            pages = tuple(self._page() for _ in range(count))
            return Held(self.number if count else 0, min(count, 1), pages)
        if isinstance(msg, Claim):
            new = tuple(i for i in range(len(msg.keys)) if rng.random() < 0.7)
            self.number += bool(new)
            return Claimed(self.number if new else 0, new)
        if isinstance(msg, Seal):
            assert len(msg.keys) == len(msg.parents) == len(msg.pages) == len(msg.stamps) > 0
            assert set(msg.pages) <= self.pages, "it seals pages that it was never granted"
            return Sealed(Status.OK, tuple(i for i in range(len(msg.keys)) if rng.random() < 0.9))
        assert isinstance(msg, Reserve)
        free = [p for p in range(RECORDS) if p not in self.pages]
        if rng.random() < 0.1 or len(free) < msg.count:
            return Reserved(Status.NO_SPACE, 0, (), ())
        self.number += 1
        pages = tuple(rng.sample(free, msg.count))
        self.pages.update(pages)
        return Reserved(Status.OK, self.number, pages, tuple(1000 + p for p in pages))

    def _page(self) -> int:
        return self.rng.randrange(RECORDS)

    def work(self, job: Message) -> Done | None:
        if isinstance(job, OpenBounce):
            assert 0 < job.slots * job.page_size <= max(64 << 20, job.page_size)
            if self.rng.random() < 0.05:
                return Done(Status.NO_SPACE, "full")
            self.bounce = (job.slots, job.page_size)
            return Done(Status.OK, "bounce")
        if isinstance(job, FillPages):
            assert len(job.slots) == len(job.offsets) > 0
            assert max(job.slots) < self.bounce[0] and job.length <= job.page_size
            assert max(job.offsets) + job.page_size <= POOL
            self.counts["blocks_filled"] += len(job.slots)
            return Done(Status.COPY_FAILED if self.rng.random() < 0.05 else Status.OK)
        assert isinstance(job, WatchProcess)
        return Done(Status.OK) if self.rng.random() < 0.001 else None

    def saw(self, envelope: Envelope) -> None:
        msg = envelope.message
        if isinstance(msg, Pages):
            assert all(offset + PAGE <= POOL for offset in msg.offsets)
            self.generator.learn(Copied(msg.copy, True), sound=True)
        elif isinstance(msg, Found) and msg.blocks:
            self.generator.learn(Load(msg.lease, 0, 0, msg.blocks), sound=True)
        elif isinstance(msg, Take):
            assert len(msg.positions) == len(msg.slots) > 0
            assert max(msg.slots) < self.bounce[0]
            keep = Keep(msg.save, msg.batch)
            self.generator.learn(keep, sound=True)
            self.honest.append((envelope.receiver, keep))
        elif isinstance(msg, Return):
            self.pages -= set(msg.pages)

    def sizes(self) -> dict[str, int]:
        actor = self.actor
        saves = actor.saves
        return {
            "clients": len(actor.clients),
            "watched": len(actor.watched),
            "leases": len(actor.leases),
            "copies": len(actor.copies),
            "saves": len(saves.saves) if saves else 0,
            "stock": len(saves.stock) + len(saves.filling) if saves else 0,
        }


class IndexCage(Cage):
    """An index: its sessions are hostile; the allocator presses, the supervisor buries sessions."""

    def build(self) -> Index:
        return Index(IDX, BOSS, HELLO, lambda path: new_ledger())

    def settle(self) -> None:
        self.newest = 3
        self.senders = []
        self.tell(BOSS, WELCOME)
        self.tell(BOSS, Neighbour(ALLOC, "a", 1))
        while len(self.senders) < 3:
            self._session()
        space = bytes(16)
        parents = (bytes(32), *KEYS[:-1])
        for msg in (
            Find(space, KEYS),
            Claim(space, KEYS),
            Seal(1, space, PAGE, PAGE, 1, KEYS, parents, (0, 1, 2, 3), (1, 2, 3, 4)),
            index_words.Release(1),
            index_words.Holding(1, (1,), 1, (1,)),
        ):
            self.generator.learn(msg, sound=True)

    def _session(self) -> None:
        self.newest += 1
        self.senders.append(Address(SESSION, self.newest))
        self.generator.addresses = [*self.senders, BOSS, ALLOC, IDX]

    def step(self) -> None:
        rng = self.rng
        if rng.random() < 0.05:
            self.tell(BOSS, Gone(self.senders.pop(0)))
            self._session()
        else:
            page_size = rng.choice((PAGE, PAGE, 2 * PAGE, 4096))
            ask = Pressure(page_size, rng.randrange(1, 32), rng.random() < 0.2)
            self.tell(ALLOC, ask, question=5)

    def one(self) -> None:
        super().one()
        if self.rng.random() < 0.3:
            self.seal()

    def seal(self) -> None:
        """Now and then a session does all of it right: without that nothing is ever resident."""
        rng, sender = self.rng, self.rng.choice(self.senders)
        first = rng.randrange(40)
        keys = tuple(bytes((first + i,)) * 32 for i in range(rng.randrange(1, 6)))
        self.tell(sender, Claim(bytes(16), keys), question=9)
        number = self.claimed.number
        pages = tuple(rng.sample(range(RECORDS), len(keys)))
        parents = (bytes(32), *keys[:-1])
        stamps = tuple(range(len(keys)))
        msg = Seal(number, bytes(16), PAGE, PAGE, 1, keys, parents, pages, stamps)
        self.generator.learn(msg, sound=True)
        self.tell(sender, self.generator.message(Seal), question=9)

    def saw(self, envelope: Envelope) -> None:
        msg = envelope.message
        if isinstance(msg, Claimed):
            self.claimed = msg
        elif isinstance(msg, Held):
            assert len(msg.pages) % max(msg.shards, 1) == 0
            assert all(page < RECORDS for page in msg.pages)
        elif isinstance(msg, Freed):
            actor = self.host.actor
            assert isinstance(actor, Index)
            assert all(actor.ledger.is_void(page) for page in msg.pages)

    def sizes(self) -> dict[str, int]:
        actor = self.host.actor
        assert isinstance(actor, Index)
        return {
            "blocks": len(actor.blocks),
            "leases": len(actor.leases),
            "claims": len(actor.claims),
        }


class AllocatorCage(Cage):
    """An allocator: its sessions are hostile; the index frees, the supervisor buries sessions."""

    def build(self) -> Allocator:
        self.ledger = new_ledger()
        self.sealed: set[int] = set()
        return Allocator(ALLOC, BOSS, HELLO)

    def settle(self) -> None:
        self.newest = 3
        self.senders = []
        while len(self.senders) < 3:
            self.newest += 1
            self.senders.append(Address(SESSION, self.newest))
        self.generator.addresses = [*self.senders, BOSS, ALLOC, IDX]
        self.tell(BOSS, WELCOME)
        self.tell(IDX, Freed(()))
        for msg in (Reserve(PAGE, 4), Return((0, 1)), allocator_words.Stock(1, (0, 1))):
            self.generator.learn(msg, sound=True)

    def step(self) -> None:
        """The index seals what was granted, evicts, and fences the dead."""
        rng = self.rng
        actor = self.host.actor
        assert isinstance(actor, Allocator) and actor.slab is not None
        if rng.random() < 0.05:
            dead = self.senders.pop(0)
            self.tell(IDX, Fenced(dead))
            self.tell(BOSS, Gone(dead))
            self.newest += 1
            self.senders.append(Address(SESSION, self.newest))
        elif rng.random() < 0.5:
            self.sealed |= {p for p in range(RECORDS) if actor.slab.is_granted(p) and p % 3 == 0}
        else:
            self.tell(IDX, Freed(self._evict(8)))

    def _evict(self, count: int) -> tuple[int, ...]:
        gone = tuple(self.sealed)[:count]
        self.sealed -= set(gone)
        return gone

    def answer(self, question: Envelope) -> Message | None:
        assert isinstance(question.message, Pressure)
        return Freed(self._evict(question.message.count))

    def work(self, job: Message) -> Done | None:
        if isinstance(job, GrowExtent):
            assert job.extent < GEOMETRY.extents
            return Done(Status.OK)
        assert isinstance(job, ReadRecords)
        assert all(page < RECORDS for page in job.pages), "a page that is not there is read"
        return Done(Status.OK, "", tuple(p for p in job.pages if p in self.sealed))

    def sizes(self) -> dict[str, int]:
        actor = self.host.actor
        assert isinstance(actor, Allocator) and actor.slab is not None
        slab = actor.slab
        assert all(slab.is_granted(p) or slab.is_left(p) for p in self.sealed), "sealed and free"
        return {
            "waiting": len(actor._waiting),
            "unstated": sum(map(len, actor._unstated.values())),
        }


class SupervisorCage(Cage):
    """A supervisor: clients are hostile and so are its children; the jobs are done."""

    def build(self) -> Supervisor:
        self.incarnation = 1
        self.living: list[Address] = []
        return Supervisor(BOSS, Plan(POOL, EXTENT, 2, "run", "0.1"))

    def settle(self) -> None:
        self.senders = [Address(CLIENT, n) for n in (7, 7, 8, 9)]
        self.generator.addresses = [*self.senders, BOSS, ALLOC, IDX]
        sound = OpenSession("engine", bytes(16), 4242, 99, bytes(16))
        self.generator.learn(sound, sound=True)

    def work(self, job: Message) -> Done | None:
        if isinstance(job, MakePool):
            return Done(Status.OK, "pool\nledger", (POOL,))
        if isinstance(job, NextIncarnation):
            self.incarnation += 1
            return Done(Status.OK, "", (self.incarnation,))
        if isinstance(job, Spawn):
            self.living.append(job.address)
            return Done(Status.OK, "", (1000 + job.address.incarnation, 1))
        if isinstance(job, Announce):
            return Done(Status.OK)
        assert isinstance(job, Kill)
        if job.address in self.living:
            self.exit(job.address)
        return Done(Status.OK)

    def exit(self, address: Address) -> None:
        self.living.remove(address)
        self.take(self.host.inform(Exited(address, 265), self.now))

    def step(self) -> None:
        """Children say Hello and Beat; now and then one dies."""
        for address in list(self.living):
            kid = self.supervisor.kids.get(address)
            if kid is not None and not kid.endpoint:
                self.tell(address, Hello(1, 1, str(address)))
            else:
                self.tell(address, Beat(()))
        self.senders[4:] = self.living
        if self.living and self.rng.random() < 0.01:
            self.exit(self.rng.choice(self.living))

    @property
    def supervisor(self) -> Supervisor:
        actor = self.host.actor
        assert isinstance(actor, Supervisor)
        return actor

    def answer(self, question: Envelope) -> Message | None:
        return Serving()

    def saw(self, envelope: Envelope) -> None:
        self.counts["engines_served"] += isinstance(envelope.message, SessionAt)

    def sizes(self) -> dict[str, int]:
        return {"kids": len(self.supervisor.kids), "opens": len(self.supervisor.desk.opens)}


CAGES: dict[str, type[Cage]] = {
    "session": SessionCage,
    "index": IndexCage,
    "allocator": AllocatorCage,
    "supervisor": SupervisorCage,
}
"""Every kind of actor."""
