"""Index and allocator among hostile sessions."""

import numpy as np

from pegaflow.actors.allocator.actor import Allocator
from pegaflow.actors.index.actor import Index
from pegaflow.core.pool.slab import Slab
from pegaflow.wire import index as index_words
from pegaflow.wire.allocator import Freed, PagesHeld, Pressure, Reserve, Return
from pegaflow.wire.control import Fenced, Gone, Members, Neighbour
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.identities import ClaimId, GrantId, Incarnation, Key, LeaseId, Namespace, PageId
from pegaflow.wire.index import Claim, Claimed, Find, Held, Seal
from pegaflow.wire.jobs import (
    Done,
    GrowExtent,
    ReadRecords,
    RecordsRead,
    RecordsScanned,
    Result,
    ScanRecords,
)
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import SESSION, Address
from tests.actors.memory import IndexMemory, publish
from tests.naming import as_claims, as_leases, as_pages, as_stamps

from .books import GEOMETRY, KEYS, RECORDS, new_ledger
from .cage import ALLOC, BOSS, HELLO, IDX, PAGE, WELCOME, Cage


class IndexCage(Cage):
    """An index: its sessions are hostile, and share a hazard file; the allocator presses, the
    supervisor buries sessions."""

    welcome = WELCOME

    def build(self) -> Index:
        self.memory = IndexMemory(new_ledger())
        self.hazards, self.rows = self.memory.hazards("hazards"), np.empty(0, np.int64)
        return Index(IDX, BOSS, HELLO, self.memory)

    def settle(self) -> None:
        self.newest = 3
        self.senders = []
        self.tell(BOSS, self.welcome)
        self.tell(BOSS, Members((), ()))
        self.tell(BOSS, Neighbour(ALLOC, "a", 1))
        while not self.index.recovery.ready:
            self.take(self.host.wake(self.now))
        while len(self.senders) < 3:
            self._session()
        space = Namespace(bytes(16))
        parents = (Key(bytes(32)), *KEYS[:-1])
        for msg in (
            Find(space, KEYS),
            Claim(space, KEYS),
            Seal(
                ClaimId(1),
                space,
                PAGE,
                PAGE,
                shards=1,
                keys=KEYS,
                parents=parents,
                pages=as_pages(0, 1, 2, 3),
                stamps=as_stamps(1, 2, 3, 4),
            ),
            index_words.Release(LeaseId(1)),
            index_words.LeasesHeld(LeaseId(1), as_leases(1), ClaimId(1), as_claims(1)),
            index_words.HazardFile("hazards", (1, 1)),
            index_words.Touched(as_pages(0, 1)),
        ):
            self.generator.learn(msg, sound=True)

    def _session(self) -> None:
        self.newest += 1
        self.senders.append(Address(SESSION, Incarnation(self.newest)))
        self.generator.addresses = [*self.senders, BOSS, ALLOC, IDX]

    def step(self) -> None:
        rng = self.rng
        if self.index.gauges()["quarantined_pages"] > RECORDS // 2:
            self.reborn()  # sessions have called so many corrupt that nothing more would happen
        elif rng.random() < 0.05:
            self.tell(BOSS, Gone(self.senders.pop(0)))
            self._session()
        else:
            self.hazards.clear(self.rows)
            pages = rng.sample(range(RECORDS), 3)
            self.rows = publish(self.hazards, self.memory.ledger, *pages)
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
        keys = tuple(Key(bytes((first + i,)) * 32) for i in range(rng.randrange(1, 6)))
        self.tell(sender, Claim(Namespace(bytes(16)), keys), question=9)
        number = self.claimed.number
        pages = tuple(rng.sample(range(RECORDS), len(keys)))
        parents = (Key(bytes(32)), *keys[:-1])
        stamps = tuple(range(len(keys)))
        msg = Seal(
            number,
            Namespace(bytes(16)),
            PAGE,
            PAGE,
            shards=1,
            keys=keys,
            parents=parents,
            pages=as_pages(*pages),
            stamps=as_stamps(*stamps),
        )
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
            actor = self.index
            assert all(actor.residency.ledger.are_void(msg.pages))

    @property
    def index(self) -> Index:
        actor = self.host.actor
        assert isinstance(actor, Index)
        return actor

    def sizes(self) -> dict[str, int]:
        actor = self.index
        return {
            "blocks": len(actor.residency.blocks),
            "leases": len(actor.leasing.leases),
            "claims": len(actor.claims.table),
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
            self.senders.append(Address(SESSION, Incarnation(self.newest)))
        self.generator.addresses = [*self.senders, BOSS, ALLOC, IDX]
        self.tell(BOSS, WELCOME)
        for msg in (
            Reserve(PAGE, 4),
            Return(as_pages(0, 1)),
            PagesHeld(GrantId(1), as_pages(0, 1), PAGE),
        ):
            self.generator.learn(msg, sound=True)
        self.tell(BOSS, Members(tuple(self.senders), ()))
        for sender in self.senders:
            self.tell(sender, self.generator.message(PagesHeld))
        self.tell(IDX, Freed(()))
        while self.slab is None:
            self.pass_time()

    def step(self) -> None:
        """The index seals what was granted, evicts, and fences the dead."""
        rng, slab = self.rng, self.slab
        assert slab is not None
        if rng.random() < 0.05:
            dead = self.senders.pop(0)
            self.tell(IDX, Fenced(dead))
            self.tell(BOSS, Gone(dead))
            self.newest += 1
            self.senders.append(Address(SESSION, Incarnation(self.newest)))
        elif rng.random() < 0.5:
            self.sealed |= {
                p for p in range(RECORDS) if slab.owners.is_granted(PageId(p)) and p % 3 == 0
            }
        else:
            self.tell(IDX, Freed(as_pages(*self._evict(8))))

    def _evict(self, count: int) -> tuple[int, ...]:
        gone = tuple(self.sealed)[:count]
        self.sealed -= set(gone)
        return gone

    def answer(self, question: Envelope) -> Message | None:
        assert isinstance(question.message, Pressure)
        return Freed(as_pages(*self._evict(question.message.count)))

    def work(self, job: Message) -> Result:
        if isinstance(job, GrowExtent):
            assert job.extent < GEOMETRY.extents
            return Done(Status.OK)
        if isinstance(job, ScanRecords):
            return RecordsScanned((), ())  # a fresh pool
        assert isinstance(job, ReadRecords)
        assert all(page < RECORDS for page in job.pages), "a page that is not there is read"
        return RecordsRead(tuple(p for p in job.pages if p in self.sealed))

    @property
    def slab(self) -> Slab | None:
        actor = self.host.actor
        assert isinstance(actor, Allocator)
        return actor.pages.slab

    def sizes(self) -> dict[str, int]:
        actor, slab = self.host.actor, self.slab
        assert isinstance(actor, Allocator) and slab is not None
        assert all(
            slab.owners.is_granted(PageId(p)) or slab.owners.is_left(PageId(p)) for p in self.sealed
        ), "sealed and free"
        return {
            "waiting": actor.reservations.waiting(),
            "unstated": len(actor.grants),
        }
