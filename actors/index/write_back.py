"""The half of the index that has blocks written to the log.  See wire/flusher.py.

A block that is saved comes into the backlog, and from there, as fast as the flusher takes them,
into Flushes.  Each of them is a lease of the flusher, so nothing of it is evicted before it has
ended.  What ends without being in the log goes back into the backlog, if it was not the block's
own fault.

What the log has (`stored`) is known by the word of the flusher that lives; when it dies, nothing is
known until the next one has said its Manifest.  Then every resident block is looked at once, so
that what an earlier life saved and did not write is written too.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

from pegaflow.actors.runtime.contract import MS, Effect, Reply, Send, Sender
from pegaflow.core.blocks.backlog import Backlog
from pegaflow.core.blocks.leases import Lease
from pegaflow.core.blocks.table import Block
from pegaflow.core.limits import MIB
from pegaflow.core.pool.ledger import Ledger
from pegaflow.core.pool.scan import occupied
from pegaflow.wire.control import Hello, Welcome
from pegaflow.wire.flusher import Flush, Flushed, Forget, Manifest, Noted, Tier, WriteAll, Written
from pegaflow.wire.index import Held
from pegaflow.wire.values import FLUSHER, LIST_MAX, NOBODY, Address

from .recovery import Inheriting

NO_TIER = Tier(False, 0, 0, 0, 0, 0, 0)
"""What is known of a flusher that has not said its Tier."""

POOL_SHARE = 8
"""The Flushes that are open hold at most one part in so many of the pool: it cannot be evicted."""

LOOK_PAGES = 4096
"""Pages looked at in one go for blocks that are not in the log: a few milliseconds."""

GENTLE_NS = 200 * MS
"""So long after somebody has loaded blocks the next load is expected."""

GENTLE_BYTES = MIB
"""While somebody loads, a Flush has no more: a load waits behind one of them at most."""

GENTLE_PERCENT = 10
"""Percent of the time in which the log is written while somebody loads."""

PRESSED_PERCENT = 50
"""The same while blocks are lost because they could not be written in time."""

PRESSED_NS = 1000 * MS
"""So long after the last one that was lost."""

WRITTEN_NS = 50 * MS
"""Written is said so long before its deadline, if not everything is in the log by then."""


@dataclass(frozen=True, slots=True)
class Space:
    """How the blocks of a namespace are cut."""

    payload: int  # bytes of a page that mean something
    shards: int


class Flushing(Inheriting):
    """What is in the log, what is on its way there, and what is still to go."""

    def __init__(
        self,
        address: Address,
        supervisor: Address,
        hello: Hello,
        open_ledger: Callable[[Welcome], Ledger],
    ) -> None:
        super().__init__(address, supervisor, hello, open_ledger)
        self.flusher = NOBODY  # who has told us what is in the log
        self.tier = NO_TIER
        self.stored: dict[bytes, set[bytes]] = {}  # namespace -> keys in the log; none empty
        self.spaces: dict[bytes, Space] = {}  # of the same namespaces
        self.backlog = Backlog()
        self.in_flight: set[Block] = set()  # in leases of the flusher
        self._flight_bytes = 0  # of their pages
        self._rescued: set[Block] = set()  # of those, the ones that go once they are written
        self._look_at: int | None = None  # next page to look at for what is not in the log
        self._loaded_at = -GENTLE_NS  # when a lease of a session ended last
        self._lost_at = -PRESSED_NS  # when a block went last that was not in the log
        self._write_all: Sender | None = None  # who waits for everything to be written
        self.on(Tier, self._on_tier, FLUSHER)
        self.on(Manifest, self._on_manifest, FLUSHER)
        self.on(Forget, self._on_forget, FLUSHER)
        self.on(Flushed, self._on_flushed, FLUSHER)
        self.on(WriteAll, self._on_write_all, FLUSHER)

    @property
    def writes(self) -> bool:
        """Whether this host has an SSD tier."""
        return self.welcome is not None and self.welcome.ssd

    def is_stored(self, block: Block) -> bool:
        """Whether it is in the log."""
        return block.key in self.stored.get(block.namespace, ())

    def wake_at(self) -> int | None:
        """When Written is due, too; at once while there is something to look for."""
        if self._is_looking():
            return 0
        at = super().wake_at()
        if self._write_all is None:
            return at
        due = self._write_all.deadline - WRITTEN_NS
        return due if at is None else min(at, due)

    def wake(self, now: int) -> list[Effect]:
        """Answer whoever waits for everything to be written; look for what is not in the log."""
        effects = super().wake(now) + self._written(now)
        if self._is_looking():
            self._look()
            effects += self.pump(now)
        return effects

    def beat(self, now: int) -> list[Effect]:
        """Go on, should a word have been lost."""
        return self.pump(now)

    # the flusher's word

    def _hear(self, sender: Sender, now: int) -> bool:
        """Whether this is the flusher that lives; a new one is, before its forerunner's death has
        reached us."""
        if sender.address.incarnation > self.flusher.incarnation:
            self.flusher_gone(self.flusher, now)
            self.flusher = sender.address
        return sender.address == self.flusher

    def _on_tier(self, sender: Sender, msg: Tier, now: int) -> list[Effect]:
        if not self._hear(sender, now):
            return []
        self.tier = msg
        self.backlog.reused_only = msg.reused_only
        return self.pump(now)

    def _on_manifest(self, sender: Sender, msg: Manifest, now: int) -> list[Effect]:
        if not self._hear(sender, now):
            return []
        if msg.last:
            self._look_at = 0
        else:
            self._store(msg)
        return [Reply(sender, Noted())]

    def _store(self, msg: Manifest | Flushed) -> None:
        if msg.keys:
            self.stored.setdefault(msg.namespace, set()).update(msg.keys)
            self.spaces[msg.namespace] = Space(msg.payload, msg.shards)

    def _on_forget(self, sender: Sender, msg: Forget, now: int) -> list[Effect]:
        if self._hear(sender, now):
            self.not_stored(msg.namespace, msg.keys)
        return []

    def not_stored(self, namespace: bytes, keys: Iterable[bytes]) -> None:
        """These are not in the log."""
        stored = self.stored.get(namespace)
        if stored is None:
            return
        stored.difference_update(keys)
        if not stored:
            del self.stored[namespace], self.spaces[namespace]

    def _on_flushed(self, sender: Sender, msg: Flushed, now: int) -> list[Effect]:
        if not self._hear(sender, now):
            return []
        self._store(msg)
        lease = self.leases.release(self.flusher, msg.number)
        if lease is not None:
            self.landed(lease, not self.tier.writable)
        return self.pump(now)

    def flusher_gone(self, dead: Address, now: int) -> None:
        """Nothing is known of the log, and nothing is on its way there."""
        for lease in self.leases.fence(dead):
            self.landed(lease, True)
        if dead == self.flusher:
            self.flusher, self.tier = NOBODY, NO_TIER
            self.stored.clear()
            self.spaces.clear()
            self._look_at = self._write_all = None

    # what is to be written

    def saved(self, block: Block) -> None:
        """A session has published it."""
        if self.writes and not self.is_stored(block):
            self.backlog.saved(block)

    def asked_for(self, blocks: list[Block]) -> None:
        """Somebody wants these: they are worth more."""
        backlog = self.backlog
        if not self.writes or not (backlog.reused_only or backlog):
            return
        for block in blocks:
            if not backlog.reused_only or not (self.is_stored(block) or block in self.in_flight):
                backlog.asked_for(block)

    def pump(self, now: int) -> list[Effect]:
        """Send what the flusher takes."""
        effects: list[Effect] = []
        while self.backlog and self._has_room():
            most = min(self.tier.batch_bytes, self._window())
            most = min(most, GENTLE_BYTES) if self._is_gentle(now) else most
            blocks = self.backlog.take(self.tier.batch_blocks, most, True, self._is_worth_it)
            if not blocks:
                break
            effects += self._flush(blocks, now)
        return effects + self._written(now)

    def _is_worth_it(self, block: Block) -> bool:
        most = self.tier.block_bytes  # 0: not known yet
        fits = not most or len(block.pages) * block.page_size <= most
        return fits and not self.is_stored(block)

    def _window(self) -> int:
        """Bytes that may be on their way at a time."""
        return min(self.tier.window, self.geometry.pool_bytes // POOL_SHARE)

    def _has_room(self) -> bool:
        """For one Flush more."""
        if not self.tier.writable or self.leases.load(self.flusher)[0] >= self.tier.depth:
            return False
        window = self._window()
        return not self.in_flight or (
            self._flight_bytes + min(self.tier.batch_bytes, window) <= window
        )

    def _flush(self, blocks: list[Block], now: int) -> list[Effect]:
        lease = self.leases.grant(self.flusher, blocks, now)
        self.in_flight.update(blocks)
        self._flight_bytes += _bytes(blocks)
        return self.flush_of(lease, now)

    def released(self, lease: Lease, now: int) -> None:
        """A session needs these no longer: they are the youngest now."""
        self._loaded_at = now
        self.order.touch(lease.blocks)

    def _is_gentle(self, now: int) -> bool:
        """Whether somebody loads, or is about to."""
        loading = len(self.leases) > self.leases.load(self.flusher)[0]
        return loading or now - self._loaded_at < GENTLE_NS

    def _share(self, now: int) -> int:
        """Percent of the time that the log may have."""
        if self._write_all is not None or not self._is_gentle(now):
            return 100
        return PRESSED_PERCENT if now - self._lost_at < PRESSED_NS else GENTLE_PERCENT

    def flush_of(self, lease: Lease, now: int) -> list[Effect]:
        """What is to be written under this lease: all but blocks found corrupt meanwhile."""
        sealed = self.ledger.are_sealed([block.pages[0] for block in lease.blocks])
        blocks = [block for block, whole in zip(lease.blocks, sealed, strict=True) if whole]
        first = self.ledger.read(blocks[0].pages[0]) if blocks else None
        if first is None:
            self.leases.release(self.flusher, lease.number)
            self.landed(lease, False)
            return []
        sums = tuple(chain.from_iterable([block.checksums for block in blocks]))
        flush = Flush(
            lease.number,
            first.namespace,
            blocks[0].page_size,
            first.length,
            len(blocks[0].pages),
            tuple([block.key for block in blocks]),
            tuple(chain.from_iterable([block.pages for block in blocks])),
            tuple([block.depth for block in blocks]),
            sums if any(sums) else (),
            self._share(now),
        )
        return [Send(self.flusher, flush)]

    def on_held(self, sender: Sender, msg: Held, now: int) -> list[Effect]:
        """A holder restates a lease; of flushers only the one that lives."""
        if sender.address.name == FLUSHER and not self._hear(sender, now):
            return []
        return super().on_held(sender, msg, now)

    def restated(self, lease: Lease) -> None:
        """Blocks of the flusher's leases are on their way."""
        if lease.holder == self.flusher:
            self.in_flight.update(lease.blocks)
            self._flight_bytes += _bytes(lease.blocks)

    def landed(self, lease: Lease, again: bool) -> None:
        """A lease of the flusher has ended; what is not in the log goes back (`again`)."""
        self._flight_bytes -= _bytes(lease.blocks)
        self.in_flight.difference_update(lease.blocks)
        for block in reversed(lease.blocks):
            resident = self.blocks.get(block.namespace, block.key) is block
            if resident and again and not self.is_stored(block):
                self.backlog.again(block)
            if block in self._rescued:
                self._rescued.discard(block)
                if resident and not block.leases:
                    self.order.remove(block)
                    self.order.insert_oldest(block)

    def rescue(self, page_size: int, count: int, now: int) -> tuple[list[Block], list[Effect]]:
        """Up to so many blocks that go now.  Before a block goes that is not in the log, it is sent
        there, if there is room for it and another one can go in its place; it goes after that."""
        victims = self.order.victims(page_size, count)
        if not any(map(self._is_lost, victims)) or not self._has_room():
            return victims, []
        most = self.tier.depth * self.tier.batch_blocks
        victims = self.order.victims(page_size, count + most)
        spare, room = len(victims) - count, self._window() - self._flight_bytes
        going: list[Block] = []
        lost: dict[tuple[bytes, int], list[Block]] = {}
        for block in victims:
            if len(going) == count:
                break
            size = _bytes((block,))
            if spare <= 0 or size > room or not self._is_lost(block):
                going.append(block)
                continue
            lost.setdefault((block.namespace, len(block.key)), []).append(block)
            spare, room = spare - 1, room - size
        effects: list[Effect] = []
        for blocks in lost.values():
            most = max(1, min(self.tier.batch_bytes, self._window()) // _bytes(blocks[:1]))
            most = min(most, self.tier.batch_blocks)
            while blocks and self._has_room():
                batch, blocks = blocks[:most], blocks[most:]
                for block in batch:
                    self.backlog.discard(block)
                self._rescued.update(batch)
                effects += self._flush(batch, now)
            going += blocks
        return going, effects

    def _is_lost(self, block: Block) -> bool:
        """Whether something worth keeping is lost with it."""
        worth = not self.backlog.reused_only or block in self.backlog
        return worth and self._is_worth_it(block)

    def count_dropped(self, victims: list[Block], now: int) -> None:
        """These go, whether they are in the log or not."""
        lost = sum(map(self._is_lost, victims)) if self.writes else 0
        self.counts["ssd_blocks_dropped"] += lost
        if lost and self.tier.writable:
            self._lost_at = now
            self.counts["ssd_write_queue_full"] += lost

    def _is_looking(self) -> bool:
        """Whether there is something to look for, and too little else to write."""
        few = len(self.backlog) <= self.tier.depth * self.tier.batch_blocks
        return self.ready and self._look_at is not None and self.tier.writable and few

    def _look(self) -> None:
        """Look at some more pages for blocks that are not in the log."""
        assert self._look_at is not None
        first, count = self._look_at, min(LOOK_PAGES, self.ledger.records - self._look_at)
        self._look_at = None if first + count == self.ledger.records else first + count
        for value in occupied(self.ledger, first, count):
            page, sealed = value & 0xFFFF_FFFF, value >> 32
            record = self.ledger.read(page) if sealed else None
            if record is None or record.shard:
                continue
            if record.key in self.stored.get(record.namespace, ()):
                continue
            block = self.blocks.by_page(page)
            if block and block not in self.in_flight and block not in self.backlog:
                self.backlog.saved(block)

    # the end

    def _on_write_all(self, sender: Sender, msg: WriteAll, now: int) -> list[Effect]:
        if not self._hear(sender, now):
            return []
        self._write_all = sender
        return self.pump(now)

    def _written(self, now: int) -> list[Effect]:
        waits = self._write_all
        if waits is None:
            return []
        left = len(self.backlog) + len(self.in_flight)
        if left and self.tier.writable and now < waits.deadline - WRITTEN_NS:
            return []
        self._write_all = None
        return [Reply(waits, Written(left))]

    def check_flushing(self) -> None:
        """The backlog is resident and not on its way; what is on its way is leased."""
        self.backlog.check()
        assert all(self.blocks.get(b.namespace, b.key) is b for b in self.backlog)
        leased = [b for lease in self.leases.held(self.flusher) for b in lease.blocks]
        assert set(leased) == self.in_flight and self._flight_bytes == _bytes(leased)
        assert not any(b in self.in_flight for b in self.backlog)
        assert self._rescued <= self.in_flight
        assert all(self.stored.values()) and self.spaces.keys() == self.stored.keys()


def _bytes(blocks: Iterable[Block]) -> int:
    """Of their pages."""
    return sum(len(block.pages) * block.page_size for block in blocks)


def sayable(blocks: list[Block]) -> list[Block]:
    """So many that one message can name their pages."""
    return blocks[: LIST_MAX // len(blocks[0].pages)] if blocks else blocks
