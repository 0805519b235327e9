"""The records of a save: the order, what each rank saves of it, and the batches that this makes."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pegaflow.actors.runtime.contract import Sender
from pegaflow.core.pool.columns import Places, Rows, rows_of
from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.owners import Mask
from pegaflow.wire.identities import ClaimId
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
    """The Seals under one claim, or under none."""

    asked: int = 0  # that are unanswered


class Blocks:
    """What becomes of the blocks of an order: a row for each of its keys, a column for each rank.

    Of the columns of replicas only one ever has the block; the others stay 0.

    Args:
        count: of the keys.
        shard_of: the shard of each rank.
    """

    def __init__(self, count: int, shard_of: Sequence[int]) -> None:
        ranks = len(shard_of)
        self.dead: Mask = np.zeros(count, bool)  # given up
        self.whole: Mask = np.zeros(count, bool)  # all shards are in place, or sealed since
        self.here: Mask = np.zeros((count, ranks), bool)  # in place, not sealed or given up
        self.pages: U64 = np.zeros((count, ranks), np.uint64)  # where they are here
        self.stamps: U64 = np.zeros((count, ranks), np.uint64)
        self.sums: U64 | None = None  # checksums, where they are made
        self._firsts = np.searchsorted(shard_of, np.arange(shard_of[-1] + 1))  # rank of each shard
        self.striped = len(self._firsts) < ranks  # some ranks are replicas

    def put(self, positions: Places, rank: int, pages: U64, stamps: U64) -> Places:
        """A rank's part of some blocks is in place; those of them that are whole now."""
        self.pages[positions, rank] = pages
        self.stamps[positions, rank] = stamps
        self.here[positions, rank] = True
        return self.complete(positions)

    def complete(self, positions: Places) -> Places:
        """Those of these blocks of which every shard is in place."""
        here = self.here[positions]
        if self.striped:
            here = np.logical_or.reduceat(here, self._firsts, axis=1)
        found: Places = positions[here.all(axis=1)]
        return found

    def of_shards(self, column: U64, positions: Places) -> U64:
        """What a column of each rank has of blocks that are whole, one for each shard."""
        found: U64 = column[positions]
        return np.maximum.reduceat(found, self._firsts, axis=1) if self.striped else found

    def check(self, positions: Places, rank: int, sums: U64) -> None:
        """Checksums of a rank's part of some blocks."""
        if self.sums is None:
            self.sums = np.zeros_like(self.pages)
        self.sums[positions, rank] = sums


@dataclass(eq=False)
class Order:
    """What the ranks save together: one chain, or several, each with a number."""

    name: Hashable
    said: Save  # by the first rank; keys and chains are those of all
    born_ns: int
    shard_of: tuple[int, ...]  # of the ranks, each with one RankSave
    chains: dict[int, slice] = field(default_factory=dict)  # by number, if it has any
    waits: set[int] = field(default_factory=set)  # numbers that the engine does not stand by yet
    claim: ClaimId | None = None  # None: the index has not answered yet; 0: there is none
    new: Places = field(default_factory=lambda: NO_PLACES)  # positions that are ours to save
    known: int = 0  # blocks that are saved already, or by somebody else
    saves: dict[int, "RankSave"] = field(default_factory=dict)  # by rank; none once all have ended
    seals: Seals = field(default_factory=Seals)  # if it has a claim
    unsealed: list[Places] = field(default_factory=list)  # whole, and no Seal has named them yet
    status: Status = Status.OK  # the first thing that went wrong, but for what was given up
    lost: list[Places] = field(default_factory=list)  # that will not be in the cache

    @property
    def keys(self) -> Keys:
        """One of each block."""
        return self.said.keys

    def standing(self, positions: Places) -> Places:
        """Those that the engine stands by: what is whole of them may be sealed."""
        if not self.waits:
            return positions
        mask = np.ones(len(self.keys), np.bool_)
        for number in self.waits:
            mask[self.chains[number]] = False
        return positions[mask[positions]]

    def of(self, number: int) -> Places:
        """The positions of a chain that are ours to save."""
        chain = self.chains[number]
        found: Places = self.new[(chain.start <= self.new) & (self.new < chain.stop)]
        return found

    def lose(self, positions: Places, why: Status) -> None:
        """Some are not saved."""
        if len(positions):
            self.lost.append(positions)
            self.status = why if self.status in (Status.OK, Status.DROPPED) else self.status

    @property
    def ranks(self) -> int:
        """Ranks that save it."""
        return len(self.shard_of)

    @cached_property
    def blocks(self) -> Blocks:
        """Made when it is known that anything is to be saved."""
        return Blocks(len(self.keys), self.shard_of)

    @cached_property
    def rows(self) -> Rows:
        """The keys."""
        return rows_of(self.keys)

    @cached_property
    def parents(self) -> Rows:
        """The key before each of them; zeros at the root of a chain."""
        before = np.zeros_like(self.rows)
        before[1:] = self.rows[:-1]
        if self.said.parent:
            before[0] = rows_of((self.said.parent,))
        if self.said.starts:
            before[list(self.said.starts)] = rows_of(self.said.parents)
        return before


@dataclass(slots=True, eq=False)
class RankSave:
    """One rank's part in an order."""

    order: Order
    rank: Rank
    sender: Sender  # quoted in Saved
    msg: Save
    todo: Places = field(default_factory=lambda: NO_PLACES)  # positions no batch named yet
    stripe: Places | None = None  # of what is new, this rank's to save; None: all of it
    batches: dict[int, Batch] = field(default_factory=dict)  # not in place yet
    placed: int = 0  # blocks in place that are neither sealed nor dead
    saved: int = 0
    cut: bool = False  # the client has given up what it has not kept
    ended: bool = False  # Saved is said

    def begin(self) -> None:
        """It is known what is new: take this rank's stripe of it."""
        order, replicas = self.order, self.rank.replicas
        mine = order.new
        if len(replicas) > 1:
            share = (self.rank.number + self.msg.order) % len(replicas)
            mine = self.stripe = mine[share :: len(replicas)]
        self.todo = mine[~order.blocks.dead[mine]]

    def leave(self, count: int) -> None:
        """So many blocks in place are sealed now, or dead."""
        self.placed -= count
        self.rank.used -= count

    @property
    def lost(self) -> Places:
        """Of what was this rank's to save, what will not be in the cache."""
        lost = np.concatenate([NO_PLACES, *self.order.lost])
        found: Places = lost if self.stripe is None else np.intersect1d(lost, self.stripe)
        return found

    @property
    def known(self) -> int:
        """Of a save that has ended: blocks that were saved before, or are somebody else's to
        save."""
        if self.stripe is None:
            return self.order.known
        return len(self.order.keys) - self.saved - len(self.lost)
