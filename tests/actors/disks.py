"""A flusher in its rig, and a disk that does what it is told, when it is told."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pegaflow.actors.flusher.actor import Flusher
from pegaflow.core.segments.codec import Row, block_sum, joined, unpack_rows
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.service.settings import Settings
from pegaflow.wire.control import Neighbour
from pegaflow.wire.diskjobs import (
    CarryGroup,
    FooterWritten,
    GroupCarried,
    GroupWritten,
    LoadSegment,
    OpenVolume,
    ReadRun,
    RunRead,
    SegmentLoaded,
    VolumeOpened,
    VolumeWatched,
    WatchVolume,
    WriteFooter,
    WriteGroup,
)
from pegaflow.wire.envelope import Envelope
from pegaflow.wire.flusher import Fetch, Flush, Manifest, Noted
from pegaflow.wire.identities import ClaimId, Incarnation, Key, LeaseId, Namespace, PageId
from pegaflow.wire.jobs import Done, Job, Result
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import FLUSHER, Address

from .rig import ALLOC, BOSS, HELLO, IDX, MS, PAGE, WELCOME, Rig, pick

FLUSHER_6 = Address(FLUSHER, Incarnation(6))
NS = Namespace(b"n" * 16)
KEYS = tuple(Key(bytes([n]) * 32) for n in range(1, 33))
ROOT = Key(bytes(32))
PLAN = FlushPlan(**Settings(Path("/run"), ssd_cache_path=("/ssd",)).told(FlushPlan))
PATIENCE = 1000 * MS
SUM = 7
"""Checksum of every page."""

Answer = Callable[[Message], Result]


def row_of(at: int, segment_offset: int = 8192, generation: int = 1) -> Row:
    """The row of KEYS[at], one page."""
    offset = segment_offset + at * PAGE
    return Row(
        offset,
        block_sum((SUM,)),
        Incarnation(generation),
        PAGE,
        depth=at,
        shards=1,
        namespace=NS,
        key=KEYS[at],
    )


class Disks:
    """Answers jobs as a disk in order would; `faults` answer otherwise, by kind of job."""

    def __init__(self, plan: FlushPlan = PLAN) -> None:
        self.actor = Flusher(FLUSHER_6, BOSS, HELLO, plan)
        self.rig = Rig(self.actor)
        self.segments: dict[tuple[int, int], bytes] = {}  # found at the start: their rows
        self.faults: dict[type[Message], Answer] = {}
        self.did: list[Message] = []  # jobs that have ended, in order
        self.rig.start()

    def meet(self, index: Address = IDX) -> list[Envelope]:
        """Welcome, an index and an allocator."""
        sent = self.rig.tell(BOSS, WELCOME)
        sent += self.rig.tell(BOSS, Neighbour(index, "ipc://i", 1))
        return sent + self.rig.tell(BOSS, Neighbour(ALLOC, "ipc://a", 1))

    def ready(self) -> list[Envelope]:
        """Up, with everything told."""
        return self.told(self.meet() + self.work())

    def told(self, sent: list[Envelope], index: Address = IDX) -> list[Envelope]:
        """Take in every part of the inventory."""
        at = 0
        while at < len(sent):
            if isinstance(sent[at].message, Manifest) and sent[at].receiver == index:
                sent += self.rig.answer(sent[at], Noted())
            at += 1
        return sent

    def work(self, *kinds: type[Message]) -> list[Envelope]:
        """End all jobs (of these kinds) and those that follow from them."""
        sent: list[Envelope] = []
        while found := [job for _, job in self.rig.jobs if not kinds or type(job) in kinds]:
            sent += self.end(found[0])
        return sent

    def end(self, job: Job[Any]) -> list[Envelope]:
        """End the oldest job of this one's kind."""
        fault = self.faults.get(type(job))
        result = fault(job) if fault else orderly(job, self.segments)
        self.did.append(job)
        return self.rig.done(type(job), result)

    def kinds(self) -> list[str]:
        """What was done so far."""
        return [type(job).__name__ for job in self.did]


def orderly(job: Message, segments: Mapping[tuple[int, int], bytes]) -> Result:
    """The answer of a disk in order, which had these segments at the start."""
    if isinstance(job, OpenVolume):
        found = sorted(number for volume, number in segments if volume == job.volume)
        return VolumeOpened(1 << 40, tuple(found), (1 << 20,) * len(found))
    if isinstance(job, LoadSegment):
        rows = segments[job.volume, job.segment]
        return SegmentLoaded(rows, 1 << 20)
    if isinstance(job, WriteGroup):
        return GroupWritten((block_sum((SUM,) * job.shards),) * len(job.keys))
    if isinstance(job, CarryGroup):
        carried, at = [], job.offset + PAGE_ALIGN
        for row in unpack_rows(job.rows):
            carried.append(row._replace(offset=at))
            at += row.bytes_
        return GroupCarried(joined(carried))
    if isinstance(job, WriteFooter):
        return FooterWritten(job.offset + 2 * PAGE_ALIGN)
    if isinstance(job, ReadRun):
        return RunRead((SUM,) * len(job.pages))
    if isinstance(job, WatchVolume):
        return VolumeWatched()
    return Done(Status.OK)


def broken(status: Status, note: str = "it is broken") -> Answer:
    """A device that fails so."""
    return lambda job: Done(status, note)


def flush(number: int, first: int, count: int, share: float = 1) -> Flush:
    """A Flush of some of KEYS, in pages of the same numbers."""
    places = tuple(range(first, first + count))
    keys = tuple(KEYS[at % len(KEYS)] for at in places)
    return Flush(
        number=LeaseId(number),
        namespace=NS,
        page_size=PAGE,
        payload_bytes=PAGE,
        shards=1,
        keys=keys,
        pages=tuple(PageId(at % 8) for at in places),
        depths=places,
        share_percent=round(100 * share),
    )


def fetch(number: int, places: tuple[int, ...], engine: int = 4) -> Fetch:
    keys = tuple(KEYS[at] for at in places)
    parents = tuple(KEYS[at - 1] if at else ROOT for at in places)
    return Fetch(ClaimId(number), NS, keys, parents, engine=Incarnation(engine))


def question(sent: list[Envelope], kind: type[Message]) -> Envelope:
    """The newest question of this kind."""
    return pick(sent, kind)[-1]
