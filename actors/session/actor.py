"""The session: one engine's process.  See wire/session.py.

A spare waits until the supervisor gives it an engine (Serve).  From then on it lives exactly as
long as its engine: when a client process is proven dead, or the last client leaves, the session
stops, and with one process all goes that the engine left behind.

Its books: the engine's ranks (ranks.py), the leases it holds for the engine's requests
(leases.py), the loads from them (here), and the saves under way (saves.py).

It outlives index and allocator.  Without an index a lookup misses and a save is refused, while
loads go on; a new one is told all leases and claims, a new allocator all pages.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from pegaflow.actors.runtime.contract import MS, Ask, Do, Effect, NoAnswer, Reply, Send, Sender
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.series import LOAD
from pegaflow.wire import index as to_index
from pegaflow.wire import layout as layouts
from pegaflow.wire.allocator import Reserved, Return, Stock
from pegaflow.wire.control import Hello
from pegaflow.wire.index import Claimed, EndClaim, Held, Holding
from pegaflow.wire.jobs import Done, SumPages, WriteBlocks
from pegaflow.wire.message import Message
from pegaflow.wire.session import (
    Commit,
    Confirmed,
    Copied,
    Drop,
    Found,
    Keep,
    Load,
    Loaded,
    Lookup,
    Pages,
    Save,
    Saved,
    Skip,
    Way,
)
from pegaflow.wire.status import Status
from pegaflow.wire.values import ALLOCATOR, CLIENT, INDEX, NOBODY, Address

from .leases import Lease, Leasing
from .publish import INDEX_NS, count_dropped
from .ranks import Rank, namespace
from .saves import Saves
from .stock import USED_SHARE

COPIES_MAX = 4096
"""Loads under way at once: an engine has one per request at most."""

LOOKUPS_MAX = 4096
"""Lookups that the index has not answered: an engine has one per waiting request at most."""

LOAD_NS = 10_000 * MS
"""Longest load by process_vm, where the client named no deadline."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """A load under way."""

    rank: Rank
    lease: int
    asked: int  # when
    bytes_: int


class Session(Leasing):
    """Moves one engine's blocks."""

    def __init__(self, address: Address, supervisor: Address, hello: Hello) -> None:
        super().__init__(address, supervisor, hello)
        self.saves: Saves | None = None  # there from when all ranks were, for the first time
        self.copies: dict[int, _Copy] = {}  # loads under way
        self._copy = 0  # newest load number
        self._lookups = 0  # asked of the index, without an end yet
        self.on(Lookup, self._on_lookup, CLIENT)
        self.on(Load, self._on_load, CLIENT)
        self.on(Copied, self._on_copied, CLIENT)
        self.on(Save, self._on_save, CLIENT)
        self.on(Keep, self._on_keep, CLIENT)
        self.on(Drop, self._on_drop, CLIENT)
        self.on(Skip, self._on_skip, CLIENT)
        self.on(Commit, self._on_commit, CLIENT)
        self.on(Reserved, self._on_reserved_again, ALLOCATOR)

    def gauges(self) -> dict[str, int]:
        """What is open now."""
        saves = self.saves
        return {
            "session_clients": len(self.clients),
            "session_ranks": sum(rank.there for rank in self.ranks.values()),
            "session_attached": int(self.complete),
            "session_leases": len(self.leases),
            "session_pinned_bytes": self.pins.bytes,
            "session_greedy": int(self.greedy),
            "session_loads_open": len(self.copies),
            "session_saves_open": len(saves.shares) if saves else 0,
            "session_held_bytes": saves.stock.held_bytes() if saves else 0,
        }

    def check(self) -> None:
        """Copies belong to leases; slots and pages add up."""
        running: dict[int, int] = {}
        for copy in self.copies.values():
            running[copy.lease] = running.get(copy.lease, 0) + 1
        for number, lease in self.leases.items():
            assert lease.copies == running.pop(number, 0)
        assert not running, "a copy of a lease that has ended"
        self.check_leases()
        for rank in [*self.ranks.values(), *self.leaving]:
            used = self.saves.used_slots(rank) if self.saves else []
            assert sorted(rank.free_slots + used) == list(range(rank.slots))
        if self.saves:
            self.saves.check()

    def beat(self, now: int) -> list[Effect]:
        """State what we hold, so that the granters can mend what was lost."""
        effects = self.look_for_remote(now) + self.end_idle(now)
        effects += self.saves.expire(now) if self.saves else []
        return effects + self.tell(INDEX, self._holding()) + self.tell(ALLOCATOR, self._stock())

    def _holding(self) -> Holding:
        saves = self.saves
        upto, claims = (saves.claimed_upto, saves.claims()) if saves else (0, ())
        return Holding(self.leased_upto, tuple(self.leases), upto, claims)

    def _stock(self) -> Stock:
        return self.saves.stock.statement() if self.saves else Stock(0, ())

    def met(self, neighbour: Address, now: int) -> list[Effect]:
        """A granter, perhaps in a new life that knows nothing of us: state all that we hold, before
        we ask it for anything."""
        saves = self.saves
        if neighbour.name == ALLOCATOR:
            if saves is None:
                return [Send(neighbour, self._stock())]
            saves.stock.allocator = neighbour
            return [Send(neighbour, self._stock()), *saves.stock.refill(now)]
        effects: list[Effect] = []
        if saves is not None:
            effects += saves.resume(neighbour, now)
            for number, lease in sorted(self.leases.items()):
                effects.append(Send(neighbour, Held(number, saves.world, lease.pages)))
        effects.append(Send(neighbour, self._holding()))
        return effects + (saves.seal_again(now) if saves else [])

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """A granter has died: nobody is asked until there is another one."""
        if self.saves is not None and dead == self.saves.index:
            self.saves.index = NOBODY
        if self.saves is not None and dead == self.saves.stock.allocator:
            self.saves.stock.allocator = NOBODY
        return []

    def late(self, sender: Address, msg: Message, now: int) -> list[Effect]:
        """A grant that nobody waits for goes back; only our own granters grant."""
        if self.peers.get(sender.name) != sender:
            return []
        if isinstance(msg, Held) and msg.number:
            self.leased_upto = max(self.leased_upto, msg.number)
            return [Send(sender, to_index.Release(msg.number))]
        if isinstance(msg, Claimed) and msg.number:
            return [Send(sender, EndClaim(msg.number))]
        if isinstance(msg, Reserved) and msg.status is Status.OK:
            if self.saves is None:
                return [Send(sender, Return(msg.pages))]
            return self.saves.stock.reserved(msg, now)
        return []

    def busy(self) -> bool:
        """Whether pages of the last complete layout are still in use."""
        return not self.complete and self.saves is not None and bool(self.saves.orders)

    def completed(self, now: int) -> list[Effect]:
        """From now on the ranks' blocks have a namespace."""
        assert self.welcome is not None and self.serve is not None
        space = namespace(self.serve, self.ranks)
        size = self.ranks[0].page_size
        old = self.saves
        effects: list[Effect] = []
        if old is not None and (old.namespace, old.stock.page_size) == (space, size):
            return old.stock.refill(now)
        geometry = Geometry(self.welcome.pool_bytes, self.welcome.extent_bytes)
        payload = layouts.page_bytes(self.ranks[0].layout)
        saves = Saves(space, size, payload, len(self.ranks), self.left, self.counts)
        saves.verify = self.welcome.verify
        saves.stock.most = self.welcome.pool_bytes // USED_SHARE if self.welcome.max_pinned else 0
        if old is not None:
            effects += self.tell(ALLOCATOR, Return(tuple(old.stock.free)))
            saves.stock.granted_upto = old.stock.granted_upto
            saves.claimed_upto = old.claimed_upto
            for number in list(self.leases):  # blocks of another layout: never into this one
                effects += self.end_lease(number)
        saves.index, saves.stock.allocator = self.peer(INDEX), self.peer(ALLOCATOR)
        saves.offset_of = lambda page: geometry.offset(page, size)
        self.saves = saves
        return effects + saves.stock.refill(now)

    def forget(self, rank: Rank) -> list[Effect]:
        """Its saves without Keep and its loads are over."""
        effects = self.saves.leave(rank.client) + self.saves.give_up() if self.saves else []
        for number in [n for n, c in self.copies.items() if c.rank is rank]:
            if rank.loads is Way.STAGED:
                effects += self._end_copy(number)
        return effects

    # lookups and loads

    def _on_lookup(self, sender: Sender, msg: Lookup, now: int) -> list[Effect]:
        self.meet(sender)
        saves = self.saves
        if saves is None or not self.complete:
            return [Reply(sender, Found(Status.NOT_ATTACHED, 0, 0))]
        if saves.index == NOBODY:
            return [Reply(sender, Found(Status.PEER_GONE, 0, 0))]
        if self._lookups >= LOOKUPS_MAX or sender.address not in self.clients:
            return [Reply(sender, Found(Status.BUSY, 0, 0))]
        self._lookups += 1

        def held(answer: Message, now: int) -> list[Effect]:
            self._lookups -= 1
            if not isinstance(answer, Held):
                status = answer.status if isinstance(answer, NoAnswer) else Status.UNKNOWN
                return [Reply(sender, Found(status, 0, 0))]
            if not answer.number:
                return [Reply(sender, Found(Status.OK, 0, 0))]
            self.hold(answer, saves.world, now)
            other = self.saves is not saves or answer.shards != saves.world
            if other or sender.address not in self.clients:
                miss = Reply(sender, Found(Status.OK, 0, 0))
                return [miss, *self.end_lease(answer.number)]
            blocks = len(answer.pages) // answer.shards
            return [Reply(sender, Found(Status.OK, answer.number, blocks, answer.disk))]

        self.counts["blocks_asked"] += len(msg.keys)
        ask = to_index.Find(saves.namespace, msg.keys)
        deadline = min(sender.deadline or now + INDEX_NS, now + INDEX_NS)
        return [Ask(saves.index, ask, deadline, held)]

    def _rank(self, client: Address, number: int) -> Rank | None:
        """The rank of this number, if it is this client's and served."""
        rank = self.ranks.get(number)
        served = rank is not None and rank.there and rank.client == client
        return rank if served and self.saves is not None else None

    def _on_load(self, sender: Sender, msg: Load, now: int) -> list[Effect]:
        rank = self._rank(sender.address, msg.rank)
        lease = self.leases.get(msg.lease)
        refusal = Status.OK
        if rank is None:
            refusal = Status.NOT_ATTACHED
        elif lease is None or lease.ended or msg.rank not in lease.waiting:
            refusal = Status.NO_SUCH_LEASE
        elif not self._in_range(rank, lease, msg):
            refusal = Status.BAD_REQUEST
        elif len(self.copies) >= COPIES_MAX:
            refusal = Status.BUSY
        if rank is None or lease is None or refusal is not Status.OK:
            self.counts["loads_refused"] += 1
            direct = rank is not None and rank.loads is Way.PROCESS_VM
            return [Reply(sender, Loaded(refusal) if direct else Pages(refusal, 0, ()))]
        assert self.saves is not None
        self._copy += 1
        copy = self._copy
        size = msg.count * layouts.page_bytes(rank.layout)
        self.copies[copy] = _Copy(rank, msg.lease, now, size)
        lease.copies += 1
        lease.use(now)
        world = self.saves.world
        mine = slice(msg.first * world + msg.rank, (msg.first + msg.count) * world, world)
        pages, sums = lease.pages[mine], lease.checksums[mine]
        self.counts["blocks_loaded"] += len(pages)
        offsets = tuple(map(self.saves.offset_of, pages))
        if rank.loads is Way.STAGED:
            found = Reply(sender, Pages(Status.OK, copy, offsets))
            return self._check_staged(sender, copy, pages, offsets, sums) if sums else [found]

        def written(done: Done, now: int) -> list[Effect]:
            rank.running -= 1
            status = Status.NO_SUCH_LEASE if lease.lost else done.status
            self._count(self.copies[copy], status is Status.OK, now)
            effects: list[Effect] = []
            if status is Status.CORRUPT:
                bad = set(done.values)
                effects = self._corrupt(
                    p for p, at in zip(pages, offsets, strict=True) if at in bad
                )
            effects += [Reply(sender, Loaded(status)), *self._end_copy(copy)]
            return effects + self.left(rank)

        rank.running += 1
        deadline = sender.deadline or now + LOAD_NS
        return [Do(WriteBlocks(rank.mapping, msg.blocks, offsets, deadline, sums), written)]

    def _check_staged(
        self,
        sender: Sender,
        copy: int,
        pages: tuple[int, ...],
        offsets: tuple[int, ...],
        sums: tuple[int, ...],
    ) -> list[Effect]:
        """Look at the pages before the client copies them."""
        assert self.saves is not None

        def summed(done: Done, now: int) -> list[Effect]:
            if copy not in self.copies:
                return [Reply(sender, Pages(Status.NO_SUCH_LEASE, 0, ()))]
            triples = zip(pages, sums, done.values, strict=False)
            bad = [page for page, sealed, found in triples if sealed not in (0, found)]
            if not bad and done.status is Status.OK:
                return [Reply(sender, Pages(Status.OK, copy, offsets))]
            status = Status.CORRUPT if bad else done.status
            self._count(self.copies[copy], False, now)
            refused = Reply(sender, Pages(status, 0, ()))
            return [refused, *self._corrupt(bad), *self._end_copy(copy)]

        return [Do(SumPages(offsets, self.saves.payload), summed)]

    def _corrupt(self, pages: Iterable[int]) -> list[Effect]:
        """These pages do not hold what was sealed."""
        bad = tuple(pages)
        self.counts["pages_corrupt"] += len(bad)
        return self.tell(INDEX, to_index.Corrupt(bad)) if bad else []

    def _in_range(self, rank: Rank, lease: Lease, msg: Load) -> bool:
        assert self.saves is not None
        if msg.count == 0 or (msg.first + msg.count) * self.saves.world > len(lease.pages):
            return False
        staged = rank.loads is Way.STAGED
        return staged or (len(msg.blocks) == msg.count and max(msg.blocks) < rank.layout.blocks)

    def _on_copied(self, sender: Sender, msg: Copied, now: int) -> list[Effect]:
        copy = self.copies.get(msg.copy)
        mine = copy is not None and copy.rank.client == sender.address
        if copy is None or not mine or copy.rank.loads is not Way.STAGED:
            return [Reply(sender, Confirmed(Status.NO_SUCH_LEASE))]
        lease = self.leases[copy.lease]
        lease.use(now)
        self._count(copy, msg.ok and not lease.lost, now)
        status = Status.NO_SUCH_LEASE if lease.lost else Status.OK
        return [Reply(sender, Confirmed(status)), *self._end_copy(msg.copy)]

    def _count(self, copy: _Copy, ok: bool, now: int) -> None:
        """A copy has ended, well or not."""
        if not ok:
            self.counts["loads_failed"] += 1
            return
        self.counts["loads"] += 1
        self.counts["bytes_loaded"] += copy.bytes_
        LOAD.count(self.counts, max(0, now - copy.asked) // 1000)

    def _end_copy(self, number: int) -> list[Effect]:
        """A rank has loaded; the lease ends with the last one."""
        copy = self.copies.pop(number)
        lease = self.leases[copy.lease]
        lease.copies -= 1
        lease.waiting.discard(copy.rank.number)
        return self.end_lease(copy.lease) if lease.ended or not lease.waiting else []

    # saves

    def _on_save(self, sender: Sender, msg: Save, now: int) -> list[Effect]:
        rank = self._rank(sender.address, msg.rank)
        if rank is None or self.saves is None or not self.complete:
            count_dropped(self.counts, Status.NOT_ATTACHED, len(msg.keys))
            return [Reply(sender, Saved(Status.NOT_ATTACHED, 0, 0))]
        if msg.parent and len(msg.parent) != len(msg.keys[0] if msg.keys else b""):
            return self.saves.refuse(rank, sender, msg, Status.BAD_REQUEST)
        return self.saves.begin(rank, sender, msg, now)

    def _on_keep(self, sender: Sender, msg: Keep, now: int) -> list[Effect]:
        return self.saves.keep(sender.address, msg, now) if self.saves else []

    def _on_drop(self, sender: Sender, msg: Drop, now: int) -> list[Effect]:
        return self.saves.drop(sender.address, msg) if self.saves else []

    def _on_skip(self, sender: Sender, msg: Skip, now: int) -> list[Effect]:
        mine = sender.address in self.clients
        return self.saves.skip(msg.order) if self.saves and mine else []

    def _on_commit(self, sender: Sender, msg: Commit, now: int) -> list[Effect]:
        mine = sender.address in self.clients
        return self.saves.commit(msg.orders, now) if self.saves and mine else []

    def _on_reserved_again(self, sender: Sender, msg: Reserved, now: int) -> list[Effect]:
        return self.late(sender.address, msg, now)
