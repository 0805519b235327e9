"""How the blocks of a rank's save move into the pool: in batches, by slots or straight into pages.

    staged       CopyBatch ──→ handed out ── Keep ──→ kept ── pages ──→ filling ──→ in place
    process_vm   pages ──→ reading ── BatchCopied ──→ read ── Keep ──→ in place
                 given up at any time before Keep: slots and pages come back

A block whose shards are in place at every rank is published (publish.py); then, and when it is
given up, its pages leave our books: by the index's word, or by our Return.

A position that one rank cannot save is *dead* for all; what other ranks have of it goes back as
soon as no job and no client works on it.
"""

from collections import Counter, deque
from collections.abc import Iterable

from pegaflow.actors.runtime.contract import MS, Do, Effect, Part, Send
from pegaflow.wire.identities import PageId
from pegaflow.wire.jobs import Done, FillPages, Job, PagesSummed, ReadBlocks, SumPages
from pegaflow.wire.session import BatchCopied, CopyBatch, Way
from pegaflow.wire.status import Status
from pegaflow.wire.units import Count, Nanoseconds

from .engine import Engine
from .orders import Orders, count_dropped
from .publish import Publishing
from .ranks import Rank
from .records import Batch, Order, RankSave
from .reservation import Reservation

BATCH_BLOCKS: Count = 128
"""Blocks per batch: large enough to hide a round trip, small enough to share the slots."""

READ_NS: Nanoseconds = 10_000 * MS
"""Longest read of one batch by process_vm; a client that gives up earlier says Drop."""


class Batches(Part):
    """What moves now or waits for pages."""

    def __init__(
        self,
        engine: Engine,
        *,
        orders: Orders,
        reservation: Reservation,
        publishing: Publishing,
        counts: Counter[str],
    ) -> None:
        self._engine, self._orders = engine, orders
        self._reservation, self._publishing = reservation, publishing
        self._counts = counts
        self._batch = 0  # newest batch number
        self._waiting: deque[tuple[RankSave, int]] = deque()  # batches without pages

    def check(self) -> None:
        """Pages add up: each used one belongs to one batch or one shard."""
        orders = self._orders.open.values()
        used = [p for o in orders for by in o.shards.values() for p, _ in by.values()]
        for order in orders:
            assert not order.seals.whole & order.dead
            for save in order.saves.values():
                used += [page for b in save.batches.values() for page, _ in b.pages]
                here = [by for by in order.shards.values() if save.rank.number in by]
                assert save.placed == len(here) and not (save.ended and save.batches)
        right = sorted(self._reservation.used)
        assert sorted(used) == right, "a page is used twice or by nobody"
        for rank in [*self._engine.ranks.values(), *self._engine.leaving]:
            slots = rank.free_slots + self._orders.used_slots(rank)
            assert sorted(slots) == list(range(rank.slots))

    def start_anew(self) -> None:
        """The engine has other blocks now."""
        assert not self._waiting
        self._batch = 0

    # what ranks save

    def begin(self, save: RankSave, now: int) -> list[Effect]:
        """Move what the save has to do, by its rank's way."""
        if save.rank.saves is Way.STAGED:
            return self._hand_out(save.rank)
        return self._read(save, now)

    def keep(self, save: RankSave, number: int, now: int) -> list[Effect]:
        """A client has said Keep: the copy of a batch is complete, and the blocks were the keys'
        until its end.

        Args:
            number: of the batch; a client may name any, so an unknown one is passed over.
        """
        batch = save.batches.get(number)
        if batch is None or batch.kept:
            return []
        if not batch.slots and not batch.copied:
            return []  # nobody has told it BatchCopied
        batch.kept = True
        if batch.copied:
            return self._place(save, number, now)
        if save.order.dead.issuperset(batch.positions):
            return self.forget(save, number)
        self._waiting.append((save, number))
        return self.feed(now)

    def _read(self, save: RankSave, now: int) -> list[Effect]:
        """Let batches wait for pages; they are read as soon as they have them."""
        while save.todo:
            positions = _next(save.todo, BATCH_BLOCKS)
            self._waiting.append((save, self._new_batch(save, Batch(positions))))
        return self.feed(now)

    def _new_batch(self, save: RankSave, batch: Batch) -> int:
        self._batch += 1
        save.batches[self._batch] = batch
        return self._batch

    def _hand_out(self, rank: Rank) -> list[Effect]:
        """Hand out the free slots of a rank, oldest save first."""
        effects: list[Effect] = []
        for save in self._orders.saves.values():
            while save.rank is rank and save.todo and rank.free_slots:
                positions = _next(save.todo, min(len(rank.free_slots), BATCH_BLOCKS))
                slots = tuple(rank.free_slots.pop() for _ in positions)
                number = self._new_batch(save, Batch(positions, slots))
                batch = CopyBatch(save.msg.save, number, positions, slots)
                effects.append(Send(save.sender.address, batch))
        return effects

    # pages

    def waits(self) -> bool:
        """Whether a batch waits for pages."""
        return bool(self._waiting)

    def wanted(self) -> tuple[int, int]:
        """How many pages are waited for.

        Returns:
            Pages that all want who may have some now, and that the first of them wants.
        """
        sizes = [len(save.batches[number].positions) for save, number in self._waiting]
        if not sizes or self._reservation.is_full(sizes[0]):
            return 0, 0
        return sum(sizes), sizes[0]

    def waiting_of(self, save: RankSave) -> list[int]:
        """Positions of its batches that have no pages yet."""
        return [p for s, n in self._waiting if s is save for p in s.batches[n].positions]

    def feed(self, now: int) -> list[Effect]:
        """Give pages to waiting batches, in the order in which they came."""
        effects: list[Effect] = []
        while self._waiting:
            save, number = self._waiting[0]
            batch = save.batches[number]
            batch.pages = self._reservation.take(len(batch.positions))
            if not batch.pages:
                break
            self._waiting.popleft()
            effects += self._fill(save, number, now)
        return effects + self._reservation.refill(now)

    def no_space(self, status: Status, now: int) -> list[Effect]:
        """There are no pages: waiting batches are given up and their saves end with what they have.

        Staged batches without a Keep wait for it: the client may be writing into their slots.

        Args:
            status: what the Saved of those saves says.
        """
        lost: dict[int, tuple[RankSave, list[int]]] = {}
        for save, number in self._waiting:
            positions = lost.setdefault(id(save), (save, list(save.todo)))[1]
            positions += save.batches[number].positions
        return [e for save, ps in lost.values() for e in self.kill(save.order, ps, status)]

    def _fill(self, save: RankSave, number: int, now: int) -> list[Effect]:
        """Copy a batch into its pages."""
        batch, rank, space = save.batches[number], save.rank, self._engine.space
        assert space is not None
        offsets = space.offsets(page for page, _ in batch.pages)
        job: Job[Done]
        if batch.slots:
            job = FillPages(
                batch.slots, offsets, space.payload_bytes, space.page_size, mapping=rank.mapping
            )
        else:
            blocks = tuple(save.msg.blocks[p] for p in batch.positions)
            job = ReadBlocks(rank.mapping, blocks, offsets, now + READ_NS)
        rank.running += 1

        def filled(done: Done, now: int) -> list[Effect]:
            rank.running -= 1
            rank.free_slots.extend(batch.slots)
            batch.slots = ()
            if space.verify and done.status is Status.OK:
                effects: list[Effect] = [Do(SumPages(offsets, space.payload_bytes), summed)]
            else:
                effects = over(done.status, now)
            return effects + self._hand_out(rank) + self._engine.left(rank)

        def summed(result: PagesSummed | Done, now: int) -> list[Effect]:
            if isinstance(result, Done):
                return over(result.status, now)
            pages = (page for page, _ in batch.pages)
            save.order.sums.update(zip(pages, result.checksums, strict=True))
            return over(Status.OK, now)

        def over(status: Status, now: int) -> list[Effect]:
            batch.copied = True
            return self._filled(save, number, status, now)

        return [Do(job, filled)]

    def _filled(self, save: RankSave, number: int, status: Status, now: int) -> list[Effect]:
        batch = save.batches[number]
        if status is not Status.OK:
            return self.kill(save.order, batch.positions, status)
        if batch.kept:
            return self._place(save, number, now)
        if save.cut or save.order.dead.issuperset(batch.positions):
            return self.forget(save, number)
        copied = BatchCopied(save.msg.save, number, batch.positions)
        return [Send(save.sender.address, copied)]

    def _place(self, save: RankSave, number: int, now: int) -> list[Effect]:
        """A batch is in place; seal what is in place at every rank now."""
        order, batch = save.order, save.batches.pop(number)
        whole: list[int] = []
        back: list[PageId] = []
        for position, page in zip(batch.positions, batch.pages, strict=True):
            if position in order.dead:
                back.append(page[0])
                continue
            shards = order.shards.setdefault(position, {})
            shards[save.rank.number] = page
            save.placed += 1
            if len(shards) == order.world:
                whole.append(position)
        effects = self._reservation.give_back(back)
        return effects + self._publishing.publish(order, whole, now) + self._orders.finish(order)

    # giving up

    def kill(self, order: Order, positions: Iterable[int], status: Status) -> list[Effect]:
        """Some positions will not be sealed: not by this rank, so by none.

        Args:
            positions: in the order's keys; those that are whole or dead already stay what they are.
            status: what the Saved of the order says, if nothing went wrong before.
        """
        lost = set(positions) - order.seals.whole - order.dead
        order.dead |= lost
        count_dropped(self._counts, status, len(lost))
        if lost and order.status is Status.OK:
            order.status = status
        back: list[PageId] = []
        for position in lost:
            for rank, (page, _) in order.shards.pop(position, {}).items():
                order.saves[rank].placed -= 1
                back.append(page)
        effects = self._reservation.give_back(back)
        for save in order.saves.values():
            save.todo = deque(p for p in save.todo if p not in order.dead)
            for number, batch in list(save.batches.items()):
                waits = not batch.pages and (batch.kept or not batch.slots)  # waiting
                if (batch.copied or waits) and order.dead.issuperset(batch.positions):
                    effects += self.forget(save, number)
        return effects + self._orders.finish(order)

    def forget(self, save: RankSave, number: int) -> list[Effect]:
        """A batch on which neither a job nor the client works is given up."""
        batch = save.batches.pop(number)
        self._waiting = deque(entry for entry in self._waiting if entry[1] != number)
        save.rank.free_slots.extend(batch.slots)
        effects = self._reservation.give_back(page for page, _ in batch.pages)
        return effects + self._hand_out(save.rank) + self._orders.finish(save.order)


def _next(todo: deque[int], count: int) -> tuple[int, ...]:
    return tuple(todo.popleft() for _ in range(min(len(todo), count)))
