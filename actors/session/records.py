"""The records of a save: the order, what each rank saves of it, and the batches that this makes."""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, field

from pegaflow.actors.runtime.contract import Sender
from pegaflow.wire.identities import ClaimId, Key, PageId, Stamp
from pegaflow.wire.session import Save
from pegaflow.wire.status import Status
from pegaflow.wire.values import Keys

from .ranks import Rank

Pages = tuple[tuple[PageId, Stamp], ...]
"""(page, stamp) each."""


@dataclass(slots=True, eq=False)
class Batch:
    """Some blocks of a rank's save that move together."""

    positions: tuple[int, ...]  # in the save's keys
    slots: tuple[int, ...] = ()  # staged: of the bounce file, one per position, until filled
    pages: Pages = ()  # one per position, from when they are given until in place or given up
    kept: bool = False  # the client said Keep: from here on a Drop is too late
    copied: bool = False  # the bytes are in the pages


@dataclass(slots=True, eq=False)
class Seals:
    """Positions of an order that are in place at every rank, and not sealed yet."""

    whole: set[int] = field(default_factory=set)
    unasked: list[int] = field(default_factory=list)  # those of them that no Seal has named yet
    asked: bool = False  # a Seal is unanswered


@dataclass(slots=True, eq=False)
class Order:
    """What the ranks save together."""

    name: Hashable
    keys: Keys
    parent: Key
    born_ns: int
    world: int  # ranks, each with one RankSave
    committed: bool = True  # the engine stands by it: what is whole may be sealed
    claim: ClaimId | None = None  # None: the index has not answered yet
    new: tuple[int, ...] = ()  # positions that are ours to save
    known: int = 0  # blocks that are saved already, or by somebody else
    saves: dict[int, "RankSave"] = field(default_factory=dict)  # by rank; none once all have ended
    shards: dict[int, dict[int, tuple[PageId, Stamp]]] = field(default_factory=dict)
    """By position, then by rank."""
    seals: Seals = field(default_factory=Seals)
    sums: dict[PageId, int] = field(default_factory=dict)  # page -> checksum, where they are made
    dead: set[int] = field(default_factory=set)  # positions that are given up
    status: Status = Status.OK  # the first thing that went wrong

    def parent_of(self, position: int) -> Key:
        """The key before this one; zeros at the root of a chain."""
        return self.keys[position - 1] if position else self.parent or Key(bytes(len(self.keys[0])))


@dataclass(slots=True, eq=False)
class RankSave:
    """One rank's part in an order."""

    order: Order
    rank: Rank
    sender: Sender  # quoted in Saved
    msg: Save
    todo: deque[int] = field(default_factory=deque)  # positions no batch named yet
    batches: dict[int, Batch] = field(default_factory=dict)  # not in place yet
    placed: int = 0  # blocks in place that are neither sealed nor dead
    saved: int = 0
    cut: bool = False  # the client has given up what it has not kept
    ended: bool = False  # Saved is said
