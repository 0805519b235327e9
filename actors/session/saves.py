"""The saves of one session: from Save to Saved, in batches, over all ranks of its engine.

    staged       claimed ── Take ──→ taken ── Keep ──→ kept ── pages ──→ filling ──→ in place
    process_vm   claimed ── pages ──→ reading ── Taken ──→ read ── Keep ──→ in place
                 Drop at any time before Keep: slots and pages come back, nothing is published

An *order* is what the ranks save together; a *share* is one rank's part in it.  The first share
asks the index which keys are new, and the others join its claim.  A block whose shards are in place
at every rank is sealed (publish.py); then, and when it is given up, its pages leave our books: by
the index's word, or by our Return.

A position that one rank cannot save is *dead* for all; what other ranks have of it goes back as
soon as no job and no client works on it.  An order ends with its last share, and is remembered, so
that a rank that comes too late does not start it anew.

Saved is said when the blocks are sealed, not when their bytes have left the engine's blocks: the
engine waits some microseconds longer for its blocks, and in return Saved means that the next lookup
hits.
"""

from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable

from pegaflow.actors.runtime.contract import MS, Ask, Do, Effect, NoAnswer, Reply, Send, Sender
from pegaflow.wire.index import Claim, Claimed, EndClaim
from pegaflow.wire.jobs import Done, FillPages, ReadBlocks, SumPages
from pegaflow.wire.message import Message
from pegaflow.wire.session import ORDER_NS, Drop, Keep, Save, Saved, Take, Taken, Way
from pegaflow.wire.status import Status
from pegaflow.wire.values import NOBODY, Address

from .publish import INDEX_NS, Sealing, count_dropped
from .ranks import Rank
from .records import Batch, Order, Share
from .stock import PageStock

SAVES_MAX = 4096
"""Open saves of one session: an engine step has at most one per running request and rank."""

KEYS_MAX = 1 << 20
"""Keys of all open shares: more blocks than an engine has, and some 100 MB of our memory."""

BATCH_BLOCKS = 128
"""Blocks per batch: large enough to hide a round trip, small enough to share the slots."""

READ_NS = 10_000 * MS
"""Longest read of one batch by process_vm; a client that gives up earlier says Drop."""

SAVE_NS = 120_000 * MS
"""An order of a single rank that is not saved within this time is given up: a client waits less."""

ENDED_MAX = 4096
"""Orders remembered as ended: a rank is never so many steps behind."""


class Saves(Sealing):
    """All open orders and the pages held."""

    def __init__(
        self,
        namespace: bytes,
        page_size: int,
        payload: int,
        world: int,
        idle: Callable[[Rank], list[Effect]],
        counts: Counter[str],
    ) -> None:
        stock = PageStock(page_size, self._hunger, self._feed, self._starve)
        super().__init__(namespace, payload, world, stock, counts)
        self.page_size = page_size
        self.idle = idle  # told whenever a job of a rank has ended
        self.verify = False  # a checksum is made of each page
        self.offset_of: Callable[[int], int] = lambda page: page
        self.shares: dict[tuple[Address, int], Share] = {}  # open, by client and its number
        self._keys = 0  # of all open shares together
        self._batch = 0  # newest batch number
        self._hungry: deque[tuple[Share, int]] = deque()  # batches without pages

    def check(self) -> None:
        """Pages add up: each used one belongs to one batch or one shard."""
        assert not set(self.stock.free) & set(self.stock.used)
        used = [p for o in self.orders.values() for by in o.shards.values() for p, _ in by.values()]
        for order in self.orders.values():
            assert not order.sealing & order.dead
            for share in order.shares.values():
                used += [page for b in share.batches.values() for page, _ in b.pages]
                here = [by for by in order.shards.values() if share.rank.number in by]
                assert share.placed == len(here) and not (share.ended and share.batches)
        assert self._keys == sum(len(share.msg.keys) for share in self.shares.values())
        assert sorted(used) == sorted(self.stock.used), "a page is used twice or by nobody"

    def used_slots(self, rank: Rank) -> list[int]:
        """Slots of a rank's bounce file that are in use."""
        mine = [s for s in self.shares.values() if s.rank is rank]
        return [slot for s in mine for b in s.batches.values() for slot in b.slots]

    def claims(self) -> tuple[int, ...]:
        """Claims under which we still save."""
        return tuple(order.claim for order in self.orders.values() if order.claim)

    # the clients

    def begin(self, rank: Rank, sender: Sender, msg: Save, now: int) -> list[Effect]:
        """A rank's save: a new order, or its share in one."""
        key = (sender.address, msg.save)
        name: Hashable = msg.order if self.world > 1 or msg.commits else key
        if name in self._ended:
            return self.refuse(rank, sender, msg, Status.DROPPED)
        order = self.orders.get(name)
        if not self._sound(order, rank, msg) or key in self.shares:
            return self.refuse(rank, sender, msg, Status.BAD_REQUEST)
        full = len(self.shares) >= SAVES_MAX or self._keys + len(msg.keys) > KEYS_MAX
        if full or (order is None and len(self.orders) >= SAVES_MAX):
            return self.refuse(rank, sender, msg, Status.BUSY)
        self._keys += len(msg.keys)
        joins = order is not None
        if order is None:
            stands = not msg.commits or msg.order in self._early
            order = Order(name, msg.keys, msg.parent, now, stands)
            self._early.pop(msg.order, None)
        self.orders[name] = order
        share = self.shares[key] = order.shares[rank.number] = Share(order, rank, sender, msg)
        if joins:
            return self._start(order, [share], now) if order.claim is not None else []
        if self.index == NOBODY:
            return self._claimed(order, NoAnswer(Status.PEER_GONE), now)
        ask = Claim(self.namespace, msg.keys)
        return [Ask(self.index, ask, now + INDEX_NS, lambda a, n: self._claimed(order, a, n))]

    def refuse(self, rank: Rank, sender: Sender, msg: Save, why: Status) -> list[Effect]:
        """Nothing of it is saved; of an order its first rank's word is counted."""
        count_dropped(self.counts, why, 0 if rank.number else len(msg.keys))
        return [Reply(sender, Saved(why, 0, 0))]

    def _sound(self, order: Order | None, rank: Rank, msg: Save) -> bool:
        if not msg.keys or ((self.world > 1 or msg.commits) and not msg.order):
            return False
        if rank.saves is Way.PROCESS_VM and not (
            len(msg.blocks) == len(msg.keys) and max(msg.blocks) < rank.layout.blocks
        ):
            return False
        if order is None:
            return True
        same = (order.keys, order.parent) == (msg.keys, msg.parent)
        return same and rank.number not in order.shares

    def keep(self, client: Address, msg: Keep, now: int) -> list[Effect]:
        """The copy of a batch is complete, and the blocks were the keys' until its end."""
        share = self.shares.get((client, msg.save))
        batch = share.batches.get(msg.batch) if share else None
        if share is None or batch is None or batch.kept:
            return []
        if not batch.slots and not batch.copied:
            return []  # nobody has told it Taken
        batch.kept = True
        if batch.copied:
            return self._place(share, msg.batch, now)
        if share.order.dead.issuperset(batch.positions):
            return self._forget(share, msg.batch)
        self._hungry.append((share, msg.batch))
        return self._feed(now)

    def drop(self, client: Address, msg: Drop) -> list[Effect]:
        """The engine takes its blocks back: whatever has no Keep is not saved."""
        share = self.shares.get((client, msg.save))
        return self._cut(share) if share else []

    def leave(self, client: Address) -> list[Effect]:
        """The client goes: as if it had dropped all its saves, and what it has kept but no page was
        found for yet goes with its bounce file."""
        mine = [s for (c, _), s in self.shares.items() if c == client]
        effects = [e for share in mine for e in self._cut(share)]
        for share in mine:
            waiting = [p for s, n in self._hungry if s is share for p in s.batches[n].positions]
            effects += self._kill(share.order, waiting, Status.DROPPED) if waiting else []
        return effects

    def skip(self, name: int) -> list[Effect]:
        """A rank will not save this order, or the engine does not stand by it."""
        self._remember(name)
        order = self.orders.get(name)
        return self._kill(order, order.new, Status.DROPPED) if order else []

    def give_up(self) -> list[Effect]:
        """A rank is gone: what is not in place at every other rank will never be sealed."""
        effects: list[Effect] = []
        for order in list(self.orders.values()) if self.world > 1 else ():
            self._remember(order.name)
            effects += self._kill(order, order.new, Status.DROPPED)
        return effects

    def expire(self, now: int) -> list[Effect]:
        """Give up the orders that not every rank has saved, or nobody committed, in time; go on
        with the others."""
        effects: list[Effect] = []
        for order in list(self.orders.values()):
            patience = SAVE_NS if self.world == 1 and order.committed else ORDER_NS
            if now - order.born > patience:
                self._remember(order.name)
                effects += self._kill(order, order.new, Status.EXPIRED)
        return effects + self._feed(now)

    # pages

    def _hunger(self) -> tuple[int, int]:
        sizes = [len(share.batches[number].positions) for share, number in self._hungry]
        if not sizes or self.stock.is_full(sizes[0]):
            return 0, 0
        return sum(sizes), sizes[0]

    def _feed(self, now: int) -> list[Effect]:
        """Give pages to hungry batches, in the order in which they came."""
        effects: list[Effect] = []
        while self._hungry:
            share, number = self._hungry[0]
            batch = share.batches[number]
            batch.pages = self.stock.take(len(batch.positions))
            if not batch.pages:
                break
            self._hungry.popleft()
            effects += self._fill(share, number, now)
        return effects + self.stock.refill(now)

    def fed(self, now: int) -> list[Effect]:
        """Pages have left: others may have their turn."""
        return self._feed(now) if self._hungry else []

    def _starve(self, status: Status, now: int) -> list[Effect]:
        """There are no pages: hungry batches are given up and their saves end with what they have.

        Staged batches without a Keep wait for it: the client may be writing into their slots.
        """
        lost: dict[int, tuple[Share, list[int]]] = {}
        for share, number in self._hungry:
            positions = lost.setdefault(id(share), (share, list(share.todo)))[1]
            positions += share.batches[number].positions
        return [e for share, ps in lost.values() for e in self._kill(share.order, ps, status)]

    # an order's life

    def _claimed(self, order: Order, answer: Message, now: int) -> list[Effect]:
        if not isinstance(answer, Claimed):
            order.claim = 0
            order.status = answer.status if isinstance(answer, NoAnswer) else Status.UNKNOWN
            count_dropped(self.counts, order.status, len(order.keys))
            self._remember(order.name)
            return self.finish(order)
        self.claimed_upto = max(self.claimed_upto, answer.number)
        order.claim = answer.number
        order.new = tuple(p for p in answer.positions if p < len(order.keys))
        order.known = len(order.keys) - len(order.new)
        if order.name in self._ended:
            return self._kill(order, order.new, Status.DROPPED)
        return self._start(order, list(order.shares.values()), now)

    def _start(self, order: Order, shares: list[Share], now: int) -> list[Effect]:
        """Begin shares, once it is known what is new; no share may end before all have their part
        of it to do."""
        for share in shares:
            share.todo.extend(p for p in order.new if p not in order.dead)
        effects: list[Effect] = []
        for share in shares:
            if share.cut:
                effects += self._kill(order, order.new, Status.DROPPED)
            elif share.rank.saves is Way.STAGED:
                effects += self._take(share.rank)
            else:
                effects += self._read(share, now)
        return effects + self.finish(order)

    def _read(self, share: Share, now: int) -> list[Effect]:
        """Let batches wait for pages; they are read as soon as they have them."""
        while share.todo:
            positions = _next(share.todo, BATCH_BLOCKS)
            self._hungry.append((share, self._new_batch(share, Batch(positions))))
        return self._feed(now)

    def _new_batch(self, share: Share, batch: Batch) -> int:
        self._batch += 1
        share.batches[self._batch] = batch
        return self._batch

    def _take(self, rank: Rank) -> list[Effect]:
        """Hand out the free slots of a rank, oldest save first."""
        effects: list[Effect] = []
        for share in self.shares.values():
            while share.rank is rank and share.todo and rank.free_slots:
                positions = _next(share.todo, min(len(rank.free_slots), BATCH_BLOCKS))
                slots = tuple(rank.free_slots.pop() for _ in positions)
                number = self._new_batch(share, Batch(positions, slots))
                take = Take(share.msg.save, number, positions, slots)
                effects.append(Send(share.sender.address, take))
        return effects

    def _fill(self, share: Share, number: int, now: int) -> list[Effect]:
        """Copy a batch into its pages."""
        batch, rank = share.batches[number], share.rank
        offsets = tuple(self.offset_of(page) for page, _ in batch.pages)
        job: Message
        if batch.slots:
            job = FillPages(batch.slots, offsets, self.payload, self.page_size, rank.mapping)
        else:
            blocks = tuple(share.msg.blocks[p] for p in batch.positions)
            job = ReadBlocks(rank.mapping, blocks, offsets, now + READ_NS)
        rank.running += 1

        def filled(done: Done, now: int) -> list[Effect]:
            rank.running -= 1
            rank.free_slots.extend(batch.slots)
            batch.slots = ()
            if self.verify and done.status is Status.OK:
                effects: list[Effect] = [Do(SumPages(offsets, self.payload), summed)]
            else:
                effects = over(done, now)
            return effects + self._take(rank) + self.idle(rank)

        def summed(done: Done, now: int) -> list[Effect]:
            pages = (page for page, _ in batch.pages)
            share.order.sums.update(zip(pages, done.values, strict=False))
            return over(done, now)

        def over(done: Done, now: int) -> list[Effect]:
            batch.copied = True
            return self._filled(share, number, done.status, now)

        return [Do(job, filled)]

    def _filled(self, share: Share, number: int, status: Status, now: int) -> list[Effect]:
        batch = share.batches[number]
        if status is not Status.OK:
            return self._kill(share.order, batch.positions, status)
        if batch.kept:
            return self._place(share, number, now)
        if share.cut or share.order.dead.issuperset(batch.positions):
            return self._forget(share, number)
        taken = Taken(share.msg.save, number, batch.positions)
        return [Send(share.sender.address, taken)]

    def _place(self, share: Share, number: int, now: int) -> list[Effect]:
        """A batch is in place; seal what is in place at every rank now."""
        order, batch = share.order, share.batches.pop(number)
        whole: list[int] = []
        back: list[int] = []
        for position, page in zip(batch.positions, batch.pages, strict=True):
            if position in order.dead:
                back.append(page[0])
                continue
            shards = order.shards.setdefault(position, {})
            shards[share.rank.number] = page
            share.placed += 1
            if len(shards) == self.world:
                whole.append(position)
        effects = self.stock.give_back(back)
        return effects + self.publish(order, whole, now) + self.finish(order)

    # giving up

    def _cut(self, share: Share) -> list[Effect]:
        """Give up what has no Keep, by the client's word that it copies nothing of it any more."""
        share.cut = True
        if share.order.claim is None:
            return []
        open_ = [(n, b) for n, b in share.batches.items() if not b.kept]
        lost = [*share.todo, *(p for _, batch in open_ for p in batch.positions)]
        effects = self._kill(share.order, lost, Status.DROPPED)
        for number, batch in open_:
            if batch.slots and number in share.batches:
                effects += self._forget(share, number)
        return effects

    def _kill(self, order: Order, positions: Iterable[int], status: Status) -> list[Effect]:
        """These positions will not be sealed: not by this rank, so by none."""
        lost = set(positions) - order.sealing - order.dead
        order.dead |= lost
        count_dropped(self.counts, status, len(lost))
        if lost and order.status is Status.OK:
            order.status = status
        back: list[int] = []
        for position in lost:
            for rank, (page, _) in order.shards.pop(position, {}).items():
                order.shares[rank].placed -= 1
                back.append(page)
        effects = self.stock.give_back(back)
        for share in order.shares.values():
            share.todo = deque(p for p in share.todo if p not in order.dead)
            for number, batch in list(share.batches.items()):
                waits = not batch.pages and (batch.kept or not batch.slots)  # hungry
                if (batch.copied or waits) and order.dead.issuperset(batch.positions):
                    effects += self._forget(share, number)
        return effects + self.finish(order)

    def _forget(self, share: Share, number: int) -> list[Effect]:
        """A batch on which neither a job nor the client works is given up."""
        batch = share.batches.pop(number)
        self._hungry = deque(entry for entry in self._hungry if entry[1] != number)
        share.rank.free_slots.extend(batch.slots)
        effects = self.stock.give_back(page for page, _ in batch.pages)
        return effects + self._take(share.rank) + self.finish(share.order)

    def finish(self, order: Order) -> list[Effect]:
        """Say Saved to every share of which nothing is open; end the order with its last one."""
        if order.claim is None or self.orders.get(order.name) is not order:
            return []
        effects: list[Effect] = []
        for share in order.shares.values():
            if not (share.ended or share.todo or share.batches or share.placed):
                share.ended = True
                self._keys -= len(order.keys)
                del self.shares[share.sender.address, share.msg.save]
                saved = Saved(order.status, share.saved, order.known)
                effects.append(Reply(share.sender, saved))
        awaited = len(order.shares) < self.world and order.name not in self._ended
        if not awaited and all(share.ended for share in order.shares.values()):
            del self.orders[order.name]
            self._remember(order.name)
            if order.claim and self.index != NOBODY:
                effects.append(Send(self.index, EndClaim(order.claim)))
        return effects

    def _remember(self, name: Hashable) -> None:
        """An order with a number that is over, or will be soon."""
        if isinstance(name, int):
            self._ended[name] = None
            while len(self._ended) > ENDED_MAX:
                self._ended.popitem(last=False)


def _next(todo: deque[int], count: int) -> tuple[int, ...]:
    return tuple(todo.popleft() for _ in range(min(len(todo), count)))
