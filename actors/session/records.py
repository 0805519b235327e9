"""The records of a save: the order, what each rank saves of it, and the batches that this makes."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pegaflow.actors.runtime.contract import Sender
from pegaflow.core.pool.columns import Places, Rows, rows_of
from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.owners import Mask
from pegaflow.wire.identities import ClaimId, Key
from pegaflow.wire.session import Save
from pegaflow.wire.status import Status
from pegaflow.wire.values import Keys

from .ranks import Rank

NO_PLACES: Places = np.zeros(0, np.int64)
NO_PAGES: U64 = np.zeros(0, np.uint64)


@dataclass(slots=True, eq=False)
class Batch:
    """Some blocks of a rank's save that move together."""

    positions: Places  # in the save's keys
    slots: tuple[int, ...] = ()  # staged: of the bounce file, one per position, until filled
    pages: U64 = field(default_factory=lambda: NO_PAGES)
    """One per position, from when they are given until they are in place or given up."""
    stamps: U64 = field(default_factory=lambda: NO_PAGES)  # beside `pages`
    kept: bool = False  # the client said Keep: from here on a Drop is too late
    copied: bool = False  # the bytes are in the pages


@dataclass(slots=True, eq=False)
class Seals:
    """What of an order is to be sealed."""

    unasked: list[Places] = field(default_factory=list)  # whole, and no Seal has named them yet
    asked: bool = False  # a Seal is unanswered


class Blocks:
    """What becomes of the blocks of an order: a row for each of its keys, a column for each rank.

    Args:
        count: of the keys.
        world: ranks.
    """

    def __init__(self, count: int, world: int) -> None:
        self.dead: Mask = np.zeros(count, bool)  # given up
        self.whole: Mask = np.zeros(count, bool)  # in place at every rank, or sealed since
        self.here: Mask = np.zeros((count, world), bool)  # in place, not sealed or given up
        self.pages: U64 = np.zeros((count, world), np.uint64)  # where they are here
        self.stamps: U64 = np.zeros((count, world), np.uint64)
        self.sums: U64 | None = None  # checksums, where they are made

    def put(self, positions: Places, rank: int, pages: U64, stamps: U64) -> Places:
        """A rank's part of some blocks is in place; those of them that are at every rank now."""
        self.pages[positions, rank] = pages
        self.stamps[positions, rank] = stamps
        self.here[positions, rank] = True
        found: Places = positions[self.here[positions].all(axis=1)]
        return found

    def check(self, positions: Places, rank: int, sums: U64) -> None:
        """Checksums of a rank's part of some blocks."""
        if self.sums is None:
            self.sums = np.zeros_like(self.pages)
        self.sums[positions, rank] = sums


@dataclass(eq=False)
class Order:
    """What the ranks save together."""

    name: Hashable
    keys: Keys
    parent: Key
    born_ns: int
    world: int  # ranks, each with one RankSave
    committed: bool = True  # the engine stands by it: what is whole may be sealed
    claim: ClaimId | None = None  # None: the index has not answered yet
    new: Places = field(default_factory=lambda: NO_PLACES)  # positions that are ours to save
    known: int = 0  # blocks that are saved already, or by somebody else
    saves: dict[int, "RankSave"] = field(default_factory=dict)  # by rank; none once all have ended
    seals: Seals = field(default_factory=Seals)
    status: Status = Status.OK  # the first thing that went wrong

    @cached_property
    def blocks(self) -> Blocks:
        """Made when it is known that anything is to be saved."""
        return Blocks(len(self.keys), self.world)

    @cached_property
    def rows(self) -> Rows:
        """The keys."""
        return rows_of(self.keys)

    @cached_property
    def parents(self) -> Rows:
        """The key before each of them; zeros at the root of a chain."""
        before = np.zeros_like(self.rows)
        before[1:] = self.rows[:-1]
        if self.parent:
            before[0] = rows_of((self.parent,))
        return before


@dataclass(slots=True, eq=False)
class RankSave:
    """One rank's part in an order."""

    order: Order
    rank: Rank
    sender: Sender  # quoted in Saved
    msg: Save
    todo: Places = field(default_factory=lambda: NO_PLACES)  # positions no batch named yet
    batches: dict[int, Batch] = field(default_factory=dict)  # not in place yet
    placed: int = 0  # blocks in place that are neither sealed nor dead
    saved: int = 0
    cut: bool = False  # the client has given up what it has not kept
    ended: bool = False  # Saved is said
