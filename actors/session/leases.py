"""The leases that a session holds for the requests of its engine.

Those of the index have its numbers; they are stated to it, and passed on to its Release at their
end.  Those of our own are blocks that we have found by ourselves and keep by hazards (hazards.py):
nobody else knows of them, and at their end the hazards are cleared.  A client sees no difference.
And some a client has found by itself, and passed on with their hazards (lending.py): these have a
number of the client's.

A lease ends only when every rank has loaded from it, or it is not wanted any more, and no copy of
it runs, whoever asked for it.  One that nobody loads from for LEASE_IDLE_NS ends, and so do all
that begin with its first block, if none of these was loaded from for so long: to ask again and
again renews nothing.

How much the engine keeps from eviction, and how much it may, is in pins.py.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from pegaflow.actors.runtime.contract import MS, Effect, On, Part, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.core.grants import Holdings
from pegaflow.core.pool.columns import column, distinct, signed
from pegaflow.core.pool.finder import Run as Found
from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.hazards import Pages, Rows
from pegaflow.wire import index as to_index
from pegaflow.wire.identities import LeaseId, PageId
from pegaflow.wire.index import Held, LeasesLost
from pegaflow.wire.session import LEASE_IDLE_NS, Release
from pegaflow.wire.units import Count, Nanoseconds, Share
from pegaflow.wire.values import CLIENT, INDEX

from .engine import Engine
from .hazards import HazardBook
from .pins import Pins
from .records import NO_PAGES, NO_PLACES
from .space import Space
from .touches import Touches

OWN_FIRST: Count = 1 << 62
"""Numbers of our own leases begin here; the index counts from 1 and will never come so far."""

LASTING_NS: Nanoseconds = 30_000 * MS
"""A lease that is so old is shown: a request that is not loaded by then waits in a long queue, or
its engine is stopped."""

LASTING_SHARE: Share = 1 / 16
"""Of the pool: less than that in old leases costs nobody a hit."""


@dataclass(slots=True)
class Run:
    """Leases that begin with the same block."""

    used_ns: int  # when the first of them was asked for, or one was loaded from
    leases: int = 0


class Own(NamedTuple):
    """What a lease that hazards keep has beside its pages."""

    stamps: U64  # beside the pages
    rows: Rows  # its hazards
    lent: bool = False  # they are in the section that is lent
    firsts: Pages = NO_PLACES  # of its blocks, each once: see pins.py


@dataclass(slots=True)
class Lease:
    """Blocks that stay in place for a request."""

    pages: Pages  # `shards` per block, block-major
    checksums: U64  # beside `pages`; empty: nothing is checked
    waiting: set[int]  # ranks that have not loaded from it yet
    used_ns: int  # when it was last asked for
    run: Run
    since_ns: int  # when it was found
    shards: int  # pages per block
    block_bytes: int  # of the pool
    own: Own | None = None  # kept by hazards of ours; None: the index keeps it
    copies: int = 0  # loads of it that run now
    ended: bool = False  # release it as soon as no copy runs
    lost: bool = False  # what it names is not what it was: no copy of it may succeed

    def use(self, now: int) -> None:
        """Somebody loads from it."""
        self.used_ns = self.run.used_ns = now

    @property
    def first(self) -> PageId:
        """The first page of the first block."""
        return PageId(int(self.pages[0]))

    @property
    def firsts(self) -> Pages:
        """The first page of each block."""
        return self.pages[:: self.shards]


class Leases(Part):
    """All leases of the engine."""

    def __init__(
        self,
        member: Member,
        engine: Engine,
        *,
        hazards: HazardBook,
        pins: Pins,
        touches: Touches,
        counts: Counter[str],
    ) -> None:
        self._member, self._engine, self._counts = member, engine, counts
        self._hazards, self._pins, self._touches = hazards, pins, touches
        self.held: Holdings[LeaseId, Lease] = Holdings(LeaseId)  # the index's, by its number
        self.own: dict[LeaseId, Lease] = {}  # kept by hazards, by a number that is not the index's
        self._next = LeaseId(OWN_FIRST)  # number of the next of our own
        self.runs: dict[PageId, Run] = {}  # leases by their first page
        self._lasting = (0, 0)  # bytes in old leases, ns of the oldest, as of the beat

    def handlers(self) -> Iterable[On]:
        """What clients and index say of leases."""
        return (
            on(Release, self._on_release, CLIENT),
            on(Held, self._on_held_again, INDEX),
            on(LeasesLost, self._on_leases_lost, INDEX),
        )

    def gauges(self) -> dict[str, int]:
        """How many there are, and how many of them the index does not know."""
        return {"session_leases": len(self.items()), "session_leases_own": len(self.own)}

    def check(self) -> None:
        """Leases that have ended are gone unless copies run; runs count their leases."""
        leases = [lease for _, lease in self.items()]
        assert all(lease.copies or not lease.ended for lease in leases)
        runs = Counter(lease.first for lease in leases)
        assert runs == {page: run.leases for page, run in self.runs.items()}
        assert all(number < OWN_FIRST for number in self.held.numbers())
        own = self.own.values()
        rows = [lease.own.rows for lease in own if lease.own and not lease.own.lent]
        assert sum(map(len, rows)) == self._hazards.standing
        lent = [lease for lease in own if lease.own and lease.own.lent]
        assert sum(len(lease.firsts) * lease.block_bytes for lease in lent) == self._pins.lent_bytes
        kept = {first: lease.block_bytes for lease in own for first in lease.firsts.tolist()}
        assert sum(kept.values()) == self._pins.kept_bytes

    def remarks(self) -> tuple[str, ...]:
        """An engine that keeps much from eviction, and has done so for long."""
        bytes_, age_ns = self._lasting
        if not bytes_:
            return ()
        kept = (
            f"has kept {bytes_ >> 20} MiB of the pool from eviction for {age_ns // (1000 * MS)} s"
        )
        return (f"engine {self._engine.name} {kept}: it is stopped, or its requests wait",)

    def get(self, number: LeaseId) -> Lease | None:
        """The lease that a client means by this number."""
        return self.own.get(number) if number >= OWN_FIRST else self.held.get(number)

    def items(self) -> list[tuple[LeaseId, Lease]]:
        """All of them by number, the index's first."""
        return [*self.held.items(), *self.own.items()]

    def hold(self, answer: Held, space: Space, now: int) -> Lease:
        """Enter a lease that the index has granted.

        Args:
            space: of the engine that asked: each of its ranks may load from it once.
        """
        pages, sums = signed(answer.pages), column(answer.checksums)
        lease = self._lease(pages, sums, space, now, shards=answer.shards)
        self.held.hold(answer.number, lease)
        return lease

    def keep(self, run: Found, blocks: int, space: Space, now: int) -> LeaseId:
        """Enter a lease of our own, whose hazards are cleared when it ends.

        Args:
            blocks: from the first of the run on; the hazards of the others are the caller's.

        Returns:
            Its number, which the client uses like one of the index's.
        """
        end = blocks * space.shards
        number, self._next = self._next, LeaseId(self._next + 1)
        own = Own(run.stamps[:end].copy(), run.rows[:blocks])
        self._keep(number, run.pages[:end], run.checksums[:end], own, space=space, now=now)
        return number

    def take(
        self, number: LeaseId, pages: Pages, sums: U64, own: Own, *, space: Space, now: int
    ) -> None:
        """Enter a lease that a client has found, whose hazards are ours from now on.

        Args:
            sums: the checksums of its pages.
        """
        self._pins.lent_bytes += len(own.rows) * space.block_bytes
        self._keep(number, pages, sums, own, space=space, now=now)

    def _keep(
        self, number: LeaseId, pages: Pages, sums: U64, own: Own, *, space: Space, now: int
    ) -> None:
        sums = sums.copy() if space.verify else NO_PAGES
        lease = self._lease(pages, sums, space, now, shards=space.shards)
        lease.own = own._replace(firsts=self._pins.keep(lease.firsts, lease.block_bytes))
        self.own[number] = lease

    def _lease(
        self,
        pages: Pages,
        sums: U64,
        space: Space,
        now: int,
        *,
        shards: int,
    ) -> Lease:
        run = self.runs.setdefault(PageId(int(pages[0])), Run(now))
        run.leases += 1
        return Lease(
            pages=pages,
            checksums=sums,
            waiting=set(range(space.ranks)),
            used_ns=now,
            run=run,
            since_ns=now,
            shards=shards,
            block_bytes=space.block_bytes,
        )

    def stands(self, lease: Lease, part: slice) -> bool:
        """Whether pages hold now what they were found to hold; if not, the lease is lost.

        Args:
            part: of the lease's pages: those that are copied.
        """
        own = lease.own
        if own is not None and not lease.lost:
            if not self._hazards.sealed(lease.pages[part], own.stamps[part]):
                lease.lost = True
                self._counts["leases_lost"] += 1
        return not lease.lost

    def beat(self, now: int) -> list[Effect]:
        """Give back what nobody loads from."""
        effects: list[Effect] = []
        for number, lease in self.items():
            if not lease.copies and now - min(lease.used_ns, lease.run.used_ns) > LEASE_IDLE_NS:
                self._counts["leases_idle"] += 1
                effects += self.end_lease(number)
        self._lasting = self._look_at_old(now)
        return effects

    def _look_at_old(self, now: int) -> tuple[int, int]:
        """Bytes of the pool in old leases, and the age of the oldest, if they are many."""
        old = [lease for _, lease in self.items() if now - lease.since_ns > LASTING_NS]
        welcome = self._member.welcome
        if not old or welcome is None:
            return 0, 0
        firsts = distinct(np.concatenate([lease.firsts for lease in old]))
        bytes_ = len(firsts) * old[0].block_bytes
        much = bytes_ >= welcome.pool_bytes * LASTING_SHARE
        return (bytes_, now - min(lease.since_ns for lease in old)) if much else (0, 0)

    def end_all(self) -> list[Effect]:
        """The engine has other blocks now: these are never loaded into them."""
        return [effect for number, _ in self.items() for effect in self.end_lease(number)]

    def give_back(self, msg: Held) -> list[Effect]:
        """A lease that nobody waits for any more."""
        self.held.hear(msg.number)
        return self._member.tell(INDEX, to_index.Release(msg.number)) if msg.number else []

    def end_lease(self, number: LeaseId) -> list[Effect]:
        """End a lease, or mark it so while a copy of it runs."""
        lease = self.get(number)
        assert lease is not None
        lease.ended = True
        if lease.copies:
            return []
        lease.run.leases -= 1
        if not lease.run.leases:
            del self.runs[lease.first]
        if lease.own is None:
            self.held.end(number)
            return self._member.tell(INDEX, to_index.Release(number))
        del self.own[number]
        self._hazards.clear(lease.own.rows, lent=lease.own.lent)
        if lease.own.lent:
            self._pins.lent_bytes -= len(lease.firsts) * lease.block_bytes
        self._pins.let_go(lease.own.firsts, lease.block_bytes)
        return self._touches.add(lease.firsts)

    def _on_release(self, sender: Sender, msg: Release, now: int) -> list[Effect]:
        return self.end_lease(msg.lease) if self.get(msg.lease) is not None else []

    def _on_held_again(self, sender: Sender, msg: Held, now: int) -> list[Effect]:
        """A lease sent again: ours already, or one that we never heard of and hand back."""
        if msg.number in self.held:
            return []
        return self.give_back(msg)

    def _on_leases_lost(self, sender: Sender, msg: LeasesLost, now: int) -> list[Effect]:
        """The index has lost these leases: whatever is copied under them is worth nothing."""
        effects: list[Effect] = []
        for number in msg.numbers:
            lease = self.held.get(number)
            if lease is not None:
                lease.lost = True
                self._counts["leases_lost"] += 1
                effects += self.end_lease(number)
        return effects
