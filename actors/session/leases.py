"""The half of the session that holds leases, for the requests of its engine.

A lease is passed on to the index's Release only when every rank has loaded from it, or it is not
wanted any more, and no copy of it runs, whoever asked for it.  One that nobody loads from for
LEASE_IDLE_NS is given back, and so are all that begin with its first block, if none of these was
loaded from for so long: to ask again and again renews nothing.

How much the engine keeps from eviction, and how much it may, the index knows (core/blocks/pins.py)
and says in Pinned; here it gets the engine's name.
"""

from collections import Counter
from dataclasses import dataclass

from pegaflow.actors.runtime.contract import Effect, Note, Sender
from pegaflow.wire import index as to_index
from pegaflow.wire.control import Hello
from pegaflow.wire.index import Held, Pinned, Unheld
from pegaflow.wire.session import LEASE_IDLE_NS, Release
from pegaflow.wire.values import CLIENT, INDEX, Address, U64s

from .attach import Boarding

ADVICE = "its lookups end early; it should load or release what it looks up (see --max-pinned)"


@dataclass(slots=True)
class Run:
    """Leases that begin with the same block."""

    used: int  # when the first of them was asked for, or one was loaded from
    leases: int = 0


@dataclass(slots=True)
class Lease:
    """Blocks that stay in place for a request."""

    pages: U64s  # `world` per block, block-major
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


class Leasing(Boarding):
    """All leases of the engine."""

    def __init__(self, address: Address, supervisor: Address, hello: Hello) -> None:
        super().__init__(address, supervisor, hello)
        self.leases: dict[int, Lease] = {}  # by the index's number
        self.leased_upto = 0  # newest lease number we have seen
        self.runs: dict[int, Run] = {}  # leases by their first page
        self.pins = Pinned(0, 0, 0)  # the index's last word
        self.greedy = False  # the engine was said to want more than it may
        self.on(Release, self._on_release, CLIENT)
        self.on(Held, self._on_held_again, INDEX)
        self.on(Unheld, self._on_unheld, INDEX)
        self.on(Pinned, self._on_pinned, INDEX)

    def check_leases(self) -> None:
        """Leases that have ended are gone unless copies run; runs count their leases."""
        assert all(lease.copies or not lease.ended for lease in self.leases.values())
        runs = Counter(lease.pages[0] for lease in self.leases.values())
        assert runs == {page: run.leases for page, run in self.runs.items()}

    def remarks(self) -> tuple[str, ...]:
        """An engine that keeps as much of the pool from eviction as one may."""
        if not self.greedy:
            return ()
        held = f"holds {self.pins.bytes >> 20} of the {self.pins.most >> 20} MiB that it may hold"
        return (f"engine {self._engine()} {held} by leases, and asks for more: {ADVICE}",)

    def hold(self, answer: Held, world: int, now: int) -> Lease:
        """A lease that the index has granted."""
        self.leased_upto = max(self.leased_upto, answer.number)
        run = self.runs.setdefault(answer.pages[0], Run(now))
        run.leases += 1
        lease = Lease(answer.pages, answer.checksums, set(range(world)), now, run)
        self.leases[answer.number] = lease
        return lease

    def end_idle(self, now: int) -> list[Effect]:
        """Give back what nobody loads from."""
        effects: list[Effect] = []
        for number, lease in list(self.leases.items()):
            if not lease.copies and now - min(lease.used, lease.run.used) > LEASE_IDLE_NS:
                self.counts["leases_idle"] += 1
                effects += self.end_lease(number)
        return effects

    def end_lease(self, number: int) -> list[Effect]:
        """Release a lease, or mark it so while a copy of it runs."""
        lease = self.leases[number]
        lease.ended = True
        if lease.copies:
            return []
        del self.leases[number]
        lease.run.leases -= 1
        if not lease.run.leases:
            del self.runs[lease.pages[0]]
        return self.tell(INDEX, to_index.Release(number))

    def _on_release(self, sender: Sender, msg: Release, now: int) -> list[Effect]:
        return self.end_lease(msg.lease) if msg.lease in self.leases else []

    def _on_held_again(self, sender: Sender, msg: Held, now: int) -> list[Effect]:
        """A lease sent again: ours already, or one that we never heard of and hand back."""
        if msg.number in self.leases:
            return []
        return self.late(sender.address, msg, now)

    def _on_unheld(self, sender: Sender, msg: Unheld, now: int) -> list[Effect]:
        """The index has lost these leases: whatever is copied under them is worth nothing."""
        effects: list[Effect] = []
        for number in msg.numbers:
            lease = self.leases.get(number)
            if lease is not None:
                lease.lost = True
                self.counts["leases_lost"] += 1
                effects += self.end_lease(number)
        return effects

    def _on_pinned(self, sender: Sender, msg: Pinned, now: int) -> list[Effect]:
        """Say who it is that wants more than it may; once, until it holds much less."""
        more = msg.cut not in (0, self.pins.cut)  # a new index counts from 0
        said, self.pins = self.greedy, msg
        self.greedy = more or (said and 2 * msg.bytes >= msg.most)
        if said or not more:
            return []
        facts = (("engine", self._engine()), ("pinned_bytes", msg.bytes), ("of", msg.most))
        return [Note("engine_pins_too_much", (*facts, ("advice", ADVICE)), "warning")]

    def _engine(self) -> str:
        return self.serve.engine if self.serve is not None else ""
