"""What another host says of its queue pairs is taken as it was meant, or refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.device.link import OFFER_BYTES, LinkError
from pegaflow.device.link.verbs_offer import (
    ENDS_MAX,
    NODES_MAX,
    End,
    Offer,
    Served,
    pack_ask,
    pack_offer,
    unpack_ask,
    unpack_offer,
)

ENDS = st.builds(
    End,
    gid=st.binary(min_size=16, max_size=16),
    number=st.integers(1, (1 << 24) - 1),
    first=st.integers(0, (1 << 24) - 1),
    lid=st.integers(0, 65535),
    mtu=st.integers(1, 5),
    reads=st.integers(1, 128),
    node=st.integers(-1, 63),
    largest=st.integers(1 << 20, 1 << 31),
)


def offer(ends: list[End], nodes: tuple[int, ...] = ()) -> Offer:
    return Offer(
        ask=7,
        address=1 << 46,
        length=1 << 40,
        chunk=256 << 20,
        nics=ENDS_MAX,
        extent=32 << 20,
        nodes=nodes,
        served=tuple(
            Served(reader=n, nic=n, table=1 << 45, key=n << 8, end=end)
            for n, end in enumerate(ends)
        ),
    )


@given(st.lists(ENDS, min_size=1, max_size=ENDS_MAX), st.integers(0, (1 << 32) - 1))
def test_an_ask_comes_back(ends: list[End], number: int) -> None:
    data = pack_ask(number, ends)
    assert len(data) <= OFFER_BYTES
    assert unpack_ask(data) == (number, ends)


@given(
    st.lists(ENDS, min_size=1, max_size=ENDS_MAX),
    st.lists(st.integers(-1, 63), max_size=NODES_MAX).map(tuple),
)
def test_an_offer_comes_back(ends: list[End], nodes: tuple[int, ...]) -> None:
    data = pack_offer(offer(ends, nodes))
    assert len(data) <= OFFER_BYTES
    assert unpack_offer(data) == offer(ends, nodes)


@given(st.binary(max_size=200), st.integers(0, 60), st.integers(0, 255))
def test_anything_else_is_refused_in_a_line(noise: bytes, at: int, value: int) -> None:
    good = pack_offer(offer([GOOD]))
    for data in (noise, good[:at] + bytes([value]) + good[at + 1 :], good[:at]):
        try:
            unpack_offer(data)
        except LinkError as err:
            assert "\n" not in str(err)
        try:
            unpack_ask(data)
        except ValueError:
            pass


GOOD = End(gid=bytes(16), number=17, first=5, lid=0, mtu=5, reads=16, node=-1, largest=1 << 23)


@pytest.mark.parametrize(
    "changes",
    [
        {"chunk": 4096},
        {"chunk": 1 << 20, "length": 1 << 50},  # a table of terabytes
        {"length": 0},
        {"extent": 0},
        {"nics": 0},
        {"address": (1 << 64) - 5},
    ],
)
def test_sizes_that_would_cost_us_are_refused(changes: dict[str, int]) -> None:
    with pytest.raises(LinkError):
        unpack_offer(pack_offer(replace(offer([GOOD]), **changes)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "changes", [{"number": 0}, {"mtu": 0}, {"mtu": 6}, {"reads": 0}, {"largest": 4096}]
)
def test_ends_that_cannot_work_are_refused(changes: dict[str, int]) -> None:
    bad = GOOD._replace(**changes)  # type: ignore[arg-type]
    with pytest.raises(LinkError):
        unpack_offer(pack_offer(offer([bad])))
    with pytest.raises(ValueError):
        unpack_ask(pack_ask(1, [bad]))


def test_two_ends_for_one_of_ours_are_refused() -> None:
    twice = offer([GOOD, GOOD])
    served = tuple(one._replace(reader=0) for one in twice.served)
    with pytest.raises(LinkError):
        unpack_offer(pack_offer(replace(twice, served=served)))
