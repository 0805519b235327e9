"""Reservations: who asks for pages gets them, waits, or is refused.

Those that cannot be served wait: for an extent that is still being grown, or for the index to
evict.  One Pressure is outstanding at a time, and one is followed by the next as long as pages are
missing; when it frees nothing and nothing grows, those who wait are told NO_SPACE.  A request that
the whole pool could never hold is TOO_LARGE at once and evicts nothing.  While nobody waits, pages
are freed ahead of need (ahead.py).
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from pegaflow.actors.roster import HOLDERS
from pegaflow.actors.runtime.contract import MS, Ask, Effect, On, Part, Reply, Sender, on
from pegaflow.core.grants import Grants
from pegaflow.core.pool.columns import said
from pegaflow.wire.allocator import PRESSURE_PAGES, Freed, Pressure, Reserve, Reserved
from pegaflow.wire.identities import NO_GRANT, GrantId, Stamp
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.units import Constant, Count, Nanoseconds
from pegaflow.wire.values import INDEX, LIST_MAX, Address

from .ahead import Ahead
from .growth import Growth
from .pages import Pages
from .peer import IndexPeer
from .reclaim import Reclaim

PRESSURE_NS: Nanoseconds = 500 * MS
"""The index evicts in microseconds; an index that takes so long is about to be killed."""

WAITING_MAX: Count = 1024
"""Reservations that may wait at once: several per session of the largest host."""

UNSTATED_MAX: Count = 4096
"""Grants that one holder has not stated yet: it states with each beat, some hundreds at most."""

STAMP_SHIFT: Constant = 40
"""A stamp is incarnation << 40 | counter: a million grants a second for twelve days per life."""


@dataclass(slots=True)
class _Waiting:
    sender: Sender
    page_size: int
    count: int
    waited: bool = False  # there were too few pages when it came


class Reservations(Part):
    """Grants pages."""

    def __init__(
        self,
        address: Address,
        pages: Pages,
        *,
        index: IndexPeer,
        growth: Growth,
        reclaim: Reclaim,
        grants: Grants[GrantId, Reserved],
        counts: Counter[str],
    ) -> None:
        self._stamp = Stamp(address.incarnation << STAMP_SHIFT)  # the newest that was given
        self._pages = pages
        self._index = index
        self._growth = growth
        self._reclaim = reclaim
        self._grants = grants  # those that their holder has not stated yet
        self._counts = counts
        self._waiting: deque[_Waiting] = deque()  # reservations not answered yet, oldest first
        self._pressing = False  # a Pressure is outstanding
        self._ahead = Ahead(pages)

    def handlers(self) -> Iterable[On]:
        """The question."""
        return (on(Reserve, self._on_reserve, *HOLDERS, INDEX),)

    def fence(self, dead: Address) -> None:
        """What it has asked needs no answer, and what it was granted is not said again."""
        self._grants.fence(dead)
        self._waiting = deque(w for w in self._waiting if w.sender.address != dead)

    def serve(self, now: int) -> list[Effect]:
        """Serve whoever waits; press the index for what is missing."""
        effects: list[Effect] = []
        left: deque[_Waiting] = deque()
        for waiting in self._waiting:
            if waiting.sender.deadline and waiting.sender.deadline <= now:
                self._counts["reserve_expired"] += 1
                continue
            reserved = self._grant(waiting)
            if reserved is None:
                waiting.waited = True
                left.append(waiting)
            else:
                self._counts["reserve_waited" if waiting.waited else "reserve_at_once"] += 1
                effects.append(Reply(waiting.sender, reserved))
        self._waiting = left
        if self._index.is_there and not (self._growth.growing or self._pressing):
            effects += self._press(left[0], now) if left else self._press_ahead(now)
        return effects

    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def check(self) -> None:
        """Grants are in their book, and only so many wait."""
        self._grants.check()
        assert len(self._waiting) <= WAITING_MAX

    def _on_reserve(self, sender: Sender, msg: Reserve, now: int) -> list[Effect]:
        if sender.address in self._index.fenced:
            return []  # queued before its death
        refusal = self._refusal(sender.address, msg)
        if refusal is not None:
            self._counts[f"reserve_{refusal.name.lower()}"] += 1
            return [Reply(sender, Reserved(refusal, NO_GRANT, (), ()))]
        self._waiting.append(_Waiting(sender, msg.page_size, msg.count))
        return self.serve(now)

    def _refusal(self, holder: Address, msg: Reserve) -> Status | None:
        assert self._pages.slab is not None
        if msg.page_size <= 0 or msg.page_size % 4096 or not 0 < msg.count <= LIST_MAX:
            return Status.BAD_REQUEST
        if not self._pages.slab.can_ever_fit(msg.page_size, msg.count):
            return Status.TOO_LARGE
        unstated = self._grants.count(holder)
        busy = len(self._waiting) >= WAITING_MAX or unstated >= UNSTATED_MAX
        return Status.BUSY if busy else None

    def _grant(self, waiting: _Waiting) -> Reserved | None:
        assert self._pages.slab is not None
        holder = waiting.sender.address
        number = GrantId(self._grants.last(holder) + 1)
        pages = self._pages.slab.take(waiting.page_size, waiting.count, holder, number)
        if pages is None:
            return None
        stamps = np.arange(len(pages), dtype=np.uint64) + np.uint64(self._stamp + 1)
        self._stamp = Stamp(self._stamp + len(pages))
        reserved = Reserved(Status.OK, number, said(pages), said(stamps))
        self._grants.add(holder, number, reserved)
        self._counts["pages_granted"] += len(pages)
        self._ahead.took(waiting.page_size)
        return reserved

    def _press(self, first: _Waiting, now: int) -> list[Effect]:
        assert self._pages.slab is not None
        wanted = sum(w.count for w in self._waiting if w.page_size == first.page_size)
        missing, resize = self._pages.slab.shortage(first.page_size, wanted)
        if resize:  # that is too much at once, but may not be for the first alone
            missing, resize = self._pages.slab.shortage(first.page_size, first.count)
        ask = Pressure(first.page_size, min(max(missing, 1), PRESSURE_PAGES), resize)
        return self._ask(ask, self._refuse_first, now)

    def _press_ahead(self, now: int) -> list[Effect]:
        """Nobody waits: have pages ready for whoever asks next."""
        ask = self._ahead.pressure(now)
        if ask is None:
            return []
        self._counts["pressed_ahead"] += 1

        def in_vain(now: int) -> list[Effect]:
            self._ahead.in_vain(ask.page_size, now)
            return self.serve(now)

        return self._ask(ask, in_vain, now)

    def _ask(
        self, pressure: Pressure, in_vain: Callable[[int], list[Effect]], now: int
    ) -> list[Effect]:
        """Press the index.

        Args:
            in_vain: what follows if it frees nothing; else whoever waits is served.
        """
        self._pressing = True

        def over(now: int) -> list[Effect]:
            self._pressing = False
            return self.serve(now)

        def pressed(answer: Message, now: int) -> list[Effect]:
            freed = answer.pages if isinstance(answer, Freed) else ()
            reading = self._reclaim.from_index(freed, over)
            if reading:
                return reading
            self._pressing = False
            return in_vain(now)

        return [Ask(self._index.address, pressure, now + PRESSURE_NS, pressed)]

    def _refuse_first(self, now: int) -> list[Effect]:
        """The index could free nothing: the one that pressed gets its answer, the others try."""
        if not self._waiting:
            return []
        first = self._waiting.popleft()
        self._counts["reserve_no_space"] += 1
        return [Reply(first.sender, Reserved(Status.NO_SPACE, NO_GRANT, (), ())), *self.serve(now)]
