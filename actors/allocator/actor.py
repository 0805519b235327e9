"""The allocator: grants pages to those who fill them, and takes them back.  See wire/allocator.py.

It is the only writer of the slab.  A page that leaves its holder is free only if its ledger record,
read after the holder's word, is void; a sealed one belongs to the index.  The ledger is read by a
job, so that the actor stays a function of its inputs.

Reservations that cannot be served wait: for an extent that is still being grown, or for the index
to evict.  One Pressure is outstanding at a time; when it frees nothing and nothing grows, those who
wait are told NO_SPACE.  A request that the whole pool could never hold is TOO_LARGE at once and
evicts nothing.

It begins without any book: first every session of the Roll states what it holds, then the ledger is
read, then the slab is made of both (`_adopt`), and only then is a page given away.
"""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from pegaflow.actors.roles.recovery import Adopting
from pegaflow.actors.roster import HOLDERS
from pegaflow.actors.runtime.contract import MS, Ask, Do, Effect, Note, Reply, Send, Sender
from pegaflow.core.pool.geometry import Geometry
from pegaflow.core.pool.slab import Plan, Slab
from pegaflow.wire.allocator import Fence, Freed, Pressure, Reserve, Reserved, Return, Stock
from pegaflow.wire.control import Fenced, Hello
from pegaflow.wire.jobs import Done, GrowExtent, ReadRecords, ScanRecords
from pegaflow.wire.message import Message
from pegaflow.wire.status import Status
from pegaflow.wire.values import INDEX, LIST_MAX, NOBODY, NUMBER_MAX, Address, U64s

PRESSURE_NS = 500 * MS
"""The index evicts in microseconds; an index that takes so long is about to be killed."""

WAITING_MAX = 1024
"""Reservations that may wait at once: several per session of the largest host."""

UNSTATED_MAX = 4096
"""Grants that one holder has not stated yet: it states with each beat, some hundreds at most."""

SCAN_PAGES = 4096
"""Pages whose records are looked at per beat, to mend a lost Freed: about 2 ms."""

STAMP_SHIFT = 40
"""A stamp is incarnation << 40 | counter: a million grants a second for twelve days per life."""


@dataclass(slots=True)
class _Waiting:
    sender: Sender
    page_size: int
    count: int


class Allocator(Adopting):
    """Who may fill which page."""

    AT_ONCE = frozenset({Stock, Fenced, Freed})

    def __init__(self, address: Address, supervisor: Address, hello: Hello) -> None:
        super().__init__(address, supervisor, hello)
        self.slab: Slab | None = None  # there once we are ready
        self.index = NOBODY  # the living index that has dialled us
        self._stated: dict[Address, Stock] = {}  # until then: the newest word of each holder
        self._scanning = False  # until then: the ledger is being read
        self._stamps = 0  # stamps given in this life
        self._grants: dict[Address, int] = {}  # newest grant number per holder
        self._unstated: dict[
            Address, dict[int, Reserved]
        ] = {}  # grants later than the holder's upto
        self._waiting: deque[_Waiting] = deque()  # reservations not answered yet, oldest first
        self._pressing = False  # a Pressure is outstanding
        self._growing = False  # a GrowExtent is outstanding
        self._fenced: set[Address] = set()  # fenced, but not buried yet
        self._scan: list[int] = []  # left pages still to look at in this round
        self.on(Reserve, self._on_reserve, *HOLDERS, INDEX)
        self.on(Return, self._on_return, *HOLDERS, INDEX)
        self.on(Stock, self._on_stock, *HOLDERS, INDEX)
        self.on(Freed, self._on_freed, INDEX)
        self.on(Fenced, self._on_fenced, INDEX)

    def receive(self, sender: Sender, msg: Message, now: int) -> list[Effect]:
        """While the ledger is being read, what was stated stands: a page that somebody held when
        it began is his until it is over, whatever has become of it meanwhile.  An early Return
        must not wait: its page may be granted anew before its turn comes.  A Stock mends it."""
        if not self.ready and isinstance(msg, Return):
            self.counts["returns_early"] += 1
            return []
        if self._scanning and type(msg) in self.AT_ONCE:
            return self.defer(sender, msg)
        return super().receive(sender, msg, now)

    def up(self, now: int) -> list[Effect]:
        """Read the ledger, if all have stated already."""
        return self._scan_all(now)

    def stated(self, now: int) -> list[Effect]:
        """Read the ledger, if these were the last."""
        if self.awaited is not None:
            self.awaited -= self._fenced | self._stated.keys()
        return self._scan_all(now)

    def beat(self, now: int) -> list[Effect]:
        """Look at the next few pages of the index, for one whose Freed was lost, and at the dead,
        for one whose Fenced was."""
        waiting = set(self.awaited or ()) if self.slab is None else self.slab.holders()
        fence = [Fence(dead) for dead in self.dead if dead in waiting and self.index != NOBODY]
        effects: list[Effect] = [Send(self.index, msg) for msg in fence]
        if self.slab is None:
            return effects
        if not self._scan:
            self._scan = self.slab.left_pages()
        chunk, self._scan = self._scan[:SCAN_PAGES], self._scan[SCAN_PAGES:]
        return effects + self._free_void(tuple(chunk)) + self._serve(now)

    def gone(self, dead: Address, now: int) -> list[Effect]:
        """From here on the shell drops what the dead one had queued."""
        self._fenced.discard(dead)
        if dead == self.index:
            self.index = NOBODY
        return []

    # adoption

    def _scan_all(self, now: int) -> list[Effect]:
        """Once all have stated, and an index has spoken that knows of all deaths: read the ledger.
        Before that the dead might still seal what nobody states."""
        known = self.welcome is not None and self.index != NOBODY and self.gathered()
        if self.ready or self._scanning or not known:
            return []
        self._scanning = True
        return self._scan_from(0, [])

    def _scan_from(self, first: int, found: list[int]) -> list[Effect]:
        assert self.welcome is not None
        geometry = Geometry(self.welcome.pool_bytes, self.welcome.extent_bytes)
        count = min(LIST_MAX, geometry.extents * geometry.records_per_extent - first)
        if not count:
            return []

        def read(done: Done, now: int) -> list[Effect]:
            found.extend(done.values)
            last = first + count == geometry.extents * geometry.records_per_extent
            return (
                self._adopt(geometry, found, now) if last else self._scan_from(first + count, found)
            )

        return [Do(ScanRecords(first, count), read)]

    def _adopt(self, geometry: Geometry, found: list[int], now: int) -> list[Effect]:
        """Make the slab: what somebody states is his, what is sealed is the index's."""
        plan = Plan(geometry)
        for holder, stock in self._stated.items():
            self._grants[holder] = min(stock.upto, NUMBER_MAX)
            for page, size in _sized(stock):
                if not plan.grant(page, size, holder, stock.upto):
                    self.counts["pages_not_held"] += 1
        for value in found:
            plan.leave(value & 0xFFFF_FFFF, value >> 32)
        self.slab = plan.slab()
        self._stated.clear()
        self._scanning = False
        t = self.slab.totals()
        note: list[Effect] = []
        if t.granted_bytes or t.left_bytes:
            facts = (("sealed_bytes", t.left_bytes), ("held_bytes", t.granted_bytes))
            note = [Note("pool_adopted", facts)]
        return note + self._grow(0) + self.begin(now)

    def gauges(self) -> dict[str, int]:
        """Where the bytes of the pool are."""
        if self.slab is None:
            return {}
        t = self.slab.totals()
        return {
            "pool_capacity_bytes": t.total_bytes,
            "pool_free_bytes": t.free_bytes,
            "pool_held_bytes": t.granted_bytes,
            "pool_sealed_bytes": t.left_bytes,
            "pool_absent_bytes": t.absent_bytes,
            "pool_waste_bytes": t.waste_bytes,
        }

    def check(self) -> None:
        """The slab's books, and that every unstated grant is still booked."""
        if self.slab is not None:
            self.slab.check()
        assert len(self._waiting) <= WAITING_MAX
        assert self.ready == (self.slab is not None)

    def _grow(self, extent: int) -> list[Effect]:
        assert self.slab is not None
        while extent < self.slab.geometry.extents and not self.slab.is_absent(extent):
            extent += 1  # adopted: it is there
        self._growing = extent < self.slab.geometry.extents
        if not self._growing:
            return [Note("pool_ready", (("bytes", self.slab.geometry.pool_bytes),))]

        def grown(done: Done, now: int) -> list[Effect]:
            assert self.slab is not None
            if done.status is not Status.OK:
                self._growing = False
                extents = self.slab.geometry.extents
                self.counts["extents_not_grown"] += extents - extent
                facts = (("extents", extent), ("of", extents), ("why", done.note))
                return [Note("pool_short", facts, "warning"), *self._serve(now)]
            self.slab.grow(extent)
            return self._grow(extent + 1) + self._serve(now)

        return [Do(GrowExtent(extent), grown)]

    def _on_reserve(self, sender: Sender, msg: Reserve, now: int) -> list[Effect]:
        if sender.address in self._fenced:
            return []  # queued before its death
        refusal = self._refusal(sender.address, msg)
        if refusal is not None:
            self.counts[f"reserve_{refusal.name.lower()}"] += 1
            return [Reply(sender, Reserved(refusal, 0, (), ()))]
        self._waiting.append(_Waiting(sender, msg.page_size, msg.count))
        return self._serve(now)

    def _refusal(self, holder: Address, msg: Reserve) -> Status | None:
        assert self.slab is not None
        if msg.page_size <= 0 or msg.page_size % 4096 or not 0 < msg.count <= LIST_MAX:
            return Status.BAD_REQUEST
        if not self.slab.can_ever_fit(msg.page_size, msg.count):
            return Status.TOO_LARGE
        unstated = len(self._unstated.get(holder, ()))
        busy = len(self._waiting) >= WAITING_MAX or unstated >= UNSTATED_MAX
        return Status.BUSY if busy else None

    def _serve(self, now: int) -> list[Effect]:
        """Serve whoever waits; press the index for what is missing."""
        assert self.slab is not None
        effects: list[Effect] = []
        left: deque[_Waiting] = deque()
        for waiting in self._waiting:
            if waiting.sender.deadline and waiting.sender.deadline <= now:
                self.counts["reserve_expired"] += 1
                continue
            reserved = self._grant(waiting)
            if reserved is None:
                left.append(waiting)
            else:
                effects.append(Reply(waiting.sender, reserved))
        self._waiting = left
        if left and not (self._growing or self._pressing or self.index == NOBODY):
            effects += self._press(left[0], now)
        return effects

    def _grant(self, waiting: _Waiting) -> Reserved | None:
        assert self.slab is not None
        holder = waiting.sender.address
        number = self._grants.get(holder, 0) + 1
        pages = self.slab.take(waiting.page_size, waiting.count, holder, number)
        if pages is None:
            return None
        self._grants[holder] = number
        first = (self.address.incarnation << STAMP_SHIFT) + self._stamps + 1
        self._stamps += len(pages)
        stamps = tuple(range(first, first + len(pages)))
        reserved = Reserved(Status.OK, number, tuple(pages), stamps)
        self._unstated.setdefault(holder, {})[number] = reserved
        self.counts["pages_granted"] += len(pages)
        return reserved

    def _press(self, first: _Waiting, now: int) -> list[Effect]:
        assert self.slab is not None
        wanted = sum(w.count for w in self._waiting if w.page_size == first.page_size)
        missing, recut = self.slab.shortage(first.page_size, wanted)
        self._pressing = True

        def pressed(answer: Message, now: int) -> list[Effect]:
            if not isinstance(answer, Freed) or not answer.pages:
                self._pressing = False
                return self._refuse_first(now)
            return self._free_void(answer.pages, pressure_over=True)

        ask = Pressure(first.page_size, min(max(missing, 1), LIST_MAX), recut)
        return [Ask(self.index, ask, now + PRESSURE_NS, pressed)]

    def _refuse_first(self, now: int) -> list[Effect]:
        """The index could free nothing: the one that pressed gets its answer, the others try."""
        if not self._waiting:
            return []
        first = self._waiting.popleft()
        self.counts["reserve_no_space"] += 1
        return [Reply(first.sender, Reserved(Status.NO_SPACE, 0, (), ())), *self._serve(now)]

    def _on_return(self, sender: Sender, msg: Return, now: int) -> list[Effect]:
        return self._leave_holder(sender.address, msg.pages)

    def _on_stock(self, sender: Sender, msg: Stock, now: int) -> list[Effect]:
        """Take back what the holder does not name; send again what it may not have got."""
        holder = sender.address
        if self.slab is None:
            self._stated[holder] = msg
            return self.stated(now)
        unstated = self._unstated.get(holder, {})
        named = set(msg.pages)
        held = self.slab.held_by(holder)
        for number, grant in list(unstated.items()):  # a page that came back was heard of too
            if number <= msg.upto or any(held.get(page) != number for page in grant.pages):
                del unstated[number]
        omitted = [p for p, n in held.items() if n <= msg.upto and p not in named]
        again: list[Effect] = [Send(holder, r) for r in unstated.values()]
        return again + self._leave_holder(holder, tuple(omitted))

    def _on_fenced(self, sender: Sender, msg: Fenced, now: int) -> list[Effect]:
        dead = msg.address
        if dead not in self.dead:
            self._fenced.add(dead)
        self._grants.pop(dead, None)
        self._unstated.pop(dead, None)
        self._stated.pop(dead, None)
        self._waiting = deque(w for w in self._waiting if w.sender.address != dead)
        if self.awaited is not None:
            self.awaited.discard(dead)
        if self.slab is None:
            return self.stated(now)
        return self._leave_holder(dead, tuple(self.slab.held_by(dead)))

    def _leave_holder(self, holder: Address, pages: U64s) -> list[Effect]:
        """The holder gave its word or is dead: sealed pages are the index's, void ones free."""
        if self.slab is None or not pages:
            return []
        slab = self.slab
        grants = {p: g for p in pages if (g := slab.grant_of(p)) is not None and g[0] == holder}
        if len(grants) < len(pages):
            self.counts["pages_not_held"] += len(pages) - len(grants)

        def read(done: Done, now: int) -> list[Effect]:
            sealed = set(done.values)
            for page, grant in grants.items():
                if slab.grant_of(page) != grant:
                    self.counts["pages_not_held"] += 1
                elif page in sealed:
                    slab.leave(page)
                else:
                    slab.hand_back(page, holder)
            return self._serve(now)

        return [Do(ReadRecords(tuple(grants)), read)] if grants else []

    def _on_freed(self, sender: Sender, msg: Freed, now: int) -> list[Effect]:
        self.index = sender.address
        if self.slab is None:
            return self._scan_all(now)  # what has been freed so far will be found void
        return self._free_void(msg.pages) + self._serve(now)

    def _free_void(self, pages: U64s, pressure_over: bool = False) -> list[Effect]:
        slab = self.slab
        assert slab is not None

        def read(done: Done, now: int) -> list[Effect]:
            sealed = set(done.values)
            for page in pages:
                if page not in sealed and slab.is_left(page):
                    slab.free(page)
            if pressure_over:
                self._pressing = False
            return self._serve(now)

        return [Do(ReadRecords(pages), read)] if pages else []


def _sized(stock: Stock) -> Iterator[tuple[int, int]]:
    """Every page that is stated, with its size; a list that does not fit says nothing."""
    sizes = stock.sizes or (stock.page_size,) * len(stock.pages)
    return zip(stock.pages, sizes, strict=False)
