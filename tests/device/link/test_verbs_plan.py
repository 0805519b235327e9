"""READs are cut where keys end, and NICs are paired so that none stands idle."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pegaflow.device.link.verbs_plan import (
    KNOWN,
    Keys,
    Port,
    crossings,
    node_of,
    pairs,
    patience_ns,
    runs,
)


def keys(address: int, length: int, chunk: int) -> Keys:
    words = [KNOWN | 100 + number for number in range(-(-length // chunk))]
    return Keys(address, length, chunk=chunk, words=words)


@given(
    st.tuples(st.integers(0, 900), st.integers(0, 900)),
    st.integers(1, 100),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.integers(1, 60),
)
def test_runs_are_the_piece_in_order_and_each_within_one_key(
    where: tuple[int, int], length: int, chunks: tuple[int, int], largest: int
) -> None:
    here, there = keys(10_000, 1000, chunks[0]), keys(50_000, 1000, chunks[1])
    local, remote = where
    found = runs(where, length, (here, there), largest)
    assert sum(run.bytes for run in found) == length
    for run in found:
        assert run.here == 10_000 + local and run.there == 50_000 + remote
        assert 0 < run.bytes <= largest
        assert run.lkey == 100 + local // chunks[0] == 100 + (local + run.bytes - 1) // chunks[0]
        assert run.rkey == 100 + remote // chunks[1] == 100 + (remote + run.bytes - 1) // chunks[1]
        local, remote = local + run.bytes, remote + run.bytes


def test_what_lies_in_one_chunk_is_one_read() -> None:
    ends = keys(0, 1 << 30, 1 << 28), keys(0, 1 << 30, 1 << 28)
    assert len(runs((1 << 20, 7 << 20), 4 << 20, ends, 8 << 20)) == 1


def test_covered_is_what_has_a_key_everywhere() -> None:
    some = keys(0, 1000, 100)
    some.words = [KNOWN, KNOWN, 0, *[KNOWN] * 7]
    assert some.covers(0, 200) and some.covers(300, 700) and some.covers(199, 1)
    assert not some.covers(150, 51)
    assert not some.covers(200, 1) and not some.covers(250, 100)
    assert not some.covers(950, 51) and not some.covers(-1, 5) and not some.covers(0, 0)


def ports(*nodes: int, network: int = 1) -> list[Port]:
    mapped = bytes(10) + b"\xff\xff\x0a\x00"
    return [Port(node, mapped + bytes([network, n])) for n, node in enumerate(nodes)]


def test_as_many_nics_at_both_are_paired_in_their_order() -> None:
    assert pairs(ports(0, 1), ports(1, 0), used=[5, 0]) == [0, 1]


def test_fewer_at_the_owner_serve_evenly() -> None:
    assert sorted(pairs(ports(0, 0, 1, 1), ports(0, 1), used=[0, 0])) == [0, 0, 1, 1]
    assert pairs(ports(1, 0), ports(0, 1, -1), used=[0, 0, 0]) == [1, 0]  # beside the same node
    assert pairs(ports(0), ports(0, 1), used=[3, 2]) == [1]  # that which is used least


def test_nics_of_one_network_are_paired_if_there_are_any() -> None:
    rails = ports(0, network=1) + ports(0, network=2)
    assert pairs(ports(0, network=2), rails, used=[0, 9]) == [1]
    assert pairs(list(reversed(rails)), rails, used=[0, 0]) == [1, 0]
    assert pairs(ports(0, network=3), rails, used=[5, 4]) == [1]
    one, other = (Port(0, bytes([0xFD, 0, 0, 0, 0, 0, 0, n, *bytes(8)])) for n in (1, 2))
    assert pairs([other], [one, other], used=[0, 9]) == [1]


def test_crossings_are_counted_where_nodes_are_known() -> None:
    assert crossings((0, 1), (0, 1)) == 0
    assert crossings((0, 1), (1, 1)) == 1
    assert crossings((0, 1), (1, 0)) == 2
    assert crossings((-1, 1), (1, -1)) == 0


def test_extents_are_on_nodes_in_turn() -> None:
    assert [node_of(offset, 10, (3, 5)) for offset in (0, 9, 10, 25)] == [3, 3, 5, 3]
    assert node_of(5, 10, ()) == -1


def test_how_long_a_dead_peer_is_waited_for() -> None:
    assert patience_ns(14, 6) == 469_762_048
