"""What the scheduler half remembers of each request, and every decision about blocks. Pure.

A request's life, as far as the cache is concerned:

    lookup   `wants` -> `asked` -> `answered`: how many leading blocks the cache has, with a lease
    offer    `offer` says how many tokens can be loaded; it may be asked any number of times
    load     `allocated` turns the offer into one load order, which carries the lease away
    save     `step` turns each step into one save order: the blocks that are full, hashed and whose
             KV exists once this step has run, from `saved_to` on
    end      `preempted` (blocks are gone, ask again), `finished` (forget it, give leases back)

What is saved. `saved_to` is the first block not yet offered to the cache. A lookup sets it to the
length of the hit: blocks that only this engine has (computed while no service was there) are
saved along with the new ones, otherwise a restarted service could never again hit a prefix whose
head it lost. A load that fails sets it back to the first failed block, which is computed again, and
so does a step that turns out void (steps.py). A request for which nothing is to be saved
(hints.py) gets no save orders; what it shares with others is theirs to save.

A finished request's blocks. Its saves may still be read from them. vLLM may have them back at once
all the same, for every block that it gives to somebody passes through `reused`, before anything is
written to it: the saves that read from it are dropped then. Only where memory is so tight that
those who wait would take the blocks in the next steps is the request *held* instead, for as long as
its saves need, and let go (`relax`) when there is room again.

What is refused. A block that failed to load is never again offered to its request: vLLM would retry
it for ever. Hashes are chained, so one number, `limit`, holds that. A lookup that did not answer in
time is a miss for the rest of the request's life.

A request that waits for its full prefix (hints.py) takes no answer that is shorter: the lease is
given back and the cache asked again, FULL_EVERY_S later at the soonest, until all of its full
blocks are there or the time for a lookup is nearly up. Then it takes what there is. It waits once:
after it was scheduled, never again.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from pegaflow.client import Lease
from pegaflow.wire.identities import NO_KEY, Key
from pegaflow.wire.units import Count, Seconds, Share
from pegaflow.wire.values import LIST_MAX

from .hints import NO_HINTS, Hints
from .steps import Saving
from .tracked import NOTHING_BROUGHT, Brought, Hashed, LoadOrder, Lookup, Open, SaveOrder, Tracked

KEEP_S: Seconds = 10.0
"""A hit waiting for its request to be scheduled is given back after this long: a queue of waiting
requests must not pin the cache, and the session drops leases of 120 s anyway."""

FULL_EVERY_S: Seconds = 0.01
"""How often a prefix that is not all there yet is asked for: as often as somebody else's step may
add to it."""

FULL_SHARE: Share = 0.9
"""Of the time for a lookup: then what is there is asked for, and the answer has to come in time."""

AHEAD_BLOCKS: Count = 2
"""What a running request may take while a save is copied: steps write a block each, at most."""


class Requests:
    """All requests of the scheduler half. Methods that end a lease return it for release."""

    def __init__(
        self,
        block_tokens: int,
        hash_tokens: int,
        ranks: int = 1,
        saving: bool = True,
        *,
        patience_s: float = 0.0,  # how long a lookup may take
    ) -> None:
        assert block_tokens % hash_tokens == 0
        self.block_tokens = block_tokens  # tokens of one engine block
        self._ratio = block_tokens // hash_tokens  # hashes per block; the last one names it
        self._ranks = (1 << ranks) - 1  # workers that report each save, a bit each
        self._saving = saving  # whether `step` orders saves at all
        self._patience_s = patience_s
        self.tracked: dict[str, Tracked] = {}
        self._tickets: dict[int, str] = {}  # open lookups: ticket -> request
        self._order = 0  # number of the newest save order
        self._open: dict[int, Open] = {}  # save orders that are not over
        self._loose: set[int] = set()  # those of them whose blocks vLLM may give away
        self._held: dict[str, set[int]] = {}  # finished requests that vLLM keeps for these orders

    def keys(self, tracked: Tracked, first: int = 0, end: int | None = None) -> tuple[Key, ...]:
        """Keys of the request's full blocks first..end."""
        hashes, ratio = tracked.source.block_hashes, self._ratio
        stop = None if end is None else end * ratio
        keys: Iterable[Any] = map(bytes, hashes[(first + 1) * ratio - 1 : stop : ratio])
        return tuple(keys)

    def add(self, request: str, source: Hashed, hints: Hints = NO_HINTS) -> Tracked:
        """The request's entry, made if it is new."""
        return self.tracked.setdefault(request, Tracked(source, hints))

    # lookup

    def wants(self, request: str, now_s: float) -> tuple[Key, ...]:
        """Keys to look up now; empty if nothing is to be asked."""
        tracked = self.tracked[request]
        asks = tracked.lookup in (Lookup.NONE, Lookup.EARLY)
        if tracked.lookup is Lookup.SHORT:
            asks = now_s >= tracked.asked_s + FULL_EVERY_S
        if not asks or tracked.loading or tracked.limit == 0 or tracked.hints.skip_load:
            return ()
        return self._question(tracked)

    def _question(self, tracked: Tracked) -> tuple[Key, ...]:
        """Keys that a request asks for first."""
        return self.keys(tracked, 0, self._askable(tracked))

    def _askable(self, tracked: Tracked) -> int:
        """How many leading blocks are asked for."""
        full = len(tracked.source.block_hashes) // self._ratio
        return min(full, LIST_MAX, tracked.limit or LIST_MAX)

    def asked(self, request: str, ticket: int, now_s: float) -> None:
        """The lookup was sent."""
        tracked = self.tracked[request]
        assert tracked.lookup in (Lookup.NONE, Lookup.EARLY, Lookup.SHORT)
        if tracked.lookup is not Lookup.SHORT:
            tracked.since_s = now_s
        tracked.lookup, tracked.ticket, tracked.asked_s = Lookup.ASKED, ticket, now_s
        if tracked.full_until_s is None:
            waits = tracked.hints.wait_for_full_prefix
            tracked.full_until_s = now_s + FULL_SHARE * self._patience_s if waits else now_s
        self._tickets[ticket] = request

    def early(self, ticket: int) -> None:
        """The answer is that not every rank is there yet: the request waits, and asks again."""
        if tracked := self._awaiting(ticket):
            tracked.lookup = Lookup.EARLY

    def _awaiting(self, ticket: int) -> Tracked | None:
        """The request that this is an answer to, if it still waits for it; it is taken out."""
        tracked = self.tracked.get(self._tickets.pop(ticket, ""))
        asked = (Lookup.ASKED, ticket)
        return tracked if tracked and (tracked.lookup, tracked.ticket) == asked else None

    def settle(self, request: str, state: Lookup) -> None:
        """A request in this state does not ask again."""
        tracked = self.tracked[request]
        if tracked.lookup is state:
            tracked.lookup = Lookup.MISS

    def answered(
        self,
        ticket: int,
        lease: Lease | None,
        in_time: bool,
        now_s: float,
        *,
        brought: Brought = NOTHING_BROUGHT,
    ) -> Lease | None:
        """An answer came.

        Args:
            lease: of the hit; None: a miss.
            in_time: whether the answer came from the service; otherwise the time was up, and the
                request is never asked for again.
            brought: for the hit.

        Returns:
            The lease if nobody wants it any more: to be released.
        """
        if (tracked := self._awaiting(ticket)) is None:
            return lease
        here = lease.blocks if lease else 0
        if in_time and here < self._askable(tracked) and now_s < (tracked.full_until_s or 0.0):
            tracked.lookup = Lookup.SHORT
            return lease
        if lease is not None:
            tracked.lookup, tracked.lease, tracked.answered_s = Lookup.HIT, lease, now_s
            tracked.brought = brought
        else:
            tracked.lookup = Lookup.MISS if in_time else Lookup.NEVER
        if in_time:
            tracked.saved_to = here if tracked.saved_to is None else min(here, tracked.saved_to)
        return None

    def give_up(self, before_s: float) -> None:
        """Lookups first sent before this moment will not be waited for."""
        for ticket, request in list(self._tickets.items()):
            tracked = self.tracked[request]
            if tracked.since_s <= before_s:
                del self._tickets[ticket]
                tracked.lookup = Lookup.NEVER

    def stale(self, now_s: float) -> list[Lease]:
        """Hits nobody used for KEEP_S: given back, and asked for again when they are needed."""
        return [
            lease
            for tracked in self.tracked.values()
            if tracked.lookup is Lookup.HIT and now_s - tracked.answered_s > KEEP_S
            for lease in self._drop_answer(tracked)
        ]

    # scheduling

    def offer(self, request: str, local_tokens: int) -> int | None:
        """Tokens that can be loaded behind `local_tokens`; None: the answer is not here yet.

        Args:
            local_tokens: leading tokens that vLLM has itself.
        """
        tracked = self.tracked[request]
        if tracked.lookup in (Lookup.ASKED, Lookup.EARLY, Lookup.SHORT):
            return None
        tracked.local = local_tokens // self.block_tokens
        if tracked.lookup is not Lookup.HIT or local_tokens % self.block_tokens:
            return 0
        return max(0, tracked.usable() - tracked.local) * self.block_tokens

    def allocated(self, request: str, blocks: Sequence[Any], tokens: int) -> list[Lease]:
        """vLLM gave the request its blocks and wants `tokens` of them loaded.

        `loading` is set then, unless the hit was given back meanwhile: 0.33 says this later than
        it took the offer, while an earlier step still uses the blocks. What cannot be loaded is
        not offered to the request again.

        Args:
            blocks: the engine's blocks of the whole request, in order.
            tokens: behind the local ones, as `offer` has said or fewer; 0: nothing is to be loaded.
                A last block that vLLM takes a part of is loaded whole.

        Returns:
            Leases to release.
        """
        tracked = self.tracked[request]
        tracked.blocks, tracked.full_until_s, tracked.unsure = list(blocks), 0.0, False
        if tokens == 0:
            return self._drop_answer(tracked)
        count = -(-tokens // self.block_tokens)
        targets = tuple(blocks[tracked.local : tracked.local + count])
        has = tracked.usable() - tracked.local  # 0 without a lease
        if tracked.lease is None or not len(targets) == count <= has:
            tracked.limit = tracked.local
            return self._drop_answer(tracked)
        tracked.loading = LoadOrder(request, tracked.lease, tracked.local, targets)
        tracked.saved_to = tracked.local + count
        tracked.lookup, tracked.lease = Lookup.NONE, None
        return []

    def brought(self, request: str) -> list[int]:
        """Blocks of the request's load that came from SSD, and those from other hosts."""
        tracked = self.tracked.get(request)
        if tracked is None or (order := tracked.loading) is None:
            return [0, 0]
        return [order.among(places) for places in tracked.brought]

    def stepped(
        self, request: str, blocks: Sequence[Any], replace: bool, computed: int, *, scheduled: int
    ) -> list[SaveOrder]:
        """`step`, as a list."""
        order = self.step(request, blocks, replace, computed, scheduled=scheduled)
        return [] if order is None else [order]

    def step(
        self, request: str, blocks: Iterable[int], replace: bool, computed: int, *, scheduled: int
    ) -> SaveOrder | None:
        """One request's part in a step.

        Args:
            blocks: the engine's blocks that it got for this step.
            replace: those are all that it has: it was preempted meanwhile.
            computed: its tokens whose KV exists before the step.
            scheduled: tokens of the step.

        Returns:
            What is to be saved once the step has run; None: nothing.
        """
        tracked = self.tracked.get(request)
        if tracked is None:
            return None
        if replace:
            tracked.blocks, tracked.unsure = list(blocks), False
        else:
            tracked.blocks.extend(blocks)
        if tracked.unsure:
            return None
        if tracked.saved_to is None:
            tracked.saved_to = computed // self.block_tokens
        full = min((computed + scheduled) // self.block_tokens, len(tracked.blocks))
        first = tracked.saved_to
        if full <= first or not self._saving or tracked.hints.skip_save:
            return None
        keys = self.keys(tracked, first, min(full, first + LIST_MAX))
        if not keys:
            return None
        tracked.saved_to = end = first + len(keys)
        parent = self.keys(tracked, first - 1, first)[0] if first else NO_KEY
        targets = tuple(tracked.blocks[first:end])
        return self.order(request, tracked, keys, targets, parent=parent, first=first, end=end)

    def order(
        self,
        request: str,
        tracked: Tracked,
        keys: tuple[Key, ...],
        blocks: tuple[int, ...],
        *,
        parent: Key,
        first: int,
        end: int,
    ) -> SaveOrder:
        """A new order, which is open.

        Args:
            parent: the key before the first.
            first: if it is void, blocks from here on are saved again.
            end: blocks of the request that must have been computed for it.
        """
        self._order += 1
        tokens = end * self.block_tokens
        made = Open(tracked, blocks, waits=self._ranks, first=first, tokens=tokens)
        self._open[self._order] = made
        tracked.open.add(self._order)
        return SaveOrder(self._order, request, keys, blocks, parent=parent, first=first)

    def saving(self, order: SaveOrder) -> Saving:
        """What an open order has to do with its step."""
        opened = self._open[order.order]
        return Saving(order.order, opened.tracked, opened.first, opened.tokens)

    def void(self, tracked: Tracked, first: int) -> None:
        """What was saved from this block on is not published: it is saved again."""
        if tracked.saved_to is not None:
            tracked.saved_to = min(first, tracked.saved_to)

    # what became of it

    def failed(self, bad: Collection[int]) -> None:
        """Engine blocks whose load failed, as any worker reported them."""
        for tracked in self.tracked.values():
            if tracked.loading is None:
                continue
            places = [i for i, block in enumerate(tracked.loading.blocks) if block in bad]
            if places:
                first = tracked.loading.first + places[0]
                tracked.limit = min(first, first if tracked.limit is None else tracked.limit)
                tracked.saved_to = min(first, tracked.saved_to or 0)

    def loaded(self, request: str) -> None:
        """The request's load has ended, well or not."""
        if request in self.tracked:
            self.tracked[request].loading = None

    def saved(self, order: int, ranks: int) -> None:
        """These workers, a bit each, are done with this save; each may say so several times."""
        save = self._open.get(order)
        if save is None:
            return
        save.waits &= ~ranks
        if not save.waits:
            del self._open[order]
            self._loose.discard(order)
            save.tracked.open.discard(order)

    def preempted(self, request: str) -> list[Lease]:
        """The request lost its blocks, and its saves: it asks again, and saves them again."""
        if (tracked := self.tracked.get(request)) is None:
            return []
        for order in tracked.open:
            self.void(tracked, self._open[order].first)
        tracked.blocks, tracked.open, self._loose = [], set(), self._loose | tracked.open
        return self._drop_answer(tracked)

    def finished(self, request: str, free: int) -> tuple[bool, list[Lease]]:
        """Forget the request.

        A request whose load is under way ends by that load's report alone: vLLM keeps its blocks
        until then, and a second report would kill the engine.

        Args:
            free: blocks that vLLM could give to others now.

        Returns:
            Whether its blocks must be kept for its saves (then it is *held*), and leases to
            release.
        """
        tracked = self.tracked.pop(request, None)
        if tracked is None:
            return False, []
        held = bool(tracked.open) and tracked.loading is None and self._wanted(free)
        if held:
            self._held[request] = tracked.open
        else:
            self._loose |= tracked.open
        return held, self._drop_answer(tracked)

    def relax(self, free: int) -> tuple[str, ...]:
        """Held requests that need not be any more, with so many free blocks: vLLM may have them."""
        if not self._held or self._wanted(free):
            return ()
        held, self._held = self._held, {}
        self._loose.update(*held.values())
        return tuple(held)

    def sent(self, request: str) -> None:
        """vLLM was told that it can have the blocks of a held request."""
        self._loose |= self._held.pop(request, set())

    @property
    def loose(self) -> bool:
        """Whether saves read from blocks that vLLM may give to others."""
        return bool(self._loose)

    def reused(self, blocks: Collection[int]) -> tuple[int, ...]:
        """Saves to be dropped, for these blocks are about to be written by somebody else."""
        given = frozenset(blocks)
        gone = tuple(n for n in self._loose if not given.isdisjoint(self._open[n].blocks))
        self._loose.difference_update(gone)
        return gone

    def lose_sight(self) -> tuple[int, ...]:
        """Saves to be dropped: all, for whose blocks are whose is not known until vLLM names them
        anew, and until then nothing of these requests is saved."""
        for tracked in self.tracked.values():
            tracked.unsure, tracked.open = True, set()
        for save in self._open.values():
            self.void(save.tracked, save.first)
        self._loose.clear()
        return tuple(self._open)

    def _wanted(self, free: int) -> bool:
        """Whether those who are there may soon take more than these blocks."""
        wanted = 0
        for tracked in self.tracked.values():
            missing = tracked.source.num_tokens // self.block_tokens + 1 - len(tracked.blocks)
            wanted += max(AHEAD_BLOCKS, missing)
            if wanted > free:
                return True
        return False

    def clear_answers(self) -> list[Lease]:
        """The cache is another one: what it said is void, and what it was given is not there."""
        for tracked in self.tracked.values():
            tracked.saved_to = None
        return [lease for t in self.tracked.values() for lease in self._drop_answer(t)]

    def _drop_answer(self, tracked: Tracked) -> list[Lease]:
        leases = [tracked.lease] if tracked.lease else []
        if tracked.lookup is not Lookup.NEVER:
            self._tickets.pop(tracked.ticket if tracked.lookup is Lookup.ASKED else 0, None)
            tracked.lookup = Lookup.NONE
        tracked.lease = None
        return leases
