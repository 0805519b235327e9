"""A read in batches: all of it, in order, in sizes that the frames allow; and turns."""

from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.device.link import STREAMS, Outcome, Piece
from pegaflow.device.link.tcpbatches import SHARE_BYTES, Read, Waiting, check
from pegaflow.device.link.tcpframes import BATCH_BYTES, BATCH_PIECES, PIECE_BYTES
from pegaflow.wire.status import Status

MIB = 1 << 20


def nobody(outcomes: Sequence[Outcome]) -> None:
    raise AssertionError("it has not ended")


def of(*sizes: int) -> list[Piece]:
    return [Piece(0, 0, size) for size in sizes]


@given(st.lists(st.integers(1, 6 * MIB), min_size=1, max_size=300))
def test_all_of_it_in_order_and_within_the_limits(sizes: list[int]) -> None:
    pieces = of(*sizes)
    read = Read(1, pieces, nobody, 0)
    batches = read.cut()
    assert [piece for batch in batches for piece in batch.pieces] == pieces
    assert read.left == len(batches)
    at = 0
    for batch in batches:
        assert batch.first == at
        at += len(batch.pieces)
        assert 1 <= len(batch.pieces) <= BATCH_PIECES
        assert len(batch.pieces) == 1 or sum(piece.bytes for piece in batch.pieces) <= BATCH_BYTES


@pytest.mark.parametrize(
    ("total", "batches"), [(MIB, 1), (4 * MIB, 4), (8 * MIB, 4), (64 * MIB, 16), (65 * MIB, 17)]
)
def test_every_stream_has_a_share(total: int, batches: int) -> None:
    pieces = of(*[SHARE_BYTES // 4] * (total // SHARE_BYTES * 4))
    assert len(Read(1, pieces, nobody, 0).cut()) == batches and STREAMS == 4


def test_it_has_ended_with_the_last() -> None:
    ends: list[Sequence[Outcome]] = []
    read = Read(1, of(*[BATCH_BYTES] * 3), ends.append, 0)
    first, second, third = read.cut()
    assert not third.end([Outcome(Status.OK, 3, 3)])
    assert not first.fail(Status.PEER_GONE)
    assert second.end([Outcome(Status.CORRUPT, 1, 2)])
    read.end()
    assert ends == [
        [Outcome(Status.PEER_GONE), Outcome(Status.CORRUPT, 1, 2), Outcome(Status.OK, 3, 3)]
    ]


def test_one_piece_without_a_sum_is_enough_to_ask_for_them() -> None:
    told = Piece(0, 0, 1, 5)
    assert not Read(1, [told, told], nobody, 0).cut()[0].sums
    assert Read(1, [told, Piece(0, 0, 1)], nobody, 0).cut()[0].sums


def test_reads_take_turns() -> None:
    waiting, long, short = Waiting(), *(Read(n, of(*[BATCH_BYTES] * n), nobody, 0) for n in (4, 1))
    waiting.put(long.cut())
    waiting.put(short.cut())
    assert len(waiting) == 5
    again = waiting.take()
    assert again.read is long and waiting.take().read is short
    waiting.put(deque([again]), first=True)
    assert waiting.take() is again
    assert list(waiting.drop(short)) == [] and len(waiting) == 3
    assert len(list(waiting.drop(long))) == 3 and len(waiting) == 0


@pytest.mark.parametrize(
    "piece",
    [
        Piece(0, 0, 0),
        Piece(0, 0, -1),
        Piece(0, 0, PIECE_BYTES + 1),
        Piece(-1, 0, 1),
        Piece(0, -1, 1),
        Piece(0, MIB, 1),
        Piece(0, MIB - 1, 2),
    ],
)
def test_what_cannot_be_asked_for(piece: Piece) -> None:
    check(of(1), MIB)
    with pytest.raises(ValueError):
        check([Piece(0, 0, 1), piece], MIB)
    with pytest.raises(ValueError):
        check([], MIB)
