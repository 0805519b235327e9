"""KV events: what `take_events` says of this engine's blocks in the cache (common/announcing.py).

It runs in the scheduler's half, in the engine's loop, and only where vLLM publishes events and this
engine loads. Each step does a bounded part: some blocks of requests are added, and LOOK_EVERY_S
after the last look, the next ones are looked at. So what an idle engine is told late, it says late.
Tokens stay in the engine: they go into vLLM's events, never to the service.

vLLM tells routers that all blocks are cleared when its own prefix cache is reset, and they forget
those of every tier: then everything is told again. While nobody can say what is there (no service,
another session), nothing is told for BLIND_S, and then all is taken back.
"""

import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from pegaflow.client import Seen
from pegaflow.connectors.common.announcing import Announcer, Block, Said, Stored, Tier
from pegaflow.wire.identities import Key
from pegaflow.wire.units import Count, Seconds

from . import compat, eventwords
from .adapters import unsalted
from .settings import Engine

ADD_MAX: Count = 256
"""Blocks added in a step: their tokens are copied, a microsecond each."""

SPANS_MAX: Count = 1024
"""Spans that wait to be added; beyond, the oldest is not told of."""

LOOK_EVERY_S: Seconds = 0.01
"""A look takes 0.2 ms of the engine's thread: a fiftieth of it at most."""

BLIND_S: Seconds = 30.0
"""A service is started again within this time, with all its blocks."""


class _Content(NamedTuple):
    """What an event says of one block."""

    hash: Any
    tokens: "array[int]"
    lora: Any
    extra: tuple[Any, ...] | None


@dataclass(slots=True)
class _Span:
    """Blocks of a request that are to be added."""

    request: Any  # vLLM's
    keys: Any  # its block hashes, as the cache knows them
    at: int  # the next one
    end: int
    parent: Block | None = None  # of the next one, once the first is added
    begun: bool = False


class Events:
    """See the module.

    Args:
        see: the client's.
    """

    def __init__(self, engine: Engine, see: Callable[[Sequence[Key]], Seen | None]) -> None:
        self._see = see
        self._on = eventwords.are_wanted(engine.config) and engine.settings.loads
        first = engine.groups.named_first if engine.groups else None
        self._group = first.number if first else 0  # whose blocks are told of
        self._tokens = engine.group_tokens[self._group]  # of a block
        self._ratio = self._tokens // engine.hash_tokens  # hashes of a block
        self._per = engine.block_tokens // self._tokens  # blocks from one place to the next
        self._announcer = Announcer()
        self._spans: deque[_Span] = deque(maxlen=SPANS_MAX)
        self._taken_back: Said = []  # to be said with the next step
        self._own: Any = None  # vLLM's own map of cached blocks
        self._full = False  # it was said that not all blocks are told of
        self._look_at_s = 0.0
        self._sighted_s = time.monotonic()  # when something was seen last

    def add(self, source: Any, first: int, end: int) -> None:
        """What a request has between two places is in the cache, or soon will be.

        Args:
            source: the request, as its keys are made of it.
        """
        if self._on:
            at, end = first * self._per, end * self._per
            self._spans.append(_Span(unsalted(source), source.block_hashes, at, end))

    def lost(self) -> None:
        """What was told of cannot be loaded any more."""
        self._spans.clear()
        self._taken_back += self._announcer.lost()

    def take(self, pool: Any) -> list[Any]:
        """vLLM's events since the last step.

        Args:
            pool: vLLM's, of blocks.
        """
        if not self._on:
            return []
        self._on = False  # for good, should this fail
        now_s = time.monotonic()
        own = eventwords.own_cache(pool)
        if own is not self._own and self._own is not None:
            self._announcer.unheard()
        self._own = own
        self._add(now_s)
        said = self._taken_back + self._look(now_s)
        self._taken_back = []
        events = [self._event(one) for one in said]
        self._on = True
        return events

    def _add(self, now_s: float) -> None:
        room = ADD_MAX
        while self._spans and room:
            span = self._spans[0]
            parent = span.parent
            if not span.begun or (parent and self._announcer.get(parent.key) is not parent):
                self._begin(span)
            end = min(span.end, span.at + room, len(span.keys) // self._ratio)
            room -= max(0, end - span.at)
            while span.at < end and self._add_next(span, now_s):
                span.at += 1
            if room or span.at == span.end:
                self._spans.popleft()

    def _begin(self, span: _Span) -> None:
        """Go back to the first block whose parent is known."""
        span.begun, known = True, self._announcer.get
        while span.at and (parent := known(self._key(span, span.at - 1))) is None:
            span.at -= 1
        span.parent = parent if span.at else None

    def _key(self, span: _Span, place: int) -> Key:
        return Key(bytes(span.keys[(place + 1) * self._ratio - 1]))

    def _add_next(self, span: _Span, now_s: float) -> bool:
        key = self._key(span, span.at)
        block = self._announcer.get(key)
        if block is not None:
            self._announcer.again(block, now_s)
        else:
            block = self._announcer.add(key, span.parent, self._content(span), now_s)
        if block is None:
            if not self._full:
                compat.logger().warning("pegaflow: so many blocks: routers are not told of all")
            self._full = True
            return False
        span.parent = block
        return True

    def _content(self, span: _Span) -> _Content:
        request, tokens = span.request, self._tokens
        start, end = span.at * tokens, (span.at + 1) * tokens
        return _Content(
            eventwords.external(request.block_hashes[(span.at + 1) * self._ratio - 1]),
            array("q", request.all_token_ids[start:end]),
            getattr(request, "lora_request", None),
            eventwords.extra_keys(request, start, end),
        )

    def _look(self, now_s: float) -> Said:
        blocks = self._announcer.due() if now_s >= self._look_at_s else []
        if not blocks:
            if not len(self._announcer):
                self._sighted_s = now_s
            return []
        self._look_at_s = now_s + LOOK_EVERY_S
        length = len(blocks[0].key)  # an adapter's may have another: they come when they are first
        blocks = [block for block in blocks if len(block.key) == length]
        seen = self._see([block.key for block in blocks])
        if seen is not None:
            self._sighted_s = now_s
            below = seen.below
            if below is None:  # as it was
                below = tuple(bool(block.told & Tier.DISK) for block in blocks)
            return self._announcer.seen(blocks, seen.here, below, now_s)
        return self._announcer.lost() if now_s - self._sighted_s > BLIND_S else []

    def _event(self, said: Any) -> Any:
        contents: list[_Content] = [block.content for block in said.blocks]
        hashes, medium = [one.hash for one in contents], said.tier.name
        if not isinstance(said, Stored):
            return eventwords.removed(hashes, medium, self._group)
        parent = said.blocks[0].parent
        return eventwords.stored(
            hashes,
            None if parent is None else parent.content.hash,
            [token for one in contents for token in one.tokens],
            block_tokens=self._tokens,
            group=self._group,
            medium=medium,
            lora=contents[0].lora,
            extra=[one.extra for one in contents],
        )
