"""What each host has: one table from a block's fingerprint to a mask of its owners, for the peer
link, which fills it with what other hosts say and asks it for the owners of a run.

A slot is a fingerprint and a mask, a bit for each host; an empty one is a fingerprint of 0 and no
bit.  Eight slots are a bucket.  A fingerprint has two buckets, and is put into the one that has
more room: the upper half of its bits says how far from the table's begin its *home* is, and eight
of the others which of the next 256 buckets is its second one.  So a search looks at two buckets,
nothing marks what is removed, and the buckets lie in the order of the fingerprints: all that lies
between two fingerprints is in a few buckets side by side.  That is what a snapshot in pieces needs
(`chunk` reads one, `replace` puts it in place of what was there), and what growing in place needs.

A table that is full grows by a quarter without being copied.  From its end towards its begin the
buckets are emptied and what was in them is put where it belongs in the larger table, which is never
before the home that it had; `_edge` is how far that has come: homes before it are those of the
smaller table.  Whoever adds a block moves one bucket, so that nobody waits for all of them.  Only
what comes in the order of its fingerprints, as a snapshot does, needs the room of all of it when
the first of it comes: for `expect` the table grows ahead, in steps.  Memory is asked for once, for
as many blocks as there may be, and becomes real when it is touched.  What the table has taken it
keeps; blocks that are removed make room for others.

Why one table, and not one for each host: 1,024 keys are found by one search instead of sixteen, and
what hosts have in common is there once (python -m perf.directory has the figures).  Only a host
that is dropped costs more: its bits are not shown from then on, and `step` clears them.

A fingerprint is of 64 bits, and equal on every host (core/pool/fingerprints.py).  Two blocks may
have the same one: then a host is asked for what it has not, as it is when it has evicted a block
meanwhile, and says so.
"""

import numpy as np
import numpy.typing as npt

from pegaflow.core.pool.columns import distinct
from pegaflow.core.pool.fingerprints import U64
from pegaflow.wire.peer import HOSTS_MAX
from pegaflow.wire.units import Bytes, Constant, Count, Share

LAST_NAME: Constant = (1 << 64) - 1
"""The largest fingerprint."""

OCCUPIED: Share = 0.65
"""Of the slots are in use, and the table grows.  While it grows it may come to 0.78, where one of
a hundred new blocks finds both of its buckets full."""

ROWS_LEAST: Count = 256
"""Buckets of a new table: 37 KB for up to eight hosts, with those that only are second ones."""

KICKS: Count = 256
"""Blocks of one call for which another block is moved to its other bucket.  It takes 20 us each; a
host that makes up fingerprints so that all have the same buckets must not keep us for long."""

MOVED_ROWS: Count = 1 << 11
"""Buckets that one step empties for a larger table: some ten thousand blocks, three ms."""

SWEPT_ROWS: Count = 1 << 15
"""Buckets that one step clears of hosts that are dropped: in two milliseconds."""

Masks = npt.NDArray[np.uint64]
Slots = npt.NDArray[np.int64]
Kinds = npt.NDArray[np.unsignedinteger]
"""Masks that are as wide as there are hosts."""

_WIDTH = 8  # slots of a bucket: one line of the processor's cache
_SPAN = 256  # a second bucket is so far from the home at most
_32, _OFFSET = np.uint64(32), np.uint64(2)  # the lowest bits of a fingerprint are not of chance
_ONES, _56 = np.uint64(0x0101_0101_0101_0101), np.uint64(56)
_ORDERS = np.array([[(3 * s + t) % 8 + 1 for s in range(8)] for t in range(8)], np.uint8)


class Held:
    """What each of some hosts has; a host is a small number, its bit in a mask.

    Args:
        hosts: there are at most so many.
        each: blocks of one host, at most; what it says to have beyond is not taken.
    """

    def __init__(self, hosts: int, each: int) -> None:
        assert 0 < hosts <= HOSTS_MAX and each > 0
        self.hosts, self.each = hosts, each
        kinds: list[type[np.unsignedinteger]] = [np.uint8, np.uint16, np.uint32, np.uint64]
        self._kind = next(kind for kind in kinds if 8 * kind().itemsize >= hosts)
        self._rows_most = max(ROWS_LEAST, int(hosts * each / (OCCUPIED * _WIDTH)) + 1)
        rows = self._rows_most + _SPAN + 1
        room = np.zeros(rows * _WIDTH + _WIDTH, np.uint64)
        begin = -(room.ctypes.data // 8) % _WIDTH  # so that a bucket is one line of the cache
        self._slots: U64 = room[begin : begin + rows * _WIDTH]
        self._buckets: U64 = self._slots.reshape(rows, _WIDTH)
        self._masks = np.zeros(rows * _WIDTH, self._kind)
        self._rows = ROWS_LEAST
        self._edge, self._rows_before = 0, 0  # 0: it does not grow
        self.counts = [0] * hosts  # blocks of each
        self._expected = [0] * hosts  # blocks that each is about to have
        self._used = 0  # slots
        self._dropped, self._swept = 0, 0  # hosts whose bits mean nothing; buckets without them

    def __len__(self) -> int:
        """Different blocks, those of hosts that are being dropped among them."""
        return self._used

    @property
    def bytes_used(self) -> Bytes:
        """Memory that has been touched."""
        each = 8 + self._masks.itemsize
        return (self._rows + _SPAN + 1) * _WIDTH * each

    @property
    def busy(self) -> bool:
        """Whether `step` has something to do."""
        return self._dropped != 0 or self._edge > 0

    def owners_of(self, names: U64) -> Masks:
        """Who has these blocks.

        Args:
            names: their fingerprints.

        Returns:
            A mask for each, 0 where nobody has it.
        """
        at = self._find(names)
        masks = self._masks.take(at).astype(np.uint64)
        masks[at < 0] = 0
        if self._dropped:
            masks &= np.uint64(LAST_NAME ^ self._dropped)
        return masks

    def add(self, host: int, names: U64) -> int:
        """A host has these blocks, whether or not it had them.

        Returns:
            How many are not taken: it has too many, or they are no fingerprints.
        """
        bit = self._bit(host)
        ordered = distinct(names)
        named = ordered[ordered > 0]
        at = self._find(named)
        there, new = at[at >= 0], named[at < 0]
        there = there[self._masks[there] & bit == 0]
        room = self.each - self.counts[host]
        here, room = there[:room], room - min(room, len(there))
        self._masks[here] |= bit
        self._grow(min(len(new), room))
        self._move(min(self._edge, len(new)))
        lost = self._put(new[:room], np.full(min(len(new), room), bit, self._kind), KICKS)
        taken = len(here) + min(len(new), room) - len(lost)
        self.counts[host] += taken
        return len(ordered) - len(named) + len(there) + len(new) - taken

    def expect(self, host: int, blocks: int) -> bool:
        """A host is about to have so many blocks, which come in the order of their fingerprints.

        Args:
            blocks: 0: it has them now.

        Returns:
            Whether there is room for them; else `step` makes it, until it is not `busy` any more.
        """
        self._expected[host] = min(blocks, self.each)
        if self._edge:
            return False
        both = zip(self._expected, self.counts, strict=True)
        self._grow(sum(max(0, expected - count) for expected, count in both))
        return self._edge == 0

    def remove(self, host: int, names: U64) -> int:
        """A host has not got these blocks, whether or not it had them.

        Returns:
            How many of them it had.
        """
        bit = self._bit(host)
        at = self._find(distinct(names))
        at = at[at >= 0]
        return self._clear(host, at[self._masks[at] & bit != 0])

    def replace(self, host: int, first: int, last: int, names: U64) -> int:
        """Of all fingerprints from `first` to `last` the host has these, and no others.

        Returns:
            How many are not taken, as of `add`.
        """
        bit = self._bit(host)
        names = names[(names >= np.uint64(first)) & (names <= np.uint64(last))]
        if self.counts[host]:
            at, there = self._between(bit, first, self._home(last) + _SPAN + 1)
            gone = there <= np.uint64(last)
            ordered = distinct(names)
            if len(ordered):
                place = np.minimum(np.searchsorted(ordered, there), len(ordered) - 1)
                gone &= ordered[place] != there
            self._clear(host, at[gone])
        return self.add(host, names)

    def chunk(self, host: int, first: int, count: int) -> tuple[U64, int]:
        """What a host has, from a fingerprint on.

        Args:
            first: the least that is wanted.
            count: so many blocks, at most; at least one.

        Returns:
            Fingerprints, ascending, and the last up to which these are all that it has: the chunk
            after this one begins behind it.
        """
        bit = self._bit(host)
        rows = count * self._rows * 7 // (8 * max(1, self.counts[host]))
        end = min(self._home(first) + max(1, rows), self._rows)
        bound = self._first_of(end)
        _, names = self._between(bit, first, end + _SPAN)
        names = np.sort(names[names < np.uint64(bound)] if bound <= LAST_NAME else names)
        if len(names) > count:
            names = names[:count]
            return names, int(names[-1])
        return names, min(bound - 1, LAST_NAME)

    def drop(self, host: int) -> None:
        """A host has nothing any more.  Its blocks are not shown from now on; `step` clears what
        is left of them.  It may be added to before that is done, which then does all of it."""
        self._dropped |= 1 << host
        self._swept = 0
        self.counts[host] = self._expected[host] = 0

    def step(self) -> None:
        """Clear some buckets of the hosts that were dropped, and move some for a larger table, if
        it is `busy`."""
        self._move(min(self._edge, MOVED_ROWS))
        if self._dropped:
            self._sweep()

    def _sweep(self) -> None:
        """Clear some buckets of the hosts that were dropped."""
        first, rows = self._swept, self._rows + _SPAN + 1
        self._swept = min(first + SWEPT_ROWS, rows)
        part = slice(first * _WIDTH, self._swept * _WIDTH)
        masks, names = self._masks[part], self._slots[part]
        masks &= self._kept
        empty = masks == 0
        self._used -= int(np.count_nonzero(names[empty]))
        names[empty] = 0
        if self._swept == rows:
            self._dropped = 0

    def check(self) -> None:
        """Every block is in one of its two buckets, once, and is counted."""
        at = self._slots.nonzero()[0]
        names = self._slots[at]
        assert len(at) == self._used == len(distinct(names))
        homes, seconds = self._both(names)
        assert (((at // _WIDTH) == homes) | ((at // _WIDTH) == seconds)).all()
        assert not self._masks[self._slots == 0].any() and self._masks[at].all()
        for host in range(self.hosts):
            if not self._dropped >> host & 1:
                bit = self._kind(1 << host)
                assert np.count_nonzero(self._masks & bit) == self.counts[host]

    @property
    def _kept(self) -> np.unsignedinteger:
        """The bits of all hosts that are not being dropped."""
        return self._kind(~self._dropped & (1 << 8 * self._masks.itemsize) - 1)

    def _bit(self, host: int) -> np.unsignedinteger:
        """Of a host that is not being dropped any more."""
        while self._dropped >> host & 1:
            self._sweep()
        return self._kind(1 << host)

    def _home(self, name: int) -> int:
        return int(self._homes(np.array([name], np.uint64))[0])

    def _homes(self, names: U64) -> Slots:
        """Their buckets, in the order of the fingerprints."""
        high = names >> _32
        homes = (high * np.uint64(self._rows) >> _32).astype(np.int64)
        if self._edge:
            before = (high * np.uint64(self._rows_before) >> _32).astype(np.int64)
            homes = np.where(before < self._edge, before, homes)
        return homes

    def _both(self, names: U64) -> tuple[Slots, Slots]:
        """The two buckets of each."""
        homes = self._homes(names)
        return homes, homes + 1 + (names >> _OFFSET & np.uint64(_SPAN - 1)).astype(np.int64)

    def _first_of(self, row: int) -> int:
        """The least fingerprint whose home is this bucket or one behind it; beyond the last one if
        there is none."""
        if self._edge and row <= self._edge:
            return -(-(row << 32) // self._rows_before) << 32
        high = -(-(row << 32) // self._rows)
        if self._edge:
            high = max(high, -(-(self._edge << 32) // self._rows_before))
        return high << 32

    def _find(self, names: U64) -> Slots:
        """The slot of each, -1 where there is none."""
        found = np.full(len(names), -1, np.int64)
        rows, seconds = self._both(names)
        left = np.arange(len(names))
        for last in (False, True):
            same = self._buckets.take(rows, axis=0) == names[:, None]
            hits = same.reshape(-1).nonzero()[0]
            which = hits // _WIDTH
            found[left[which]] = rows[which] * _WIDTH + hits % _WIDTH
            if last or len(hits) >= len(names):
                break
            left = (found < 0).nonzero()[0]
            names, rows = names[left], seconds[left]
        return found

    def _between(self, bit: np.unsignedinteger, first: int, end: int) -> tuple[Slots, U64]:
        """What is from a fingerprint on, and before the end of some buckets, with this bit.

        Returns:
            Slots and, beside them, fingerprints.
        """
        begin = self._home(first) * _WIDTH
        at = (self._masks[begin : end * _WIDTH] & bit).nonzero()[0] + begin
        names = self._slots[at]
        some = names >= np.uint64(first)
        return at[some], names[some]

    def _clear(self, host: int, at: Slots) -> int:
        """Take a host's bit, which is there, from these slots."""
        masks = self._masks[at] & ~self._kind(1 << host)
        self._masks[at] = masks
        empty = at[masks == 0]
        self._slots[empty] = 0
        self._used -= len(empty)
        self.counts[host] -= len(at)
        return len(at)

    def _put(self, names: U64, masks: Kinds, kicks: int) -> Kinds:
        """Put blocks that are not there into free slots.

        Args:
            masks: of each.
            kicks: for so many another block is moved, at most.

        Returns:
            The masks of those that have found no slot.
        """
        homes, seconds = self._both(names)
        lost: list[Kinds] = []
        while len(names):
            one = self._buckets.take(homes, axis=0) == 0
            two = self._buckets.take(seconds, axis=0) == 0
            ones, twos = _counts(one), _counts(two)
            other = twos > ones
            one[other] = two[other]
            order = _ORDERS.take((names & np.uint64(_WIDTH - 1)).astype(np.int64), axis=0)
            slots = np.where(other, seconds, homes) * _WIDTH + (one * order).argmax(axis=1)
            full = (ones | twos) == 0
            some = (~full).nonzero()[0]
            at = slots[some]
            self._slots[at] = names[some]
            won = self._slots[at] == names[some]
            self._masks[at[won]] = masks[some[won]]
            self._used += int(np.count_nonzero(won))
            crowded = full.nonzero()[0]
            for n in crowded[:kicks].tolist():
                if not self._kick(names[n], masks[n], (int(homes[n]), int(seconds[n]))):
                    lost.append(masks[n : n + 1])
            lost.append(masks[crowded[kicks:]])
            kicks -= min(kicks, len(crowded))
            left = some[~won]
            names, masks, homes, seconds = names[left], masks[left], homes[left], seconds[left]
        return np.concatenate(lost) if lost else masks

    def _kick(self, name: np.uint64, mask: np.unsignedinteger, rows: tuple[int, int]) -> bool:
        """Put a block into one of its buckets, which are full: another one goes into its other
        bucket.  Whether there is one that can."""
        for row in rows:
            names = self._buckets[row].copy()
            homes, seconds = self._both(names)
            others = np.where(homes == row, seconds, homes)
            free = self._buckets.take(others, axis=0) == 0
            can = free.any(axis=1).nonzero()[0]
            if len(can):
                slot = int(can[0])
                to, at = int(others[slot]) * _WIDTH + int(free[slot].argmax()), row * _WIDTH + slot
                kept = self._masks[at] & self._kept
                self._slots[to], self._masks[to] = names[slot] if kept else 0, kept
                self._slots[at], self._masks[at] = name, mask
                self._used += bool(kept)
                return True
        return False

    def _grow(self, new: int) -> None:
        """Begin to make room for some blocks more, if there is none."""
        needed = int((self._used + new) / (OCCUPIED * _WIDTH)) + 1
        if needed > self._rows < self._rows_most:
            self._move(self._edge)
            self._rows_before = self._edge = self._rows
            self._rows = min(max(self._rows + self._rows // 4, needed), self._rows_most)

    def _move(self, count: int) -> None:
        """Put what has its home in the last of the buckets before `edge` where it belongs now."""
        if not count:
            return
        begin, end = self._edge - count, self._edge
        at = self._slots[begin * _WIDTH : (end + _SPAN) * _WIDTH].nonzero()[0] + begin * _WIDTH
        before = (self._slots[at] >> _32) * np.uint64(self._rows_before) >> _32
        at = at[(before >= np.uint64(begin)) & (before < np.uint64(end))]
        names, masks = self._slots[at], self._masks[at] & self._kept
        self._slots[at] = 0
        self._masks[at] = 0
        self._used -= len(at)
        self._edge = begin
        kept = masks != 0
        lost = self._put(names[kept], masks[kept], len(names))
        for host in range(self.hosts) if len(lost) else ():
            self.counts[host] -= int(np.count_nonzero(lost & self._kind(1 << host)))


def _counts(mask: npt.NDArray[np.bool_]) -> U64:
    """How many are true in each row of eight."""
    return mask.view(np.uint64).reshape(-1) * _ONES >> _56
