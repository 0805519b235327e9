"""The saves of one session: from Save to Saved, in batches through the bounce file.

    claimed ── Take ──→ taken ── Keep ──→ kept ── pages reserved ──→ filling ── Seal ──→ sealed
                          └── Drop: slots come back, nothing is published

A save asks the index which of its keys are new, then moves them in batches, as many at a time as
there are free slots.  Slots come back when their bytes are in the pool; pages leave our books only
by the index's word (sealed) or by our Return.  While a Seal is unanswered it is asked again with
the same content, and its pages are neither used nor returned: the index may have published them.

Saved is said when the last batch is sealed, not when its bytes have left the engine's blocks: the
engine waits some microseconds longer for its blocks, and in return Saved means that the next lookup
hits.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from pegaflow.cache.geometry import slot_size
from pegaflow.wire.allocator import Reserve, Reserved, Return, Stock
from pegaflow.wire.index import Claim, Claimed, EndClaim, Seal, Sealed
from pegaflow.wire.jobs import Done, FillPages
from pegaflow.wire.message import Message
from pegaflow.wire.session import Drop, Keep, Save, Saved, Take
from pegaflow.wire.status import Status
from pegaflow.wire.values import Address

from .actor import MS, Ask, Do, Effect, NoAnswer, Reply, Send, Sender

INDEX_NS = 1000 * MS
"""Patience with the index and the allocator: a hundred times their worst answer on a busy host."""

SAVES_MAX = 4096
"""Open saves of one session: an engine step has at most one per running request."""

KEYS_MAX = 1 << 20
"""Keys of all open saves: more blocks than an engine has, and some 100 MB of our memory."""

BATCH_BLOCKS = 64
"""Blocks per Take: large enough to hide a round trip, small enough to share the slots."""

STOCK_BYTES = 8 << 20
"""Pages kept ready, so that a save need not ask the allocator first."""


@dataclass(slots=True)
class _Batch:
    positions: tuple[int, ...]  # in the save's keys
    slots: tuple[int, ...]  # of the bounce file, one per position
    kept: bool = False  # the client said Keep: from here on a Drop is too late


@dataclass(slots=True)
class _Save:
    sender: Sender  # quoted in Saved
    msg: Save
    claim: int = 0  # 0: the index has not answered yet
    todo: deque[int] = field(default_factory=deque)  # positions no Take named yet
    batches: dict[int, _Batch] = field(default_factory=dict)  # taken or kept, not yet sealed
    saved: int = 0
    known: int = 0
    status: Status = Status.OK


class Saves:
    """All open saves, the free slots and the pages held."""

    def __init__(self, namespace: bytes, page_size: int, payload: int, slots: int) -> None:
        self.namespace = namespace
        self.page_size = page_size
        self.payload = payload  # bytes of a page that mean something
        self.index = Address("", 0)
        self.allocator = Address("", 0)
        self.offset_of: Callable[[int], int] = lambda page: page
        self.slots = slots  # in the bounce file
        self.free_slots = list(range(slots))
        self.stock: dict[int, int] = {}  # page -> stamp: granted, not yet used
        self.filling: dict[int, int] = {}  # page -> stamp: used by a batch, not yet sealed
        self.granted_upto = 0  # newest grant number we have seen
        self.claimed_upto = 0  # newest claim number we have seen
        self.saves: dict[tuple[Address, int], _Save] = {}  # open ones by client and its number
        self._keys = 0  # of all open saves together
        self._batch = 0  # newest batch number
        self._hungry: deque[tuple[tuple[Address, int], int]] = deque()  # kept batches without pages
        self._reserving = False

    @property
    def stock_pages(self) -> int:
        """Pages that we like to have ready."""
        return max(4, min(BATCH_BLOCKS, STOCK_BYTES // self.page_size))

    def held_bytes(self) -> int:
        """Bytes of the pool in pages that we hold."""
        return (len(self.stock) + len(self.filling)) * slot_size(self.page_size)

    def check(self) -> None:
        """Slots and pages add up."""
        used = [s for save in self.saves.values() for b in save.batches.values() for s in b.slots]
        assert self._keys == sum(len(save.msg.keys) for save in self.saves.values())
        assert not set(self.stock) & set(self.filling)
        assert not set(self.free_slots) & set(used)
        assert len(set(self.free_slots)) == len(self.free_slots) <= self.slots

    def stock_statement(self) -> Stock:
        """What we hold of the allocator's."""
        return Stock(self.granted_upto, (*self.stock, *self.filling))

    def claims(self) -> tuple[int, ...]:
        """Claims under which we still save."""
        return tuple(s.claim for s in self.saves.values() if s.claim)

    def begin(self, sender: Sender, msg: Save, now: int) -> list[Effect]:
        """A new save: ask the index what of it is new."""
        key = (sender.address, msg.save)
        if key in self.saves or not msg.keys:
            return [Reply(sender, Saved(Status.BAD_REQUEST, 0, 0))]
        if len(self.saves) >= SAVES_MAX or self._keys + len(msg.keys) > KEYS_MAX:
            return [Reply(sender, Saved(Status.BUSY, 0, 0))]
        self._keys += len(msg.keys)
        save = self.saves[key] = _Save(sender, msg)

        def claimed(answer: Message, now: int) -> list[Effect]:
            return self._claimed(key, save, answer, now)

        return [Ask(self.index, Claim(self.namespace, msg.keys), now + INDEX_NS, claimed)]

    def keep(self, client: Address, msg: Keep, now: int) -> list[Effect]:
        """The client's copy of a batch is complete and was true until its end."""
        save = self.saves.get((client, msg.save))
        batch = save.batches.get(msg.batch) if save else None
        if batch is None or batch.kept:
            return []
        batch.kept = True
        self._hungry.append(((client, msg.save), msg.batch))
        return self._feed(now)

    def drop(self, client: Address, msg: Drop, now: int) -> list[Effect]:
        """The engine takes its blocks back: whatever has no Keep is not saved."""
        save = self.saves.get((client, msg.save))
        return self._cut(save, now) if save else []

    def leave(self, client: Address, now: int) -> list[Effect]:
        """The client goes: as if it had dropped all its saves."""
        mine = [s for (c, _), s in self.saves.items() if c == client]
        return [e for save in mine for e in self._cut(save, now)]

    def reserved(self, answer: Reserved, now: int) -> list[Effect]:
        """Pages came, asked for or sent again."""
        if answer.number > self.granted_upto:
            self.granted_upto = answer.number
            self.stock.update(zip(answer.pages, answer.stamps, strict=True))
        return self._feed(now)

    def refill(self, now: int) -> list[Effect]:
        """Have pages ready."""
        wanted = sum(len(self.saves[k].batches[b].positions) for k, b in self._hungry)
        missing = wanted + self.stock_pages // 2 - len(self.stock)
        if self._reserving or missing <= 0:
            return []
        return self._reserve(max(wanted, self.stock_pages) - len(self.stock), now)

    def _reserve(self, count: int, now: int) -> list[Effect]:
        """Ask for pages; if there are not so many, for just what the first kept batch needs."""
        self._reserving = True

        def reserved(answer: Message, now: int) -> list[Effect]:
            self._reserving = False
            if isinstance(answer, Reserved) and answer.status is Status.OK:
                return self.reserved(answer, now)
            if not self._hungry:
                return []
            key, number = self._hungry[0]
            least = len(self.saves[key].batches[number].positions) - len(self.stock)
            if isinstance(answer, Reserved) and least < count:
                return self._reserve(least, now)
            status = answer.status if isinstance(answer, NoAnswer | Reserved) else Status.UNKNOWN
            return self._starve(status, now)

        return [Ask(self.allocator, Reserve(self.page_size, count), now + INDEX_NS, reserved)]

    def _claimed(
        self, key: tuple[Address, int], save: _Save, answer: Message, now: int
    ) -> list[Effect]:
        if not isinstance(answer, Claimed):
            save.status = answer.status if isinstance(answer, NoAnswer) else Status.UNKNOWN
            return self._finish(save)
        self.claimed_upto = max(self.claimed_upto, answer.number)
        save.claim = answer.number
        save.known = len(save.msg.keys) - len(answer.positions)
        if save.status is Status.OK:
            save.todo.extend(p for p in answer.positions if p < len(save.msg.keys))
        return self._finish(save) if not save.todo else self._take(now)

    def _take(self, now: int) -> list[Effect]:
        """Hand out free slots, oldest save first."""
        effects: list[Effect] = []
        for save in self.saves.values():
            while save.todo and self.free_slots:
                count = min(len(save.todo), len(self.free_slots), BATCH_BLOCKS)
                positions = tuple(save.todo.popleft() for _ in range(count))
                slots = tuple(self.free_slots.pop() for _ in range(count))
                self._batch += 1
                save.batches[self._batch] = _Batch(positions, slots)
                take = Take(save.msg.save, self._batch, positions, slots)
                effects.append(Send(save.sender.address, take))
        return effects

    def _feed(self, now: int) -> list[Effect]:
        """Give pages to kept batches, in the order in which they were kept."""
        effects: list[Effect] = []
        while self._hungry:
            key, number = self._hungry[0]
            save = self.saves[key]
            batch = save.batches[number]
            if len(self.stock) < len(batch.positions):
                break
            self._hungry.popleft()
            pages = tuple(self.stock.popitem() for _ in batch.positions)
            self.filling.update(pages)
            effects += self._fill(save, number, batch, pages)
        return effects + self.refill(now)

    def _fill(
        self, save: _Save, number: int, batch: _Batch, pages: tuple[tuple[int, int], ...]
    ) -> list[Effect]:
        offsets = tuple(self.offset_of(page) for page, _ in pages)

        def filled(done: Done, now: int) -> list[Effect]:
            self.free_slots.extend(batch.slots)
            batch.slots = ()
            if done.status is not Status.OK:
                save.status = done.status
                return self._sealed(save, number, batch, pages, (), now)
            return self._seal(save, number, batch, pages, now) + self._take(now)

        return [Do(FillPages(batch.slots, offsets, self.payload, self.page_size), filled)]

    def _seal(
        self,
        save: _Save,
        number: int,
        batch: _Batch,
        pages: tuple[tuple[int, int], ...],
        now: int,
    ) -> list[Effect]:
        keys = save.msg.keys
        first = save.msg.parent or bytes(len(keys[0]))
        ask = Seal(
            save.claim,
            self.namespace,
            self.page_size,
            self.payload,
            1,
            tuple(keys[p] for p in batch.positions),
            tuple(keys[p - 1] if p else first for p in batch.positions),
            tuple(page for page, _ in pages),
            tuple(stamp for _, stamp in pages),
        )

        def sealed(answer: Message, now: int) -> list[Effect]:
            if isinstance(answer, NoAnswer):
                return self._seal(save, number, batch, pages, now)
            positions = answer.positions if isinstance(answer, Sealed) else ()
            return self._sealed(save, number, batch, pages, positions, now)

        return [Ask(self.index, ask, now + INDEX_NS, sealed)]

    def _sealed(
        self,
        save: _Save,
        number: int,
        batch: _Batch,
        pages: tuple[tuple[int, int], ...],
        positions: tuple[int, ...],
        now: int,
    ) -> list[Effect]:
        del save.batches[number]
        for page, _ in pages:
            del self.filling[page]
        taken = set(positions)
        save.saved += len(taken)
        if len(taken) < len(pages) and save.status is Status.OK:
            save.status = Status.STALE_CLAIM
        effects: list[Effect] = [Send(self.allocator, Return(tuple(page for page, _ in pages)))]
        return effects + self._finish(save) + self._take(now)

    def _starve(self, status: Status, now: int) -> list[Effect]:
        """There are no pages: kept batches are given up and their saves end with what they have.

        Batches without a Keep wait for it: the client may be writing into their slots.
        """
        effects: list[Effect] = []
        while self._hungry:
            key, number = self._hungry.popleft()
            save = self.saves[key]
            self.free_slots.extend(save.batches.pop(number).slots)
            save.todo.clear()
            save.status = status
            effects += self._finish(save)
        return effects + self._take(now)

    def _cut(self, save: _Save, now: int) -> list[Effect]:
        """Give up what has no Keep, by the client's word that it copies nothing of it any more."""
        save.todo.clear()
        if save.status is Status.OK:
            save.status = Status.DROPPED
        for number in [n for n, b in save.batches.items() if not b.kept]:
            self.free_slots.extend(save.batches.pop(number).slots)
        return (self._finish(save) if save.claim else []) + self._take(now)

    def _finish(self, save: _Save) -> list[Effect]:
        """Say Saved if nothing of the save is open any more."""
        if save.todo or save.batches:
            return []
        if self.saves.pop((save.sender.address, save.msg.save), None) is None:
            return []
        self._keys -= len(save.msg.keys)
        effects: list[Effect] = [Send(self.index, EndClaim(save.claim))] if save.claim else []
        return [*effects, Reply(save.sender, Saved(save.status, save.saved, save.known))]
