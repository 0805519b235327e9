"""Who fetches which piece next, and what becomes of those of a queue pair that broke."""

from __future__ import annotations

from collections.abc import Sequence

from pegaflow.device.link import Outcome, Piece
from pegaflow.device.link.verbs_flow import CHAIN_RUNS, QUEUE_RUNS, WINDOW_BYTES, Fetch, Flow, Lane
from pegaflow.device.link.verbs_plan import Run
from pegaflow.wire.status import Status

MIB = 1 << 20
FAR = 1 << 60


def plan(piece: Piece) -> list[Run]:
    return [Run(here=piece.local, lkey=1, bytes=piece.bytes, there=piece.remote, rkey=2)]


class Reads:
    """A flow, and what its reads have ended with."""

    def __init__(self) -> None:
        self.flow = Flow()
        self.ended: dict[int, list[Status]] = {}

    def start(
        self,
        count: int,
        *,
        size: int = 4096,
        deadline: int = FAR,
        nodes: Sequence[tuple[int, int]] = (),
    ) -> int:
        number = len(self.ended)
        self.ended[number] = []

        def done(outcomes: Sequence[Outcome]) -> None:
            assert not self.ended[number]
            self.ended[number] = [outcome.status for outcome in outcomes]

        pieces = [Piece(n * size, number << 40 | n * size, size) for n in range(count)]
        where = nodes or [(-1, -1)] * count
        self.flow.start(Fetch(pieces, where, done, deadline))
        return number

    def land(self, lane: Lane) -> None:
        for fetch, index in lane.landed(lane.chains[0].serial).items:
            fetch.settle(index, Outcome(Status.OK))
        self.end()

    def end(self) -> None:
        for fetch in self.flow.ended():
            fetch.end()


def taken(flow: Flow, lane: Lane) -> list[int]:
    """The places here of the pieces of one chain."""
    chain = flow.take(lane, plan)
    return [run.here for run in chain.runs] if chain else []


def test_a_read_ends_when_its_last_piece_is_here() -> None:
    reads, lane = Reads(), Lane()
    one = reads.start(CHAIN_RUNS + 3)
    assert len(taken(reads.flow, lane)) == CHAIN_RUNS
    assert len(taken(reads.flow, lane)) == 3
    assert taken(reads.flow, lane) == []
    reads.land(lane)
    assert reads.ended[one] == []
    reads.land(lane)
    assert reads.ended[one] == [Status.OK] * (CHAIN_RUNS + 3)
    assert lane.runs == lane.bytes == 0


def test_reads_take_turns() -> None:
    reads, lane = Reads(), Lane()
    reads.start(1000)
    taken(reads.flow, lane)
    short = reads.start(CHAIN_RUNS // 2)
    mine = [place for place in taken(reads.flow, lane) if place >> 40 == short]
    assert len(mine) == CHAIN_RUNS // 2


def test_no_more_is_on_its_way_than_the_queue_and_the_window_hold() -> None:
    reads, lane, other = Reads(), Lane(), Lane()
    reads.start(2 * QUEUE_RUNS, size=1)
    while taken(reads.flow, lane):
        pass
    assert lane.runs == QUEUE_RUNS
    reads.start(200, size=MIB)
    while taken(reads.flow, other):
        pass
    assert other.bytes <= WINDOW_BYTES + MIB and other.runs <= QUEUE_RUNS


def test_memory_beside_the_nics_first_and_any_rather_than_none() -> None:
    reads = Reads()
    reads.start(4, nodes=[(0, 0), (1, 1), (0, 0), (1, 1)])
    assert taken(reads.flow, Lane((1, 1))) == [4096, 3 * 4096, 0, 2 * 4096]


def test_what_a_broken_queue_pair_had_the_other_one_fetches() -> None:
    reads, lane, other = Reads(), Lane(), Lane()
    one = reads.start(CHAIN_RUNS + 1)
    first = taken(reads.flow, lane) + taken(reads.flow, lane)
    reads.flow.lost(lane, blame=False)
    again = taken(reads.flow, other) + taken(reads.flow, other)
    assert sorted(first) == sorted(again)
    reads.land(other)
    reads.land(other)
    assert reads.ended[one] == [Status.OK] * (CHAIN_RUNS + 1)


def test_a_chain_that_is_to_blame_is_not_tried_again() -> None:
    reads, lane, other = Reads(), Lane(), Lane()
    one = reads.start(CHAIN_RUNS + 1)
    taken(reads.flow, lane)
    taken(reads.flow, lane)
    reads.flow.lost(lane, blame=True)
    assert len(taken(reads.flow, other)) == 1
    reads.land(other)
    assert reads.ended[one] == [Status.PEER_GONE] * CHAIN_RUNS + [Status.OK]


def test_past_the_deadline_what_waits_ends_and_what_is_on_its_way_is_known() -> None:
    reads, lane, idle = Reads(), Lane(), Lane()
    one = reads.start(CHAIN_RUNS + 5, deadline=100)
    two = reads.start(1, deadline=FAR)
    taken(reads.flow, lane)
    assert reads.flow.wake_at(50, 30) == 100
    reads.flow.expire(99)
    reads.flow.expire(100)
    assert reads.flow.wake_at(101, 30) == 130
    assert reads.flow.late([lane, idle], 100) == []
    assert reads.flow.late([lane, idle], 101) == [lane]
    reads.land(lane)
    late = reads.ended[one]
    assert late.count(Status.OK) + late.count(Status.EXPIRED) == len(late) == CHAIN_RUNS + 5
    assert late.count(Status.EXPIRED) >= 5 and reads.ended[two] == [Status.OK]


def test_a_piece_without_keys_waits_for_them_and_then_is_not_lent() -> None:
    reads, lane = Reads(), Lane()
    one = reads.start(3)
    assert reads.flow.take(lane, lambda piece: []) is None
    assert len(reads.flow.parked) == 3
    reads.flow.unpark(lambda piece: piece.remote != 4096)
    taken(reads.flow, lane)
    reads.land(lane)
    assert reads.ended[one] == [Status.OK, Status.NO_SUCH_LEASE, Status.OK]


def test_parked_pieces_end_with_their_deadline_and_with_the_link() -> None:
    reads, lane = Reads(), Lane()
    one, two = reads.start(1, deadline=100), reads.start(2)
    reads.flow.take(lane, lambda piece: [])
    reads.flow.expire(100)
    reads.flow.give_up(Status.PEER_GONE)
    reads.end()
    assert reads.ended == {one: [Status.EXPIRED], two: [Status.PEER_GONE] * 2}
