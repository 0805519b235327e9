"""How much of the pool the engine keeps from eviction, and how much it may (--max-pinned).

What the index has leased it counts itself (core/blocks/pins.py) and says in Pinned.  What we keep
by hazards is counted here, each block once, however many leases name it, and so are the leases that
a client has found by itself and passed on; what it has not passed on is counted when we find
something for it.  All of these are bounded in sum:
a lookup that would go beyond ends early, as if the rest of its run were not there.  Who wants more
than it may is named once, until it holds much less; here it gets the engine's name.
"""

from collections import Counter
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from pegaflow.actors.runtime.contract import Effect, Note, On, Part, Sender, on
from pegaflow.core.pool.finder import Run
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.hazards import Pages
from pegaflow.wire.control import LogLevel, Welcome
from pegaflow.wire.index import Pinned
from pegaflow.wire.values import INDEX

from .engine import Engine
from .hazards import NO_BOUND, HazardBook
from .space import Space

ADVICE = "its lookups end early; it should load or release what it looks up (see --max-pinned)"

U32 = npt.NDArray[np.uint32]


class Pins(Part):
    """Bytes that the engine keeps from eviction."""

    def __init__(self, engine: Engine, hazards: HazardBook, counts: Counter[str]) -> None:
        self._engine, self._hazards, self._counts = engine, hazards, counts
        self._leased = Pinned(0, 0, 0)  # the index's last word
        self._most_bytes = 0  # that the engine may keep; 0: any number
        self.kept_bytes = 0  # that hazards of leases keep
        self.lent_bytes = 0  # of leases that a client has found, each counted by itself
        self._times: U32 = np.zeros(0, np.uint32)  # by page: leases with a block that begins there
        self._place: U32 = np.zeros(0, np.uint32)  # by page: see `_distinct`
        self.greedy = False  # the engine was said to want more than it may

    def handlers(self) -> Iterable[On]:
        """What the index counts."""
        return (on(Pinned, self._on_pinned, INDEX),)

    def up(self, welcome: Welcome, now: int) -> list[Effect]:
        """How much there is, and how much of it one engine may keep."""
        geometry = Geometry(welcome.pool_bytes, welcome.extent_bytes)
        self._times, self._place = np.zeros(
            (2, geometry.extents * geometry.records_per_extent), np.uint32
        )
        self._most_bytes = welcome.max_pinned_bytes
        self._allow()
        return []

    def gauges(self) -> dict[str, int]:
        """What is kept from eviction."""
        return {"session_pinned_bytes": self.bytes, "session_greedy": int(self.greedy)}

    def remarks(self) -> tuple[str, ...]:
        """An engine that keeps as much of the pool from eviction as one may."""
        if not self.greedy:
            return ()
        most_bytes = self._most_bytes or self._leased.most
        held = f"holds {self.bytes >> 20} of the {most_bytes >> 20} MiB that it may hold"
        return (f"engine {self._engine.name} {held} by leases, and asks for more: {ADVICE}",)

    def beat(self, now: int) -> list[Effect]:
        """It may hold much less by now."""
        self._calm(self._most_bytes or self._leased.most)
        return []

    @property
    def bytes(self) -> int:
        """Of the index's leases, of our own, and of those that only a client knows of."""
        space = self._engine.space
        unsaid_bytes = self._hazards.unsaid * space.block_bytes if space is not None else 0
        return self._leased.bytes + self.kept_bytes + unsaid_bytes

    def _allow(self) -> None:
        """A client that looks up by itself keeps no more in its section than is left, beside what
        it has there already."""
        room_bytes = (
            max(0, self._most_bytes - self._leased.bytes - self.kept_bytes + self.lent_bytes)
            if self._most_bytes
            else NO_BOUND
        )
        self._hazards.allow(room_bytes)

    def afford(self, run: Run, space: Space) -> int:
        """How much of a run may be kept.

        Returns:
            Blocks, from the first on; what is kept already costs nothing.
        """
        room_bytes = max(0, self._most_bytes - self.bytes)
        if not self._most_bytes or run.blocks * space.block_bytes <= room_bytes:
            return run.blocks
        firsts = run.pages[:: space.shards]
        new = np.cumsum(self._times[firsts] == 0) * space.block_bytes
        return int(np.searchsorted(new, room_bytes, "right"))

    def want_more(self, blocks: int) -> list[Effect]:
        """A lookup ends early, by so many blocks."""
        self._counts["blocks_unpinned"] += blocks
        return self._say(self._most_bytes)

    def keep(self, pages: Pages, block_bytes: int) -> Pages:
        """Hazards of a lease stand on blocks.

        Args:
            pages: the first of each block; a block may be there twice.
            block_bytes: of the pool, that each block takes.

        Returns:
            Each of these pages once, for `let_go`.
        """
        firsts = self._distinct(pages)
        times = self._times[firsts]
        self.kept_bytes += (len(times) - int(np.count_nonzero(times))) * block_bytes
        self._times[firsts] = times + 1
        self._allow()
        return firsts

    def let_go(self, firsts: Pages, block_bytes: int) -> None:
        """The hazards of a lease are cleared.

        Args:
            firsts: what `keep` has returned.
            block_bytes: as it was said to `keep`.
        """
        times = self._times[firsts] - 1
        self._times[firsts] = times
        self.kept_bytes -= (len(times) - int(np.count_nonzero(times))) * block_bytes
        self._allow()

    def _distinct(self, firsts: Pages) -> Pages:
        """Each of these pages once: a client may have named a key twice."""
        order = np.arange(len(firsts), dtype=np.uint32)
        self._place[firsts] = order
        first = self._place[firsts] == order
        return firsts if first.all() else firsts[first]

    def _on_pinned(self, sender: Sender, msg: Pinned, now: int) -> list[Effect]:
        more = msg.cut not in (0, self._leased.cut)  # a new index counts from 0
        self._leased = msg
        self._allow()
        if more:
            return self._say(msg.most)
        self._calm(msg.most)
        return []

    def _say(self, most_bytes: int) -> list[Effect]:
        """Say who it is that wants more than it may; once."""
        said, self.greedy = self.greedy, True
        if said:
            return []
        facts = (("engine", self._engine.name), ("pinned_bytes", self.bytes), ("of", most_bytes))
        return [Note("engine_pins_too_much", (*facts, ("advice", ADVICE)), LogLevel.WARNING)]

    def _calm(self, most_bytes: int) -> None:
        self.greedy = self.greedy and 2 * self.bytes >= most_bytes
