"""The writing half of the flusher: from Flush to Flushed.  See wire/flusher.py.

A Flush is a batch.  It is written as one group, to the volume that has least to write, straight
from the pool.  If that volume fails, another one is tried; if none is left, the lease ends without
its keys.  While somebody loads, a volume rests after each group for as long as its share demands.
"""

from collections import deque

from pegaflow.actors.runtime.contract import MS, Effect, Sender
from pegaflow.core.limits import MIB
from pegaflow.core.pool.geometry import MIN_PAGE, Geometry
from pegaflow.core.segments.codec import GROUP_ROWS, HEAD_BYTES, Row, footer_bytes
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.core.series import SSD_WRITE_RATE, labelled, rate
from pegaflow.wire.control import Hello
from pegaflow.wire.diskjobs import WriteGroup
from pegaflow.wire.flusher import Flush, Flushed, Tier
from pegaflow.wire.index import Corrupt, Unheld
from pegaflow.wire.jobs import Done
from pegaflow.wire.layout import PAGE_ALIGN
from pegaflow.wire.status import Status
from pegaflow.wire.values import INDEX, Address, U64s

from .segments import Volumes
from .volume import Batch, Volume, Writer

BATCH_BYTES = 8 * MIB
"""Bytes of one group: a disk is at its best from 1 MiB on, and a load waits behind one of them."""

BATCH_PARTS = 4
"""Small blocks come in smaller groups: so many of them count as one batch."""

STRIPE_BYTES = 8 * MIB
"""Given to one volume before another has its turn: what was saved together is read in long runs."""

REST_NS = 1000 * MS
"""Longest rest of a volume after a group: one that took longer than its share of this was stopped
meanwhile, with all of us, or its disk is sick; neither lasts because we wait."""


class Writing(Volumes):
    """Open Flushes."""

    def __init__(self, address: Address, supervisor: Address, hello: Hello, plan: FlushPlan):
        super().__init__(address, supervisor, hello, plan)
        self.flushes: dict[int, Flush] = {}  # leases that we hold, by number
        self.flush_upto = 0  # newest number that we have seen
        self.geometry = Geometry(0, MIN_PAGE)  # the pool's, from Welcome on
        self.tier: Tier | None = None  # what the index was told last
        self.ending = False  # nothing more is written
        self._share = 100  # percent of the time in which to write, by the newest word
        self._last = self.volumes[0]  # where the newest batch went
        self._stripe = 0  # bytes of batches that went there in a row
        self.on(Flush, self._on_flush, INDEX)
        self.on(Unheld, self._on_unheld, INDEX)

    def up(self, now: int) -> list[Effect]:
        """The pool is known."""
        assert self.welcome is not None
        self.geometry = Geometry(self.welcome.pool_bytes, self.welcome.extent_bytes)
        return super().up(now)

    def changed(self, now: int) -> list[Effect]:
        """Tell the index, if it makes a difference."""
        tier = self._tier()
        if tier == self.tier:
            return []
        self.tier = tier
        return self.tell(INDEX, tier)

    def _tier(self) -> Tier:
        room = self.segment_bytes - HEAD_BYTES - PAGE_ALIGN - footer_bytes(1)
        return Tier(
            writable=any(v.open_to_writes for v in self.volumes) and not self.ending,
            depth=self.plan.write_queue_depth * BATCH_PARTS,
            window=self.plan.write_queue_depth * BATCH_BYTES,
            batch_blocks=GROUP_ROWS,
            batch_bytes=min(BATCH_BYTES, room // 2),
            block_bytes=room,
            prefetch=self.plan.max_prefetch_blocks if any(map(_readable, self.volumes)) else 0,
            reused_only=self.plan.reused_only,
        )

    def _on_flush(self, sender: Sender, msg: Flush, now: int) -> list[Effect]:
        if msg.number <= self.flush_upto:
            return []  # sent again, and we had it
        self.flush_upto, self._share = msg.number, max(1, msg.share)
        self.flushes[msg.number] = msg
        return self._place(Batch(msg, tuple(range(len(msg.keys)))), now)

    def _place(self, batch: Batch, now: int) -> list[Effect]:
        """Queue it behind the last one, or where least is to be written; without any volume, or
        anything to write, its lease ends."""
        msg = batch.msg
        new = [p for p in batch.positions if not self.shelf.has(msg.namespace, msg.keys[p])]
        batch = Batch(msg, tuple(new[:GROUP_ROWS]))
        volumes = [v for v in self.volumes if v.open_to_writes]
        assert self.tier is not None
        if not new or not volumes or batch.length > self.tier.block_bytes:
            return self._end(msg)
        volume = self._last
        if volume not in volumes or self._stripe + batch.length > STRIPE_BYTES:
            volume = min(volumes, key=lambda v: (_load(v), v is self._last))
            self._last, self._stripe = volume, 0
        self._stripe += batch.length
        volume.queue.append(batch)
        return self.write_on(volume, now)

    def homeless(self, batches: list[Batch], now: int) -> list[Effect]:
        """Their volume cannot be written: another one, or none."""
        self.counts["ssd_write_failures"] += sum(len(batch.positions) for batch in batches)
        return [effect for batch in batches for effect in self._place(batch, now)]

    def _end(self, msg: Flush) -> list[Effect]:
        """The end of a lease: name what is in the log."""
        if self.flushes.pop(msg.number, None) is None:
            return []
        there = tuple(key for key in msg.keys if self.shelf.has(msg.namespace, key))
        return self.tell(INDEX, Flushed(msg.number, msg.namespace, msg.payload, msg.shards, there))

    def _on_unheld(self, sender: Sender, msg: Unheld, now: int) -> list[Effect]:
        """The index cannot honour these, and evicts nothing as long as we state them: what is not
        being written yet ends at once."""
        numbers, ended = set(msg.numbers), []
        for volume in self.volumes:
            ended += [batch.msg for batch in volume.queue if batch.msg.number in numbers]
            volume.queue = deque(b for b in volume.queue if b.msg.number not in numbers)
        return [effect for flush in ended for effect in self._end(flush)]

    def write_on(self, volume: Volume, now: int) -> list[Effect]:
        """Begin as many groups as may be written at a time."""
        if volume.readable and not volume.writable and not volume.retry_at:
            return self.want_segment(volume, now)
        effects: list[Effect] = []
        while volume.queue and now >= volume.not_before and self._may_write(volume):
            writer, batch = volume.writer, volume.queue[0]
            if writer is None:
                return effects + self.want_segment(volume, now)
            if not writer.has_room(batch.length, len(batch.positions)):
                effects += self.fill(volume, now)
                continue
            effects += self._write(volume, writer, volume.queue.popleft(), now)
        return effects

    def hurry(self, now: int) -> list[Effect]:
        """Nobody who loads is spared any more."""
        self._share = 100
        for volume in self.volumes:
            volume.not_before = 0
        return [effect for volume in self.volumes for effect in self.write_on(volume, now)]

    def _may_write(self, volume: Volume) -> bool:
        """Whether the next batch may be written beside those that are."""
        batch, most = volume.queue[0], self.plan.write_inflight
        if not volume.writing or self._share < 100:
            return not volume.writing
        few = volume.writing < most * BATCH_PARTS
        return few and volume.writing_bytes + batch.length <= most * BATCH_BYTES

    def _write(self, volume: Volume, writer: Writer, batch: Batch, now: int) -> list[Effect]:
        msg, shards, begun = batch.msg, batch.msg.shards, now
        offset, index = writer.begin(batch.length, len(batch.positions))
        volume.writing += 1
        volume.writing_bytes += batch.length
        places = [p * shards + shard for p in batch.positions for shard in range(shards)]
        offsets = self.geometry.offsets([msg.pages[at] for at in places], msg.page_size)
        job = WriteGroup(
            volume.number,
            writer.segment.number,
            index,
            offset,
            msg.namespace,
            msg.page_size,
            msg.payload,
            shards,
            self.address.incarnation,
            tuple(msg.keys[p] for p in batch.positions),
            tuple(msg.depths[p] for p in batch.positions),
            offsets,
            tuple(msg.sums[at] for at in places) if msg.sums else (),
        )

        def landed(ok: bool, now: int) -> list[Effect]:
            if not ok:
                return self.homeless([batch], now)
            self.counts["ssd_blocks_written"] += len(batch.positions)
            self.counts["ssd_write_bytes"] += batch.length
            self.counts[labelled("ssd_directory_write_bytes", volume.path)] += batch.length
            return self._end(msg)

        def written(done: Done, now: int) -> list[Effect]:
            volume.writing -= 1
            volume.writing_bytes -= batch.length
            writer.writing -= 1
            if self._share < 100:
                rest = (now - begun) * (100 - self._share) // self._share
                volume.not_before = now + min(rest, REST_NS)
            if done.status is Status.OK:
                SSD_WRITE_RATE.count(self.counts, rate(batch.length, now - begun))
                rows = self._rows(job, done.values)
                effects = self.land(volume, writer, rows, landed, now)
            elif done.status is Status.CORRUPT:
                effects = self._without(batch, offsets, set(done.values), now)
                effects += self.sync(volume, writer, now)
            else:
                effects = self.fault(volume, done, now)
                effects += self.homeless([batch], now) + self.sync(volume, writer, now)
            return effects + self.write_on(volume, now)

        return self.do(volume, job, written)

    def _rows(self, job: WriteGroup, sums: U64s) -> list[Row]:
        """The rows of a group that is written."""
        length = job.shards * job.page_size
        start = job.offset + PAGE_ALIGN
        return [
            Row(
                start + at * length,
                sum_,
                job.generation,
                job.payload,
                depth,
                job.shards,
                job.namespace,
                key,
            )
            for at, (key, depth, sum_) in enumerate(zip(job.keys, job.depths, sums, strict=True))
        ]

    def _without(
        self, batch: Batch, offsets: tuple[int, ...], bad: set[int], now: int
    ) -> list[Effect]:
        """Pages of some blocks are not what was sealed: say so, and write the others."""
        msg, shards = batch.msg, batch.msg.shards
        good, pages = [], []
        for at, position in enumerate(batch.positions):
            own = range(at * shards, (at + 1) * shards)
            wrong = [n for n in own if offsets[n] in bad]
            pages += [msg.pages[position * shards + n - at * shards] for n in wrong]
            good += [] if wrong else [position]
        assert len(good) < len(batch.positions), "a device that finds nothing wrong"
        return self.tell(INDEX, Corrupt(tuple(pages))) + self._place(Batch(msg, tuple(good)), now)


def _load(volume: Volume) -> int:
    """Bytes that are to be written there."""
    return volume.writing_bytes + sum(batch.length for batch in volume.queue)


def _readable(volume: Volume) -> bool:
    return volume.readable
