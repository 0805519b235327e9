"""One request as the scheduler half knows it (requests.py), and the orders that are made for it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, Protocol

from pegaflow.client import Lease
from pegaflow.wire.identities import Key

from .hints import NO_HINTS, Hints


class Hashed(Protocol):
    """What we use of vLLM's Request beyond its id: its growing list of block hashes."""

    @property
    def block_hashes(self) -> Sequence[bytes]:
        """One hash per hash block of its tokens."""

    @property
    def num_tokens(self) -> int:
        """Of prompt and output."""

    @property
    def num_prompt_tokens(self) -> int:
        """Of the prompt."""


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """Write blocks first.. of the lease into the engine's `blocks`. Travels to every worker."""

    request: str
    lease: Lease
    first: int
    blocks: tuple[int, ...]

    def among(self, places: Iterable[int]) -> int:
        """How many of these places in the lease are loaded."""
        return sum(0 <= place - self.first < len(self.blocks) for place in places)


class Brought(NamedTuple):
    """Places in a hit of the blocks that had to be brought into the service's memory."""

    disk: tuple[int, ...] = ()  # from SSD
    peers: tuple[int, ...] = ()  # from other hosts


NOTHING_BROUGHT = Brought()
"""All was in memory."""


class SaveOrder(NamedTuple):
    """Save these blocks of a request under these keys. Travels to every worker.

    `order` is its number, never used twice by one engine: a block is published when all parts of it
    are saved under the same number, so parts of two computations never meet. Each worker has a part
    of its own, or those that hold the same bytes have one between them.
    """

    order: int
    request: str
    keys: tuple[Key, ...]
    blocks: tuple[int, ...]
    parent: Key  # the one before the first; NO_KEY at the start of a prompt
    first: int = 0  # place of the first block in the request


@dataclass(slots=True)
class Open:
    """A save order that not every worker has reported over."""

    tracked: "Tracked"
    blocks: tuple[int, ...]
    waits: int  # workers that have not, a bit each
    first: int  # if it is void, blocks from here on are saved again
    tokens: int  # that must have been computed for it


class Lookup(Enum):
    """How far a request's question to the cache has come."""

    NONE = "not asked, or the answer is used up"
    ASKED = "asked"
    EARLY = "answered before the engine was all there: to be asked again"
    SHORT = "answered: not all of it is there yet, which is waited for: to be asked again"
    HIT = "answered; the lease is ours"
    MISS = "answered: nothing, for this time of scheduling"
    NEVER = "unanswered for too long: a miss for good"


@dataclass(slots=True)
class Tracked:
    """One request known to the scheduler."""

    source: Hashed  # vLLM's request
    hints: Hints = NO_HINTS
    lookup: Lookup = Lookup.NONE
    since_s: float = 0.0  # when it was first asked; valid in ASKED and SHORT
    asked_s: float = 0.0  # and last; the same but for what was SHORT
    full_until_s: float | None = None  # so long all of it is waited for; None: never asked
    ticket: int = 0  # of the lookup; valid in ASKED
    lease: Lease | None = None  # present exactly in HIT
    brought: Brought = NOTHING_BROUGHT  # for the last hit
    answered_s: float = 0.0  # valid in HIT
    local: int = 0  # blocks vLLM had itself at the last offer
    limit: int | None = None  # first block never to be loaded again; None: no failure yet
    blocks: list[int] = field(default_factory=list)  # the engine's blocks, in order
    unsure: bool = False  # not all of them: a step went by unseen
    saved_to: int | None = None  # first block not yet offered to the cache; None: never scheduled
    loading: LoadOrder | None = None  # a load under way or ordered
    open: set[int] = field(default_factory=set)  # its save orders that are not over

    def usable(self) -> int:
        """Leading blocks that the lease covers and that never failed."""
        held = self.lease.blocks if self.lease else 0
        return held if self.limit is None else min(held, self.limit)


@dataclass(slots=True)
class GroupedRequest(Tracked):
    """One of an engine with several KV cache groups."""

    tables: list[list[int]] = field(default_factory=list)  # `blocks` of each group
    begun: int | None = None  # its computed tokens in the first step with these blocks; None: none
    prefix: int | None = None  # of full attention, in the cache; None: not asked
    place: int = 0  # where it is asked whether the request can resume; in HIT, where it can
    looks: int = 0  # so often another place to resume at was looked for
    parted: int = 0  # the prefix, where no window was found at its end; 0: none
    kept: int = 0  # the last place whose windows are in the cache or offered to it; 0: none
    block_tokens: int = 1  # from one place to the next

    def usable(self) -> int:
        """Blocks up to the place at which it can resume; 0 if a load of it has failed, or another
        connector has taken tokens away from its end, so that none is left to compute."""
        left = self.source.num_tokens - self.place * self.block_tokens
        return self.place if self.lease is not None and self.limit is None and left > 0 else 0
