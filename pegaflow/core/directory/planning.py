"""From where the blocks of a run are fetched: the longest prefix that disk and peers together can
deliver in time, and which of them delivers which part of it.

The peer link asks for a plan when a run goes on where memory ends.  A *source* is the own disk or a
host: it delivers nothing for its latency and then so many bytes a second, after what is queued
there already.  Blocks that are in memory cost nothing, so memory behind a gap (an island) counts
once the gap can be filled.  The prefix ends where nobody has the next block.

Whether the first blocks of a run can be there by a time is a question of counting: they can if, and
only if, no set of sources alone has more of them than it can deliver together until then (Hall).
Only sets matter that are all sources of some blocks, at most 512 of nine sources, so numpy looks at
all of them at once.  The longest prefix is
searched for by halving, and for it the shortest time, in which each source is given what it can
deliver until then: so all of them end together, and whoever has more queued gets less.  Then each
block is given a source: those that few have first, and where all of its sources are full, another
block moves to make room.  Blocks of the same owners are given out in long pieces.

An engine that says how fast it computes waits for nothing that it computes sooner: of all prefixes
that one is taken with which the whole run is there soonest, counting what is computed behind it.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pegaflow.core.pool.columns import distinct
from pegaflow.core.pool.fingerprints import U64
from pegaflow.wire.units import Constant, Count

SOURCES_MOST: Count = 8
"""Hosts that share one run, beside the own disk: more would make pieces shorter and wait for the
slowest of more, and each doubles the sets to look at."""

HALVINGS: Count = 10
"""Steps of the search for the shortest time: within a thousandth of the deadline."""

LENGTHS_MOST: Count = 16
"""Prefixes of which the time is reckoned where the engine says how fast it computes: ends of pieces
with the same owners, spread over the run."""

SSD: Constant = -1
"""The own disk, as a source."""

Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class Source(NamedTuple):
    """What is measured of a disk or a host."""

    rate: float  # bytes a second
    latency_ns: int  # before the first byte
    queued_bytes: int = 0  # that it is to deliver first


class Run(NamedTuple):
    """Where the blocks of a run are; a row each."""

    here: Mask  # in memory
    on_ssd: Mask
    owners: U64  # masks of hosts (held.py)
    block_bytes: int


class Piece(NamedTuple):
    """Blocks side by side in the run, from one source."""

    source: int
    first: int
    blocks: int


class Plan(NamedTuple):
    """What is fetched, and how much of the run is there then."""

    blocks: int  # of the run, those in memory included
    took_ns: int  # until all is there
    pieces: list[Piece]  # by place


def plan(
    run: Run, sources: Mapping[int, Source], budget_ns: int, prefill: float | None = None
) -> Plan:
    """Plan the fetch of a run.

    Args:
        sources: hosts by their number, and SSD; who is not named here delivers nothing.
        budget_ns: until the answer is due.
        prefill: bytes of blocks that the engine computes in a second, if it has said so.
    """
    hosts = _chosen(run, sources)
    names = [*hosts, *([SSD] if SSD in sources and run.on_ssd.any() else [])]
    masks = np.zeros(len(run.here), np.int64)
    for bit, name in enumerate(names):
        masks |= _has(run, name).astype(np.int64) << bit
    nobody = ((masks == 0) & ~run.here).nonzero()[0]
    end = int(nobody[0]) if len(nobody) else len(masks)
    at = (~run.here[:end]).nonzero()[0]  # what is to be fetched
    if not len(at):
        return Plan(end, 0, [])
    search = _Search(masks[at], [sources[name] for name in names], run.block_bytes)
    most = search.most(budget_ns)
    reached = np.append(at, end)  # blocks of the run, by how many are fetched
    if prefill is None:
        wanted, took = most, int(search.times(np.array([most]), budget_ns)[0])
    else:
        lengths = search.lengths(most)
        times = search.times(lengths, budget_ns)
        saved = (reached[lengths] - reached[0]) * (run.block_bytes * 1e9 / prefill) - times
        best = len(saved) - 1 - int(saved[::-1].argmax())
        wanted, took = int(lengths[best]), int(times[best])
    given = search.give(wanted, took)
    return Plan(int(reached[wanted]), took, _pieces(at[:wanted], np.array(names)[given]))


def delivered(sources: Sequence[Source] | Floats, took_ns: Floats, block_bytes: int) -> Floats:
    """Whole blocks that sources have delivered after some times.

    Returns:
        A row for each source, a column for each time.
    """
    rates, latencies, queued = np.asarray(sources, np.float64).T[:, :, None]
    bytes_ = (took_ns - latencies) * (rates / 1e9) - queued
    found: Floats = np.maximum(np.floor(bytes_ / block_bytes + 1e-9), 0)
    return found


def _has(run: Run, name: int) -> Mask:
    """Which of the blocks a source has."""
    if name == SSD:
        return run.on_ssd
    has: Mask = (run.owners >> np.uint64(name) & np.uint64(1)).astype(np.bool_)
    return has


def _chosen(run: Run, sources: Mapping[int, Source]) -> list[int]:
    """The hosts that share the run: those without which it ends early, then those with most."""
    has = {name: _has(run, name) & ~run.here for name in sources if name != SSD}
    counts = {name: int(np.count_nonzero(some)) for name, some in has.items()}
    left = sorted((name for name in has if counts[name]), key=lambda name: -counts[name])
    if len(left) <= SOURCES_MOST:
        return sorted(left)
    covered = run.here | run.on_ssd if SSD in sources else run.here.copy()
    chosen: list[int] = []
    while len(chosen) < SOURCES_MOST and not covered.all():
        first = int(covered.argmin())
        host = next((name for name in left if has[name][first]), None)
        if host is None:
            break
        left.remove(host)
        chosen.append(host)
        covered |= has[host]
    return sorted([*chosen, *left[: SOURCES_MOST - len(chosen)]])


def _pieces(at: Numbers, names: Numbers) -> list[Piece]:
    """Blocks that are fetched, by what is side by side and from one source."""
    if not len(at):
        return []
    cut = (np.diff(at) != 1) | (np.diff(names) != 0)
    firsts = np.concatenate(([0], cut.nonzero()[0] + 1))
    counts = np.diff(firsts, append=len(at))
    each = zip(names[firsts].tolist(), at[firsts].tolist(), counts.tolist(), strict=True)
    return [Piece(*one) for one in each]


class _Search:
    """Looks for what can be delivered.

    Args:
        masks: of each block that is to be fetched, in the order of the run, the sources as bits.
        sources: by bit.
    """

    def __init__(self, masks: Numbers, sources: list[Source], block_bytes: int) -> None:
        self._masks, self._block_bytes = masks, block_bytes
        self._sources = np.array(sources, np.float64)
        count = len(sources)
        self._kinds = np.flatnonzero(np.bincount(masks, minlength=1 << count))  # different masks
        places = np.zeros(1 << count, np.int64)
        places[self._kinds] = np.arange(len(self._kinds))
        self._kind = places[masks]  # of each block
        sets = np.arange(1 << count)  # of sources
        if len(self._kinds) < count:  # other sets have no more of the blocks than these
            sets = sets[:1]
            for kind in self._kinds.tolist():
                sets = distinct(np.concatenate((sets, sets | kind)))
        self._within = (self._kinds[None, :] & ~sets[:, None] == 0).astype(np.float64)
        self._members = (sets[:, None] >> np.arange(count) & 1).astype(np.float64)

    def _room(self, took_ns: Floats) -> Floats:
        """Blocks that the sources of a set deliver together, a row for each set, a column for each
        time."""
        room: Floats = self._members @ delivered(self._sources, took_ns, self._block_bytes)
        return room

    def _needs(self, count: int) -> Floats:
        """Of the first blocks, how many each set of sources alone has."""
        counts = np.bincount(self._kind[:count], minlength=len(self._kinds))
        needs: Floats = self._within @ counts.astype(np.float64)
        return needs

    def most(self, budget_ns: int) -> int:
        """How many of the first blocks can be there by then."""
        room = self._room(np.array([float(budget_ns)]))[:, 0]
        least, most = 0, len(self._masks)
        if (self._needs(most) <= room).all():
            return most
        while least < most:
            middle = (least + most + 1) // 2
            if (self._needs(middle) <= room).all():
                least = middle
            else:
                most = middle - 1
        return least

    def lengths(self, most: int) -> Numbers:
        """How many of the first blocks may be worth to be fetched, none and `most` among them."""
        if most < LENGTHS_MOST:
            return np.arange(most + 1)
        ends = (self._masks[1:most] != self._masks[: most - 1]).nonzero()[0] + 1
        if len(ends) > LENGTHS_MOST:
            ends = ends[np.linspace(0, len(ends) - 1, LENGTHS_MOST).astype(np.int64)]
        return np.concatenate(([0], ends, [most]))

    def times(self, counts: Numbers, budget_ns: int) -> Numbers:
        """The shortest time in which so many of the first blocks can be there, which is within the
        budget."""
        needs = np.array([self._needs(count) for count in counts.tolist()]).T
        short, enough = np.zeros(len(counts)), np.full(len(counts), float(budget_ns))
        for _ in range(HALVINGS):
            middle = np.floor((short + enough) / 2)
            good = (needs <= self._room(middle)).all(axis=0)
            enough, short = np.where(good, middle, enough), np.where(good, short, middle)
        enough[counts == 0] = 0
        return enough.astype(np.int64)

    def give(self, count: int, took_ns: int) -> Numbers:
        """Give each of the first blocks, which can be there by then, a source."""
        there = delivered(self._sources, np.array([float(took_ns)]), self._block_bytes)
        left = there[:, 0].astype(np.int64).tolist()
        counts = np.bincount(self._kind[:count], minlength=len(self._kinds)).tolist()
        members = [[b for b in range(len(left)) if kind >> b & 1] for kind in self._kinds.tolist()]
        shares = [[0] * len(left) for _ in members]
        order = sorted(range(len(members)), key=lambda kind: len(members[kind]))
        for kind in order:
            for source in sorted(members[kind], key=lambda source: -left[source]):
                some = min(counts[kind], left[source])
                shares[kind][source] += some
                left[source] -= some
                counts[kind] -= some
            while counts[kind]:
                counts[kind] -= _make_room(kind, counts[kind], (members, shares, left))
        given = np.empty(count, np.int64)
        by_kind = np.argsort(self._kind[:count], kind="stable")
        given[by_kind] = np.repeat(
            np.tile(np.arange(len(left)), len(shares)), np.array(shares, np.int64).reshape(-1)
        )
        return given


def _make_room(
    kind: int, wanted: int, book: tuple[list[list[int]], list[list[int]], list[int]]
) -> int:
    """Give some blocks of a kind a source, by moving others of other kinds from source to source.

    Args:
        book: the sources of each kind; what each kind has of each source; what each has left.

    Returns:
        How many have one now, at least one: somewhere there is room.
    """
    members, shares, left = book
    came: dict[int, tuple[int, int]] = {source: (-1, kind) for source in members[kind]}
    queue = list(came)
    for source in queue:
        if left[source]:
            break
        for other, share in enumerate(shares):
            if share[source]:
                for to in members[other]:
                    if to not in came:
                        came[to] = source, other
                        queue.append(to)
    else:
        raise AssertionError("what was to be delivered cannot be")
    steps = []
    some, at = min(wanted, left[source]), source
    while at >= 0:
        before, mover = came[at]
        steps.append((mover, before, at))
        if before >= 0:
            some = min(some, shares[mover][before])
        at = before
    left[source] -= some
    for mover, before, to in steps:
        shares[mover][to] += some
        if before >= 0:
            shares[mover][before] -= some
    return some
