"""The reading half of the flusher: from Fetch to Fetched.  See wire/flusher.py.

The blocks of a Fetch wait in the order of their chain, those of several engines in turn.  Blocks
that lie behind each other in the log are read together (a *run*).  A run reserves pages of the
allocator, is read into them, is compared with its checksums, and sealed with the index; then its
pages are returned: what was published is the index's by then.  While a Seal is unanswered its pages
are neither used nor returned: it is asked again of the next index.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from pegaflow.actors.runtime.contract import MS, Ask, Effect, NoAnswer, Note, Reply, Sender
from pegaflow.core.limits import MIB
from pegaflow.core.segments.catalog import Segment
from pegaflow.core.segments.codec import GROUP_ROWS, Row, block_sums
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.core.series import SSD_PREFETCH_RATE, labelled, rate
from pegaflow.wire.allocator import Reserve, Reserved, Return, Stock
from pegaflow.wire.control import Hello
from pegaflow.wire.diskjobs import ReadRun
from pegaflow.wire.flusher import Fetch, Fetched
from pegaflow.wire.index import Seal, Sealed
from pegaflow.wire.jobs import Done
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, INDEX, NOBODY, Address, U64s

from .volume import Volume
from .writing import Writing

READ_FAULTS = 3
"""Reads in a row that fail before the volume is closed: a single bad block is no dead disk."""

RUN_BYTES = 8 * MIB
"""Bytes of one run: each costs the same messages, however long it is."""

RUN_LEAST = MIB
"""Bytes of a run that is short for the sake of others beside it: below this a disk gets slower."""

WINDOW_BYTES = 64 * MIB
"""Bytes of all runs of one volume: whoever asks next waits behind no more than these."""

RUNS_BESIDE = 4
"""Runs into which a Fetch is cut for a flusher that has nothing else to read."""

RUN_ROWS = 4 * GROUP_ROWS
"""Blocks of one run."""

STALL_NS = 1000 * MS
"""A read that takes longer than this: its volume is given nothing else until it is over."""

RESERVE_NS = 1000 * MS
"""Patience with the allocator."""

SEAL_NS = 1000 * MS
"""Patience with the index."""

FETCHES_MAX = 4096
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
    length: int  # bytes of their pages
    pages: U64s = ()  # block-major, once they are reserved
    stamps: U64s = ()


class Reading(Writing):
    """Open Fetches."""

    def __init__(self, address: Address, supervisor: Address, hello: Hello, plan: FlushPlan):
        super().__init__(address, supervisor, hello, plan)
        self._turns: OrderedDict[int, deque[_Fetch]] = OrderedDict()  # engines that wait, in turn
        self._fetches = 0  # without an end
        self.pages: dict[int, int] = {}  # that we hold -> bytes of each
        self.granted_upto = 0  # newest grant that we have seen
        self._unsealed: list[tuple[_Run, Seal]] = []  # for the next index
        self._reads = 0  # newest number of a read
        self.on(Fetch, self._on_fetch, INDEX)
        self.on(Reserved, self._on_reserved_again, ALLOCATOR)

    def stock(self) -> Stock:
        """What we hold of the allocator's."""
        return Stock(self.granted_upto, tuple(self.pages), 0, tuple(self.pages.values()))

    def _on_fetch(self, sender: Sender, msg: Fetch, now: int) -> list[Effect]:
        if self._fetches >= FETCHES_MAX or self.draining:
            self.counts["ssd_prefetch_queue_full"] += len(msg.keys)
            return [Reply(sender, Fetched(Status.BUSY, tuple(range(len(msg.keys)))))]
        self._fetches += 1
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
        place = self.shelf.find(fetch.msg.namespace, fetch.msg.keys[fetch.todo[0]])
        if place is None:
            return False
        volume = self.volumes[place[0].volume]
        full = volume.runs >= self.plan.prefetch_inflight or volume.run_bytes >= WINDOW_BYTES
        return full and not self._stalled(volume, now)

    def _begin(self, fetch: _Fetch, now: int) -> list[Effect]:
        """The next run of a Fetch, or the failure of its next block."""
        msg, position = fetch.msg, fetch.todo.popleft()
        place = self.shelf.find(msg.namespace, msg.keys[position])
        if place is None:
            fetch.absent.append(position)
            return self._fail(fetch, [position])
        segment, first = place
        volume = self.volumes[segment.volume]
        if self._stalled(volume, now):
            return self._fail(fetch, [position])
        row = segment.row(first)
        payload, shards, size = row.payload, row.shards, row.length
        run = _Run(fetch, [position], segment, [first], [row], [shards], size)
        most, end = self._run_bytes(len(msg.keys) * size), row.offset + size
        while fetch.todo and len(run.rows) < RUN_ROWS and run.length + size <= most:
            found = self.shelf.find(msg.namespace, msg.keys[fetch.todo[0]])
            if found is None or found[0] is not segment:
                break
            row = segment.row(found[1])
            gap = row.offset - end
            if row.payload != payload or row.shards != shards or gap not in (0, PAGE_ALIGN):
                break
            if gap:
                run.stretches.append(0)
            run.stretches[-1] += shards
            run.positions.append(fetch.todo.popleft())
            run.places.append(found[1])
            run.rows.append(row)
            run.length += size
            end = row.offset + size
        volume.runs += 1
        volume.run_bytes += run.length
        segment.users += 1
        return self._reserve(run, now)

    @property
    def running(self) -> int:
        """Runs of all volumes."""
        return sum(volume.runs for volume in self.volumes)

    def _run_bytes(self, total: int) -> int:
        """Most bytes of the next run of a Fetch of so many."""
        beside = max(1, RUNS_BESIDE - self.running)
        return min(RUN_BYTES, max(RUN_LEAST, total // beside))

    def _stalled(self, volume: Volume, now: int) -> bool:
        return any(now - since > STALL_NS for since in volume.reads.values())

    def _reserve(self, run: _Run, now: int) -> list[Effect]:
        allocator = self.peer(ALLOCATOR)
        if allocator == NOBODY:
            return self._over(run, False, now)
        first = run.rows[0]
        count = len(run.rows) * first.shards

        def reserved(answer: Message, now: int) -> list[Effect]:
            known = isinstance(answer, Reserved) and answer.number > self.granted_upto
            if not isinstance(answer, Reserved) or not known or answer.status is not Status.OK:
                return self._over(run, False, now) + self.read_on(now)
            self.granted_upto = answer.number
            self.pages.update(dict.fromkeys(answer.pages, first.page_bytes))
            run.pages, run.stamps = answer.pages, answer.stamps
            volume = self.volumes[run.segment.volume]
            there = volume.segments.get(run.segment.number) is run.segment
            if there:
                return self._read(run, volume, now)
            return self._over(run, False, now) + self.read_on(now)

        deadline = min(run.fetch.sender.deadline or now + RESERVE_NS, now + RESERVE_NS)
        return [Ask(allocator, Reserve(first.page_bytes, count), deadline, reserved)]

    def _read(self, run: _Run, volume: Volume, now: int) -> list[Effect]:
        first = run.rows[0]
        offsets = self.geometry.offsets(run.pages, first.page_bytes)
        self._reads += 1
        number = self._reads
        volume.reads[number] = now

        def read(done: Done, now: int) -> list[Effect]:
            begun = volume.reads.pop(number)
            if done.status is not Status.OK:
                return self._bad_read(run, volume, done, now) + self.read_on(now)
            volume.bad_reads = 0
            self.counts["ssd_prefetch_bytes"] += run.length
            self.counts[labelled("ssd_directory_prefetch_bytes", volume.path)] += run.length
            SSD_PREFETCH_RATE.count(self.counts, rate(run.length, now - begun))
            return self._compare(run, done.values, now) + self.read_on(now)

        stretches = tuple(run.stretches)
        file = (volume.number, run.segment.number)
        job = ReadRun(*file, first.offset, first.payload, stretches, offsets)
        return self.do(volume, job, read)

    def _bad_read(self, run: _Run, volume: Volume, done: Done, now: int) -> list[Effect]:
        """A read has failed; a volume of which several in a row do is closed."""
        volume.bad_reads += 1
        facts = (("path", volume.path), ("why", done.note))
        effects: list[Effect] = [Note("ssd_read_failed", facts, "warning", "ssd_read_failed")]
        effects += self._over(run, False, now)
        if volume.bad_reads >= READ_FAULTS and volume.readable:
            volume.bad_reads = 0
            effects += self.close(volume, done, now)
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
        verify = self.welcome is not None and self.welcome.verify
        seal = Seal(
            msg.number,
            msg.namespace,
            run.rows[0].page_bytes,
            run.rows[0].payload,
            shards,
            tuple(msg.keys[p] for p in positions),
            tuple(msg.parents[p] for p in positions),
            tuple(run.pages[at] for at in places),
            tuple(run.stamps[at] for at in places),
            tuple(sums[at] for at in places) if verify else (),
            tuple(run.rows[at].depth for at in good),
        )
        run.positions = positions
        self.shelf.were_read(run.segment, [run.places[at] for at in good])
        return effects + self._seal_run(run, seal, now)

    def _corrupt(self, run: _Run, bad: list[int]) -> list[Effect]:
        """These are not what was written: nobody finds them any more."""
        effects: list[Effect] = []
        for at in bad:
            row = run.rows[at]
            self.counts["ssd_blocks_corrupt"] += 1
            if self.shelf.find(row.namespace, row.key) == (run.segment, run.places[at]):
                self.shelf.forget(row.namespace, row.key)
            facts = (("segment", run.segment.number), ("offset", row.offset))
            path = ("path", self.volumes[run.segment.volume].path)
            effects.append(Note("ssd_block_corrupt", (path, *facts), "error", "ssd_block_corrupt"))
        positions = [run.positions[at] for at in bad]
        run.fetch.absent += positions
        return effects + self._fail(run.fetch, positions)

    def _seal_run(self, run: _Run, seal: Seal, now: int) -> list[Effect]:
        index = self.peer(INDEX)
        if index == NOBODY:
            self._unsealed.append((run, seal))
            return []

        def sealed(answer: Message, now: int) -> list[Effect]:
            if isinstance(answer, NoAnswer):
                return self._seal_run(run, seal, now)
            accepted = set(answer.positions) if isinstance(answer, Sealed) else set()
            failed = [p for at, p in enumerate(run.positions) if at not in accepted]
            self.counts["ssd_prefetch_success"] += len(accepted)
            effects = self._fail(run.fetch, failed)
            run.fetch.left -= len(run.positions) - len(failed)
            run.positions = []
            return effects + self._over(run, True, now) + self.read_on(now)

        return [Ask(index, seal, now + SEAL_NS, sealed)]

    def seal_again(self, now: int) -> list[Effect]:
        """The Seals that no index has answered, to the next one."""
        again, self._unsealed = self._unsealed, []
        return [effect for run, seal in again for effect in self._seal_run(run, seal, now)]

    def _over(self, run: _Run, sound: bool, now: int) -> list[Effect]:
        """The end of a run: its pages are the index's or nobody's."""
        effects = [] if sound else self._fail(run.fetch, run.positions)
        effects += self._give_back(run.pages)
        volume = self.volumes[run.segment.volume]
        volume.runs -= 1
        volume.run_bytes -= run.length
        run.segment.users -= 1
        if run.segment.going and not run.segment.count:
            effects += self.unlink(volume, run.segment, now)
        return effects + self._ended(run.fetch)

    def _give_back(self, pages: U64s) -> list[Effect]:
        for page in pages:
            del self.pages[page]
        return self.tell(ALLOCATOR, Return(pages)) if pages else []

    def _fail(self, fetch: _Fetch, positions: list[int]) -> list[Effect]:
        """These are not to be had."""
        if not positions:
            return []
        self.counts["ssd_prefetch_failures"] += len(positions)
        fetch.failed += positions
        fetch.left -= len(positions)
        return self._ended(fetch)

    def _ended(self, fetch: _Fetch) -> list[Effect]:
        """Answer, once the last block has ended."""
        assert fetch.left >= 0
        if fetch.left or fetch.answered:
            return []
        fetch.answered = True
        self._fetches -= 1
        failed, absent = tuple(fetch.failed), tuple(fetch.absent)
        return [Reply(fetch.sender, Fetched(Status.OK, failed, absent))]

    def _on_reserved_again(self, sender: Sender, msg: Reserved, now: int) -> list[Effect]:
        return self.late_pages(msg)

    def late_pages(self, msg: Reserved) -> list[Effect]:
        """A grant that nobody waits for goes back, unless we have it."""
        if msg.status is not Status.OK or msg.number <= self.granted_upto:
            return []
        self.granted_upto = msg.number
        return self.tell(ALLOCATOR, Return(msg.pages))
