"""From Flush to Flushed: blocks of the pool are written to the log.  See wire/flusher.py.

A Flush is a batch.  It is written as one group, to the volume that has least to write, straight
from the pool.  If that volume fails, another one is tried; if none is left, the lease ends without
its keys.  While somebody loads, a volume rests after each group for as long as its share demands.

Its leases are a book of the index's (roles/holder.py).
"""

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction

from pegaflow.actors.runtime.contract import MS, Effect, On, Part, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.core.grants import Holdings
from pegaflow.core.limits import MIB
from pegaflow.core.pool.geometry import MIN_PAGE, Geometry
from pegaflow.core.segments.codec import GROUP_ROWS, Row
from pegaflow.core.series import SSD_WRITE_RATE, labelled, rate
from pegaflow.wire.control import Welcome
from pegaflow.wire.diskjobs import GroupWritten, WriteGroup
from pegaflow.wire.flusher import Flush, Flushed
from pegaflow.wire.identities import NO_CLAIM, LeaseId
from pegaflow.wire.index import Corrupt, Held, LeasesHeld, LeasesLost
from pegaflow.wire.jobs import Done, PagesDiffer
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.message import Message
from pegaflow.wire.units import Bytes, Nanoseconds
from pegaflow.wire.values import INDEX, U64s

from .segments import SegmentLog, Writer
from .tier import BATCH_BYTES, BATCH_PARTS
from .volumes import Volume, Volumes

STRIPE_BYTES: Bytes = 8 * MIB
"""Given to one volume before another has its turn: what was saved together is read in long runs."""

REST_NS: Nanoseconds = 1000 * MS
"""Longest rest of a volume after a group: one that took longer than its share of this was stopped
meanwhile, with all of us, or its disk is sick; neither lasts because we wait."""

ALWAYS = Fraction(1)


@dataclass(slots=True, eq=False)
class Batch:
    """Blocks of one Flush that are written together."""

    msg: Flush
    positions: tuple[int, ...]

    @property
    def bytes_(self) -> int:
        """Bytes of their pages."""
        return len(self.positions) * self.msg.shards * self.msg.page_size


@dataclass(slots=True, eq=False)
class _Queue:
    """What is to be written to one volume."""

    volume: Volume
    batches: deque[Batch] = field(default_factory=deque)
    writing: int = 0  # groups under way
    writing_bytes: int = 0  # of their blocks
    next_ns: int = 0  # when the next may begin

    @property
    def load(self) -> int:
        """Bytes that are to be written."""
        return self.writing_bytes + sum(batch.bytes_ for batch in self.batches)


class WriteBack(Part):
    """Open Flushes."""

    def __init__(
        self, member: Member, volumes: Volumes, segments: SegmentLog, counts: Counter[str]
    ) -> None:
        self._member, self._volumes, self._segments = member, volumes, segments
        self._counts = counts
        self._geometry = Geometry(0, MIN_PAGE)  # the pool's, from Welcome on
        self.flushes: Holdings[LeaseId, Flush] = Holdings(LeaseId)  # leases of the index
        self._share = ALWAYS  # of the time: in which to write, by the newest word
        self._queues = [_Queue(volume) for volume in volumes]
        self._last = self._queues[0]  # where the newest batch went
        self._stripe_bytes = 0  # bytes of batches that went there in a row

    def handlers(self) -> Iterable[On]:
        """What is to be written, and what is not any more."""
        return (on(Flush, self._on_flush, INDEX), on(LeasesLost, self._on_leases_lost, INDEX))

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """The pool is known."""
        self._geometry = Geometry(welcome.pool_bytes, welcome.extent_bytes)
        return []

    def restate(self, now: int) -> list[Effect]:
        """Each lease."""
        tell = self._member.tell
        return [
            effect
            for number, msg in self.flushes.items()
            for effect in tell(INDEX, Held(number, msg.shards, msg.pages))
        ]

    def statement(self) -> LeasesHeld:
        """The leases."""
        return LeasesHeld(self.flushes.upto, self.flushes.numbers(), NO_CLAIM, ())

    def go_on(self, now: int) -> list[Effect]:
        """Nothing: the index sends what it wants to be written."""
        return []

    def too_late(self, msg: Message, now: int) -> list[Effect]:
        """Nothing: leases are no answers."""
        return []

    def wake_at(self) -> int | None:
        """The next group of a volume that rests."""
        resting = (q for q in self._queues if q.batches and q.next_ns and not q.writing)
        return min((queue.next_ns for queue in resting), default=None)

    def wake(self, now: int) -> list[Effect]:
        """Write where the rest is over."""
        effects: list[Effect] = []
        for queue in self._queues:
            if queue.batches and now >= queue.next_ns:
                effects += self.write_on(queue.volume, now)
        return effects

    def gauges(self) -> dict[str, int]:
        """What is to be written."""
        return {
            "ssd_write_inflight": sum(queue.writing for queue in self._queues),
            "ssd_write_queue_pending": len(self.flushes),
        }

    def check(self) -> None:
        """Groups add up."""
        for queue in self._queues:
            assert 0 <= queue.writing <= self._volumes.plan.write_inflight * BATCH_PARTS
            assert bool(queue.writing) == bool(queue.writing_bytes)

    def _on_flush(self, sender: Sender, msg: Flush, now: int) -> list[Effect]:
        if not self.flushes.hear(msg.number):
            return []  # sent again, and we had it
        self._share = msg.share
        self.flushes.hold(msg.number, msg)
        return self._place(Batch(msg, tuple(range(len(msg.keys)))), now)

    def _place(self, batch: Batch, now: int) -> list[Effect]:
        """Queue it behind the last one, or where least is to be written; without any volume, or
        anything to write, its lease ends."""
        msg, catalog = batch.msg, self._volumes.catalog
        new = [p for p in batch.positions if not catalog.has(msg.namespace, msg.keys[p])]
        batch = Batch(msg, tuple(new[:GROUP_ROWS]))
        queues = [queue for queue in self._queues if queue.volume.open_to_writes]
        if not new or not queues or batch.bytes_ > self._volumes.block_bytes:
            return self._end(msg)
        queue = self._last
        if queue not in queues or self._stripe_bytes + batch.bytes_ > STRIPE_BYTES:
            queue = min(queues, key=lambda q: (q.load, q is self._last))
            self._last, self._stripe_bytes = queue, 0
        self._stripe_bytes += batch.bytes_
        queue.batches.append(batch)
        return self.write_on(queue.volume, now)

    def reassign(self, volume: Volume, now: int) -> list[Effect]:
        """Blocks queued for a volume cannot be written there: other volumes get them, or their
        leases end.
        """
        queue = self._queues[volume.number]
        batches = list(queue.batches)
        queue.batches.clear()
        return self._reassign(batches, now)

    def _reassign(self, batches: list[Batch], now: int) -> list[Effect]:
        self._counts["ssd_write_failures"] += sum(len(batch.positions) for batch in batches)
        return [effect for batch in batches for effect in self._place(batch, now)]

    def _end(self, msg: Flush) -> list[Effect]:
        """The end of a lease: name what is in the log."""
        if self.flushes.end(msg.number) is None:
            return []
        there = tuple(k for k in msg.keys if self._volumes.catalog.has(msg.namespace, k))
        word = Flushed(msg.number, msg.namespace, msg.payload_bytes, msg.shards, keys=there)
        return self._member.tell(INDEX, word)

    def _on_leases_lost(self, sender: Sender, msg: LeasesLost, now: int) -> list[Effect]:
        """The index cannot honour these, and evicts nothing as long as we state them: what is not
        being written yet ends at once."""
        numbers, ended = set(msg.numbers), []
        for queue in self._queues:
            ended += [batch.msg for batch in queue.batches if batch.msg.number in numbers]
            queue.batches = deque(b for b in queue.batches if b.msg.number not in numbers)
        return [effect for flush in ended for effect in self._end(flush)]

    def write_on(self, volume: Volume, now: int) -> list[Effect]:
        """Begin as many groups on a volume as may be under way."""
        if volume.readable and not volume.writable and not volume.retry_at_ns:
            return self._segments.want_segment(volume, now)
        queue = self._queues[volume.number]
        effects: list[Effect] = []
        while queue.batches and now >= queue.next_ns and self._may_write(queue):
            writer, batch = self._segments.writer(volume), queue.batches[0]
            if writer is None:
                return effects + self._segments.want_segment(volume, now)
            if not writer.has_room(batch.bytes_, len(batch.positions)):
                effects += self._segments.close_segment(volume, now)
                continue
            effects += self._write(writer, queue.batches.popleft(), now)
        return effects

    def hurry(self, now: int) -> list[Effect]:
        """Nobody who loads is spared any more."""
        self._share = ALWAYS
        for queue in self._queues:
            queue.next_ns = 0
        return [effect for volume in self._volumes for effect in self.write_on(volume, now)]

    def _may_write(self, queue: _Queue) -> bool:
        """Whether the next batch may be written beside those that are."""
        batch, most = queue.batches[0], self._volumes.plan.write_inflight
        if not queue.writing or self._share < ALWAYS:
            return not queue.writing
        few = queue.writing < most * BATCH_PARTS
        return few and queue.writing_bytes + batch.bytes_ <= most * BATCH_BYTES

    def _write(self, writer: Writer, batch: Batch, now: int) -> list[Effect]:
        volume, begun_ns = writer.volume, now
        queue = self._queues[volume.number]
        job = self._job(writer, batch)
        queue.writing += 1
        queue.writing_bytes += batch.bytes_

        def durable(ok: bool, now: int) -> list[Effect]:
            if not ok:
                return self._reassign([batch], now)
            self._counts["ssd_blocks_written"] += len(batch.positions)
            self._counts["ssd_write_bytes"] += batch.bytes_
            self._counts[labelled("ssd_directory_write_bytes", volume.path)] += batch.bytes_
            return self._end(batch.msg)

        def written(result: GroupWritten | PagesDiffer | Done, now: int) -> list[Effect]:
            queue.writing -= 1
            queue.writing_bytes -= batch.bytes_
            writer.writing -= 1
            if self._share < ALWAYS:
                rest_ns = int((now - begun_ns) * (ALWAYS - self._share) / self._share)
                queue.next_ns = now + min(rest_ns, REST_NS)
            if isinstance(result, GroupWritten):
                SSD_WRITE_RATE.count(self._counts, rate(batch.bytes_, now - begun_ns))
                rows = _rows(job, result.checksums)
                effects = self._segments.written(writer, rows, durable, now)
            elif isinstance(result, PagesDiffer):
                effects = self._without(batch, job.pages, set(result.offsets), now)
                effects += self._segments.sync(writer, now)
            else:
                effects = self._segments.fault(volume, result, now)
                effects += self._reassign([batch], now) + self._segments.sync(writer, now)
            return effects + self.write_on(volume, now)

        return self._volumes.do(volume, job, written)

    def _job(self, writer: Writer, batch: Batch) -> WriteGroup:
        """A new group of the segment."""
        msg, shards = batch.msg, batch.msg.shards
        places = [p * shards + shard for p in batch.positions for shard in range(shards)]
        offset, index = writer.begin(batch.bytes_, len(batch.positions))
        return WriteGroup(
            volume=writer.volume.number,
            segment=writer.segment.number,
            index=index,
            offset=offset,
            namespace=msg.namespace,
            page_size=msg.page_size,
            payload_bytes=msg.payload_bytes,
            shards=shards,
            generation=self._member.address.incarnation,
            keys=tuple(msg.keys[p] for p in batch.positions),
            depths=tuple(msg.depths[p] for p in batch.positions),
            pages=self._geometry.offsets([msg.pages[at] for at in places], msg.page_size),
            sums=tuple(msg.sums[at] for at in places) if msg.sums else (),
        )

    def _without(self, batch: Batch, offsets: U64s, bad: set[int], now: int) -> list[Effect]:
        """Pages of some blocks are not what was sealed: say so, and write the others."""
        msg, shards = batch.msg, batch.msg.shards
        good, pages = [], []
        for at, position in enumerate(batch.positions):
            own = range(at * shards, (at + 1) * shards)
            wrong = [n for n in own if offsets[n] in bad]
            pages += [msg.pages[position * shards + n - at * shards] for n in wrong]
            good += [] if wrong else [position]
        assert len(good) < len(batch.positions), "a device that finds nothing wrong"
        corrupt = self._member.tell(INDEX, Corrupt(tuple(pages)))
        return corrupt + self._place(Batch(msg, tuple(good)), now)


def _rows(job: WriteGroup, sums: U64s) -> list[Row]:
    """The rows of a group that is written."""
    each_bytes = job.shards * job.page_size
    start = job.offset + PAGE_ALIGN
    return [
        Row(
            offset=start + at * each_bytes,
            checksum=sum_,
            generation=job.generation,
            payload_bytes=job.payload_bytes,
            depth=depth,
            shards=job.shards,
            namespace=job.namespace,
            key=key,
        )
        for at, (key, depth, sum_) in enumerate(zip(job.keys, job.depths, sums, strict=True))
    ]
