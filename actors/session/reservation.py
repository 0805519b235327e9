"""The pages that a session holds: a few to fill at once, and those in use.

Pages come by Reserve and leave by Return: when the index has answered for them, or when they will
never be sealed.  Until then every statement names them.  While there is no allocator, whoever
wants pages waits for the next one.

All are of the size of the engine's space.  When it gets another one, the unused pages go back, and
so do those that were asked for before and come after.
"""

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Protocol

import numpy as np

from pegaflow.actors.runtime.contract import MS, Ask, Effect, NoAnswer, On, Part, Sender, on
from pegaflow.actors.runtime.member import Member
from pegaflow.core.grants import Heard
from pegaflow.core.pool.columns import said
from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.geometry import slot_size
from pegaflow.wire.allocator import PagesHeld, Reserve, Reserved, Return
from pegaflow.wire.identities import NO_GRANT, GrantId, PageId, Stamp
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Count, Nanoseconds
from pegaflow.wire.values import ALLOCATOR, NOBODY

from .engine import Engine
from .records import NO_PAGES
from .touches import Touches

ALLOCATOR_NS: Nanoseconds = 1000 * MS
"""Patience with the allocator: a hundred times its worst answer on a busy host."""

READY_BYTES: Bytes = 8 << 20
"""Pages kept ready, so that a save need not ask the allocator first."""

READY_PAGES_MAX: Count = 64
"""Pages kept ready at most: nobody else has them, and of a pool of 32 MiB they are an eighth."""

RESERVE_MAX: Count = 1024
"""Pages asked for at once, those of a batch: a long save must not evict the whole pool before it
copies a byte, nor keep the index from its lookups for long."""

RESERVE_BYTES: Bytes = 64 << 20
"""Bytes of these pages at most, but for one batch."""


class Demand(Protocol):
    """Whoever waits for pages."""

    def waits(self) -> bool:
        """Whether anybody does."""

    def wanted(self) -> tuple[int, int]:
        """Pages that all want who may have some now, and that the first of them wants."""

    def feed(self, now: int) -> list[Effect]:
        """There are pages: take them."""

    def narrow(self) -> bool:
        """There are not so many as the first wants: whether it can do with fewer at a time."""

    def no_space(self, status: Status, now: int) -> list[Effect]:
        """There are none to be had, and why."""


class Reservation(Part):
    """Granted pages of one size: a book of the allocator's (roles/holder.py)."""

    def __init__(self, member: Member, engine: Engine, touches: Touches) -> None:
        self._member, self._engine, self._touches = member, engine, touches
        self.free: dict[PageId, Stamp] = {}  # page -> stamp: granted, not yet used
        self.used: dict[PageId, Stamp] = {}  # page -> stamp: being filled, in place or in a Seal
        self._grants = Heard(GrantId)
        self._demand: Demand | None = None  # set once
        self._leaving: list[U64] = []  # sealed, and not said in a Return yet
        self._reserving = False
        self._mixed = False  # there was another space: whatever comes unasked may be of its size

    def feeds(self, demand: Demand) -> None:
        """Said once: who waits for pages."""
        assert self._demand is None
        self._demand = demand

    def handlers(self) -> Iterable[On]:
        """A grant that is sent again."""
        return (on(Reserved, self._on_reserved_again, ALLOCATOR),)

    def gauges(self) -> dict[str, int]:
        """Bytes of the pool that we hold."""
        space = self._engine.space
        held = (len(self.free) + len(self.used)) * slot_size(space.page_size) if space else 0
        return {"session_held_bytes": held}

    def check(self) -> None:
        """A page is ready or in use."""
        assert not set(self.free) & set(self.used)

    # the allocator

    def restate(self, now: int) -> list[Effect]:
        """The statement names every page."""
        return []

    def statement(self) -> PagesHeld:
        """What we hold of the allocator's."""
        space = self._engine.space
        if space is None:
            return PagesHeld(NO_GRANT, ())
        return PagesHeld(self._grants.upto, (*self.free, *self.used), space.page_size)

    def go_on(self, now: int) -> list[Effect]:
        """Have pages ready."""
        return self.refill(now)

    def too_late(self, msg: Message, now: int) -> list[Effect]:
        """Pages came that nobody asks for now: they are of use, if they are of our size."""
        if not isinstance(msg, Reserved) or msg.status is not Status.OK:
            return []
        if self._engine.space is None:
            return self._member.tell(ALLOCATOR, Return(msg.pages))
        if self._mixed and self._grants.hear(msg.number):
            return self._member.tell(ALLOCATOR, Return(msg.pages))
        return self._came(msg, now)

    def _on_reserved_again(self, sender: Sender, msg: Reserved, now: int) -> list[Effect]:
        return self.too_late(msg, now)

    def beat(self, now: int) -> list[Effect]:
        """Say what has left us, if nothing else has had it said.  What nobody wants goes back: it
        came too late, or what was claimed was not new."""
        space, demand = self._engine.space, self._demand
        if space is not None and demand is not None and not demand.waits():
            spare = tuple(self.free)[demand.wanted()[0] + _ready(space.page_size) :]
            deque(map(self.free.pop, spare), maxlen=0)
            self._leaving.append(np.array(spare, np.uint64))
        return self.return_()

    # who waits for pages

    def take(self, count: int) -> tuple[U64, U64]:
        """So many pages to use, and their stamps; none if there are not so many."""
        if len(self.free) < count:
            return NO_PAGES, NO_PAGES
        pages = tuple(islice(self.free, count))
        stamps = tuple(map(self.free.pop, pages))
        self.used.update(zip(pages, stamps, strict=True))
        return np.array(pages, np.uint64), np.array(stamps, np.uint64)

    def give_back(self, pages: U64) -> list[Effect]:
        """These used pages leave our books: sealed, or never to be."""
        if not len(pages):
            return []
        self.leave(pages)
        return self.return_()

    def leave(self, pages: U64) -> None:
        """The same; it is said with what else leaves us soon, before we ask for other pages or with
        the next beat.  A statement omits them from here on."""
        deque(map(self.used.pop, pages.tolist()), maxlen=0)
        self._leaving.append(pages)

    def return_much(self) -> list[Effect]:
        """Say what has left us, if it is as much as we keep ready."""
        space, left = self._engine.space, sum(map(len, self._leaving))
        return self.return_() if space is not None and left >= _ready(space.page_size) else []

    def return_(self) -> list[Effect]:
        """Say what has left us."""
        gone, self._leaving = np.concatenate([NO_PAGES, *self._leaving]), []
        return self._member.tell(ALLOCATOR, Return(said(gone))) if len(gone) else []

    def forget(self) -> list[Effect]:
        """The engine gets another space; no page is in use."""
        assert not self.used
        pages, self.free = tuple(self.free), {}
        self._reserving, self._mixed = False, True
        return self._member.tell(ALLOCATOR, Return(pages))

    def pass_on(self, now: int) -> list[Effect]:
        """Pages have left: others may have their turn."""
        assert self._demand is not None
        return self._demand.feed(now) if self._demand.waits() else []

    def refill(self, now: int) -> list[Effect]:
        """Have pages ready."""
        space = self._engine.space
        if space is None or self._demand is None:
            return []
        wanted, first = self._demand.wanted()
        most = min(RESERVE_MAX, RESERVE_BYTES // space.page_size)
        wanted = max(first, min(wanted, most))
        ready = _ready(space.page_size)
        enough = wanted + ready // 2 <= len(self.free)
        if self._reserving or enough or self._member.peer(ALLOCATOR) == NOBODY:
            return []
        return self._reserve(wanted + ready - len(self.free), now)

    def _came(self, answer: Reserved, now: int) -> list[Effect]:
        """Pages came, asked for or sent again."""
        assert self._demand is not None
        if self._grants.hear(answer.number):
            self.free.update(zip(answer.pages, answer.stamps, strict=True))
        return self._demand.feed(now)

    def _reserve(self, count: int, now: int) -> list[Effect]:
        """Ask for pages; if there are not so many, for just what the first who waits needs, and
        then for fewer and fewer, so that what the pool has is used."""
        self._reserving = True
        space, demand = self._engine.space, self._demand
        assert space is not None and demand is not None

        def reserved(answer: Message, now: int) -> list[Effect]:
            if self._engine.space is not space:
                return self.too_late(answer, now)
            self._reserving = False
            if isinstance(answer, Reserved) and answer.status is Status.OK:
                return self._came(answer, now)
            gone = isinstance(answer, NoAnswer) and answer.status is Status.PEER_GONE
            _, first = demand.wanted()
            if not first or gone:
                return []
            if isinstance(answer, Reserved):
                least = first - len(self.free)
                if 0 < least < count:
                    return self._reserve(least, now)
                if answer.status is not Status.BUSY and demand.narrow():
                    return self._narrowed(now)
            status = answer.status if isinstance(answer, NoAnswer | Reserved) else Status.UNKNOWN
            return demand.no_space(status, now)

        ask = Reserve(space.page_size, count)
        return [
            *self.return_(),
            *self._touches.tell(),
            Ask(self._member.peer(ALLOCATOR), ask, now + ALLOCATOR_NS, reserved),
        ]

    def _narrowed(self, now: int) -> list[Effect]:
        """The first who waits wants fewer pages now."""
        assert self._demand is not None
        least = self._demand.wanted()[1] - len(self.free)
        return self._reserve(least, now) if least > 0 else self._demand.feed(now)


def _ready(page_size: Bytes) -> Count:
    """Pages that are kept ready."""
    return max(4, min(READY_PAGES_MAX, READY_BYTES // page_size))
