"""Owners that stop and die, cables that are cut, and pages that change while they are read.

Each costs pieces that fail, in a bounded time; none costs bytes that are wrong.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pegaflow.core.segments.codec import page_sum
from pegaflow.device.link import LinkError, Piece
from pegaflow.device.link.verbs_link import GRACE_NS
from pegaflow.device.link.verbs_nic import RETRIES, TIMEOUT
from pegaflow.device.link.verbs_plan import patience_ns
from pegaflow.wire.status import Status
from tests.device.link.verbsrig import MIB, Host, Read

from .conftest import run
from .remote import LENGTH, Remote, pieces

PAGE = 1 * MIB
COUNT = 30
NOBODY = 65534
LOST = {Status.OK, Status.PEER_GONE}

Start = Callable[..., Remote]


@pytest.fixture
def start() -> Iterator[Start]:
    lives: list[Remote] = []

    def begin(*names: str, **how: int) -> Remote:
        lives.append(Remote(*names, **how))
        return lives[-1]

    yield begin
    for life in lives:
        life.close()


@pytest.fixture
def reader(pair: tuple[str, str]) -> Iterator[Host]:
    host = Host(pair[1], length=LENGTH)
    yield host
    host.close()


def statuses(read: Read) -> set[Status]:
    return {outcome.status for outcome in read.outcomes()}


def test_a_stopped_owner_is_read(pair: tuple[str, str], reader: Host, start: Start) -> None:
    owner = start(pair[0])
    content = owner.fill(1)
    link = owner.link(reader)
    read = Read(link, pieces(content, PAGE, COUNT))
    owner.signal(signal.SIGSTOP)
    assert statuses(read) == {Status.OK}
    assert statuses(Read(link, pieces(content, PAGE, COUNT))) == {Status.OK}
    owner.signal(signal.SIGCONT)


def test_an_owner_that_dies_costs_misses_and_its_next_life_is_read(
    pair: tuple[str, str], reader: Host, start: Start
) -> None:
    dead = start(pair[0])
    content = dead.fill(1)
    link = dead.link(reader)
    during = Read(link, pieces(content, PAGE, COUNT))
    dead.signal(signal.SIGKILL)
    since = time.monotonic_ns()
    assert statuses(during) <= LOST
    assert statuses(Read(link, pieces(content, PAGE, 1))) == {Status.PEER_GONE}
    assert time.monotonic_ns() - since < 20 * patience_ns(TIMEOUT, RETRIES)
    assert link.streams == 0
    again = start(pair[0])
    assert statuses(Read(again.link(reader), pieces(again.fill(2), PAGE, COUNT))) == {Status.OK}


def test_an_owner_that_died_before_its_offer_was_used_makes_no_link(
    pair: tuple[str, str], reader: Host, start: Start
) -> None:
    owner = start(pair[0])
    offer = owner._tell(f"admit 1 {reader.reader.ask().hex()}")["offer"]
    owner.signal(signal.SIGKILL)
    with pytest.raises(LinkError):
        reader.reader.connect(bytes.fromhex(offer), b"")
    assert reader.pool.nics[0].queues == set()


def test_a_deadline_is_kept_though_nobody_answers(
    pair: tuple[str, str], reader: Host, start: Start
) -> None:
    owner = start(pair[0])
    content = owner.fill(1)
    link = owner.link(reader)
    run("tc", "qdisc", "replace", "dev", "vtA", "root", "netem", "loss", "100%")
    since = time.monotonic_ns()
    read = Read(link, pieces(content, PAGE, COUNT), seconds=0.1)
    assert statuses(read) == {Status.EXPIRED}
    # what a queue pair needs to be closed included, on a machine that is emulated
    assert time.monotonic_ns() - since < 100_000_000 + GRACE_NS + 2_000_000_000
    before = bytes(reader.view)
    run("tc", "qdisc", "replace", "dev", "vtA", "root", "noqueue")
    again = owner.link(reader)
    assert statuses(Read(again, [Piece(0, LENGTH - 8, 8)])) == {Status.OK}
    assert reader.view[: LENGTH - 8] == before[: LENGTH - 8]


@pytest.mark.parametrize("end", ["vtA", "vtB"])
def test_a_cable_that_is_cut_and_mended(
    pair: tuple[str, str], reader: Host, start: Start, end: str
) -> None:
    owner = start(pair[0])
    content = owner.fill(1)
    link = owner.link(reader)
    read = Read(link, pieces(content, PAGE, COUNT))
    run("ip", "link", "set", end, "down")
    assert statuses(read) <= LOST
    assert statuses(Read(link, pieces(content, PAGE, 2))) == {Status.PEER_GONE}
    assert link.why.endswith(("RETRY_EXC_ERR", "LOC_QP_OP_ERR", "the link is over")), link.why
    run("ip", "link", "set", end, "up")
    assert statuses(Read(owner.link(reader), pieces(content, PAGE, COUNT))) == {Status.OK}


def test_packets_that_are_lost_cost_time_alone(
    pair: tuple[str, str], reader: Host, start: Start
) -> None:
    owner = start(pair[0])
    content = owner.fill(1)
    link = owner.link(reader)
    run("tc", "qdisc", "replace", "dev", "vtA", "root", "netem", "loss", "2%")
    small = pieces(content, 64 << 10, 40)
    assert statuses(Read(link, small, seconds=100)) == {Status.OK}
    assert reader.view[: 40 * (64 << 10)] == b"".join(
        content[p.remote : p.remote + p.bytes] for p in small
    )


def test_pages_that_change_while_they_are_read_are_never_taken_for_what_they_were(
    pair: tuple[str, str], reader: Host, start: Start
) -> None:
    owner = start(pair[0])
    content = owner.fill(1)
    link = owner.link(reader)
    owner.loop(2)
    seen = set()
    for _ in range(5):
        wanted = pieces(content, PAGE, COUNT)
        for piece, outcome in zip(wanted, Read(link, wanted).outcomes(), strict=True):
            seen.add(outcome.status)
            bytes_ = reader.view[piece.local : piece.local + piece.bytes]
            assert outcome.here == page_sum(bytes_)
            right = bytes_ == content[piece.remote : piece.remote + piece.bytes]
            assert right == (outcome.status == Status.OK)
    assert Status.CORRUPT in seen and seen <= {Status.CORRUPT, Status.OK}


def test_a_limit_of_locked_memory_is_said_in_a_line(alone: list[str], start: Start) -> None:
    if os.geteuid():
        pytest.skip("not root")
    modes = {path: path.stat().st_mode for path in Path("/dev/infiniband").iterdir()}
    try:
        for path in modes:
            path.chmod(0o666)
        owner = start(alone[0], user=NOBODY, memlock=10 * MIB)
    finally:
        for path, mode in modes.items():
            path.chmod(mode)
    assert "no more than 8 of 32 MiB of the pool" in owner.first["error"]
    assert "the limit of locked memory is 10240 KiB" in owner.first["error"]
