"""`Requests` of a model with windows, states, or several KV cache groups (groups.py). Pure.

`block_tokens` are those from one place to the next, at which blocks of every group end.

lookup   in a few questions. First the full attention's blocks, as ever: the *prefix*. Then
         whether all is there that is needed to resume at its end; and if it is not, at the largest
         place before it that a look at the blocks near it (`see`) shows, or that is worth a
         question where nobody can look (places.py). The answer to the first is given back before
         the second is asked, so a request has one lease at most. Only who finds all that is needed
         for one place has a hit.
offer    up to that place and to no other; one token at least is left to be computed
load     what the request needs to resume there and vLLM has not itself: one order, one lease
save     of full attention what `Requests` saves; of windows what is needed at the places that
         groups.py lists, in the step that computes up to there: it has all of the window's blocks.
         Of recurrent groups the states that vLLM says are whole once the step has run (`states`):
         where they lie is in no table, for vLLM moves them and takes them away. A place counts if
         every recurrent group has its state there.
         These orders are *loose* at once: vLLM may take a window's blocks, or a state's, away while
         the request goes on, so the save is dropped if they are given to somebody before it is
         over.
end      a request that has ended leaves its last window. Its order goes out with the next step, if
         none of the blocks has been given to anybody by then. Only a request of which a step has
         stood leaves one: before, what its blocks hold may be another connector's failed load.

A load fails as a whole: vLLM hears the request's name, computes all of it, and never asks again.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial

from pegaflow.client import Lease, Seen
from pegaflow.wire.identities import NO_KEY, Key
from pegaflow.wire.values import LIST_MAX

from .groups import Entry, Groups, blocks_of, table_of
from .hints import NO_HINTS, Hints
from .places import PLACES_ASKED, Places
from .requests import AHEAD_BLOCKS, Requests
from .tracked import (
    NOTHING_BROUGHT,
    Brought,
    GroupedRequest,
    Hashed,
    LoadOrder,
    Lookup,
    SaveOrder,
    Tracked,
)

Tables = Sequence[Sequence[int]]
"""The engine's blocks of a request, by vLLM's number of the group."""

State = tuple[int, int, int]
"""A state: vLLM's number of its group, the engine's block, and the tokens that it stands behind."""


class GroupedRequests(Requests):
    """See the module.

    Args:
        see: which blocks the cache has, without a lease; None: nobody can say.
        processed: how many tokens of a request are computed by steps that are over.
    """

    def __init__(
        self,
        block_tokens: int,
        hash_tokens: int,
        ranks: int = 1,
        saving: bool = True,
        *,
        patience_s: float = 0.0,
        groups: Groups,
        see: Callable[[Sequence[Key]], Seen | None],
        processed: Callable[[Hashed], int],
    ) -> None:
        super().__init__(block_tokens, hash_tokens, ranks, saving, patience_s=patience_s)
        assert self._ratio == groups.hashes
        self._groups, self._see, self._processed = groups, see, processed
        self._places = Places(groups.apart, surely=not groups.states)
        self._late: list[SaveOrder] = []  # of requests that have ended, for the next step

    def add(self, request: str, source: Hashed, hints: Hints = NO_HINTS) -> Tracked:
        """The request's entry, made if it is new."""
        made = GroupedRequest(source, hints, block_tokens=self.block_tokens)
        return self.tracked.setdefault(request, made)

    # lookup

    def wants_next(self, request: str) -> tuple[Key, ...]:
        """Keys of the next question, if there is one."""
        tracked = self.tracked[request]
        return self._question(tracked) if self._is_asking(tracked) else ()

    def _question(self, tracked: Tracked) -> tuple[Key, ...]:
        assert isinstance(tracked, GroupedRequest)
        if tracked.prefix is None and self._groups.full:
            return self._groups.full_keys(tracked.source.block_hashes, 0, self._askable(tracked))
        if tracked.prefix is None:
            tracked.prefix = tracked.place = self._askable(tracked)
        if not tracked.place:
            tracked.lookup = Lookup.MISS
            return ()
        return self._groups.needed_keys(tracked.source.block_hashes, tracked.place)

    def _askable(self, tracked: Tracked) -> int:
        """So many that something is left to compute, and that all their keys are one question."""
        left = (tracked.source.num_tokens - 1) // self.block_tokens
        most = super()._askable(tracked)
        room = max(0, LIST_MAX - self._groups.most)
        return min(most, left, room // max(1, self._groups.full_blocks))

    def asked(self, request: str, ticket: int, now_s: float) -> None:
        """The next question was sent; the time for all of them counts from the first."""
        tracked = self.tracked[request]
        assert isinstance(tracked, GroupedRequest)
        since_s = tracked.since_s
        super().asked(request, ticket, now_s)
        if tracked.prefix is not None and since_s:
            tracked.since_s = since_s

    def answered(
        self,
        ticket: int,
        lease: Lease | None,
        in_time: bool,
        now_s: float,
        *,
        brought: Brought = NOTHING_BROUGHT,
    ) -> Lease | None:
        """An answer came; as of `Requests`, but for what it is an answer to."""
        if (tracked := self._awaiting(ticket)) is None:
            return lease
        assert isinstance(tracked, GroupedRequest)
        blocks = lease.blocks if lease else 0
        tracked.lookup, tracked.kept = Lookup.MISS, 0  # should what follows fail
        if not in_time:
            tracked.lookup = Lookup.NEVER
        elif tracked.prefix is None:
            self._prefix(tracked, blocks // self._groups.full_blocks, now_s)
        elif blocks == self._groups.count(tracked.place):
            tracked.lookup, tracked.lease, tracked.answered_s = Lookup.HIT, lease, now_s
            tracked.brought, tracked.kept = brought, tracked.place
            self._places.note(self._name(tracked, tracked.place))
            return None
        else:
            self._elsewhere(tracked, now_s)
        return lease

    def _prefix(self, tracked: GroupedRequest, blocks: int, now_s: float) -> None:
        """The full attention's blocks are there, so many."""
        known = blocks if tracked.saved_to is None else min(blocks, tracked.saved_to)
        tracked.saved_to = known
        if blocks < self._askable(tracked) and self._waits(tracked, now_s):
            return
        tracked.prefix = tracked.place = blocks
        if blocks:
            tracked.lookup = Lookup.NONE

    def _elsewhere(self, tracked: GroupedRequest, now_s: float) -> None:
        """The request cannot resume at this place: look for the next one."""
        if not tracked.looks and self._groups.full:
            tracked.parted = tracked.place
        place = 0 if tracked.looks == PLACES_ASKED else self._before(tracked)
        tracked.looks += 1
        if not place and self._waits(tracked, now_s):
            tracked.prefix, tracked.looks = None, 0
            return
        tracked.place = place
        if place:
            tracked.lookup = Lookup.NONE

    def _waits(self, tracked: Tracked, now_s: float) -> bool:
        """Whether the request waits for its full prefix; then it asks from the start."""
        waits = now_s < (tracked.full_until_s or 0.0)
        if waits:
            tracked.lookup = Lookup.SHORT
        return waits

    def _before(self, tracked: GroupedRequest) -> int:
        """The largest place before this one where one seems to resume; 0: there is none."""
        groups, end = self._groups, tracked.place
        if not groups.most:
            return 0
        group, first = groups.looked_for(end)
        per = groups.per(group)
        seen = self._see(groups.keys(group, tracked.source.block_hashes, first, end * per))
        if seen is None:
            return self._places.before(partial(self._name, tracked), end, first // per)
        here = [a or b for a, b in zip(seen.here, seen.below or seen.here, strict=True)]
        run = 0
        runs = [run := run + 1 if one else 0 for one in here]
        for place in range(end - 1, first // per, -1):
            if runs[place * per - 1 - first] >= place * per - groups.first(group, place):
                return place
        return 0

    # scheduling

    def offer(self, request: str, local_tokens: int) -> int | None:
        """Tokens that can be loaded behind those; None: the last answer is not here yet."""
        if self._is_asking(self.tracked[request]):
            return None
        return super().offer(request, local_tokens)

    def settle(self, request: str, state: Lookup) -> None:
        """As of `Requests`; between two questions a request is like one that asks again."""
        super().settle(request, state)
        tracked = self.tracked[request]
        if state is Lookup.SHORT and self._is_asking(tracked):
            tracked.lookup = Lookup.MISS

    def _is_asking(self, tracked: Tracked) -> bool:
        """Whether the request has another question to ask."""
        assert isinstance(tracked, GroupedRequest)
        between = tracked.lookup is Lookup.NONE and tracked.prefix is not None
        return between and not tracked.loading and tracked.limit != 0

    def allocated(self, request: str, blocks: Tables, tokens: int) -> list[Lease]:
        """vLLM gave the request its blocks, and wants `tokens` loaded; as of `Requests`."""
        tracked = self.tracked[request]
        assert isinstance(tracked, GroupedRequest)
        self._give(tracked, blocks)
        tracked.full_until_s = 0.0
        if tokens == 0:
            return self._drop_answer(tracked)
        place, local = tracked.local + tokens // self.block_tokens, tracked.local
        targets = blocks_of(blocks, self._groups.needed(place, local))
        promised = tracked.usable()
        if not targets or tokens % self.block_tokens or place != promised or not tracked.lease:
            tracked.limit = 0
            return self._drop_answer(tracked)
        first = self._groups.count(place) - len(targets)
        tracked.loading = LoadOrder(request, tracked.lease, first, targets)
        tracked.lookup, tracked.lease = Lookup.NONE, None
        return []

    def brought(self, request: str) -> list[int]:
        """Blocks of tokens of which something came from SSD, and from other hosts."""
        entries = super().brought(request)
        tracked = self.tracked.get(request)
        if not any(entries) or tracked is None or tracked.loading is None:
            return entries
        assert isinstance(tracked, GroupedRequest)
        blocks, all_entries = tracked.place - tracked.local, len(tracked.loading.blocks)
        return [-(-count * blocks // all_entries) for count in entries]

    def _give(self, tracked: GroupedRequest, tables: Tables) -> None:
        tracked.unsure, tracked.begun = False, None
        tracked.tables = [list(table) for table in tables]

    def stepped(
        self, request: str, blocks: Tables, replace: bool, computed: int, *, scheduled: int
    ) -> list[SaveOrder]:
        """One request's part in a step, as of `Requests`: an order of each kind at most."""
        tracked = self.tracked.get(request)
        if tracked is None:
            return []
        assert isinstance(tracked, GroupedRequest)
        if replace:
            self._give(tracked, blocks)
            tracked.begun = computed
        else:
            for table, new in zip(tracked.tables, blocks, strict=False):
                table.extend(new)
        if tracked.saved_to is None:
            tracked.saved_to = computed // self.block_tokens
        if not self._saving or tracked.hints.skip_save or tracked.unsure:
            return []
        end = computed + scheduled
        orders = [self._full(tracked, request, end), self._windows(tracked, request, computed, end)]
        return [order for order in orders if order is not None]

    def _full(self, tracked: GroupedRequest, request: str, end: int) -> SaveOrder | None:
        """What a step up to this token adds to full attention."""
        groups, first = self._groups, tracked.saved_to or 0
        chain = tracked.source.block_hashes
        most = first + LIST_MAX // max(1, groups.full_blocks)
        last = min(end // self.block_tokens, most, len(chain) // self._ratio)
        if last <= first or not groups.full:
            return None
        blocks = blocks_of(tracked.tables, groups.full_entries(first, last))
        if blocks is None:
            return None
        tracked.saved_to = last
        parent = self._name(tracked, first)
        keys = groups.full_keys(chain, first, last)
        return self.order(request, tracked, keys, blocks, parent=parent, first=first, end=last)

    def _windows(
        self, tracked: GroupedRequest, request: str, computed: int, end: int
    ) -> SaveOrder | None:
        """The windows at places that a step from one token to another reaches, or that the steps
        before it went over: of those under way some tokens may be taken back."""
        tokens, prompt = self.block_tokens, tracked.source.num_prompt_tokens
        sure = max(self._processed(tracked.source), tracked.begun or 0)
        special = [prompt // tokens, (prompt - 1) // tokens, tracked.parted]
        last = min(end // tokens, len(tracked.source.block_hashes) // self._ratio)
        if computed >= prompt and self._groups.splits_places:
            special.append(last)
        low = max(0, sure - self._groups.spare + 1)
        places = self._groups.places(-(-low // tokens), last, special)
        order = self._keep(request, tracked, tracked.tables, places)
        if order is not None:  # it stands if the step does, wherever in it the place is
            opened = self._open[order.order]
            opened.tokens = max(opened.tokens, sure + 1)
        return order

    def states(self, request: str, offered: Iterable[State], end: int) -> list[SaveOrder]:
        """One request's states that are whole once a step has run.

        Args:
            offered: as vLLM says it, loaded ones and such of a part of a block among them.
            end: its tokens that are computed then.
        """
        tracked = self.tracked.get(request)
        if tracked is None or not self._saving or tracked.hints.skip_save or tracked.unsure:
            return []
        assert isinstance(tracked, GroupedRequest)
        blocks = {(tokens, group): block for group, block, tokens in offered}
        orders = []
        for tokens in sorted({tokens for tokens, _ in blocks}):
            found = tuple(blocks.get((tokens, group.number), 0) for group in self._groups.states)
            place, part = divmod(tokens, self.block_tokens)
            name = self._name(tracked, place)
            begun = end if tracked.begun is None else tracked.begun
            if not part and name and all(found) and begun < tokens <= end:
                orders.append(self._state(request, tracked, place, found))
        return orders

    def _state(
        self, request: str, tracked: Tracked, place: int, blocks: tuple[int, ...]
    ) -> SaveOrder:
        """The state at a place, of all recurrent groups."""
        name, groups = self._name(tracked, place), self._groups
        keys = tuple(groups.key(group, name) for group in groups.states)
        parent = name if groups.full else NO_KEY
        order = self.order(request, tracked, keys, blocks, parent=parent, first=place, end=place)
        self._loose.add(order.order)
        self._places.note(name)
        return order

    def _keep(
        self, request: str, tracked: GroupedRequest, tables: Tables, places: list[int]
    ) -> SaveOrder | None:
        """Windows at these places, but for those that the cache has."""
        places = [place for place in places if place > tracked.kept]
        entries: list[Entry] = self._groups.kept(places, tracked.kept) if places else []
        blocks = blocks_of(tables, entries)
        if not entries or blocks is None or len(entries) > LIST_MAX:
            return None
        keys = self._groups.keys_of(tracked.source.block_hashes, entries)
        last = places[-1]
        parent = self._name(tracked, last) if self._groups.full else NO_KEY
        order = self.order(request, tracked, keys, blocks, parent=parent, first=last, end=last)
        tracked.kept = last
        self._loose.add(order.order)
        for place in () if self._groups.states else places:
            self._places.note(self._name(tracked, place))
        return order

    def _name(self, tracked: Tracked, place: int) -> Key:
        """The engine's hash of all up to a place; empty at the start, and where there is none."""
        return next(iter(self.keys(tracked, place - 1, place)), NO_KEY) if place > 0 else NO_KEY

    def void(self, tracked: Tracked, first: int) -> None:
        """What was saved from this block on is not published: windows are kept anew from now on."""
        super().void(tracked, first)
        assert isinstance(tracked, GroupedRequest)
        tracked.kept = 0

    # what became of it

    def refused(self, requests: Collection[str]) -> None:
        """Loads have failed, ours or somebody else's: these requests are not loaded again."""
        for name in requests:
            tracked = self.tracked.get(name)
            if isinstance(tracked, GroupedRequest):
                tracked.limit, tracked.kept = 0, 0
                tracked.saved_to = min(tracked.local, tracked.saved_to or 0)

    def preempted(self, request: str) -> list[Lease]:
        """The request lost its blocks; it will be looked up again."""
        tracked = self.tracked.get(request)
        if isinstance(tracked, GroupedRequest):
            tracked.tables, tracked.kept = [], 0
        return super().preempted(request)

    def ends(self, request: str, tables: Tables, processed: int) -> None:
        """The request is about to be `finished`: its last window is kept.

        Args:
            tables: the engine's blocks, as it has them now.
            processed: its tokens that are computed, by steps that are over.
        """
        tracked = self.tracked.get(request)
        if tracked is None or tracked.loading is not None:
            return
        assert isinstance(tracked, GroupedRequest)
        wanted = self._saving and not tracked.hints.skip_save and tracked.tables
        if not wanted or tracked.begun is None or processed <= tracked.begun:
            return
        full = len(tracked.source.block_hashes) // self._ratio
        place = min(processed // self.block_tokens, full)
        order = self._keep(request, tracked, tables, [place] if place else [])
        if order is not None:
            self._late.append(order)

    def late(self, dropped: Collection[int]) -> list[SaveOrder]:
        """Orders of requests that have ended since the last step, but for what was dropped."""
        left = [order for order in self._late if order.order not in dropped]
        self._late = [order for order in self._late if order.order in dropped]
        self.drop_late()
        return left

    def drop_late(self) -> None:
        """They will not leave: no rank has heard of them."""
        for order in self._late:
            self.saved(order.order, self._ranks)
        self._late = []

    def _wanted(self, free: int) -> bool:
        """As of `Requests`; each group has blocks of its own."""
        return sum(map(self._missing, self.tracked.values())) > free

    def _missing(self, tracked: Tracked) -> int:
        """Blocks that the request may soon take."""
        assert isinstance(tracked, GroupedRequest)
        groups, first = self._groups, self._groups.named_first
        steps = tracked.source.num_tokens // self.block_tokens + 1
        had = -(-len(table_of(tracked.tables, first)) // groups.per(first))
        return max(AHEAD_BLOCKS * len(groups.all), (steps - had) * groups.blocks)

    def clear_answers(self) -> list[Lease]:
        """See Requests: windows are kept anew, too."""
        for tracked in self.tracked.values():
            assert isinstance(tracked, GroupedRequest)
            tracked.kept = 0
        return super().clear_answers()

    def _drop_answer(self, tracked: Tracked) -> list[Lease]:
        assert isinstance(tracked, GroupedRequest)
        tracked.prefix, tracked.place, tracked.looks, tracked.since_s = None, 0, 0, 0.0
        return super()._drop_answer(tracked)
