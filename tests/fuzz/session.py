"""A session among hostile clients."""

from collections.abc import Iterable
from dataclasses import replace

from pegaflow.actors.session.actor import Session
from pegaflow.core.pool.table import TierWord
from pegaflow.wire.allocator import PagesHeld, Reserve, Reserved, Return
from pegaflow.wire.control import Neighbour, Serve
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.gpu import HANDLE_BYTES, GpuMemory, GpuRegion
from pegaflow.wire.gpujobs import MapGpu, PinPages
from pegaflow.wire.identities import (
    NO_GRANT,
    NO_KEY,
    ClaimId,
    EngineNamespace,
    GrantId,
    Incarnation,
    LeaseId,
)
from pegaflow.wire.index import Claim, Claimed, Find, HazardFile, HazardsNoted, Held, Seal, Sealed
from pegaflow.wire.jobs import (
    BounceOpened,
    Done,
    DrawProof,
    EnterPages,
    FillPages,
    MapEngine,
    OpenBounce,
    PagesEntered,
    ProofDrawn,
    ReadBlocks,
    Result,
    UnmapEngine,
    WatchProcess,
    WriteBlocks,
)
from pegaflow.wire.layout import LayerLayout, Layout
from pegaflow.wire.message import Message
from pegaflow.wire.session import (
    Attach,
    Copied,
    CopyBatch,
    Drop,
    Found,
    Keep,
    Load,
    Lookup,
    Pages,
    Save,
    Way,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import CLIENT, SESSION, Address
from tests.actors.shared import Shared
from tests.naming import as_pages, as_stamps

from .books import GEOMETRY, KEYS, RECORDS
from .cage import ALLOC, BOSS, HELLO, IDX, PAGE, POOL, WELCOME, Cage

LAYOUT = Layout(64, (LayerLayout(0, 0, PAGE, PAGE),), "bfloat16")
ATTACH = Attach(4242, 99, 0, 1, layout=LAYOUT, region_bytes=(64 * PAGE,))
HANDLE = bytes(HANDLE_BYTES)
GPU = GpuMemory("0000:65:00.0", bytes(16), (GpuRegion(HANDLE, 0),), HANDLE)
ON_GPU = replace(ATTACH, way=Way.AUTO, gpu=GPU)


class SessionCage(Cage):
    """A session: its clients are hostile; index and allocator answer, late or never."""

    def build(self) -> Session:
        self.pages: dict[int, int] = {}  # granted and not returned -> number of the grant
        self.slots: dict[int, set[int]] = {}  # batch -> slots
        self.bounces: dict[int, int] = {}  # slots by mapping
        self.number = 0
        self.granted: dict[int, Reserved] = {}  # grants not stated yet
        self.honest: list[tuple[Address, Message]] = []  # what a sound neighbour would say next
        self.shared = Shared(geometry=GEOMETRY)
        shared = self.shared
        address = Address(SESSION, Incarnation(4))
        return Session(
            address, BOSS, HELLO, open_hazards=shared.open_hazards, open_finder=shared.open_finder
        )

    def settle(self) -> None:
        self.senders = [Address(CLIENT, Incarnation(n)) for n in (7, 7, 7, 7, 8, 9)]
        self.generator.addresses = [*self.senders, BOSS, ALLOC, IDX, self.host.actor.address]
        for msg in (
            ATTACH,
            ON_GPU,
            Lookup(KEYS),
            Save(1, 0, KEYS, NO_KEY),
            Drop(1),
            Keep(1, 1),
            Load(LeaseId(1), 0, 0, 1),
            Copied(1, True),
        ):
            self.generator.learn(msg, sound=True)
        self.tell(BOSS, WELCOME)
        self.tell(BOSS, Neighbour(ALLOC, "a", 1))
        self.tell(BOSS, Neighbour(IDX, "i", 2))
        self.tell(
            BOSS,
            Serve("engine", bytes(16), 4242, 99, namespace=EngineNamespace(bytes(16))),
            question=1,
        )
        self.tell(self.senders[0], ATTACH, question=1)

    @property
    def actor(self) -> Session:
        actor = self.host.actor
        assert isinstance(actor, Session)
        return actor

    def one(self) -> None:
        super().one()
        if self.honest and self.rng.random() < 0.1:
            sender, msg = self.honest.pop(0)
            if self.rng.random() < 0.8:
                self.tell(sender, msg)

    def step(self) -> None:
        """The engine attaches properly again; another client comes."""
        if self.rng.random() < 0.3:
            self.tell(self.senders[0], self.rng.choice((ATTACH, ON_GPU)), question=1)
        if self.rng.random() < 0.1:
            self.senders[-1] = Address(CLIENT, Incarnation(self.rng.randrange(10, 1 << 62)))
        if self.rng.random() < 0.5 and self.actor.engine.space is not None:
            self._write()

    def _write(self) -> None:
        """The index seals the keys in pages of its choice, and has evicted what was there, whoever
        uses it: worse than any index."""
        rng, shared, space = self.rng, self.shared, self.actor.engine.space
        assert space is not None
        pages = as_pages(*rng.sample(range(RECORDS), len(KEYS) * space.shards))
        shared.evict(*pages)
        shared.seal(self.actor, KEYS, pages)
        shared.table.set_tiers(rng.choice((*TierWord, TierWord.NONE, TierWord.NONE)))
        shared.table.set_closed(rng.random() < 0.05)

    def answer(self, question: Envelope) -> Message | None:
        rng, msg = self.rng, question.message
        if isinstance(msg, Find):
            count = rng.randrange(len(msg.keys) + 1)
            self.number += bool(count)
            pages = tuple(self._page() for _ in range(count))
            return Held(LeaseId(self.number if count else 0), min(count, 1), as_pages(*pages))
        if isinstance(msg, HazardFile):
            return HazardsNoted(Status.OK if rng.random() < 0.97 else Status.NO_SPACE)
        if isinstance(msg, Claim):
            new = tuple(i for i in range(len(msg.keys)) if rng.random() < 0.7)
            self.number += bool(new)
            return Claimed(ClaimId(self.number if new else 0), new)
        if isinstance(msg, Seal):
            assert len(msg.keys) == len(msg.parents) == len(msg.pages) == len(msg.stamps) > 0
            assert set(msg.pages) <= self.pages.keys(), "it seals pages that it was never granted"
            return Sealed(Status.OK, tuple(i for i in range(len(msg.keys)) if rng.random() < 0.9))
        assert isinstance(msg, Reserve)
        free = [p for p in range(RECORDS) if p not in self.pages]
        if rng.random() < 0.1 or len(free) < msg.count:
            return Reserved(Status.NO_SPACE, NO_GRANT, (), ())
        self.number += 1
        pages = tuple(rng.sample(free, msg.count))
        self.pages.update(dict.fromkeys(pages, self.number))
        stamps = tuple(1000 + p for p in pages)
        self.granted[self.number] = Reserved(
            Status.OK, GrantId(self.number), as_pages(*pages), as_stamps(*stamps)
        )
        return self.granted[self.number]

    def _page(self) -> int:
        return self.rng.randrange(RECORDS)

    def work(self, job: Message) -> Result | None:
        if isinstance(job, OpenBounce):
            assert 0 < job.slots * job.page_size <= max(64 << 20, job.page_size)
            if self.rng.random() < 0.05:
                return Done(Status.NO_SPACE, "full")
            self.bounces[job.mapping] = job.slots
            return BounceOpened("bounce", ())
        if isinstance(job, EnterPages):
            return PagesEntered(self.rng.randrange(job.length + 1))
        if isinstance(job, DrawProof):
            return ProofDrawn(self.rng.randbytes(32))
        if isinstance(job, MapEngine):
            assert len(job.proof) == 32 and job.scratch
            assert all(layer.region < len(job.bases) for layer in job.layout.layers)
            return Done(self.rng.choice((Status.OK, Status.COPY_FAILED)), "why")
        if isinstance(job, MapGpu):
            assert len(job.memory.regions) > max(layer.region for layer in job.layout.layers)
            return Done(self.rng.choice((Status.OK, Status.COPY_FAILED)), "why")
        if isinstance(job, PinPages):
            assert job.length and job.offset + job.length <= POOL
            return Done(Status.OK if self.rng.random() < 0.9 else Status.COPY_FAILED)
        if isinstance(job, UnmapEngine):
            return Done(Status.OK)
        if isinstance(job, ReadBlocks | WriteBlocks):
            assert len(job.blocks) == len(job.offsets) > 0
            self.counts["blocks_moved"] += len(job.blocks)
            return Done(Status.COPY_FAILED if self.rng.random() < 0.05 else Status.OK)
        if isinstance(job, FillPages):
            assert len(job.slots) == len(job.offsets) > 0
            assert max(job.slots) < self.bounces[job.mapping] and job.payload_bytes <= job.page_size
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
        elif isinstance(msg, CopyBatch):
            assert len(msg.positions) == len(msg.slots) > 0
            assert max(msg.slots) < max(self.bounces.values())
            keep = Keep(msg.save, msg.batch)
            self.generator.learn(keep, sound=True)
            self.honest.append((envelope.receiver, keep))
        elif isinstance(msg, Return):
            self._take_back(msg.pages)
        elif isinstance(msg, PagesHeld):
            named = set(msg.pages)
            assert named <= self.pages.keys(), "it states pages that it was never granted"
            self._take_back([p for p, n in self.pages.items() if n <= msg.upto and p not in named])
            self.granted = {n: grant for n, grant in self.granted.items() if n > msg.upto}
            self.honest = [*self.honest, *((ALLOC, grant) for grant in self.granted.values())][-64:]

    def _take_back(self, pages: Iterable[int]) -> None:
        for page in pages:
            self.pages.pop(page, None)

    def sizes(self) -> dict[str, int]:
        actor = self.actor
        return {
            "clients": len(actor.engine.clients),
            "watched": len(actor.engine.watched),
            "leases": len(actor.leases.items()),
            "copies": len(actor.loads.copies),
            "saves": len(actor.orders.saves),
            "pages": len(actor.reservation.free) + len(actor.reservation.used),
        }
