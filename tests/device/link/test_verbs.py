"""Owners and readers over RDMA, on a fake that is as strict as pyverbs is unforgiving."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pegaflow.core.errors import UserError
from pegaflow.core.segments.codec import page_sum
from pegaflow.device.link import LinkError, Piece
from pegaflow.device.link.verbs import KEPT, open_nics
from pegaflow.device.link.verbs_nic import Closed, Queue
from pegaflow.device.link.verbs_offer import pack_offer, unpack_ask, unpack_offer
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.status import Status
from tests.fakes import verbs

from .verbsrig import MIB, TOKEN, Host, Read, same, scattered

PAGE = 128 << 10


@pytest.fixture(params=[44, 59])
def fabric(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[verbs.Fabric]:
    found = verbs.install(monkeypatch, request.param)
    for name in ("a0", "a1", "b0", "b1"):
        found.plug(name)
    yield found
    found.close()
    assert found.wrong == []


@pytest.fixture
def hosts(fabric: verbs.Fabric) -> Iterator[tuple[Host, Host]]:
    owner, reader = Host("a0", "a1"), Host("b0", "b1", chunk=MIB)
    owner.fill(1)
    yield owner, reader
    reader.close()
    owner.close()


def test_bytes_come_by_both_nics(hosts: tuple[Host, Host], fabric: verbs.Fabric) -> None:
    owner, reader = hosts
    link = reader.link(owner)
    assert link.streams == 2
    pieces = scattered(owner, PAGE, 60)
    read = Read(link, pieces)
    assert {outcome.status for outcome in read.outcomes()} == {Status.OK}
    assert [outcome.here for outcome in read.outcomes()] == [piece.sum for piece in pieces]
    assert same(owner, reader, pieces) and read.calls == 1


def test_pieces_that_cross_chunks_and_are_longer_than_a_message(hosts: tuple[Host, Host]) -> None:
    owner, reader = hosts
    pieces = [Piece(12345, 777, 7 * MIB), Piece(3, 7 * MIB + 5000, 100)]
    assert [o.status for o in Read(reader.link(owner), pieces).outcomes()] == [Status.OK] * 2
    assert same(owner, reader, pieces)


def test_a_torn_read_is_told_by_its_checksum(
    hosts: tuple[Host, Host], fabric: verbs.Fabric
) -> None:
    owner, reader = hosts
    link = reader.link(owner)
    piece = Piece(0, 0, PAGE, page_sum(owner.view[:PAGE]))
    fabric.between = lambda: owner.fill(2)  # the page has another block in the middle of the READ
    (outcome,) = Read(link, [piece]).outcomes()
    assert outcome.status == Status.CORRUPT
    assert outcome.there == piece.sum != outcome.here == page_sum(reader.view[:PAGE])


def test_a_nic_that_goes_down_leaves_its_pieces_to_the_other(
    hosts: tuple[Host, Host], fabric: verbs.Fabric
) -> None:
    owner, reader = hosts
    link = reader.link(owner)
    fabric.hold(True)
    pieces = scattered(owner, PAGE, 60)
    read = Read(link, pieces)
    fabric.until_posted("b0", "b1")
    fabric.devices["b1"].up = False
    fabric.hold(False)
    assert {outcome.status for outcome in read.outcomes()} == {Status.OK}
    assert same(owner, reader, pieces) and link.streams == 1
    assert link.why == "b1: LOC_QP_OP_ERR"


def test_without_a_nic_the_link_is_broken_and_another_one_works(
    hosts: tuple[Host, Host], fabric: verbs.Fabric
) -> None:
    owner, reader = hosts
    link = reader.link(owner)
    fabric.devices["a0"].up = fabric.devices["a1"].up = False
    pieces = scattered(owner, PAGE, 10)
    assert {o.status for o in Read(link, pieces).outcomes()} == {Status.PEER_GONE}
    assert link.streams == 0 and link.why.endswith("RETRY_EXC_ERR")
    assert {o.status for o in Read(link, pieces).outcomes()} == {Status.PEER_GONE}
    with pytest.raises(ValueError):
        Read(link, [])
    fabric.devices["a0"].up = fabric.devices["a1"].up = True
    assert {o.status for o in Read(reader.link(owner), pieces).outcomes()} == {Status.OK}


def test_who_is_dismissed_reads_no_more(hosts: tuple[Host, Host]) -> None:
    owner, reader = hosts
    link, other = reader.link(owner, 1), reader.link(owner, 2)
    owner.owner.dismiss(Incarnation(1))
    pieces = scattered(owner, PAGE, 4)
    assert {o.status for o in Read(link, pieces).outcomes()} == {Status.PEER_GONE}
    assert {o.status for o in Read(other, pieces).outcomes()} == {Status.OK}


def test_a_wrong_key_costs_its_chain_and_its_queue_pair(hosts: tuple[Host, Host]) -> None:
    owner, reader = hosts
    link = reader.link(owner)
    for nic in owner.pool.nics:
        for region in list(nic._regions):
            if region.rkey not in owner.pool.table_keys:
                nic.release(region)  # the keys that the reader has are of nothing now
    assert {o.status for o in Read(link, [Piece(0, 0, PAGE)]).outcomes()} <= {Status.PEER_GONE}
    assert link.streams <= 1 and "REM_ACCESS_ERR" in link.why


def test_past_its_deadline_a_read_ends_and_nothing_lands_any_more(
    hosts: tuple[Host, Host], fabric: verbs.Fabric
) -> None:
    owner, reader = hosts
    link = reader.link(owner)
    fabric.hold(True)
    read = Read(link, scattered(owner, PAGE, 60), seconds=0.3)
    fabric.until_posted("b0", "b1")
    assert {outcome.status for outcome in read.outcomes()} == {Status.EXPIRED}
    fabric.hold(False)
    assert link.streams == 0 and "too late" in link.why
    assert {o.status for o in Read(reader.link(owner), [Piece(0, 0, 8)]).outcomes()} == {Status.OK}
    assert not any(reader.view[PAGE:])


def test_close_ends_what_is_on_its_way_before_it_returns(
    hosts: tuple[Host, Host], fabric: verbs.Fabric
) -> None:
    owner, reader = hosts
    link = reader.link(owner)
    fabric.hold(True)
    read = Read(link, scattered(owner, PAGE, 60))
    fabric.until_posted("b0", "b1")
    link.close()
    assert read.over
    assert {outcome.status for outcome in read.outcomes()} == {Status.DISCONNECTED}
    fabric.hold(False)
    assert {o.status for o in Read(link, [Piece(0, 0, 8)]).outcomes()} == {Status.DISCONNECTED}
    link.close()


def test_what_is_not_registered_yet_is_asked_for_again(fabric: verbs.Fabric) -> None:
    owner, reader = Host("a0", there=3 * MIB), Host("b0")
    assert owner.pool.registered == 2 * MIB  # a chunk is registered when all of it is there
    link = reader.link(owner)
    late = [Piece(5 * MIB, 0, PAGE), Piece(0, PAGE, PAGE)]
    assert [o.status for o in Read(link, late).outcomes()] == [Status.NO_SUCH_LEASE, Status.OK]
    assert owner.register(8 * MIB) == [4 * MIB, 6 * MIB, 8 * MIB]
    assert [o.status for o in Read(link, late).outcomes()] == [Status.OK] * 2
    reader.close()
    owner.close()


def test_pages_of_ours_that_are_not_registered_are_not_read_into(fabric: verbs.Fabric) -> None:
    owner, reader = Host("a0"), Host("b0", there=2 * MIB)
    link = reader.link(owner)
    with pytest.raises(ValueError, match="not registered"):
        Read(link, [Piece(0, 5 * MIB, PAGE)])
    reader.close()
    owner.close()


def test_a_limit_of_locked_memory_is_said_in_a_line_and_what_is_there_is_used(
    fabric: verbs.Fabric,
) -> None:
    fabric.devices["a1"].memlock = 5 * MIB
    owner, reader = Host("a0", "a1", there=0), Host("b0")
    with pytest.raises(UserError, match="no more than 4 of 8 MiB of the pool") as why:
        owner.register(8 * MIB)
    assert "memlock" in str(why.value)
    owner.fill(3)
    pieces = [Piece(0, 0, PAGE), Piece(5 * MIB, PAGE, PAGE)]
    outcomes = Read(reader.link(owner), pieces).outcomes()
    assert [o.status for o in outcomes] == [Status.OK, Status.NO_SUCH_LEASE]
    fabric.devices["a1"].memlock = 1 << 40
    assert owner.register(8 * MIB) == [6 * MIB, 8 * MIB]
    reader.close()
    owner.close()


@pytest.mark.parametrize(("here", "there"), [(("b0", "b1"), ("a0",)), (("b0",), ("a0", "a1"))])
def test_hosts_may_have_different_numbers_of_nics(
    fabric: verbs.Fabric, here: tuple[str, ...], there: tuple[str, ...]
) -> None:
    owner, reader = Host(*there), Host(*here)
    owner.fill(1)
    link = reader.link(owner)
    pieces = scattered(owner, PAGE, 30)
    assert link.streams == len(here)
    assert {o.status for o in Read(link, pieces).outcomes()} == {Status.OK}
    assert same(owner, reader, pieces)
    reader.close()
    owner.close()


def test_the_smaller_mtu_is_used(fabric: verbs.Fabric) -> None:
    fabric.devices["a0"].mtu = verbs.MTU_1024
    owner, reader = Host("a0"), Host("b0")
    assert {o.status for o in Read(reader.link(owner), [Piece(0, 0, PAGE)]).outcomes()} == {
        Status.OK
    }
    reader.close()
    owner.close()


def test_links_that_a_reader_has_left_behind_are_closed(hosts: tuple[Host, Host]) -> None:
    owner, reader = hosts
    links = [reader.link(owner) for _ in range(KEPT + 2)]
    assert len(owner.pool.nics[0].queues) == KEPT
    assert {o.status for o in Read(links[-1], [Piece(0, 0, PAGE)]).outcomes()} == {Status.OK}


def test_asks_that_nobody_answers_are_dropped(hosts: tuple[Host, Host]) -> None:
    owner, reader = hosts
    first = reader.reader.ask()
    for _ in range(20):
        reader.reader.ask()
    assert len(reader.pool.nics[0].queues) == 8
    offer = owner.owner.admit(Incarnation(1), TOKEN, first)
    with pytest.raises(LinkError, match="nothing that was asked"):
        reader.reader.connect(offer, TOKEN)


def test_offers_that_lie_make_no_link(hosts: tuple[Host, Host]) -> None:
    owner, reader = hosts
    before = [len(nic.queues) for nic in reader.pool.nics]
    for lie in ({"reader": 9}, {"key": 5}, {"table": 1}):
        offer = unpack_offer(owner.owner.admit(Incarnation(1), TOKEN, reader.reader.ask()))
        one = offer.served[0]._replace(**lie)  # type: ignore[arg-type]
        with pytest.raises(LinkError):
            reader.reader.connect(pack_offer(replace(offer, served=(one,))), TOKEN)
    assert [len(nic.queues) for nic in reader.pool.nics] == before


def test_a_reader_that_cannot_be_reached_is_not_admitted(hosts: tuple[Host, Host]) -> None:
    owner, reader = hosts
    _, ends = unpack_ask(ask := reader.reader.ask())
    away = ask.replace(ends[1].gid, bytes(15) + b"\x09")
    link = reader.reader.connect(owner.owner.admit(Incarnation(2), TOKEN, away), TOKEN)
    assert link.streams == 1  # the other NIC
    owner.owner.dismiss(Incarnation(2))
    nowhere = away.replace(ends[0].gid, bytes(15) + b"\x09")
    with pytest.raises(LinkError, match="does not reach"):
        owner.owner.admit(Incarnation(1), TOKEN, nowhere)
    with pytest.raises(ValueError):
        owner.owner.admit(Incarnation(1), TOKEN, b"hello")
    assert [len(nic.queues) for nic in owner.pool.nics] == [0, 0]


def test_a_port_that_is_down_is_left_out(hosts: tuple[Host, Host], fabric: verbs.Fabric) -> None:
    owner, reader = hosts
    fabric.devices["b0"].up = False
    assert reader.link(owner).streams == 1
    fabric.devices["a1"].up = False
    assert reader.link(owner).streams == 1
    fabric.devices["b1"].up = False
    with pytest.raises(LinkError, match="b1: its port is down"):
        reader.reader.ask()


def test_leases_are_known_by_number(hosts: tuple[Host, Host]) -> None:
    owner = hosts[0].owner
    back = threading.Event()
    owner.lend(1, Incarnation(5), [(0, PAGE)])
    with pytest.raises(ValueError):
        owner.lend(1, Incarnation(5), [(0, PAGE)])
    with pytest.raises(ValueError):
        owner.lend(2, Incarnation(5), [(8 * MIB - 1, 2)])
    owner.recall(1, back.set)
    assert back.is_set()


def test_pieces_outside_of_our_pool_are_refused(hosts: tuple[Host, Host]) -> None:
    owner, reader = hosts
    link = reader.link(owner)
    for piece in (Piece(0, 8 * MIB - 1, 2), Piece(0, -1, 5), Piece(0, 0, 0), Piece(-1, 0, 5)):
        with pytest.raises(ValueError):
            Read(link, [piece])
    (outcome,) = Read(link, [Piece(8 * MIB, 0, 1)]).outcomes()  # not of the owner's pool
    assert outcome.status == Status.NO_SUCH_LEASE


def test_what_is_closed_says_so(fabric: verbs.Fabric) -> None:
    (nic,) = open_nics(["a0"])
    queue = Queue(nic, 4)
    nic.close()
    for use in (queue.arm, queue.hear, lambda: queue.poll(1), lambda: nic.register(0, 8)):
        with pytest.raises(Closed):
            use()
    queue.close()
    nic.close()


def test_what_is_not_there_is_said_in_a_line(
    fabric: verbs.Fabric, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="c0 cannot be opened.*devices of this host: "):
        open_nics(["a0", "c0"])
    monkeypatch.setitem(sys.modules, "pyverbs.device", None)
    with pytest.raises(UserError, match="python3-pyverbs"):
        open_nics(["a0"])
