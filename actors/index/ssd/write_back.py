"""Has blocks written to the log of the SSD tier.  See wire/flusher.py.

A block that is saved comes into the backlog, and from there, as fast as the flusher takes them,
into Flushes.  Each of them is a lease of the flusher, so nothing of it is evicted before it has
ended.  What ends without being in the log goes back into the backlog, if it was not the block's
own fault.  Blocks that would be lost with their eviction are written first, if there is room.

When a flusher has said its Manifest, every resident block is looked at once, so that what an
earlier life saved and did not write is written too.
"""

from collections.abc import Iterable, Sequence
from itertools import chain

import numpy as np

from pegaflow.actors.index.tiers import Pool
from pegaflow.actors.runtime.contract import MS, Effect, Part, Reply, Send, Sender
from pegaflow.core.blocks.backlog import Backlog
from pegaflow.core.blocks.leases import Lease
from pegaflow.core.blocks.table import Block
from pegaflow.core.limits import MIB
from pegaflow.core.pool.records import keys_of
from pegaflow.core.pool.scan import by_namespace, scan
from pegaflow.wire.flusher import Flush, Written
from pegaflow.wire.identities import Namespace, PageId
from pegaflow.wire.units import Bytes, Count, Nanoseconds, Share

from .log import SsdLog

POOL_SHARE: Share = 1 / 8
"""The Flushes that are open hold at most this share of the pool: it cannot be evicted."""

LOOK_PAGES: Count = 4096
"""Pages looked at in one go for blocks that are not in the log: a few milliseconds.  It ends sooner
where as many were found as Flushes can name, which are objects each."""

GENTLE_NS: Nanoseconds = 200 * MS
"""So long after somebody has loaded blocks the next load is expected."""

GENTLE_BYTES: Bytes = MIB
"""While somebody loads, a Flush has no more: a load waits behind one of them at most."""

GENTLE_SHARE: Share = 0.1
"""Of the time: the log is written in no more of it while somebody loads."""

PRESSED_SHARE: Share = 0.5
"""The same while blocks are lost because they could not be written in time."""

PRESSED_NS: Nanoseconds = 1000 * MS
"""So long after the last one that was lost."""

WRITTEN_NS: Nanoseconds = 50 * MS
"""Written is said so long before its deadline, if not everything is in the log by then."""


class WriteBack(Part):
    """What is on its way to the log, and what is still to go.

    Args:
        pool: whose blocks these are.
        log: what is in the log already.
    """

    def __init__(self, pool: Pool, log: SsdLog) -> None:
        self._member, self._recovery = pool.member, pool.recovery
        self._residency, self._leasing = pool.residency, pool.leasing
        self._counts, self._log = pool.counts, log
        self.backlog = Backlog()
        self.in_flight: set[Block] = set()  # in leases of the flusher
        self._flight_bytes = 0  # of their pages
        self._leaving: set[Block] = set()  # of those, the ones that go once they are written
        self._look_at: PageId | None = None  # next page to look at for what is not in the log
        self._lost_ns = -PRESSED_NS  # when a block went last that was not in the log
        self._write_all: Sender | None = None  # who waits for everything to be written

    def wake_at(self) -> int | None:
        """When Written is due; at once while there is something to look for."""
        if self._is_looking():
            return 0
        return None if self._write_all is None else self._write_all.deadline - WRITTEN_NS

    def wake(self, now: int) -> list[Effect]:
        """Answer whoever waits for everything to be written; look for what is not in the log."""
        effects = self._written(now)
        if self._is_looking():
            self._look()
            effects += self.pump(now)
        return effects

    def beat(self, now: int) -> list[Effect]:
        """Go on, should a word have been lost."""
        return self.pump(now)

    def look_again(self) -> None:
        """What the log has is known: look at every resident block."""
        self._look_at = PageId(0)

    def clear(self) -> None:
        """The flusher is dead."""
        self._look_at = self._write_all = None

    def _is_stored(self, block: Block) -> bool:
        return self._log.has(block.namespace, block.key)

    @property
    def writes(self) -> bool:
        """Whether this host has an SSD tier."""
        welcome = self._member.welcome
        return welcome is not None and welcome.ssd

    # what is to be written

    def saved(self, blocks: Sequence[Block]) -> None:
        """A session has published these."""
        for block in blocks if self.writes else ():
            if not self._is_stored(block):
                self.backlog.saved(block)

    def asked_for(self, blocks: Sequence[Block]) -> None:
        """Somebody wants these: they are worth more."""
        backlog = self.backlog
        if not self.writes or not (backlog.reused_only or backlog):
            return
        for block in blocks:
            if not backlog.reused_only or not (self._is_stored(block) or block in self.in_flight):
                backlog.asked_for(block)

    def pump(self, now: int) -> list[Effect]:
        """Send what the flusher takes."""
        effects: list[Effect] = []
        while self.backlog and self._has_room():
            most = min(self._log.tier.batch_bytes, self._window())
            most = min(most, GENTLE_BYTES) if self._is_gentle(now) else most
            blocks = self.backlog.take(self._log.tier.batch_blocks, most, True, self._is_worth_it)
            if not blocks:
                break
            effects += self._flush(blocks, now)
        return effects + self._written(now)

    def _is_worth_it(self, block: Block) -> bool:
        most = self._log.tier.block_bytes  # 0: not known yet
        fits = not most or len(block.pages) * block.page_size <= most
        return fits and not self._is_stored(block)

    def _window(self) -> int:
        """Bytes that may be on their way at a time."""
        most = int(self._residency.geometry.pool_bytes * POOL_SHARE)
        return min(self._log.tier.window_bytes, most)

    def _has_room(self) -> bool:
        """For one Flush more."""
        if (
            not self._log.tier.writable
            or not self._recovery.may_grant(self._log.flusher)
            or self._leasing.leases.load(self._log.flusher)[0] >= self._log.tier.depth
        ):
            return False
        window = self._window()
        return not self.in_flight or (
            self._flight_bytes + min(self._log.tier.batch_bytes, window) <= window
        )

    def _flush(self, blocks: list[Block], now: int) -> list[Effect]:
        lease = self._leasing.leases.grant(self._log.flusher, blocks, now)
        self.in_flight.update(blocks)
        self._flight_bytes += _bytes(blocks)
        return self.flush_of(lease, now)

    def _is_gentle(self, now: int) -> bool:
        """Whether somebody loads, or is about to."""
        leases, loaded_ns = self._leasing.leases, self._leasing.loaded_ns
        if len(leases) > leases.load(self._log.flusher)[0]:
            return True
        return loaded_ns is not None and now - loaded_ns < GENTLE_NS

    def _share(self, now: int) -> float:
        """Of the time, what the log may have."""
        if self._write_all is not None or not self._is_gentle(now):
            return 1.0
        return PRESSED_SHARE if now - self._lost_ns < PRESSED_NS else GENTLE_SHARE

    def flush_of(self, lease: Lease, now: int) -> list[Effect]:
        """Say what is to be written under a lease of the flusher: all but blocks found corrupt
        meanwhile.

        Args:
            lease: may have been said before: then the Flush was lost.

        Returns:
            Nothing if no block of it is left; the lease has ended then.
        """
        sealed = self._residency.ledger.are_sealed([block.pages[0] for block in lease.blocks])
        blocks = [block for block, whole in zip(lease.blocks, sealed, strict=True) if whole]
        first = self._residency.ledger.read(blocks[0].pages[0]) if blocks else None
        if first is None:
            self._leasing.leases.release(self._log.flusher, lease.number)
            self.flush_ended(lease, False)
            return []
        sums = tuple(chain.from_iterable([block.checksums for block in blocks]))
        flush = Flush(
            number=lease.number,
            namespace=first.namespace,
            page_size=blocks[0].page_size,
            payload_bytes=first.payload_bytes,
            shards=len(blocks[0].pages),
            keys=tuple([block.key for block in blocks]),
            pages=tuple(chain.from_iterable([block.pages for block in blocks])),
            depths=tuple([block.depth for block in blocks]),
            sums=sums if any(sums) else (),
            share_percent=round(100 * self._share(now)),
        )
        return [Send(self._log.flusher, flush)]

    def restated(self, lease: Lease) -> None:
        """The flusher writes these blocks since an earlier life of the index."""
        self.in_flight.update(lease.blocks)
        self._flight_bytes += _bytes(lease.blocks)

    def flush_ended(self, lease: Lease, again: bool) -> None:
        """A lease of the flusher has ended; it is in no book any more.

        Args:
            again: what of it is not in the log goes back into the backlog.
        """
        self._flight_bytes -= _bytes(lease.blocks)
        self.in_flight.difference_update(lease.blocks)
        for block in reversed(lease.blocks):
            resident = self._residency.blocks.holds(block)
            if resident and again and not self._is_stored(block):
                self.backlog.again(block)
            if block in self._leaving:
                self._leaving.discard(block)
                if resident and not block.leases:
                    self._residency.make_oldest(block)

    def spare(self, victims: list[Block] | None) -> int:
        """How many blocks Flushes could name, if one of these would be lost and there is room.

        Args:
            victims: None: they are not chosen yet.
        """
        lost = victims is None or any(map(self.is_lost, victims))
        return self._log.flushable if lost and self._has_room() else 0

    def flush_before_eviction(
        self, victims: list[Block], count: int, now: int
    ) -> tuple[list[Block], list[Effect]]:
        """Choose what goes now.  Before a block goes that is not in the log, it is sent there, if
        there is room for it and another one can go in its place; it goes after that.

        Args:
            victims: in the order in which they should go.
            count: blocks that are to go.

        Returns:
            Up to `count` of them, and the Flushes.
        """
        spare, room = len(victims) - count, self._window() - self._flight_bytes
        going: list[Block] = []
        lost: dict[tuple[Namespace, int], list[Block]] = {}
        for block in victims:
            if len(going) == count:
                break
            size = _bytes((block,))
            if spare <= 0 or size > room or not self.is_lost(block):
                going.append(block)
                continue
            lost.setdefault((block.namespace, len(block.key)), []).append(block)
            spare, room = spare - 1, room - size
        effects: list[Effect] = []
        for blocks in lost.values():
            most = max(1, min(self._log.tier.batch_bytes, self._window()) // _bytes(blocks[:1]))
            most = min(most, self._log.tier.batch_blocks)
            while blocks and self._has_room():
                batch, blocks = blocks[:most], blocks[most:]
                for block in batch:
                    self.backlog.discard(block)
                self._leaving.update(batch)
                effects += self._flush(batch, now)
            going += blocks
        return going, effects

    def is_lost(self, block: Block) -> bool:
        """Whether something worth keeping is lost with it."""
        worth = not self.backlog.reused_only or block in self.backlog
        return worth and self._is_worth_it(block)

    def count_dropped(self, victims: list[Block], now: int) -> None:
        """These go, whether they are in the log or not."""
        lost = sum(map(self.is_lost, victims)) if self.writes else 0
        self._counts["ssd_blocks_dropped"] += lost
        if lost and self._log.tier.writable:
            self._lost_ns = now
            self._counts["ssd_write_queue_full"] += lost

    def _is_looking(self) -> bool:
        """Whether there is something to look for, and too little else to write."""
        few = len(self.backlog) <= self._log.flushable
        return (
            self._recovery.ready and self._look_at is not None and self._log.tier.writable and few
        )

    def _look(self) -> None:
        """Look at some more pages for blocks that are not in the log."""
        assert self._look_at is not None
        here, first = self._residency, self._look_at
        count = min(LOOK_PAGES, here.ledger.records - first)
        chunk = scan(here.ledger, first, count)
        heads = here.blocks.heads(chunk.pages) == chunk.pages
        pages, rows = chunk.pages[heads], chunk.rows[heads]
        lost = np.zeros(len(pages), np.bool_)
        for namespace, mine, _ in by_namespace(rows):
            lost[mine] = ~self._log.have(namespace, keys_of(rows[mine]))
        found = pages[lost]
        most = self._log.flushable
        end = int(found[most]) if len(found) > most else first + count
        self._look_at = PageId(end) if end < here.ledger.records else None
        for page in found[:most].tolist():
            block = here.blocks.handles.of(page)
            if block not in self.in_flight and block not in self.backlog:
                self.backlog.saved(block)

    # the end

    def write_all(self, sender: Sender, now: int) -> list[Effect]:
        """Answer when everything is written, or shortly before the question's deadline.

        Args:
            sender: of the question; one waits at a time.
        """
        self._write_all = sender
        return self.pump(now)

    def answer_write_all(self) -> list[Effect]:
        """Whoever waits for everything to be written hears how much is not."""
        waits, self._write_all = self._write_all, None
        left = len(self.backlog) + len(self.in_flight)
        return [Reply(waits, Written(left))] if waits is not None else []

    def _written(self, now: int) -> list[Effect]:
        waits = self._write_all
        if waits is None:
            return []
        left = len(self.backlog) + len(self.in_flight)
        if left and self._log.tier.writable and now < waits.deadline - WRITTEN_NS:
            return []
        return self.answer_write_all()

    def check(self) -> None:
        """The backlog is resident and not on its way; what is on its way is leased."""
        self.backlog.check()
        assert all(map(self._residency.blocks.holds, self.backlog))
        leased = [b for lease in self._leasing.leases.held(self._log.flusher) for b in lease.blocks]
        assert set(leased) == self.in_flight and self._flight_bytes == _bytes(leased)
        assert not any(b in self.in_flight for b in self.backlog)
        assert self._leaving <= self.in_flight


def _bytes(blocks: Iterable[Block]) -> int:
    """Of their pages."""
    return sum(len(block.pages) * block.page_size for block in blocks)
