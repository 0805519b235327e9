"""Pools that are read over real RDMA devices, as far as those are real: soft-RoCE will do."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace

import pytest

from pegaflow.core.errors import UserError
from pegaflow.device.link import LinkError, Piece
from pegaflow.device.link.verbs import open_nics
from pegaflow.device.link.verbs_nic import Closed, Queue
from pegaflow.device.link.verbs_offer import pack_offer, unpack_offer
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.status import Status
from tests.device.link.verbsrig import MIB, TOKEN, Host, Read, same, scattered

PAGE = 256 << 10


@pytest.fixture
def hosts(alone: list[str]) -> Iterator[tuple[Host, Host]]:
    """Two hosts that share their first device."""
    owner, reader = Host(alone[0], length=16 * MIB), Host(alone[0], length=16 * MIB)
    owner.fill(1)
    yield owner, reader
    reader.close()
    owner.close()


def test_bytes_by_one_device(hosts: tuple[Host, Host]) -> None:
    owner, reader = hosts
    link = reader.link(owner)
    for size, count in ((4096, 300), (PAGE, 40), (3 * MIB, 4)):
        pieces = scattered(owner, size, count)
        read = Read(link, pieces)
        assert {outcome.status for outcome in read.outcomes()} == {Status.OK}
        assert same(owner, reader, pieces) and read.calls == 1
    odd = [Piece(12345, 777, 5 * MIB + 1), Piece(1, 6 * MIB + 3, 1)]
    assert {o.status for o in Read(link, odd).outcomes()} == {Status.OK}
    assert same(owner, reader, odd)


def test_bytes_by_two_devices_and_by_one_of_them(alone: list[str]) -> None:
    if len(alone) < 2:
        pytest.skip("one device")
    owner, reader, small = Host(*alone[:2]), Host(*alone[:2]), Host(alone[1])
    owner.fill(1)
    pieces = scattered(owner, PAGE, 30)
    for host, streams in ((reader, 2), (small, 1)):
        link = host.link(owner)
        assert link.streams == streams
        assert {o.status for o in Read(link, pieces).outcomes()} == {Status.OK}
        assert same(owner, host, pieces)
    for host in (small, reader, owner):
        host.close()


def test_many_reads_of_many_threads(hosts: tuple[Host, Host]) -> None:
    owner, reader = hosts
    link = reader.link(owner)
    failed: list[int] = []

    def fetch(number: int) -> None:
        for turn in range(5):
            piece = Piece(turn * PAGE, (number * 5 + turn) * PAGE, PAGE)
            if Read(link, [piece]).outcomes()[0].status != Status.OK or not same(
                owner, reader, [piece]
            ):
                failed.append(number)

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


def test_a_wrong_key_breaks_the_link_and_another_is_made(hosts: tuple[Host, Host]) -> None:
    owner, reader = hosts
    link = reader.link(owner)
    (nic,) = owner.pool.nics
    for region in list(nic._regions):
        if region.rkey not in owner.pool.table_keys:
            nic.release(region)
    assert {o.status for o in Read(link, [Piece(0, 0, PAGE)]).outcomes()} == {Status.PEER_GONE}
    assert "REM_ACCESS_ERR" in link.why
    assert reader.link(owner).streams == 1  # the table's key is still good


def test_an_offer_with_a_wrong_key_makes_no_link(hosts: tuple[Host, Host]) -> None:
    owner, reader = hosts
    offer = unpack_offer(owner.owner.admit(Incarnation(1), TOKEN, reader.reader.ask()))
    lie = offer.served[0]._replace(key=offer.served[0].key ^ 1)
    with pytest.raises(LinkError, match="REM_ACCESS_ERR"):
        reader.reader.connect(pack_offer(replace(offer, served=(lie,))), TOKEN)


def test_who_is_dismissed_reads_no_more(hosts: tuple[Host, Host]) -> None:
    owner, reader = hosts
    link = reader.link(owner)
    owner.owner.dismiss(Incarnation(1))
    assert {o.status for o in Read(link, [Piece(0, 0, PAGE)]).outcomes()} == {Status.PEER_GONE}
    assert "RETRY_EXC_ERR" in link.why


def test_a_pool_that_grows_is_read_as_far_as_it_is_there(alone: list[str]) -> None:
    owner, reader = Host(alone[0], there=2 * MIB), Host(alone[0])
    owner.fill(1)
    link = reader.link(owner)
    late = [Piece(5 * MIB, 0, PAGE)]
    assert [o.status for o in Read(link, late).outcomes()] == [Status.NO_SUCH_LEASE]
    owner.register(8 * MIB)
    assert [o.status for o in Read(link, late).outcomes()] == [Status.OK]
    assert same(owner, reader, late)
    reader.close()
    owner.close()


def test_what_is_closed_says_so_and_ends_no_process(alone: list[str]) -> None:
    (nic,) = open_nics(alone[:1])
    queue = Queue(nic, 4)
    nic.close()
    for use in (queue.arm, queue.hear, lambda: queue.poll(1), lambda: nic.register(0, 8)):
        with pytest.raises(Closed):
            use()
    nic.close()


def test_a_device_that_is_not_there_is_said_in_a_line(alone: list[str]) -> None:
    with pytest.raises(UserError, match=f"nosuch cannot be opened.*{alone[0]}"):
        open_nics([alone[0], "nosuch"])
