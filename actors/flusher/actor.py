"""The flusher: the SSD tier's process.  See wire/flusher.py.

It is made of three halves, as it were: segments.py has the directories and their segments,
writing.py the way from the pool to the disk, reading.py the way back.  Here is what it says to whom
and when: to an index, perhaps a new one, first what the tier is and which leases it holds, then all
that is in the log, a part at a time; and what becomes of it when it has to end.
"""

from collections import deque

from pegaflow.actors.runtime.contract import MS, Ask, Effect, NoAnswer, Note, Send
from pegaflow.core.segments.codec import Row
from pegaflow.core.segments.plan import FlushPlan
from pegaflow.core.series import labelled
from pegaflow.wire.allocator import Reserved
from pegaflow.wire.control import Hello
from pegaflow.wire.flusher import Manifest, Noted, WriteAll, Written
from pegaflow.wire.index import Held, Holding
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, INDEX, NOBODY, Address

from .directories import parts
from .reading import Reading
from .writing import BATCH_PARTS

NOTED_NS = 2000 * MS
"""Patience with an index that takes in a part of the inventory; then it is said again."""

SEAL_ALL_NS = 1000 * MS
"""Time for footers at the end: without them the next start reads the last segments."""

_Listed = tuple[bytes, int, int, tuple[bytes, ...]]


class Flusher(Reading):
    """Writes blocks to the log and reads them back."""

    def __init__(self, address: Address, supervisor: Address, hello: Hello, plan: FlushPlan):
        super().__init__(address, supervisor, hello, plan)
        self._untold: deque[_Listed] = deque()  # what the index does not know to be in the log
        self._noting = False  # a Manifest is unanswered
        self._all_told = False  # the last Manifest was said to this index
        self._drain_by = 0  # when we end, whatever is open; 0: we do not drain

    def gauges(self) -> dict[str, int]:
        """How things are."""
        volumes = self.volumes
        return {
            "ssd_blocks": self.shelf.blocks,
            "ssd_bytes": sum(v.bytes_ for v in volumes),
            "ssd_capacity_bytes": self.plan.capacity or 0,
            "ssd_volumes": len(volumes),
            "ssd_fault": max((int(v.fault) for v in volumes), default=0),
            "ssd_readable_volumes": sum(v.readable for v in volumes),
            "ssd_writable_volumes": sum(v.open_to_writes for v in volumes),
            "ssd_loading_volumes": sum(v.state in ("opening", "loading") for v in volumes),
            "ssd_gone_volumes": sum(v.fault is Status.GONE for v in volumes),
            "ssd_in_use_volumes": sum(v.fault is Status.IN_USE for v in volumes),
            "ssd_write_inflight": sum(v.writing for v in volumes),
            "ssd_write_queue_pending": len(self.flushes),
            "ssd_prefetch_inflight": self.running,
            **{
                labelled(f"ssd_directory_{name}", volume.path): value
                for volume in volumes
                for name, value in volume.gauges().items()
            },
        }

    def remarks(self) -> tuple[str, ...]:
        """Why directories cannot be used, or not be written to."""
        return tuple(volume.why for volume in self.volumes if volume.why)

    def check(self) -> None:
        """The map agrees with its segments; runs and pages add up."""
        self.shelf.check()
        for volume in self.volumes:
            assert 0 <= volume.writing <= self.plan.write_inflight * BATCH_PARTS
            assert bool(volume.writing) == bool(volume.writing_bytes)
            assert 0 <= volume.runs <= self.plan.prefetch_inflight
            assert bool(volume.runs) == bool(volume.run_bytes)
            for number, segment in volume.segments.items():
                assert (segment.number, segment.volume) == (number, volume.number)
                assert segment.users >= 0
            assert list(volume.segments) == sorted(volume.segments)

    def wake_at(self) -> int | None:
        """The next beat, retry, or group of a volume that rests."""
        times = [self.next_beat, self._drain_by or self.next_beat]
        for volume in self.volumes:
            if volume.retry_at:
                times.append(volume.retry_at)
            if volume.queue and volume.not_before and not volume.writing:
                times.append(volume.not_before)
        return min(times)

    def wake(self, now: int) -> list[Effect]:
        """Try again what is due; end when it is time."""
        if self._drain_by and now >= self._drain_by:
            self._drain_by = 0
            return self.farewell()
        effects = super().wake(now) + self.tend(now)
        for volume in self.volumes:
            if volume.queue and now >= volume.not_before:
                effects += self.write_on(volume, now)
        return effects + self._tell_on(now)

    def beat(self, now: int) -> list[Effect]:
        """State what we hold, so that the granters can mend what was lost."""
        holding, stock = self._holding(), self.stock()
        tier = self.tell(INDEX, self.tier) if self.tier is not None else []
        told = self.tell(INDEX, holding) + self.tell(ALLOCATOR, stock)
        return tier + told + self.watch(now)

    def _holding(self) -> Holding:
        return Holding(self.flush_upto, tuple(self.flushes), 0, ())

    def met(self, neighbour: Address, now: int) -> list[Effect]:
        """A granter, perhaps in a new life: state all that we hold, before anything else."""
        if neighbour.name == ALLOCATOR:
            return [Send(neighbour, self.stock()), *self.read_on(now)]
        self.tier = None
        effects = self.changed(now)
        for number, msg in sorted(self.flushes.items()):
            effects.append(Send(neighbour, Held(number, msg.shards, msg.pages)))
        effects.append(Send(neighbour, self._holding()))
        self._noting = self._all_told = False
        self._untold.clear()
        for row, keys in self.shelf.listing():
            self._list(row, keys)
        return effects + self.seal_again(now) + self._tell_on(now)

    def late(self, sender: Address, msg: Message, now: int) -> list[Effect]:
        """Pages that nobody waits for go back."""
        if isinstance(msg, Reserved) and self.peers.get(sender.name) == sender:
            return self.late_pages(msg)
        return []

    # the inventory

    def found(self, rows: list[Row], now: int) -> list[Effect]:
        """These were in the log all the time: the index should know."""
        spaces: dict[bytes, list[Row]] = {}
        for row in rows:
            spaces.setdefault(row.namespace, []).append(row)
        for some in spaces.values():
            self._list(some[0], [row.key for row in some])
        return self._tell_on(now)

    def _list(self, row: Row, keys: list[bytes]) -> None:
        for part in parts(keys):
            self._untold.append((row.namespace, row.payload, row.shards, part))

    def _tell_on(self, now: int) -> list[Effect]:
        """Say the next part, once the one before it is taken in; in the end, that it was all."""
        index = self.peer(INDEX)
        if index == NOBODY or self._noting:
            return []
        part = Manifest(b"", 0, 0, (), True)
        while self._untold:
            namespace, payload, shards, keys = self._untold[0]
            keys = tuple(key for key in keys if self.shelf.has(namespace, key))
            if keys:
                part = Manifest(namespace, payload, shards, keys)
                break
            self._untold.popleft()
        loading = any(volume.state in ("opening", "loading") for volume in self.volumes)
        if part.last and (loading or self._all_told):
            return []
        self._noting = True

        def noted(answer: Message, now: int) -> list[Effect]:
            if self.peer(INDEX) != index:
                return []
            self._noting = False
            if isinstance(answer, Noted):
                self._all_told = part.last
                if not part.last:
                    self._untold.popleft()
            return self._tell_on(now)

        return [Ask(index, part, now + NOTED_NS, noted)]

    # the end

    def drain(self, now: int) -> list[Effect]:
        """Write what is queued, for as long as we may; then the footers."""
        self._drain_by = now + self.plan.drain_ns + SEAL_ALL_NS
        effects = self.changed(now) + self.hurry(now)
        index = self.peer(INDEX)
        if index == NOBODY:
            return effects + self._finish(now)

        def written(answer: Message, now: int) -> list[Effect]:
            left = answer.left if isinstance(answer, Written) else 0
            note: list[Effect] = []
            if left or isinstance(answer, NoAnswer):
                self.counts["ssd_drain_left"] += left
                note = [Note("ssd_drain_left", (("blocks", left),), "warning")]
            return note + self._finish(now)

        return [*effects, Ask(index, WriteAll(), now + self.plan.drain_ns, written)]

    def _finish(self, now: int) -> list[Effect]:
        """Nothing more is written: the footers, then farewell."""
        self.ending = True
        effects = self.changed(now)
        for volume in self.volumes:
            effects += self.fill(volume, now)
        return effects + self.sealed(now)

    def sealed(self, now: int) -> list[Effect]:
        """The last segment was sealed, perhaps."""
        return self.farewell() if self.ending and not self.writers else []
