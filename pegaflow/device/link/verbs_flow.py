"""What of the reads of a link waits, what is on its way on which queue pair, and what comes next.

A queue pair takes pieces whenever it has room, so that the fastest does most, and what one leaves
behind when it breaks the others take.  Reads take turns, one piece each, so that a short one does
not wait behind a long one.  A queue pair takes pieces whose memory is beside its NIC at both hosts
first; when there are none left it takes others rather than stand still.

READs are posted as chains.  Only the last of a chain is signalled, and the completions of a queue
pair come in order, so a completion is the end of its oldest chain.

This is pure; the clock and the NICs are in verbs.py.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pegaflow.wire.status import Status
from pegaflow.wire.units import Bytes, Count

from . import Done, Outcome, Piece
from .verbs_plan import Run, crossings

QUEUE_RUNS: Count = 256
"""READs on their way on one queue pair, and completions that its queue has room for: the longest
piece in the smallest chunks fits."""

CHAIN_RUNS: Count = 16
"""READs that end with one completion: to post and to hear of them costs a sixteenth each, and
several chains are on their way at a time."""

WINDOW_BYTES: Bytes = 64 << 20
"""On their way on one queue pair: more gains nothing, and this is what a read whose deadline has
passed may still have to wait for."""

Nodes = tuple[int, int]


class Fetch:
    """One read: pieces, and what has become of them.

    Args:
        nodes: for each piece the NUMA nodes of its memory, here and there.
    """

    def __init__(
        self, pieces: Sequence[Piece], nodes: Sequence[Nodes], done: Done, deadline: int
    ) -> None:
        self.pieces = pieces
        self.done = done
        self.deadline = deadline
        self.left = len(pieces)  # how many have no outcome yet
        self._nodes = nodes
        self._outcomes: list[Outcome | None] = [None] * len(pieces)
        self._waiting: dict[Nodes, deque[int]] = {}
        for index, where in enumerate(nodes):
            self._waiting.setdefault(where, deque()).append(index)

    @property
    def waits(self) -> bool:
        """Whether a piece of it waits for a queue pair."""
        return bool(self._waiting)

    def next(self, near: Nodes) -> int:
        """Take the piece that suits a queue pair best; there is one."""
        best = min(self._waiting, key=lambda where: crossings(near, where))
        waiting = self._waiting[best]
        index = waiting.popleft()
        if not waiting:
            del self._waiting[best]
        return index

    def again(self, index: int) -> None:
        """A piece that was taken waits again, before all others."""
        self._waiting.setdefault(self._nodes[index], deque()).appendleft(index)

    def settle(self, index: int, outcome: Outcome) -> None:
        """What has become of a piece that waits nowhere."""
        assert self._outcomes[index] is None
        self._outcomes[index] = outcome
        self.left -= 1

    def give_up(self, status: Status) -> None:
        """End whatever waits."""
        for waiting in self._waiting.values():
            for index in waiting:
                self.settle(index, Outcome(status))
        self._waiting.clear()

    def end(self) -> None:
        """Say what has become of all pieces."""
        outcomes = [outcome for outcome in self._outcomes if outcome is not None]
        assert self.left == 0 and len(outcomes) == len(self.pieces)
        self.done(outcomes)


@dataclass(slots=True)
class Chain:
    """READs that were posted together."""

    serial: int  # 1, 2, ... on its queue pair
    items: list[tuple[Fetch, int]] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    bytes: int = 0


class Lane:
    """What is on its way on one queue pair.

    Args:
        near: the NUMA nodes of the NICs, ours and the owner's.
    """

    def __init__(self, near: Nodes = (-1, -1)) -> None:
        self.near = near
        self.chains: deque[Chain] = deque()
        self.serial = 0  # of the last chain
        self.runs = 0  # on their way
        self.bytes = 0  # on their way

    def add(self, chain: Chain) -> None:
        """It has been posted."""
        self.chains.append(chain)
        self.runs += len(chain.runs)
        self.bytes += chain.bytes

    def landed(self, serial: int) -> Chain:
        """The completion of the oldest chain has come: all of its bytes are here."""
        chain = self.chains.popleft()
        assert chain.serial == serial, (chain.serial, serial)
        self.runs -= len(chain.runs)
        self.bytes -= chain.bytes
        return chain


L = TypeVar("L", bound=Lane)

Plan = Callable[[Piece], Sequence[Run]]
"""The READs of a piece on some queue pair; none if the owner's part of it has no key."""


class Flow:
    """The reads of a link that have not ended."""

    def __init__(self) -> None:
        self.fetches: deque[Fetch] = deque()  # in turn
        self.parked: list[tuple[Fetch, int]] = []  # pieces whose keys are not known

    def start(self, fetch: Fetch) -> None:
        """A new read."""
        self.fetches.append(fetch)

    def take(self, lane: Lane, plan: Plan) -> Chain | None:
        """What a queue pair is to post next; None if it is full, or nothing waits."""
        chain = Chain(lane.serial + 1)
        for fetch in self._turns():
            if lane.runs + len(chain.runs) >= QUEUE_RUNS or len(chain.runs) >= CHAIN_RUNS:
                break
            if lane.bytes + chain.bytes >= WINDOW_BYTES:
                break
            index = fetch.next(lane.near)
            runs = plan(fetch.pieces[index])
            if not runs:
                self.parked.append((fetch, index))
                continue
            if lane.runs + len(chain.runs) + len(runs) > QUEUE_RUNS:
                fetch.again(index)
                break
            chain.items.append((fetch, index))
            chain.runs += runs
            chain.bytes += fetch.pieces[index].bytes
        if not chain.runs:
            return None
        lane.serial += 1
        lane.add(chain)
        return chain

    def unpark(self, covered: Callable[[Piece], bool]) -> None:
        """The owner's keys have been read anew: what has none now is not lent.

        Args:
            covered: whether a piece has keys on every queue pair.
        """
        parked, self.parked = self.parked, []
        for fetch, index in parked:
            if covered(fetch.pieces[index]):
                fetch.again(index)
            else:
                fetch.settle(index, Outcome(Status.NO_SUCH_LEASE))

    def lost(self, lane: Lane, *, blame: bool) -> None:
        """A queue pair is closed: nothing of it touches memory any more, and others ask again.

        Args:
            blame: what it has failed at is its oldest chain, whose pieces end here.
        """
        for number, chain in enumerate(lane.chains):
            for fetch, index in chain.items:
                if blame and number == 0:
                    fetch.settle(index, Outcome(Status.PEER_GONE))
                else:
                    fetch.again(index)
        lane.chains.clear()
        lane.runs = lane.bytes = 0

    def give_up(self, status: Status) -> None:
        """No queue pair is left, or none may be used: end whatever waits."""
        for fetch, index in self.parked:
            fetch.settle(index, Outcome(status))
        self.parked.clear()
        for fetch in self.fetches:
            fetch.give_up(status)

    def expire(self, now: int) -> None:
        """End what waits of reads whose deadline has passed."""
        for fetch in self.fetches:
            if now < fetch.deadline:
                continue
            for other, index in self.parked:
                if other is fetch:
                    fetch.settle(index, Outcome(Status.EXPIRED))
            self.parked = [parked for parked in self.parked if parked[0] is not fetch]
            fetch.give_up(Status.EXPIRED)

    def late(self, lanes: Sequence[L], until: int) -> list[L]:
        """On which of these something is on its way whose deadline was before `until`."""
        if all(fetch.deadline >= until for fetch in self.fetches):
            return []
        return [
            lane
            for lane in lanes
            if any(fetch.deadline < until for chain in lane.chains for fetch, _ in chain.items)
        ]

    def wake_at(self, now: int, grace: int) -> int | None:
        """When `expire` or `late` may find something new.

        Args:
            grace: what `late` allows beyond a deadline.
        """
        times = [at for f in self.fetches for at in (f.deadline, f.deadline + grace) if at >= now]
        return min(times, default=None)

    def ended(self) -> list[Fetch]:
        """Take the reads all of whose pieces have an outcome."""
        over = [fetch for fetch in self.fetches if not fetch.left]
        if over:
            self.fetches = deque(fetch for fetch in self.fetches if fetch.left)
        return over

    def _turns(self) -> Iterator[Fetch]:
        """Reads of which pieces wait, in turn, as long as there are any."""
        idle = 0  # so many in a row had none
        while idle < len(self.fetches):
            fetch = self.fetches[0]
            self.fetches.rotate(-1)
            idle = 0 if fetch.waits else idle + 1
            if fetch.waits:
                yield fetch
