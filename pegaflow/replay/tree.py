"""All prompts of a trace as one tree of blocks, small enough for traces of many millions of ids.

A block is its own id after all ids before it, in a scope: that is what a prefix cache shares. So
the blocks of all requests form a tree, and a request is the node where its prompt ends. An id that
stands after other ids is another block, whether or not the trace promises that this never happens.

A node is a number. What is kept of it is its parent, the request that first had it, and its `key`:
64 bits, a sum over the scope and each id mixed with its position, so that any two replays that read
the same prompts agree about it. (Two of ten million blocks get the same key with a chance of 3 in a
million.) `Table` finds a node by its key: open addressing in two arrays.

Memory, in bytes: 16 per different block and 20 to 60 for its slot in the table, as much again while
ids are checked (`Tree.check`), 16 per request, and nothing for a block that was there before.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from pegaflow.wire.units import Bytes, Constant

from .splitmix import GOLDEN, mixed

Keys = NDArray[np.uint64]
Nodes = NDArray[np.int32]
Numbers = NDArray[np.int64]

NONE: Constant = -1  # in place of a node, and of a value in a table

TREE_BYTES_PER_BLOCK: Bytes = 140
"""What one different block may cost while a trace is read, all arrays and their growth together."""

_MASK = 2**64 - 1
_FIRST_SLOTS = 1 << 12
_FULL = 0.6  # of the slots: above it searches get long
_MOVED = 1 << 18  # entries moved at a time when a table grows


def salt(*names: str) -> int:
    """64 bits that stand for a scope, or for a label of whatever kind."""
    raw = [name.encode("utf-8", "surrogatepass") for name in names]  # JSON has lone surrogates too
    text = b"".join(b"%d %s" % (len(one), one) for one in raw)
    return int.from_bytes(blake2b(text, digest_size=8, person=b"replay scope").digest(), "little")


class Table:
    """From 64-bit keys to numbers."""

    def __init__(self) -> None:
        self._shift = np.uint64(64 - (_FIRST_SLOTS - 1).bit_length())
        self._keys = np.zeros(_FIRST_SLOTS, dtype=np.uint64)
        self._values = np.full(_FIRST_SLOTS, NONE, dtype=np.int32)
        self._used = 0

    def find(self, keys: Keys) -> Nodes:
        """Their values; NONE where there is none."""
        found = np.full(len(keys), NONE, dtype=np.int32)
        left = np.arange(len(keys))
        slots = self._slots(keys)
        while len(left):
            values = self._values[slots]
            same = self._keys[slots] == keys[left]
            hit = same & (values != NONE)
            found[left[hit]] = values[hit]
            on = ~hit & (values != NONE)
            left, slots = left[on], (slots[on] + 1) & (len(self._keys) - 1)
        return found

    def insert(self, keys: Keys, values: Nodes) -> None:
        """Add keys, all different, that are not there.

        Args:
            values: none of them NONE, beside `keys`.
        """
        while self._used + len(keys) > _FULL * len(self._keys):
            self._grow()
        self._used += len(keys)
        slots = self._slots(keys)
        while len(keys):
            free = self._values[slots] == NONE
            self._values[slots[free]] = values[free]  # of several at one slot the last remains
            won = free & (self._values[slots] == values)
            self._keys[slots[won]] = keys[won]
            keys, values = keys[~won], values[~won]
            slots = (slots[~won] + 1) & (len(self._keys) - 1)

    def _slots(self, keys: Keys) -> NDArray[np.int64]:
        return ((keys * np.uint64(GOLDEN)) >> self._shift).astype(np.int64)

    def _grow(self) -> None:
        keys, values = self._keys, self._values
        self._shift -= np.uint64(1)
        self._keys = np.zeros(2 * len(keys), dtype=np.uint64)
        self._values = np.full(2 * len(keys), NONE, dtype=np.int32)
        self._used = 0
        for at in range(0, len(keys), _MOVED):
            part = values[at : at + _MOVED]
            full = part != NONE
            self.insert(keys[at : at + _MOVED][full], part[full])


@dataclass(frozen=True, slots=True)
class Prompt:
    """The blocks of one request, or those that follow a node."""

    scope: int
    ids: Keys
    after: int = NONE
    depth: int = 0  # blocks up to `after`


@dataclass(frozen=True, slots=True)
class Clash:
    """An id that stands after other ids than it did before."""

    request: int
    position: int  # in its prompt
    elsewhere: int  # the request that had it first


class Tree:
    """Blocks, added some requests at a time."""

    def __init__(self) -> None:
        self.parents = array("i")  # NONE at the beginning of a prompt
        self.keys = array("Q")
        self.requests = array("I")  # the request that had the block first
        self._nodes = Table()
        self._ids = Table()  # scope and id -> the node where it was seen first

    def __len__(self) -> int:
        return len(self.parents)

    def add(self, request: int, prompts: Sequence[Prompt], check: bool) -> Nodes | Clash:
        """The last node of each of these requests, which are numbered from `request`.

        With `check` each id must name one node in its scope; a Clash is the first one that does
        not, and then the tree is of no further use.

        Args:
            request: number of the first request.
            prompts: each goes on behind a node that is there before this call.
            check: whether an id is promised to name one node.
        """
        lengths = np.array([len(one.ids) for one in prompts])
        ends = np.array([one.after for one in prompts], dtype=np.int32)
        if not lengths.any():
            return ends
        starts = np.cumsum(lengths) - lengths
        ids = np.concatenate([one.ids for one in prompts])
        scopes = np.array([one.scope for one in prompts], dtype=np.uint64).repeat(lengths)
        sums = self._sums(prompts, ids, starts, lengths)
        different, firsts, which = np.unique(sums, return_index=True, return_inverse=True)
        nodes = self._nodes.find(different)
        fresh = np.flatnonzero(nodes == NONE)
        fresh = fresh[np.argsort(firsts[fresh])]  # numbered as they come
        at = firsts[fresh]
        nodes[fresh] = np.arange(len(self), len(self) + len(fresh), dtype=np.int32)
        self._nodes.insert(different[fresh], nodes[fresh])
        all_nodes = nodes[which]
        before = np.concatenate((ends[:1], all_nodes[:-1]))
        some = lengths > 0
        before[starts[some]] = ends[some]
        owners = np.arange(request, request + len(prompts), dtype=np.uint32).repeat(lengths)
        self.parents.frombytes(before[at].tobytes())
        self.keys.frombytes(sums[at].tobytes())
        self.requests.frombytes(owners[at].tobytes())
        if check and (found := self._check(mixed(ids[at]) + scopes[at], nodes[fresh])):
            one, elsewhere = found
            mine = int(owners[at[one]])
            position = int(at[one] - starts[mine - request])
            return Clash(mine, position, self.requests[elsewhere])
        ends[some] = all_nodes[(starts + lengths - 1)[some]]
        return ends

    def _sums(
        self, prompts: Sequence[Prompt], ids: Keys, starts: Numbers, lengths: Numbers
    ) -> Keys:
        """For each id the sum over its prompt up to it, which is the key of its node."""
        depths = np.array([one.depth for one in prompts])
        positions = (np.arange(len(ids)) + (depths - starts).repeat(lengths)).astype(np.uint64)
        sums = np.cumsum(mixed(mixed(ids) + positions * np.uint64(GOLDEN)), dtype=np.uint64)
        begin = [one.scope if one.after == NONE else self.keys[one.after] for one in prompts]
        passed = np.concatenate(([np.uint64(0)], sums))[starts]
        return sums + (np.array(begin, dtype=np.uint64) - passed).repeat(lengths)

    def _check(self, marks: Keys, nodes: Nodes) -> tuple[int, int] | None:
        """Whether ids that made new nodes were never seen; else which one, and where it was."""
        different, firsts, which = np.unique(marks, return_index=True, return_inverse=True)
        there = self._ids.find(different)
        there[there == NONE] = nodes[firsts][there == NONE]
        wrong = np.flatnonzero(there[which] != nodes)
        if len(wrong):
            return int(wrong[0]), int(there[which][wrong[0]])
        self._ids.insert(different, there)
        return None

    def up(self, node: int, steps: int) -> int:
        """The node so many blocks before this one."""
        for _ in range(steps):
            node = self.parents[node]
        return node

    def drop_tables(self) -> None:
        """Free what only `add` and `check` need; neither is called again."""
        self._nodes, self._ids = Table(), Table()


def path(parents: Sequence[int], node: int) -> list[int]:
    """The nodes of a prompt, head first."""
    found = []
    while node != NONE:
        found.append(node)
        node = parents[node]
    found.reverse()
    return found
