"""How the blocks of a rank's save move into the pool: in batches, by slots or straight into pages.

    staged       CopyBatch ──→ handed out ── Keep ──→ kept ── pages ──→ filling ──→ in place
    our own hand pages ──→ reading ── BatchCopied ──→ read ── Keep ──→ in place
                 given up at any time before Keep: slots and pages come back

A block whose shards are all in place is published (publish.py); then, and when it is
given up, its pages leave our books: by the index's word, or by our Return.

A position that one rank cannot save is *dead* for all; what other ranks have of it goes back as
soon as no job and no client works on it.
"""

from collections import Counter, deque

import numpy as np

from pegaflow.actors.runtime.contract import MS, Do, Effect, Part, Send
from pegaflow.core.pool.columns import Places, column, distinct, said
from pegaflow.core.pool.geometry import slot_size
from pegaflow.wire.jobs import Done, FillPages, Job, PagesSummed, ReadBlocks, SumPages
from pegaflow.wire.session import BatchCopied, CopyBatch, Way
from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Count, Nanoseconds, Share

from .engine import Engine
from .orders import Orders, count_dropped
from .publish import Publishing
from .ranks import Rank
from .records import NO_PLACES, Batch, Blocks, Order, RankSave
from .registration import Registration
from .reservation import Reservation

BATCH_BLOCKS: Count = 1024
"""Blocks of a batch at most.  Each of the messages about one costs as much as a hundred blocks in
it, in four processes, beside a copy that wants every core: 1,024 blocks of 64 KiB take 34 ms in
five batches and 23 in one, on two cores."""

BATCH_BYTES: Bytes = 64 << 20
"""Bytes of a batch, unless a block has more: two threads copy it in ten milliseconds.  The messages
about one of 16 MiB cost 2 ms of CPU, which is as long as its copy."""

BATCH_SHARE: Share = 1 / 8
"""Of the pool, a batch of each rank at most: half of what may be in use, so that one is copied
while another is published, and no save waits until a large part of the pool is free."""

BATCH_LEAST_BYTES: Bytes = 16 << 20
"""The same in a pool that is so small that its share would be less."""

NARROWER: Count = 4
"""Where the pool has not so many pages as a batch wants, a part of it is tried that is so many
times smaller, and so on: a batch of 1,024 blocks asks five times more before it is given up."""

READ_NS: Nanoseconds = 10_000 * MS
"""Longest read of one batch by our own hand; a client that gives up earlier says Drop."""


class Batches(Part):
    """What moves now or waits for pages."""

    def __init__(
        self,
        engine: Engine,
        *,
        orders: Orders,
        reservation: Reservation,
        publishing: Publishing,
        registration: Registration,
        counts: Counter[str],
    ) -> None:
        self._engine, self._orders = engine, orders
        self._reservation, self._publishing = reservation, publishing
        self._counts, self._registration = counts, registration
        self._batch = 0  # newest batch number
        self._waiting: deque[tuple[RankSave, int]] = deque()  # batches without pages
        self._expected = 0  # pages that will be wanted if what is being claimed is new

    def check(self) -> None:
        """Pages add up: each used one belongs to one batch or one shard."""
        orders = self._orders.open.values()
        used: list[int] = []
        for order in orders:
            blocks = order.blocks
            assert not (blocks.whole & blocks.dead).any()
            used += blocks.pages[blocks.here].tolist()
            for save in order.saves.values():
                used += [page for b in save.batches.values() for page in b.pages.tolist()]
                here = int(blocks.here[:, save.rank.number].sum())
                assert save.placed == here and not (save.ended and save.batches)
        right = sorted(self._reservation.used)
        assert sorted(used) == right, "a page is used twice or by nobody"
        for rank in [*self._engine.ranks.values(), *self._engine.leaving]:
            slots = rank.free_slots + self._orders.used_slots(rank)
            assert sorted(slots) == list(range(rank.slots))
            mine = [save for save in self._orders.saves.values() if save.rank is rank]
            filling = sum(len(b.pages) for save in mine for b in save.batches.values())
            assert rank.used == filling + sum(save.placed for save in mine)

    def start_anew(self) -> None:
        """The engine has other blocks now."""
        assert not self._waiting and not self._expected
        self._batch = 0

    # what ranks save

    def expect(self, rank: Rank, count: int, now: int) -> list[Effect]:
        """So many more blocks are being claimed, to be read by this rank: have pages ready; or so
        many fewer, since the index has answered."""
        if rank.saves is Way.STAGED:
            return []
        self._expected += count
        return self._reservation.refill(now) if count > 0 else []

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
        if save.order.blocks.dead[batch.positions].all():
            return self.forget(save, number)
        self._waiting.append((save, number))
        return self.feed(now)

    def _read(self, save: RankSave, now: int) -> list[Effect]:
        """Let batches wait for pages; they are read as soon as they have them."""
        while len(save.todo):
            batch = Batch(_next(save, self._size()))
            self._waiting.append((save, self._new_batch(save, batch)))
        return self.feed(now)

    def _size(self) -> int:
        """Blocks of a batch."""
        space = self._engine.space
        assert space is not None
        share = max(BATCH_LEAST_BYTES, int(space.geometry.pool_bytes * BATCH_SHARE))
        return max(1, min(BATCH_BLOCKS, min(BATCH_BYTES, share // space.ranks) // space.page_size))

    def _new_batch(self, save: RankSave, batch: Batch) -> int:
        self._batch += 1
        save.batches[self._batch] = batch
        return self._batch

    def _hand_out(self, rank: Rank) -> list[Effect]:
        """Hand out the free slots of a rank, oldest save first."""
        effects: list[Effect] = []
        for save in self._orders.saves.values():
            while save.rank is rank and len(save.todo) and rank.free_slots:
                positions = _next(save, min(len(rank.free_slots), self._size()))
                slots = tuple(rank.free_slots[-len(positions) :])
                del rank.free_slots[-len(positions) :]
                number = self._new_batch(save, Batch(positions, slots))
                batch = CopyBatch(save.msg.save, number, said(positions), slots)
                effects.append(Send(save.sender.address, batch))
        return effects

    # pages

    def waits(self) -> bool:
        """Whether a batch waits for pages."""
        return bool(self._waiting)

    def wanted(self) -> tuple[int, int]:
        """How many pages are waited for.

        Returns:
            Pages that all want who may have some now or soon, and that the first who waits wants.
        """
        turns = self._turns()
        sizes = [len(save.batches[number].positions) for save, number in turns]
        expected = self._expected if len(turns) == len(self._waiting) else 0
        return sum(sizes) + expected, sizes[0] if sizes else 0

    def narrow(self) -> bool:
        """The pool has not so many pages as the first who waits wants: make its batch two, the
        first of them smaller.

        Returns:
            Whether that could be; one of a single block could not.
        """
        save, number = entry = self._turns()[0]
        batch = save.batches[number]
        if len(batch.positions) < 2:
            return False
        at = max(1, len(batch.positions) // NARROWER)
        rest = Batch(batch.positions[at:], batch.slots[at:], kept=batch.kept)
        batch.positions, batch.slots = batch.positions[:at], batch.slots[:at]
        place = self._waiting.index(entry) + 1
        self._waiting.insert(place, (save, self._new_batch(save, rest)))
        return True

    def _turns(self) -> list[tuple[RankSave, int]]:
        """What waits, but for what ranks want that have so many pages in use as they may."""
        may: dict[Rank, bool] = {}
        for save, number in self._waiting:
            if save.rank not in may:
                may[save.rank] = not self._is_full(save.rank, len(save.batches[number].positions))
        return [entry for entry in self._waiting if may[entry[0].rank]]

    def _is_full(self, rank: Rank, count: int) -> bool:
        """Whether so many pages more would be too many of this rank in use; the first ones never
        are.  Each has its own share: a block is published, and its pages leave us, once every rank
        has filled its own, and none of them waits for that of another to have pages."""
        space = self._engine.space
        assert space is not None
        wanted = (rank.used + count) * slot_size(space.page_size) * space.ranks
        return bool(space.used_bytes_max and rank.used) and wanted > space.used_bytes_max

    def waiting_of(self, save: RankSave) -> Places:
        """Positions of its batches that have no pages yet."""
        batches = [s.batches[n].positions for s, n in self._waiting if s is save]
        return np.concatenate([NO_PLACES, *batches])

    def feed(self, now: int) -> list[Effect]:
        """Give pages to waiting batches, of each rank in the order in which they came."""
        effects: list[Effect] = []
        full: set[Rank] = set()
        stay: list[tuple[RankSave, int]] = []
        while self._waiting:
            save, number = self._waiting[0]
            batch, rank = save.batches[number], save.rank
            count = len(batch.positions)
            if rank in full or self._is_full(rank, count):
                full.add(rank)
                stay.append(self._waiting.popleft())
                continue
            batch.pages, batch.stamps = self._reservation.take(count)
            if not len(batch.pages):
                break
            rank.used += count
            self._waiting.popleft()
            effects += self._fill(save, number, now)
        self._waiting.extendleft(reversed(stay))
        return effects + self._reservation.refill(now)

    def no_space(self, status: Status, now: int) -> list[Effect]:
        """There are no pages: waiting batches are given up and their saves end with what they have.

        Staged batches without a Keep wait for it: the client may be writing into their slots.

        Args:
            status: what the Saved of those saves says.
        """
        lost: dict[int, tuple[RankSave, list[Places]]] = {}
        for save, number in self._waiting:
            positions = lost.setdefault(id(save), (save, [save.todo]))[1]
            positions.append(save.batches[number].positions)
        effects: list[Effect] = []
        for save, positions in lost.values():
            effects += self.kill(save.order, np.concatenate(positions), status)
        return effects

    def _fill(self, save: RankSave, number: int, now: int) -> list[Effect]:
        """Copy a batch into its pages."""
        batch, rank, space = save.batches[number], save.rank, self._engine.space
        assert space is not None
        offsets = space.offsets(batch.pages)
        job: Job[Done]
        if batch.slots:
            job = FillPages(
                batch.slots, offsets, rank.payload_bytes, rank.page_size, mapping=rank.mapping
            )
        else:
            blocks = said(column(save.msg.blocks)[batch.positions])
            job = ReadBlocks(rank.mapping, blocks, offsets, now + READ_NS)
            self._registration.used(offsets)
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
            blocks = save.order.blocks
            blocks.check(batch.positions, rank.number, column(result.checksums))
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
        if save.cut or save.order.blocks.dead[batch.positions].all():
            return self.forget(save, number)
        copied = BatchCopied(save.msg.save, number, said(batch.positions))
        return [Send(save.sender.address, copied)]

    def _place(self, save: RankSave, number: int, now: int) -> list[Effect]:
        """A batch is in place; seal what is in place at every rank now."""
        order, batch = save.order, save.batches.pop(number)
        lives = ~order.blocks.dead[batch.positions]
        here, pages, stamps = batch.positions[lives], batch.pages[lives], batch.stamps[lives]
        whole = order.blocks.put(here, save.rank.number, pages, stamps)
        save.placed += len(here)
        save.rank.used -= len(batch.pages) - len(here)
        effects = self._reservation.give_back(batch.pages[~lives])
        return effects + self._publishing.publish(order, whole, now) + self._orders.finish(order)

    # giving up

    def kill(self, order: Order, positions: Places, status: Status) -> list[Effect]:
        """Some positions will not be sealed: not by this rank, so by none.

        Args:
            positions: in the order's keys; those that are whole or dead already stay what they are.
            status: what the Saved of the order says, if nothing worse went wrong before.
        """
        lost = _open(order.blocks, positions)
        count_dropped(self._counts, status, len(lost))
        order.lose(lost, status)
        blocks = order.blocks
        blocks.dead[lost] = True
        here = blocks.here[lost]
        effects = self._reservation.give_back(blocks.pages[lost][here])
        blocks.here[lost] = False
        for save in order.saves.values():
            save.leave(int(np.count_nonzero(here[:, save.rank.number])))
            save.todo = save.todo[~blocks.dead[save.todo]]
            for number, batch in list(save.batches.items()):
                waits = not len(batch.pages) and (batch.kept or not batch.slots)  # waiting
                if (batch.copied or waits) and blocks.dead[batch.positions].all():
                    effects += self.forget(save, number)
        return effects + self._orders.finish(order)

    def forget(self, save: RankSave, number: int) -> list[Effect]:
        """A batch on which neither a job nor the client works is given up."""
        batch = save.batches.pop(number)
        self._waiting = deque(entry for entry in self._waiting if entry[1] != number)
        save.rank.free_slots.extend(batch.slots)
        save.rank.used -= len(batch.pages)
        effects = self._reservation.give_back(batch.pages)
        return effects + self._hand_out(save.rank) + self._orders.finish(save.order)


def _open(blocks: Blocks, positions: Places) -> Places:
    """Those of them that are neither whole nor dead."""
    named = distinct(positions)
    found: Places = named[~(blocks.whole | blocks.dead)[named]]
    return found


def _next(save: RankSave, count: int) -> Places:
    positions, save.todo = save.todo[:count], save.todo[count:]
    return positions
