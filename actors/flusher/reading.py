"""From Fetch to Fetched: blocks of the log are read into the pool.  See wire/flusher.py.

The blocks of a Fetch wait in the order of their chain, those of several engines in turn.  Blocks
that lie behind each other in the log are read together (a *run*).  A run reserves pages of the
allocator, is read into them, is compared with its checksums, and sealed with the index; then its
pages are returned: what was published is the index's by then.  While a Seal is unanswered its pages
are neither used nor returned: it is asked again of the next index.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from pegaflow.actors.roles.pages import NO_PAGES, RESERVE_NS, Grant, Pages
from pegaflow.actors.runtime.contract import (
    MS,
    Ask,
    Effect,
    NoAnswer,
    Note,
    On,
    Part,
    Reply,
    Sender,
    on,
)
from pegaflow.actors.runtime.member import Member
from pegaflow.core.limits import MIB
from pegaflow.core.pool.geometry import MIN_PAGE, Geometry
from pegaflow.core.segments.catalog import Segment
from pegaflow.core.segments.codec import GROUP_ROWS, Row, block_sums
from pegaflow.core.series import SSD_PREFETCH_RATE, labelled, rate
from pegaflow.wire.control import LogLevel, Welcome
from pegaflow.wire.diskjobs import ReadRun, RunRead
from pegaflow.wire.flusher import Fetch, Fetched
from pegaflow.wire.index import Seal, Sealed
from pegaflow.wire.jobs import Done
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Count, Nanoseconds
from pegaflow.wire.values import ALLOCATOR, INDEX, NOBODY, Address, U64s

from .directories import Directories
from .segments import SegmentLog
from .volumes import Volumes

READ_FAULTS: Count = 3
"""Reads in a row that fail before the volume is closed: a single bad block is no dead disk."""

RUN_BYTES: Bytes = 8 * MIB
"""Bytes of one run: each costs the same messages, however long it is."""

RUN_LEAST: Bytes = MIB
"""Bytes of a run that is short for the sake of others beside it: below this a disk gets slower."""

WINDOW_BYTES: Bytes = 64 * MIB
"""Bytes of all runs of one volume: whoever asks next waits behind no more than these."""

RUNS_BESIDE: Count = 4
"""Runs into which a Fetch is cut for a flusher that has nothing else to read."""

RUN_ROWS: Count = 4 * GROUP_ROWS
"""Blocks of one run."""

STALL_NS: Nanoseconds = 1000 * MS
"""A read that takes longer than this: its volume is given nothing else until it is over."""

SEAL_NS: Nanoseconds = 1000 * MS
"""Patience with the index."""

FETCHES_MAX: Count = 4096
"""Fetches without an end: the index has bounded those of each engine."""


@dataclass(slots=True, eq=False)
class _Fetch:
    """A question of the index."""

    sender: Sender
    msg: Fetch
    todo: deque[int]  # positions that no run has named yet
    left: int  # positions without an end
    answered: bool = False
    failed: list[int] = field(default_factory=list)
    absent: list[int] = field(default_factory=list)  # those of them that are not in the log


@dataclass(slots=True, eq=False)
class _Run:
    """Blocks that are read together."""

    fetch: _Fetch
    positions: list[int]
    segment: Segment
    places: list[int]  # of their rows in the segment
    rows: list[Row]  # of equal payload and shards
    stretches: list[int]  # pages between the rows of one group and those of the next
    bytes_: int  # of their pages
    grant: Grant = NO_PAGES  # to read into, block-major


@dataclass(slots=True, eq=False)
class _Reads:
    """What is read from one volume."""

    runs: int = 0  # of blocks, from their reservation to the end of their seal
    run_bytes: int = 0  # of them
    begun_ns: dict[int, int] = field(default_factory=dict)  # reads in the kernel: number -> begin
    bad: int = 0  # in a row


class Reading(Part):
    """Open Fetches."""

    def __init__(
        self,
        *,
        member: Member,
        volumes: Volumes,
        segments: SegmentLog,
        directories: Directories,
        pages: Pages,
        counts: Counter[str],
    ) -> None:
        self._member, self._volumes, self._counts = member, volumes, counts
        self._segments, self._directories, self._pages = segments, directories, pages
        self._geometry = Geometry(0, MIN_PAGE)  # the pool's, from Welcome on
        self._turns: OrderedDict[int, deque[_Fetch]] = OrderedDict()  # engines that wait, in turn
        self.fetches = 0  # without an end
        self._reads = [_Reads() for _ in volumes]
        self._unsealed: list[tuple[_Run, Seal]] = []  # for the next index
        self._newest = 0  # number of a read

    def handlers(self) -> Iterable[On]:
        """What is to be read."""
        return (on(Fetch, self._on_fetch, INDEX),)

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """The pool is known."""
        self._geometry = Geometry(welcome.pool_bytes, welcome.extent_bytes)
        return []

    def met(self, neighbour: Address, now: int) -> list[Effect]:
        """There are pages again, or there is somebody who publishes what has been read."""
        return self.read_on(now) if neighbour.name == ALLOCATOR else self._seal_again(now)

    def gauges(self) -> dict[str, int]:
        """What is being read."""
        return {"ssd_prefetch_inflight": self.running}

    def check(self) -> None:
        """Runs add up."""
        for reads in self._reads:
            assert 0 <= reads.runs <= self._volumes.plan.prefetch_inflight
            assert bool(reads.runs) == bool(reads.run_bytes)

    def _on_fetch(self, sender: Sender, msg: Fetch, now: int) -> list[Effect]:
        if self.fetches >= FETCHES_MAX or self._member.draining:
            self._counts["ssd_prefetch_queue_full"] += len(msg.keys)
            return [Reply(sender, Fetched(Status.BUSY, tuple(range(len(msg.keys)))))]
        self.fetches += 1
        fetch = _Fetch(sender, msg, deque(range(len(msg.keys))), len(msg.keys))
        self._turns.setdefault(msg.engine, deque()).append(fetch)
        return self.read_on(now) if fetch.left else self._ended(fetch)

    def read_on(self, now: int) -> list[Effect]:
        """Begin as many runs as each volume may read at a time."""
        effects: list[Effect] = []
        passed = 0  # engines in a row whose next block has to wait for its volume
        while passed < len(self._turns):
            engine, fetches = next(iter(self._turns.items()))
            fetch = fetches[0]
            self._turns.move_to_end(engine)
            if fetch.sender.deadline and now >= fetch.sender.deadline:
                effects += self._fail(fetch, list(fetch.todo))
                fetch.todo.clear()
            elif fetch.todo:
                if self._has_to_wait(fetch, now):
                    passed += 1
                    continue
                effects += self._begin(fetch, now)
            passed = 0
            if not fetch.todo:
                fetches.popleft()
            if not fetches:
                del self._turns[engine]
        return effects

    def _has_to_wait(self, fetch: _Fetch, now: int) -> bool:
        """Whether the volume of its next block reads as much as it may."""
        place = self._volumes.catalog.find(fetch.msg.namespace, fetch.msg.keys[fetch.todo[0]])
        if place is None:
            return False
        reads, most = self._reads[place[0].volume], self._volumes.plan.prefetch_inflight
        full = reads.runs >= most or reads.run_bytes >= WINDOW_BYTES
        return full and not _is_stalled(reads, now)

    def _begin(self, fetch: _Fetch, now: int) -> list[Effect]:
        """The next run of a Fetch, or the failure of its next block."""
        msg, position = fetch.msg, fetch.todo.popleft()
        place = self._volumes.catalog.find(msg.namespace, msg.keys[position])
        if place is None:
            fetch.absent.append(position)
            return self._fail(fetch, [position])
        segment, first = place
        reads = self._reads[segment.volume]
        if _is_stalled(reads, now):
            return self._fail(fetch, [position])
        row = segment.row(first)
        payload_bytes, shards, size = row.payload_bytes, row.shards, row.bytes_
        run = _Run(
            fetch=fetch,
            positions=[position],
            segment=segment,
            places=[first],
            rows=[row],
            stretches=[shards],
            bytes_=size,
        )
        most, end = self._run_bytes(len(msg.keys) * size), row.offset + size
        while fetch.todo and len(run.rows) < RUN_ROWS and run.bytes_ + size <= most:
            found = self._volumes.catalog.find(msg.namespace, msg.keys[fetch.todo[0]])
            if found is None or found[0] is not segment:
                break
            row = segment.row(found[1])
            gap = row.offset - end
            if (
                row.payload_bytes != payload_bytes
                or row.shards != shards
                or gap not in (0, PAGE_ALIGN)
            ):
                break
            if gap:
                run.stretches.append(0)
            run.stretches[-1] += shards
            run.positions.append(fetch.todo.popleft())
            run.places.append(found[1])
            run.rows.append(row)
            run.bytes_ += size
            end = row.offset + size
        reads.runs += 1
        reads.run_bytes += run.bytes_
        segment.users += 1
        return self._reserve(run, now)

    @property
    def running(self) -> int:
        """Runs of all volumes."""
        return sum(reads.runs for reads in self._reads)

    def _run_bytes(self, total: int) -> int:
        """Most bytes of the next run of a Fetch of so many."""
        beside = max(1, RUNS_BESIDE - self.running)
        return min(RUN_BYTES, max(RUN_LEAST, total // beside))

    def _reserve(self, run: _Run, now: int) -> list[Effect]:
        if not self._pages.reachable:
            return self._over(run, False, now)
        first = run.rows[0]

        def reserved(grant: Grant | None, now: int) -> list[Effect]:
            run.grant = grant or NO_PAGES
            if grant is not None and self._volumes.has(run.segment):
                return self._read(run, now)
            return self._over(run, False, now) + self.read_on(now)

        deadline = min(run.fetch.sender.deadline or now + RESERVE_NS, now + RESERVE_NS)
        count = len(run.rows) * first.shards
        return self._pages.reserve(first.page_bytes, count, deadline, reserved)

    def _read(self, run: _Run, now: int) -> list[Effect]:
        first, volume = run.rows[0], self._volumes.of(run.segment)
        offsets = self._geometry.offsets(run.grant.pages, first.page_bytes)
        reads = self._reads[volume.number]
        self._newest += 1
        number = self._newest
        reads.begun_ns[number] = now

        def read(result: RunRead | Done, now: int) -> list[Effect]:
            begun_ns = reads.begun_ns.pop(number)
            if isinstance(result, Done):
                return self._bad_read(run, result, now) + self.read_on(now)
            reads.bad = 0
            self._counts["ssd_prefetch_bytes"] += run.bytes_
            self._counts[labelled("ssd_directory_prefetch_bytes", volume.path)] += run.bytes_
            SSD_PREFETCH_RATE.count(self._counts, rate(run.bytes_, now - begun_ns))
            return self._compare(run, result.checksums, now) + self.read_on(now)

        job = ReadRun(
            volume=volume.number,
            segment=run.segment.number,
            offset=first.offset,
            payload_bytes=first.payload_bytes,
            stretches=tuple(run.stretches),
            pages=offsets,
        )
        return self._volumes.do(volume, job, read)

    def _bad_read(self, run: _Run, done: Done, now: int) -> list[Effect]:
        """A read has failed; a volume of which several in a row do is closed."""
        volume = self._volumes.of(run.segment)
        reads = self._reads[volume.number]
        reads.bad += 1
        facts = (("path", volume.path), ("why", done.note))
        note = Note("ssd_read_failed", facts, LogLevel.WARNING, repeats="ssd_read_failed")
        effects: list[Effect] = [note, *self._over(run, False, now)]
        if reads.bad >= READ_FAULTS and volume.readable:
            reads.bad = 0
            effects += self._directories.close(volume, done, now)
        return effects

    def _compare(self, run: _Run, sums: U64s, now: int) -> list[Effect]:
        """Publish what is as it was written; what is not is never served."""
        msg, shards = run.fetch.msg, run.rows[0].shards
        good: list[int] = []
        bad: list[int] = []
        for at, (sum_, row) in enumerate(zip(block_sums(sums, shards), run.rows, strict=True)):
            (good if sum_ == row.checksum else bad).append(at)
        effects = self._corrupt(run, bad)
        if not good:
            return effects + self._over(run, True, now)
        places = [at * shards + shard for at in good for shard in range(shards)]
        positions = [run.positions[at] for at in good]
        welcome = self._member.welcome
        verify = welcome is not None and welcome.verify
        seal = Seal(
            claim=msg.number,
            namespace=msg.namespace,
            page_size=run.rows[0].page_bytes,
            payload_bytes=run.rows[0].payload_bytes,
            shards=shards,
            keys=tuple(msg.keys[p] for p in positions),
            parents=tuple(msg.parents[p] for p in positions),
            pages=tuple(run.grant.pages[at] for at in places),
            stamps=tuple(run.grant.stamps[at] for at in places),
            checksums=tuple(sums[at] for at in places) if verify else (),
            depths=tuple(run.rows[at].depth for at in good),
        )
        run.positions = positions
        self._volumes.catalog.were_read(run.segment, [run.places[at] for at in good])
        return effects + self._seal_run(run, seal, now)

    def _corrupt(self, run: _Run, bad: list[int]) -> list[Effect]:
        """These are not what was written: nobody finds them any more."""
        effects: list[Effect] = []
        for at in bad:
            row = run.rows[at]
            self._counts["ssd_blocks_corrupt"] += 1
            if self._volumes.catalog.find(row.namespace, row.key) == (run.segment, run.places[at]):
                self._volumes.catalog.forget(row.namespace, row.key)
            facts = (("segment", run.segment.number), ("offset", row.offset))
            path = ("path", self._volumes.of(run.segment).path)
            event = "ssd_block_corrupt"
            effects.append(Note(event, (path, *facts), LogLevel.ERROR, repeats=event))
        positions = [run.positions[at] for at in bad]
        run.fetch.absent += positions
        return effects + self._fail(run.fetch, positions)

    def _seal_run(self, run: _Run, seal: Seal, now: int) -> list[Effect]:
        index = self._member.peer(INDEX)
        if index == NOBODY:
            self._unsealed.append((run, seal))
            return []

        def sealed(answer: Message, now: int) -> list[Effect]:
            if isinstance(answer, NoAnswer):
                return self._seal_run(run, seal, now)
            accepted = set(answer.positions) if isinstance(answer, Sealed) else set()
            failed = [p for at, p in enumerate(run.positions) if at not in accepted]
            self._counts["ssd_prefetch_success"] += len(accepted)
            effects = self._fail(run.fetch, failed)
            run.fetch.left -= len(run.positions) - len(failed)
            run.positions = []
            return effects + self._over(run, True, now) + self.read_on(now)

        return [Ask(index, seal, now + SEAL_NS, sealed)]

    def _seal_again(self, now: int) -> list[Effect]:
        """The Seals that no index has answered, to the next one."""
        again, self._unsealed = self._unsealed, []
        return [effect for run, seal in again for effect in self._seal_run(run, seal, now)]

    def _over(self, run: _Run, sound: bool, now: int) -> list[Effect]:
        """The end of a run: its pages are the index's or nobody's."""
        effects = [] if sound else self._fail(run.fetch, run.positions)
        effects += self._pages.give_back(run.grant)
        reads = self._reads[run.segment.volume]
        reads.runs -= 1
        reads.run_bytes -= run.bytes_
        run.segment.users -= 1
        if run.segment.going and not run.segment.count:
            effects += self._segments.unlink(run.segment, now)
        return effects + self._ended(run.fetch)

    def _fail(self, fetch: _Fetch, positions: list[int]) -> list[Effect]:
        """These are not to be had."""
        if not positions:
            return []
        self._counts["ssd_prefetch_failures"] += len(positions)
        fetch.failed += positions
        fetch.left -= len(positions)
        return self._ended(fetch)

    def _ended(self, fetch: _Fetch) -> list[Effect]:
        """Answer, once the last block has ended."""
        assert fetch.left >= 0
        if fetch.left or fetch.answered:
            return []
        fetch.answered = True
        self.fetches -= 1
        failed, absent = tuple(fetch.failed), tuple(fetch.absent)
        return [Reply(fetch.sender, Fetched(Status.OK, failed, absent))]


def _is_stalled(reads: _Reads, now: int) -> bool:
    return any(now - begun_ns > STALL_NS for begun_ns in reads.begun_ns.values())
