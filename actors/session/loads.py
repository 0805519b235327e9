"""What the engine gets: loads of leased blocks into a rank's memory, by our hand or the client's.

A rank whose memory we write ourselves says Load and gets Loaded once its blocks are written.  A
staged one gets Pages, copies them itself, and says Copied, which is Confirmed unless the lease was
lost meanwhile: then what it copied is worth nothing.

A lease of our own (leases.py) is compared with the ledger before a copy and after it: what its
hazards should have kept and is not there any more makes the load fail, and never gives other bytes.

With checksums nothing leaves the pool that is not what was sealed.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pegaflow.actors.runtime.contract import MS, Do, Effect, On, Part, Reply, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.core.pool.columns import Places, among, column, said
from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.series import LOAD
from pegaflow.wire import layout as layouts
from pegaflow.wire.identities import LeaseId
from pegaflow.wire.index import Corrupt
from pegaflow.wire.jobs import Done, PagesDiffer, PagesSummed, SumPages, WriteBlocks
from pegaflow.wire.session import Confirmed, Copied, Load, Loaded, Pages, Way
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Count, Nanoseconds
from pegaflow.wire.values import CLIENT, INDEX, U64s

from .engine import Engine
from .leases import Lease, Leases
from .lending import Lending
from .ranks import Rank
from .records import NO_PLACES
from .registration import Registration
from .space import Space

COPIES_MAX: Count = 4096
"""Loads under way at once: an engine has one per request at most."""

LOAD_NS: Nanoseconds = 10_000 * MS
"""Longest load by our own hand, where the client named no deadline."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """A load under way."""

    number: int
    rank: Rank
    lease_number: LeaseId
    lease: Lease
    begun_ns: int
    part: slice  # of the lease's pages
    pages: Places
    offsets: U64s  # beside `pages`: in the pool
    sums: U64  # beside `pages`; empty: nothing is checked
    summed_bytes: Bytes  # of each page


class Loads(Part):
    """Loads under way."""

    def __init__(
        self,
        member: Member,
        engine: Engine,
        registration: Registration,
        *,
        leases: Leases,
        lending: Lending,
        counts: Counter[str],
    ) -> None:
        self._member, self._engine, self._leases = member, engine, leases
        self._lending, self._counts = lending, counts
        self._registration = registration
        self.copies: dict[int, _Copy] = {}
        self._number = 0  # of the newest copy

    def handlers(self) -> Iterable[On]:
        """The words of clients that load."""
        return (on(Load, self._on_load, CLIENT), on(Copied, self._on_copied, CLIENT))

    def gauges(self) -> dict[str, int]:
        """How many run."""
        return {"session_loads_open": len(self.copies)}

    def check(self) -> None:
        """Copies belong to leases."""
        running = Counter(copy.lease_number for copy in self.copies.values())
        for number, lease in self._leases.items():
            assert lease.copies == running.pop(number, 0)
        assert not running, "a copy of a lease that has ended"

    def forget(self, rank: Rank) -> list[Effect]:
        """This rank's client copies nothing any more."""
        effects: list[Effect] = []
        for number in [n for n, c in self.copies.items() if c.rank is rank]:
            if rank.loads is Way.STAGED:
                effects += self._end_copy(number)
        return effects

    def _on_load(self, sender: Sender, msg: Load, now: int) -> list[Effect]:
        rank, space = self._engine.rank(sender.address, msg.rank), self._engine.space
        lease = self._leases.get(msg.lease)
        if lease is None and self._lending.awaits(sender, msg, now):
            return []
        refusal = Status.OK
        if rank is None or space is None:
            refusal = Status.NOT_ATTACHED
        elif lease is None or lease.ended or msg.rank not in lease.waiting:
            refusal = Status.NO_SUCH_LEASE
        elif not _in_range(rank, lease, msg, space):
            refusal = Status.BAD_REQUEST
        elif len(self.copies) >= COPIES_MAX:
            refusal = Status.BUSY
        elif not self._leases.stands(lease, _part(msg, space)):
            refusal = Status.NO_SUCH_LEASE
        if rank is None or space is None or lease is None or refusal is not Status.OK:
            self._counts["loads_refused"] += 1
            direct = rank is not None and rank.loads is not Way.STAGED
            answer = Loaded(refusal) if direct else Pages(refusal, 0, ())
            lost = lease is not None and lease.lost and not lease.ended
            return [Reply(sender, answer), *(self._leases.end_lease(msg.lease) if lost else ())]
        part = _part(msg, space)
        pages, sums = lease.pages[part], lease.checksums[part]
        self._number += 1
        copy = _Copy(
            number=self._number,
            rank=rank,
            lease_number=msg.lease,
            lease=lease,
            begun_ns=now,
            part=part,
            pages=pages,
            offsets=space.offsets(pages),
            sums=sums,
            summed_bytes=space.payload_bytes,
        )
        self.copies[copy.number] = copy
        lease.copies += 1
        lease.use(now)
        self._counts["blocks_loaded"] += len(pages)
        if rank.loads is not Way.STAGED:
            return self._write(sender, copy, msg, now)
        if len(sums):
            return self._check(sender, copy)
        return [Reply(sender, Pages(Status.OK, copy.number, copy.offsets))]

    def _write(self, sender: Sender, copy: _Copy, msg: Load, now: int) -> list[Effect]:
        """Write the blocks into the rank's memory."""
        rank, lease = copy.rank, copy.lease

        def written(result: Done | PagesDiffer, now: int) -> list[Effect]:
            rank.running -= 1
            ended = Status.CORRUPT if isinstance(result, PagesDiffer) else result.status
            status = ended if self._leases.stands(lease, copy.part) else Status.NO_SUCH_LEASE
            self._count(copy, status is Status.OK, now)
            effects: list[Effect] = []
            if isinstance(result, PagesDiffer) and not lease.lost:
                differ = among(column(copy.offsets), column(result.offsets))
                effects = self._corrupt(copy.pages[differ])
            effects += [Reply(sender, Loaded(status)), *self._end_copy(copy.number)]
            return effects + self._engine.left(rank)

        rank.running += 1
        self._registration.used(copy.offsets)
        deadline = sender.deadline or now + LOAD_NS
        sums = said(copy.sums) if len(copy.sums) else ()
        job = WriteBlocks(
            mapping=rank.mapping,
            blocks=msg.blocks,
            offsets=copy.offsets,
            deadline=deadline,
            checksums=sums,
            summed_bytes=copy.summed_bytes,
        )
        return [Do(job, written)]

    def _check(self, sender: Sender, copy: _Copy) -> list[Effect]:
        """Look at the pages before the client copies them."""

        def summed(result: PagesSummed | Done, now: int) -> list[Effect]:
            if copy.number not in self.copies:
                return [Reply(sender, Pages(Status.NO_SUCH_LEASE, 0, ()))]
            bad = NO_PLACES
            if isinstance(result, PagesSummed):
                differ = (copy.sums != 0) & (copy.sums != column(result.checksums))
                bad = copy.pages[differ]
                if not len(bad):
                    return [Reply(sender, Pages(Status.OK, copy.number, copy.offsets))]
            status = result.status if isinstance(result, Done) else Status.CORRUPT
            if not self._leases.stands(copy.lease, copy.part):
                status, bad = Status.NO_SUCH_LEASE, NO_PLACES
            self._count(copy, False, now)
            refused = Reply(sender, Pages(status, 0, ()))
            return [refused, *self._corrupt(bad), *self._end_copy(copy.number)]

        return [Do(SumPages(copy.offsets, copy.summed_bytes), summed)]

    def _corrupt(self, bad: Places) -> list[Effect]:
        """These pages do not hold what was sealed."""
        self._counts["pages_corrupt"] += len(bad)
        return self._member.tell(INDEX, Corrupt(said(bad))) if len(bad) else []

    def _on_copied(self, sender: Sender, msg: Copied, now: int) -> list[Effect]:
        copy = self.copies.get(msg.copy)
        mine = copy is not None and copy.rank.client == sender.address
        if copy is None or not mine or copy.rank.loads is not Way.STAGED:
            return [Reply(sender, Confirmed(Status.NO_SUCH_LEASE))]
        lease = copy.lease
        lease.use(now)
        stands = self._leases.stands(lease, copy.part)
        self._count(copy, msg.ok and stands, now)
        status = Status.OK if stands else Status.NO_SUCH_LEASE
        return [Reply(sender, Confirmed(status)), *self._end_copy(msg.copy)]

    def _count(self, copy: _Copy, ok: bool, now: int) -> None:
        """A copy has ended, well or not."""
        if not ok:
            self._counts["loads_failed"] += 1
            return
        self._counts["loads"] += 1
        self._counts["bytes_loaded"] += len(copy.pages) * layouts.page_bytes(copy.rank.layout)
        LOAD.count(self._counts, max(0, now - copy.begun_ns) // 1000)

    def _end_copy(self, number: int) -> list[Effect]:
        """A rank has loaded; the lease ends with the last one."""
        copy = self.copies.pop(number)
        lease = copy.lease
        lease.copies -= 1
        lease.waiting.discard(copy.rank.number)
        ends = lease.ended or lease.lost or not lease.waiting
        return self._leases.end_lease(copy.lease_number) if ends else []


def _part(msg: Load, space: Space) -> slice:
    """The rank's pages of these blocks, in a lease."""
    step, shard = space.shards, space.shard_of[msg.rank]
    return slice(msg.first * step + shard, (msg.first + msg.count) * step, step)


def _in_range(rank: Rank, lease: Lease, msg: Load, space: Space) -> bool:
    if msg.count == 0 or (msg.first + msg.count) * space.shards > len(lease.pages):
        return False
    staged = rank.loads is Way.STAGED
    return staged or (
        len(msg.blocks) == msg.count and column(msg.blocks).max() < rank.layout.blocks
    )
