"""`Requests` of an engine that hands over the last block of a prompt before it is full. Pure.

Where one engine computes prompts and another one answers them (prefill and decode), the second has
of a prompt all full blocks from the cache, and would compute the rest of it, up to a block less one
token, once more. So the first saves that rest as well, the *tail*: the block in which the prompt
ends, as it is once the prompt is computed. The second loads it with the others and has nothing left
to compute but the last token, for which vLLM asks in any case.

save     the tail is a save order of its own, of the step that computes the prompt's last token. It
         stands if the step does. What the request's answer adds to the block meanwhile may be in
         the copy, and nobody reads it: whoever loads a tail knows how many tokens are in it.
lookup   the tail is asked for behind all full blocks, if they fit into one question, by a request
         of which nothing is computed but the prompt
offer    up to the end of the prompt, if the cache has all of it
load     the block is loaded whole, and filled up by the request itself: then it is saved as any
         other, under another key

A tail's key (`tail_key`) is made of what vLLM's hash of these very tokens would be, behind the hash
of the block before them and with all else that a hash covers (adapter, salt, images), and of their
number. It is no hash of vLLM's, so no key of a full block, whatever the sizes of blocks.

A tail of a single token is neither saved nor asked for: that token is computed anyway.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

from pegaflow.wire.identities import NO_KEY, Key
from pegaflow.wire.units import Count
from pegaflow.wire.values import LIST_MAX

from .hints import NO_HINTS, Hints
from .requests import Requests
from .tracked import Hashed, SaveOrder, Tracked

TAIL_MIN: Count = 2
"""Tokens of a tail that is worth its block: vLLM computes the last one of a prompt in any case."""

HashOf = Callable[[Hashed, int, int], bytes]
"""vLLM's hash of a request's tokens first..end, as if they were a block; empty: there is none."""


class Tail(NamedTuple):
    """Where a prompt ends."""

    place: int  # full blocks before it
    end: int  # tokens of the prompt
    key: Key


def tail_key(name: bytes, tokens: int) -> Key:
    """The key of a block that has so many tokens.

    Args:
        name: vLLM's hash of them.
    """
    said = tokens.to_bytes(8, "little") + name
    return Key(blake2b(said, digest_size=len(name), person=b"pegaflow.tail").digest())


@dataclass(slots=True)
class TailedRequest(Tracked):
    """One request known to the scheduler."""

    tail: Tail | None = None  # last of what was asked for; None: it was full blocks alone

    def usable(self) -> int:
        """Leading blocks that the lease covers and that never failed; the tail only if the request
        still ends there."""
        blocks = Tracked.usable(self)
        if self.tail is None or self.source.num_tokens == self.tail.end:
            return blocks
        return min(blocks, self.tail.place)


class TailedRequests(Requests):
    """See the module.

    Args:
        hash_of: see there.
        tails: whether tails are saved, and whether they are asked for.
    """

    def __init__(
        self,
        block_tokens: int,
        hash_tokens: int,
        ranks: int = 1,
        saving: bool = True,
        *,
        patience_s: float = 0.0,
        hash_of: HashOf,
        tails: tuple[bool, bool],
    ) -> None:
        super().__init__(block_tokens, hash_tokens, ranks, saving, patience_s=patience_s)
        self._hash_of = hash_of
        saves, self._loads_tails = tails
        self._saves_tails = saves and saving

    def add(self, request: str, source: Hashed, hints: Hints = NO_HINTS) -> Tracked:
        """The request's entry, made if it is new."""
        return self.tracked.setdefault(request, TailedRequest(source, hints))

    def _tail(self, tracked: Tracked) -> Tail | None:
        """That of the request's prompt, if it has one."""
        end = tracked.source.num_prompt_tokens
        place, tokens = divmod(end, self.block_tokens)
        if tokens < TAIL_MIN or self._hashed(tracked) < place:
            return None
        name = self._hash_of(tracked.source, end - tokens, end)
        return Tail(place, end, tail_key(name, tokens)) if name else None

    def _hashed(self, tracked: Tracked) -> int:
        """Full blocks that have a name."""
        return len(tracked.source.block_hashes) // self._ratio

    # lookup

    def _question(self, tracked: Tracked) -> tuple[Key, ...]:
        assert isinstance(tracked, TailedRequest)
        tracked.tail = None
        keys = super()._question(tracked)
        begins = tracked.source.num_tokens == tracked.source.num_prompt_tokens
        if self._loads_tails and begins and tracked.limit is None and len(keys) < LIST_MAX:
            tracked.tail = self._tail(tracked)
        return keys if tracked.tail is None else (*keys, tracked.tail.key)

    def _askable(self, tracked: Tracked) -> int:
        assert isinstance(tracked, TailedRequest)
        return super()._askable(tracked) + (tracked.tail is not None)

    # scheduling

    def offer(self, request: str, local_tokens: int) -> int | None:
        """Tokens that can be loaded behind those; None: the answer is not here yet."""
        tokens = super().offer(request, local_tokens)
        tracked = self.tracked[request]
        assert isinstance(tracked, TailedRequest)
        if tokens and tracked.tail is not None and tracked.usable() > tracked.tail.place:
            return tracked.tail.end - local_tokens
        return tokens

    def stepped(
        self, request: str, blocks: Sequence[Any], replace: bool, computed: int, *, scheduled: int
    ) -> list[SaveOrder]:
        """One request's part in a step: what is full, and the tail."""
        tracked = self.tracked.get(request)
        if tracked is None:
            return []
        if tracked.saved_to is not None:  # a tail that was found counts as no full block
            tracked.saved_to = min(tracked.saved_to, self._hashed(tracked))
        orders = super().stepped(request, blocks, replace, computed, scheduled=scheduled)
        is_last = computed < tracked.source.num_prompt_tokens <= computed + scheduled
        if is_last and self._saves_tails and not (tracked.unsure or tracked.hints.skip_save):
            tail = self._tail(tracked)
            if tail is not None and tail.place < len(tracked.blocks):
                orders.append(self._save(request, tracked, tail))
        return orders

    def _save(self, request: str, tracked: Tracked, tail: Tail) -> SaveOrder:
        place, blocks = tail.place, (tracked.blocks[tail.place],)
        parent = self.keys(tracked, place - 1, place)[0] if place else NO_KEY
        order = self.order(
            request, tracked, (tail.key,), blocks, parent=parent, first=place, end=place
        )
        self._open[order.order].tokens = tail.end
        return order
