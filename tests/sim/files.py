"""Fake shared memory, and what a session's process does with it: job records on bytearrays.

`Device` is to a simulated session what actors/session/device.py and device/engine/process_vm.py are
to a real one. Its copies go in pieces; before each one that touches an engine's memory it looks at
the engine's process, at the deadline and at whether the mapping was given up, as the real one does.
"""

from collections.abc import Callable, Generator, Sequence
from typing import TYPE_CHECKING

from xxhash import xxh3_64_intdigest

from pegaflow.actors.session.hazards import Opened
from pegaflow.core.errors import UserError
from pegaflow.core.pool.finder import Finder, Run
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.hazards import Hazards, LentRows, cut, hazard_bytes, section_of
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.pool.table import TableReader
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.device.ssdfolder import Known
from pegaflow.wire.control import Welcome
from pegaflow.wire.identities import Incarnation, Key, Namespace
from pegaflow.wire.jobs import (
    BounceOpened,
    Done,
    FillPages,
    MapEngine,
    OpenBounce,
    PagesDiffer,
    PagesSummed,
    ReadBlocks,
    Result,
    SumPages,
    UnmapEngine,
    WriteBlocks,
)
from pegaflow.wire.message import Message
from pegaflow.wire.session import Lent
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address

from .gpu import Gpus
from .world import Call, Proc, World

if TYPE_CHECKING:
    from .client import Client
    from .disk import Medium

HAZARDS = 24
"""Blocks that one engine may name."""

PIECES = 2
"""Pieces in which a page is copied."""

Work = Generator[None, None, Result]
"""A job, one step at a time."""


class Files:
    """/dev/shm: names, and bytes that live as long as somebody has them mapped."""

    def __init__(self) -> None:
        self.named: dict[str, bytearray] = {}
        self.paths: tuple[str, str] | None = None  # of pool and ledger
        self.plan: FlushPlan | None = None  # of a host with SSDs
        self.incarnation = Incarnation(0)  # the last one given away before the host went down
        self.media: dict[str, Medium] = {}  # SSD directories, by path
        self.known = Known()  # which logs are there: a file in the run directory
        self.wrote: Call = lambda: None  # a write has reached a disk, not yet synced
        self.flipped: set[int] = set()  # sealed pages in which somebody has turned a bit
        self.written: list[tuple[int, int]] = []  # (offset, end) in the pool, not judged yet
        self.saved: list[tuple[int, int, Address]] = []  # page of this size, by a GPU, for whom
        self.copying: Callable[[Client, Proc, bool], None] = lambda engine, session, writes: None

    def create(self, path: str, size: int) -> bytearray:
        """A new file of zeros."""
        assert path not in self.named
        self.named[path] = bytearray(size)
        return self.named[path]

    def unlink(self, *ends: str) -> None:
        """Remove all names that contain one of these."""
        for path in [p for p in self.named if any(end in p for end in ends)]:
            del self.named[path]


class Interrupted(Finder):
    """A lookup in the middle of which other processes run."""

    def __init__(
        self, world: World, ledger: Ledger, table: TableReader, geometry: Geometry
    ) -> None:
        super().__init__(ledger, table, geometry)
        self._world = world

    def find(
        self,
        namespace: Namespace,
        keys: Sequence[Key],
        hazards: Hazards,
        *,
        shards: int,
        most_bytes: int,
        between: Callable[[str], object] = bool,
    ) -> Run | None:
        """With others between its steps."""
        return super().find(
            namespace,
            keys,
            hazards,
            shards=shards,
            most_bytes=most_bytes,
            between=lambda step: self._world.meanwhile(keys),
        )


class Reader:
    """What a session looks up by itself in, and its hazard file: device.Reader of a simulated one.

    Its file stays when its process is dead, as it does for whoever has it mapped; the next service
    removes the name.
    """

    def __init__(self, owner: Address, world: World, files: Files) -> None:
        self._owner, self._world, self._files = owner, world, files

    def open_finder(self, welcome: Welcome) -> Finder:
        """The ledger, and the table behind it."""
        buffer = self._files.named[welcome.ledger_path]
        ledger = Ledger(buffer)
        geometry = Geometry(welcome.pool_bytes, welcome.extent_bytes)
        table = TableReader(buffer, ledger.records)
        return Interrupted(self._world, ledger, table, geometry)

    def open_hazards(self, welcome: Welcome) -> Opened:
        """For a few blocks, so that there are too few rows now and then; seldom none."""
        if self._world.rough and self._world.rng.random() < 0.1:
            self._world.counts["no room for hazards"] += 1
            raise UserError("no room for hazards")
        path = f"{self._owner}.hazards"
        own, lent = cut(self._files.create(path, hazard_bytes(HAZARDS, sections=2)), 2)
        return Opened(Hazards(own), LentRows(lent), path, (0, self._owner.incarnation))


class Lender:
    """What a client maps of that: pegaflow/client/lent.py of a simulated one."""

    def __init__(self, world: World, files: Files) -> None:
        self._world, self._files = world, files

    def lend(self, lent: Lent) -> tuple[Finder, Hazards]:
        """The ledger, and the section."""
        named = self._files.named
        buffer, file = named.get(lent.ledger_path), named.get(lent.hazard_path)
        if buffer is None or file is None:
            raise UserError("no such file")
        ledger = Ledger(buffer)
        table = TableReader(buffer, ledger.records)
        geometry = Geometry(lent.pool_bytes, lent.extent_bytes)
        finder = Interrupted(self._world, ledger, table, geometry)
        return finder, Hazards(section_of(file, lent.section))


def copy_pieces(
    target: bytearray, to: Sequence[int], source: bytearray, frm: Sequence[int], length: int
) -> list[Call]:
    """The copies of whole pages, piece by piece."""

    def piece(at: int, start: int, end: int) -> Call:
        def move() -> None:
            target[to[at] + start : to[at] + end] = source[frm[at] + start : frm[at] + end]

        return move

    cuts = [length * n // PIECES for n in range(PIECES + 1)]
    return [piece(at, *cuts[n : n + 2]) for at in range(len(to)) for n in range(PIECES)]


def at_once(result: Result) -> Work:
    """A job of one step."""
    return result
    yield


class _Mapping:
    """An engine's memory, as a session reaches it."""

    def __init__(self, job: MapEngine, client: "Client") -> None:
        self.client = client
        self.base = job.bases[0]
        self.size = job.layout.layers[0].segment_bytes
        self.closed = False


class Device:
    """The mappings of one session's process."""

    def __init__(
        self,
        owner: Proc,
        files: Files,
        pool: bytearray,
        complete: Callable[[int, Result], None],
    ) -> None:
        self.owner, self.world, self.files, self.pool = owner, owner.world, files, pool
        self.gpus = Gpus(owner, files, pool, complete=complete, differing=self._differing)
        self.bounces: dict[int, bytearray] = {}
        self.engines: dict[int, _Mapping] = {}

    def parts(self, job: Message) -> list[Work]:
        """A job as work for the threads."""
        if isinstance(job, FillPages):
            return [self._fill(job, self.bounces[job.mapping])]
        if isinstance(job, ReadBlocks | WriteBlocks):
            half = len(job.blocks) // 2
            mapping = self.engines[job.mapping]
            cuts = [(0, half), (half, len(job.blocks))] if half else [(0, len(job.blocks))]
            return [self._move(job, mapping, *cut) for cut in cuts]
        if isinstance(job, OpenBounce):
            return [self._open_bounce(job)]
        if isinstance(job, SumPages):
            return [self._sum(job)]
        assert isinstance(job, MapEngine), job
        return [self._map(job)]

    def unmap(self, job: UnmapEngine) -> None:
        """Running copies of this mapping stop at their next chunk."""
        engine = self.engines.pop(job.mapping, None)
        if engine is not None:
            engine.closed = True
        if self.bounces.pop(job.mapping, None) is not None:
            self.files.unlink(self._bounce_path(job.mapping))

    def _bounce_path(self, mapping: int) -> str:
        return f"{self.owner.address}.{mapping}.bounce"

    def _sum(self, job: SumPages) -> Work:
        sums: list[int] = []
        for at in job.offsets:
            sums.append(xxh3_64_intdigest(self.pool[at : at + job.payload_bytes]) or 1)
            yield
        return PagesSummed(tuple(sums))

    def _open_bounce(self, job: OpenBounce) -> Work:
        if self.world.rough and self.world.rng.random() < 0.1:
            self.world.counts["no room for a bounce file"] += 1
            return at_once(Done(Status.NO_SPACE, "no room"))
        path = self._bounce_path(job.mapping)
        self.bounces[job.mapping] = self.files.create(path, job.slots * job.page_size)
        return at_once(BounceOpened(path, ()))

    def _fill(self, job: FillPages, bounce: bytearray) -> Work:
        slots = [slot * job.page_size for slot in job.slots]
        moves = copy_pieces(self.pool, job.offsets, bounce, slots, job.payload_bytes)
        for number, move in enumerate(moves):
            offset = job.offsets[number // PIECES]
            self.files.written.append((offset, offset + job.payload_bytes))
            move()
            yield
        return Done(Status.OK)

    def _map(self, job: MapEngine) -> Work:
        def work() -> Work:
            yield
            found = self.world.by_pid.get(job.pid)
            if found is None or not found.alive or found.started_ticks != job.started_ticks:
                return Done(Status.COPY_FAILED, "no such process")
            client: Client = found  # type: ignore[assignment]
            memory = client.reach(job.bases[0])
            if memory is None or bytes(client.scratch) != job.proof:
                return Done(Status.COPY_FAILED, "wrong proof")
            if self.world.rng.random() < 0.1:
                self.world.counts["proof refused"] += 1
                return Done(Status.COPY_FAILED, "no right to read it")
            self.engines[job.mapping] = _Mapping(job, client)
            return Done(Status.OK)

        return work()

    def _differing(self, job: WriteBlocks, first: int = 0, last: int = -1) -> PagesDiffer | None:
        bad: list[int] = []
        part = slice(first, last if last >= 0 else len(job.offsets))
        if not job.checksums:
            return None
        for offset, sum_ in zip(job.offsets[part], job.checksums[part], strict=True):
            found = xxh3_64_intdigest(self.pool[offset : offset + job.summed_bytes]) or 1
            bad += [offset] if sum_ not in (0, found) else []
        return PagesDiffer(tuple(bad)) if bad else None

    def _move(
        self, job: ReadBlocks | WriteBlocks, mapping: _Mapping, first: int, last: int
    ) -> Work:
        client, size, pool = mapping.client, mapping.size, self.pool
        cuts = [size * n // PIECES for n in range(PIECES + 1)]
        reads = isinstance(job, ReadBlocks)
        differ = self._differing(job, first, last) if isinstance(job, WriteBlocks) else None
        if differ is not None:
            return differ
        for block, offset in zip(job.blocks[first:last], job.offsets[first:last], strict=True):
            for start, end in zip(cuts, cuts[1:], strict=False):
                if mapping.closed or not client.alive:
                    return Done(Status.COPY_FAILED, "the engine has gone")
                if self.world.now >= job.deadline:
                    return Done(Status.EXPIRED, "the deadline has passed")
                self.files.copying(client, self.owner, not reads)
                yield  # what has been looked at may change before the bytes move
                memory = client.reach(mapping.base) if client.alive else None
                if memory is None or (self.world.rough and self.world.rng.random() < 0.002):
                    return Done(Status.COPY_FAILED, "a short count")
                there = slice(block * size + start, block * size + end)
                here = slice(offset + start, offset + end)
                if reads:
                    self.files.written.append((here.start, here.stop))
                    pool[here] = memory[there]
                else:
                    client.judge(block)
                    memory[there] = pool[here]
        return Done(Status.OK)
