"""Which blocks may not go: leases, by holder and number.

A lease keeps blocks in place until its holder says that it is done, or is proven dead. Time never
ends one. Since any message may be lost, the holder says from time to time "up to number n I hold
exactly these": what is omitted up to n was released and the word was lost; what is later than n was
granted and the grant may have been lost, so it is sent again.

The table counts leases in the blocks themselves (`Block.leases`), where the eviction policy sees
them. Every verb that ends leases returns them, so that the caller can make their blocks the
youngest.

What is leased cannot be evicted: it is *pinned*. The table knows how many bytes each holder pins,
and all of them together; a block counts once however often it is leased. `affordable` says how much
of a run may be leased within given bounds; what is pinned already costs nothing. A lookup of a
thousand blocks waits for this, so one size is asked of the blocks of a lease: they are of one
namespace, hence cut alike.
"""

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter

import numpy as np

from pegaflow.core.grants import Grants
from pegaflow.core.pool.geometry import slot_size
from pegaflow.wire.identities import LeaseId

from .columns import Pages
from .table import Block


@dataclass(frozen=True, slots=True, eq=False)
class Lease:
    """Blocks that stay in place for one holder."""

    holder: Hashable
    number: LeaseId  # 1, 2, ... per holder
    blocks: tuple[Block, ...]  # in chain order
    since_ns: int  # when it was granted; to report old ones, never to end them


class LeaseTable:
    """All leases that were granted and have not ended."""

    def __init__(self) -> None:
        self._open: Grants[LeaseId, Lease] = Grants(LeaseId)
        self._blocks: Counter[Hashable] = Counter()  # in all leases of a holder that has any
        self._pins: dict[Hashable, dict[Block, int]] = {}  # holder -> block -> its leases
        self._pinned_bytes: Counter[Hashable] = Counter()  # of those, once each
        self.pinned_bytes = 0  # of all blocks that have a lease, once each

    def grant(self, holder: Hashable, blocks: Sequence[Block], now: int) -> Lease:
        """A new lease, of the holder's next number.

        Args:
            blocks: of one namespace, in chain order; some may be leased to it already.
            now: CLOCK_MONOTONIC, in nanoseconds.
        """
        lease = Lease(holder, self._open.next(holder), tuple(blocks), now)
        self._open.add(holder, lease.number, lease)
        self._blocks[holder] += len(lease.blocks)
        pins = self._pins.setdefault(holder, {})
        fresh = mine = 0
        for block in lease.blocks:
            if not block.leases:
                fresh += 1
            block.leases += 1
            count = pins.get(block, 0)
            if not count:
                mine += 1
            pins[block] = count + 1
        size = _size(lease.blocks)
        self.pinned_bytes += fresh * size
        self._pinned_bytes[holder] += mine * size
        return lease

    def adopt(self, holder: Hashable, number: LeaseId, blocks: Sequence[Block], now: int) -> Lease:
        """A lease that an earlier life of this table has granted; later than those adopted before.
        Numbers go on from it."""
        assert number > self.last(holder), (holder, number)
        self._open.go_on_from(holder, LeaseId(number - 1))
        return self.grant(holder, blocks, now)

    def go_on_from(self, holder: Hashable, number: LeaseId) -> None:
        """The holder has heard of grants up to this number."""
        self._open.go_on_from(holder, number)

    def last(self, holder: Hashable) -> LeaseId:
        """The newest number of this holder; 0: none."""
        return self._open.last(holder)

    def get(self, holder: Hashable, number: LeaseId) -> Lease | None:
        """The lease of this number; None: it has ended, or never was."""
        return self._open.get(holder, number)

    def release(self, holder: Hashable, number: LeaseId) -> Lease | None:
        """Ends the lease; None if there is none of that number, which a repeated word finds."""
        lease = self._open.end(holder, number)
        if lease is not None:
            self._unpin(holder, [lease])
        return lease

    def statement(
        self, holder: Hashable, upto: LeaseId, numbers: Collection[LeaseId]
    ) -> tuple[list[Lease], list[Lease]]:
        """The holder says what it holds: everything else up to `upto` ends.

        Args:
            upto: it has heard of all grants up to this number.
            numbers: those of them that it holds.

        Returns:
            The leases that this ended, and those to be sent to it again.
        """
        dropped, resend = self._open.statement(holder, upto, numbers)
        ended = [lease for _, lease in dropped]
        self._unpin(holder, ended)
        return ended, [lease for _, lease in resend]

    def fence(self, holder: Hashable) -> list[Lease]:
        """The holder is proven dead: ends all it had. Its name is never heard again."""
        leases = [lease for _, lease in self._open.fence(holder)]
        self._unpin(holder, leases)
        return leases

    def held(self, holder: Hashable) -> list[Lease]:
        """The holder's leases, the oldest first."""
        return [lease for _, lease in self._open.held(holder)]

    def load(self, holder: Hashable) -> tuple[int, int]:
        """How much a holder has.

        Returns:
            Its leases, and the blocks that they name together.
        """
        return self._open.count(holder), self._blocks[holder]

    def bytes_of(self, holder: Hashable) -> int:
        """Bytes that this holder pins."""
        return self._pinned_bytes[holder]

    def pages(self) -> Pages:
        """Of all leased blocks; those that several holders lease come several times."""
        blocks = chain.from_iterable(self._pins.values())
        return np.fromiter(chain.from_iterable(map(attrgetter("pages"), blocks)), np.int64)

    def affordable(
        self, holder: Hashable, blocks: Sequence[Block], most_bytes: int, of_all_bytes: int
    ) -> int:
        """How long a lead of these blocks may be leased.

        Args:
            most_bytes: what the holder may pin.
            of_all_bytes: what all holders together may pin.

        Returns:
            Blocks, from the first on; what is pinned already costs nothing.
        """
        mine, all_, size = self._pinned_bytes[holder], self.pinned_bytes, _size(blocks)
        whole = len(blocks) * size
        if mine + whole <= most_bytes and all_ + whole <= of_all_bytes:
            return len(blocks)
        pins = self._pins.get(holder, {})
        for count, block in enumerate(blocks):
            if block in pins:
                continue
            mine += size
            all_ += 0 if block.leases else size
            if mine > most_bytes or (all_ > of_all_bytes and not block.leases):
                return count
        return len(blocks)

    def __len__(self) -> int:
        return len(self._open)

    def _unpin(self, holder: Hashable, ended: list[Lease]) -> None:
        """These leases of the holder have ended."""
        for lease in ended:
            pins = self._pins[holder]
            self._blocks[holder] -= len(lease.blocks)
            free = mine = 0
            for block in lease.blocks:
                block.leases -= 1
                if not block.leases:
                    free += 1
                count = pins.pop(block) - 1
                if count:
                    pins[block] = count
                else:
                    mine += 1
            size = _size(lease.blocks)
            self.pinned_bytes -= free * size
            self._pinned_bytes[holder] -= mine * size
        if ended and not self._open.count(holder):
            del self._blocks[holder], self._pins[holder], self._pinned_bytes[holder]

    def check(self) -> None:
        """What is counted beside the leases is what they add up to."""
        self._open.check()
        counts: dict[Block, int] = {}
        for holder in self._open.holders():
            held = self._open.held(holder)
            assert held == sorted(held, key=lambda entry: entry[0])
            for number, lease in held:
                assert (lease.holder, lease.number) == (holder, number)
                for block in lease.blocks:
                    counts[block] = counts.get(block, 0) + 1
            assert self._blocks[holder] == sum(len(lease.blocks) for _, lease in held)
            pins = Counter(block for _, lease in held for block in lease.blocks)
            assert self._pins[holder] == pins
            assert self._pinned_bytes[holder] == sum(map(block_bytes, pins))
        holders = self._open.holders()
        assert self._blocks.keys() == holders == self._pins.keys() == self._pinned_bytes.keys()
        for block, count in counts.items():
            assert block.leases == count, (block, count)
        assert self.pinned_bytes == sum(map(block_bytes, counts))


def block_bytes(block: Block) -> int:
    """Of the pool, in the slots of its pages."""
    return len(block.pages) * slot_size(block.page_size)


def _size(blocks: Sequence[Block]) -> int:
    """Bytes of each of these: a run is of one namespace, whose blocks are cut alike."""
    return block_bytes(blocks[0]) if blocks else 0
