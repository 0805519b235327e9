"""The leases that a session holds for the requests of its engine.

A lease is passed on to the index's Release only when every rank has loaded from it, or it is not
wanted any more, and no copy of it runs, whoever asked for it.  One that nobody loads from for
LEASE_IDLE_NS is given back, and so are all that begin with its first block, if none of these was
loaded from for so long: to ask again and again renews nothing.

How much the engine keeps from eviction, and how much it may, the index knows (core/blocks/pins.py)
and says in Pinned; here it gets the engine's name.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from pegaflow.actors.runtime.contract import Effect, Note, On, Part, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.core.grants import Holdings
from pegaflow.wire import index as to_index
from pegaflow.wire.control import LogLevel
from pegaflow.wire.identities import LeaseId, PageId
from pegaflow.wire.index import Held, LeasesLost, Pinned
from pegaflow.wire.session import LEASE_IDLE_NS, Release
from pegaflow.wire.values import CLIENT, INDEX, Numbers, U64s

from .engine import Engine

ADVICE = "its lookups end early; it should load or release what it looks up (see --max-pinned)"


@dataclass(slots=True)
class Run:
    """Leases that begin with the same block."""

    used: int  # when the first of them was asked for, or one was loaded from
    leases: int = 0


@dataclass(slots=True)
class Lease:
    """Blocks that stay in place for a request."""

    pages: Numbers[PageId]  # `world` per block, block-major
    checksums: U64s  # beside `pages`; empty: nothing is checked
    waiting: set[int]  # ranks that have not loaded from it yet
    used: int  # when it was last asked for
    run: Run
    copies: int = 0  # loads of it that run now
    ended: bool = False  # release it as soon as no copy runs
    lost: bool = False  # the index does not honour it: no copy of it may succeed

    def use(self, now: int) -> None:
        """Somebody loads from it."""
        self.used = self.run.used = now


class Leases(Part):
    """All leases of the engine."""

    def __init__(self, member: Member, engine: Engine, counts: Counter[str]) -> None:
        self._member, self._engine, self._counts = member, engine, counts
        self.held: Holdings[LeaseId, Lease] = Holdings(LeaseId)  # by the index's number
        self.runs: dict[PageId, Run] = {}  # leases by their first page
        self.pins = Pinned(0, 0, 0)  # the index's last word
        self.greedy = False  # the engine was said to want more than it may

    def handlers(self) -> Iterable[On]:
        """What clients and index say of leases."""
        return (
            on(Release, self._on_release, CLIENT),
            on(Held, self._on_held_again, INDEX),
            on(LeasesLost, self._on_leases_lost, INDEX),
            on(Pinned, self._on_pinned, INDEX),
        )

    def gauges(self) -> dict[str, int]:
        """What is kept from eviction."""
        return {
            "session_leases": len(self.held),
            "session_pinned_bytes": self.pins.bytes,
            "session_greedy": int(self.greedy),
        }

    def check(self) -> None:
        """Leases that have ended are gone unless copies run; runs count their leases."""
        assert all(lease.copies or not lease.ended for lease in self.held.values())
        runs = Counter(lease.pages[0] for lease in self.held.values())
        assert runs == {page: run.leases for page, run in self.runs.items()}

    def remarks(self) -> tuple[str, ...]:
        """An engine that keeps as much of the pool from eviction as one may."""
        if not self.greedy:
            return ()
        held = f"holds {self.pins.bytes >> 20} of the {self.pins.most >> 20} MiB that it may hold"
        return (f"engine {self._engine.name} {held} by leases, and asks for more: {ADVICE}",)

    def hold(self, answer: Held, world: int, now: int) -> Lease:
        """Enter a lease that the index has granted.

        Args:
            world: ranks, each of which may load from it once.
        """
        run = self.runs.setdefault(answer.pages[0], Run(now))
        run.leases += 1
        lease = Lease(answer.pages, answer.checksums, set(range(world)), now, run)
        self.held.hold(answer.number, lease)
        return lease

    def beat(self, now: int) -> list[Effect]:
        """Give back what nobody loads from."""
        effects: list[Effect] = []
        for number, lease in self.held.items():
            if not lease.copies and now - min(lease.used, lease.run.used) > LEASE_IDLE_NS:
                self._counts["leases_idle"] += 1
                effects += self.end_lease(number)
        return effects

    def end_all(self) -> list[Effect]:
        """The engine has other blocks now: these are never loaded into them."""
        return [effect for number in self.held.numbers() for effect in self.end_lease(number)]

    def give_back(self, msg: Held) -> list[Effect]:
        """A lease that nobody waits for any more."""
        self.held.hear(msg.number)
        return self._member.tell(INDEX, to_index.Release(msg.number)) if msg.number else []

    def end_lease(self, number: LeaseId) -> list[Effect]:
        """Release a lease, or mark it so while a copy of it runs."""
        lease = self.held.get(number)
        assert lease is not None
        lease.ended = True
        if lease.copies:
            return []
        self.held.end(number)
        lease.run.leases -= 1
        if not lease.run.leases:
            del self.runs[lease.pages[0]]
        return self._member.tell(INDEX, to_index.Release(number))

    def _on_release(self, sender: Sender, msg: Release, now: int) -> list[Effect]:
        return self.end_lease(msg.lease) if msg.lease in self.held else []

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

    def _on_pinned(self, sender: Sender, msg: Pinned, now: int) -> list[Effect]:
        """Say who it is that wants more than it may; once, until it holds much less."""
        more = msg.cut not in (0, self.pins.cut)  # a new index counts from 0
        said, self.pins = self.greedy, msg
        self.greedy = more or (said and 2 * msg.bytes >= msg.most)
        if said or not more:
            return []
        facts = (("engine", self._engine.name), ("pinned_bytes", msg.bytes), ("of", msg.most))
        return [Note("engine_pins_too_much", (*facts, ("advice", ADVICE)), LogLevel.WARNING)]
