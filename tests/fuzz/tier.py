"""The SSD tier among hostile sessions: an index with a flusher below it, and a flusher."""

from dataclasses import replace

from pegaflow.actors.flusher.actor import Flusher
from pegaflow.wire.allocator import PagesHeld, Reserve, Reserved, Return
from pegaflow.wire.control import Gone, Neighbour
from pegaflow.wire.diskjobs import ReadRun, RunRead, WriteGroup
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.flusher import (
    Fetch,
    Fetched,
    Flush,
    Flushed,
    Forget,
    Manifest,
    Noted,
    Tier,
    WriteAll,
    Written,
)
from pegaflow.wire.identities import (
    NO_CLAIM,
    NO_GRANT,
    ClaimId,
    GrantId,
    Incarnation,
    Key,
    LeaseId,
    Namespace,
    Stamp,
)
from pegaflow.wire.index import Corrupt, Find, LeasesHeld, Seal, Sealed
from pegaflow.wire.jobs import Done, Result
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, CLIENT, FLUSHER, INDEX, SESSION, Address
from tests.actors.disks import PLAN as ONE_DISK
from tests.actors.disks import orderly
from tests.actors.tier import ssd_of
from tests.naming import as_keys, as_pages, as_stamps

from .books import KEYS, RECORDS
from .cage import ALLOC, BOSS, HELLO, IDX, MS, PAGE, POOL, WELCOME, Cage
from .core import IndexCage
from .hostile import UNIVERSE

TIER = Tier(True, 4, 8 * PAGE, 4, batch_bytes=4 * PAGE, block_bytes=2 * PAGE, prefetch=6)
SPACE = Namespace(bytes(16))
PLAN = replace(ONE_DISK, paths=("/a", "/b"), capacity_bytes=64 << 20)


class TieredIndexCage(IndexCage):
    """An index with a flusher, which dies now and then, below hostile sessions that wait."""

    welcome = replace(WELCOME, ssd=True)
    flusher = Address(FLUSHER, Incarnation(6))

    def settle(self) -> None:
        super().settle()
        self.flusher = Address(FLUSHER, Incarnation(self.flusher.incarnation + 1))
        self.tell(self.flusher, TIER)
        self.tell(self.flusher, Manifest(SPACE, PAGE, 1, KEYS, last=True), question=1)

    def keys(self, count: int) -> tuple[Key, ...]:
        """A chain, as hostile sessions have them too."""
        at = self.rng.randrange(UNIVERSE)
        return tuple(Key(bytes(((at + i) % UNIVERSE,)) * 32) for i in range(count))

    def one(self) -> None:
        """Now and then a session waits properly."""
        super().one()
        if self.rng.random() < 0.1:
            patience = self.rng.choice((MS, 20 * MS, 500 * MS))
            self.tell(self.rng.choice(self.senders), Find(SPACE, self.keys(4)), 9, 0, patience)

    def step(self) -> None:
        super().step()
        rng, keys = self.rng, self.keys(4)
        news = (
            replace(TIER, writable=rng.random() < 0.8),
            Manifest(SPACE, PAGE, 1, keys, last=rng.random() < 0.5),
            Forget(SPACE, keys[:2]),
            Corrupt(as_pages(rng.randrange(RECORDS))),
        )
        self.tell(self.flusher, rng.choice(news), question=1)
        if rng.random() < 0.1:
            self.tell(BOSS, Gone(self.flusher))
            self.flusher = Address(FLUSHER, Incarnation(self.flusher.incarnation + 1))
            self.tell(self.flusher, TIER)

    def answer(self, question: Envelope) -> Message | None:
        """What was read is sealed, in part, into pages that may be taken."""
        rng, msg = self.rng, question.message
        assert isinstance(msg, Fetch) and question.receiver.name == FLUSHER
        if rng.random() < 0.3:
            return None
        got = tuple(i for i in range(len(msg.keys)) if rng.random() < 0.8)
        if got and question.receiver == self.flusher:
            keys = tuple(msg.keys[i] for i in got)
            parents = tuple(msg.parents[i] for i in got)
            every = self.index.residency.ledger.are_void(as_pages(*range(RECORDS)))
            void = [at for at, is_ in enumerate(every) if is_]
            pages = tuple(rng.sample(void, min(len(got), len(void))))
            seal = Seal(
                msg.number,
                SPACE,
                PAGE,
                PAGE,
                shards=1,
                keys=keys,
                parents=parents,
                pages=as_pages(*pages),
                stamps=as_stamps(*pages),
                depths=got,
            )
            self.tell(self.flusher, seal, question=9)
        missed = tuple(i for i in range(len(msg.keys)) if i not in got)
        return Fetched(Status.OK, missed, missed[:1])

    def saw(self, envelope: Envelope) -> None:
        super().saw(envelope)
        msg = envelope.message
        if isinstance(msg, Flush):
            assert len(msg.pages) == len(msg.keys) * msg.shards
            assert not any(self.index.residency.ledger.are_void(msg.pages))
            done = msg.keys[: self.rng.randrange(len(msg.keys) + 1)]
            word = Flushed(msg.number, msg.namespace, msg.payload_bytes, msg.shards, keys=done)
            self.later.append((envelope.receiver, word))

    def pass_time(self) -> None:
        super().pass_time()
        while self.later and self.rng.random() < 0.7:
            sender, word = self.later.pop(0)
            if sender == self.flusher:
                self.tell(sender, word)
                self.tell(sender, LeasesHeld(word.number, (), NO_CLAIM, ()))

    def begin(self) -> None:
        self.later: list[tuple[Address, Flushed]] = []
        super().begin()

    def sizes(self) -> dict[str, int]:
        actor = self.index
        return super().sizes() | {
            "in_flight": len(ssd_of(actor).writes.in_flight),
            "stored": sum(map(len, ssd_of(actor).log.stored.values())),
            "backlog": len(ssd_of(actor).writes.backlog),
            "waits": sum(map(len, actor.lookup.waits.values())),
            "awaited_blocks": len(actor.lookup.awaited),
        }


class FlusherCage(Cage):
    """A flusher on disks that fail now and then.  Index, allocator and supervisor are believed, and
    are others now and then; sessions and clients have no say here."""

    def build(self) -> Flusher:
        self.pages: dict[int, int] = {}  # granted and not returned -> number of the grant
        self.grants = self.newest = self.fetches = 0
        return Flusher(Address(FLUSHER, Incarnation(6)), BOSS, HELLO, PLAN)

    def settle(self) -> None:
        self.senders = [
            Address(CLIENT, Incarnation(7)),
            Address(SESSION, Incarnation(4)),
            Address(SESSION, Incarnation(5)),
        ]
        self.generator.addresses = [*self.senders, BOSS, ALLOC, IDX]
        self.tell(BOSS, WELCOME)
        self.index, self.allocator = IDX, ALLOC
        self.tell(BOSS, Neighbour(IDX, "i", 1))
        self.tell(BOSS, Neighbour(ALLOC, "a", 2))

    @property
    def actor(self) -> Flusher:
        actor = self.host.actor
        assert isinstance(actor, Flusher)
        return actor

    def one(self) -> None:
        """Between the frames: something to write, something to read."""
        super().one()
        rng, tier = self.rng, self.actor.tier.told
        at, count = rng.randrange(200), rng.randrange(1, 5)
        keys = tuple(((at + i) % 256).to_bytes(1) * 32 for i in range(count))
        if tier is not None and tier.writable and len(self.actor.write_back.flushes) < tier.depth:
            if rng.random() < 0.3:
                self.newest += 1
                pages = tuple(rng.sample(range(RECORDS), count))
                share = rng.choice((100, 50, 10))
                places = tuple(range(count))
                self.tell(
                    self.index,
                    Flush(
                        LeaseId(self.newest),
                        SPACE,
                        PAGE,
                        PAGE,
                        shards=1,
                        keys=as_keys(*keys),
                        pages=as_pages(*pages),
                        depths=places,
                        sums=(),
                        share_percent=share,
                    ),
                )
        if rng.random() < 0.3:
            self.fetches += 1
            parents = (bytes(32), *keys[:-1])
            self.tell(
                self.index,
                Fetch(
                    ClaimId(self.fetches),
                    SPACE,
                    as_keys(*keys),
                    as_keys(*parents),
                    engine=Incarnation(rng.randrange(3)),
                ),
                question=9,
            )
            assert self.actor.reading.fetches < 4096, "no Fetch ever ends"

    def step(self) -> None:
        """Now and then index or allocator dies, and the next one comes."""
        if self.rng.random() < 0.05:
            self.tell(BOSS, Gone(self.index))
            self.index = Address(INDEX, Incarnation(self.index.incarnation + 10))
            self.tell(BOSS, Neighbour(self.index, "i", 1))
        if self.rng.random() < 0.05:
            self.tell(BOSS, Gone(self.allocator))
            self.allocator = Address(ALLOCATOR, Incarnation(self.allocator.incarnation + 10))
            self.tell(BOSS, Neighbour(self.allocator, "a", 2))

    def answer(self, question: Envelope) -> Message | None:
        rng, msg = self.rng, question.message
        if question.receiver not in (self.index, self.allocator):
            return None
        if isinstance(msg, Manifest):
            return Noted()
        if isinstance(msg, WriteAll):
            return Written(0)
        if isinstance(msg, Seal):
            assert set(msg.pages) <= self.pages.keys(), "it seals pages that it was never granted"
            return Sealed(Status.OK, tuple(i for i in range(len(msg.keys)) if rng.random() < 0.9))
        assert isinstance(msg, Reserve)
        free = [page for page in range(RECORDS) if page not in self.pages]
        if rng.random() < 0.1 or len(free) < msg.count:
            return Reserved(Status.NO_SPACE, NO_GRANT, (), ())
        self.grants += 1
        pages = tuple(rng.sample(free, msg.count))
        self.pages.update(dict.fromkeys(pages, self.grants))
        return Reserved(
            Status.OK,
            GrantId(self.grants),
            as_pages(*pages),
            tuple(Stamp(1000 + page) for page in pages),
        )

    def work(self, job: Message) -> Result:
        if isinstance(job, WriteGroup | ReadRun):
            assert max(job.pages) < POOL and len(set(job.pages)) == len(job.pages)
            self.counts["groups_written"] += isinstance(job, WriteGroup)
        dice = self.rng.random()
        if dice < 0.03:
            faults = (Status.NO_SPACE, Status.COPY_FAILED, Status.READ_ONLY)
            return Done(self.rng.choice(faults), "it is broken")
        if isinstance(job, ReadRun) and dice < 0.06:
            return RunRead((0,) * len(job.pages))  # bits have turned
        return orderly(job, {})

    def saw(self, envelope: Envelope) -> None:
        msg = envelope.message
        if isinstance(msg, Flushed):
            self.counts["blocks_written"] += len(msg.keys)
        elif isinstance(msg, Return | PagesHeld):
            gone = set(self.pages)
            if isinstance(msg, Return):
                gone = set(msg.pages)
            else:
                named = set(msg.pages)
                gone = {p for p, n in self.pages.items() if n <= msg.upto and p not in named}
            for page in gone:
                self.pages.pop(page, None)

    def sizes(self) -> dict[str, int]:
        actor = self.actor
        return {
            "flushes": len(actor.write_back.flushes),
            "fetches": actor.reading.fetches,
            "pages": len(actor.pages.held()),
            "segments": sum(len(volume.segments) for volume in actor.volumes),
            "blocks": actor.volumes.catalog.blocks,
        }
