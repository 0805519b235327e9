"""Bytes from one pool into another over loopback: all of them, there, and nowhere else."""

from __future__ import annotations

import ssl

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pegaflow.device.link import Link, LinkError, Owner, Piece, Reader, tcpreader, transport
from pegaflow.device.link.tcpframes import BATCH_BYTES
from pegaflow.wire.identities import Incarnation
from pegaflow.wire.status import Status

from .rig import LEASE, POOL, READER, TOKEN, Ends, Word, pair, pieces, soon

KIB, MIB = 1 << 10, 1 << 20
OTHER = Incarnation(8)


def read(link: Link, wanted: list[Piece], lease: int = LEASE) -> Ends:
    ends = Ends()
    link.read(lease, wanted, ends, soon())
    ends.wait()
    return ends


def test_it_is_a_transport() -> None:
    tcp = transport("tcp")
    with pair(KIB) as both:
        owner: Owner = both.owner
        reader: Reader = both.reader
        assert isinstance(owner, tcp.TcpOwner) and isinstance(reader, tcp.TcpReader)


@pytest.mark.parametrize(
    "sizes",
    [
        [1],
        [64 * KIB] * 70,
        [4095, 1, 65537, 3 * MIB + 1, 17] * 2,
        [BATCH_BYTES, BATCH_BYTES - 1, BATCH_BYTES + 1, 2],
        [9 * MIB],
    ],
)
def test_every_byte_arrives_and_no_other_is_touched(sizes: list[int]) -> None:
    with pair() as both:
        wanted = pieces(len(sizes), sizes=sizes)
        both.lend()
        outcomes = read(both.link(), wanted).outcomes()
        assert both.ours == both.expected(wanted)
        assert [outcome.here for outcome in outcomes] == both.sums(wanted)
        assert all(outcome.status is Status.OK for outcome in outcomes)
        assert all(outcome.here == outcome.there for outcome in outcomes)


@given(st.lists(st.integers(1, 20_000), min_size=1, max_size=90), st.integers(0, 1000))
@settings(max_examples=10)
def test_pieces_of_any_size(sizes: list[int], seed: int) -> None:
    with pair(2 * MIB) as both:
        wanted = pieces(seed, sizes=sizes, room=2 * MIB)
        both.lend()
        assert read(both.link(), wanted).statuses() == {Status.OK}
        assert both.ours == both.expected(wanted)


def test_what_the_ledger_has_is_compared_and_not_made_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pair() as both:
        wanted = pieces(1, sizes=[MIB] * 3)
        sums = both.sums(wanted)
        made: list[object] = []
        monkeypatch.setattr("pegaflow.device.link.tcpowner.page_sum", made.append)
        both.lend()
        right, wrong = sums[0], sums[1] ^ 1
        told = [piece._replace(sum=right) for piece in wanted]
        told[1] = told[1]._replace(sum=wrong)
        told[2] = told[2]._replace(sum=sums[2])
        outcomes = read(both.link(), told).outcomes()
        assert [o.status for o in outcomes] == [Status.OK, Status.CORRUPT, Status.OK]
        assert [o.here for o in outcomes] == sums
        assert [o.there for o in outcomes] == [right, wrong, sums[2]]
        assert made == []


def test_bytes_that_change_on_the_way_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with pair() as both:
        both.lend()
        link = both.link()
        monkeypatch.setattr("pegaflow.device.link.tcpowner.page_sum", lambda view: 1)
        assert read(link, pieces(1, sizes=[MIB] * 5)).statuses() == {Status.CORRUPT}
        assert link.streams == 4


def test_reads_of_one_link_at_once() -> None:
    with pair() as both:
        both.lend()
        link = both.link()
        wanted = pieces(3, sizes=[50 * KIB] * 200)
        ends = [Ends() for _ in range(20)]
        for at, end in enumerate(ends):
            link.read(LEASE, wanted[at::20], end, soon())
        assert {status for end in ends for status in end.statuses()} == {Status.OK}
        assert both.ours == both.expected(wanted)


def test_what_is_not_lent_is_refused_and_the_stream_lives_on() -> None:
    with pair() as both:
        link = both.link()
        wanted = pieces(1, sizes=[MIB] * 8)
        assert read(link, wanted).statuses() == {Status.NO_SUCH_LEASE}
        both.lend()
        assert read(link, wanted).statuses() == {Status.OK}
        back = Word()
        both.owner.recall(LEASE, back)
        back.wait()
        assert read(link, wanted).statuses() == {Status.NO_SUCH_LEASE}
        assert link.streams == 4 and both.owner.counts["streams_hostile"] == 0


@pytest.mark.parametrize("theirs", [True, False])
def test_what_is_another_s_or_beyond_costs_the_streams(theirs: bool) -> None:
    with pair() as both:
        both.owner.lend(LEASE, READER if theirs else OTHER, [(0, MIB)])
        link = both.link()
        wanted = [Piece(MIB - 1, 0, 2 if theirs else 1)]
        assert read(link, wanted).statuses() == {Status.PEER_GONE}
        assert link.streams == 2  # so many were tried
        assert both.owner.counts["streams_hostile"] == 2
        assert both.ours == bytes(POOL)


def test_a_reader_that_is_dismissed_has_nothing_left() -> None:
    with pair() as both:
        both.lend()
        both.lend(LEASE + 1, OTHER)
        link, other = both.link(), both.link(b"o" * 32, OTHER)
        both.owner.dismiss(READER)
        wanted = pieces(1, sizes=[MIB] * 8)
        assert read(link, wanted).statuses() == {Status.PEER_GONE}
        assert read(link, wanted).statuses() == {Status.PEER_GONE}
        assert read(other, wanted, LEASE + 1).statuses() == {Status.OK}
        again = both.link(b"a" * 32)
        assert read(again, wanted).statuses() == {Status.OK}


def test_a_link_that_is_closed_asks_for_nothing() -> None:
    with pair() as both:
        both.lend()
        link = both.link()
        link.close()
        link.close()
        assert read(link, pieces(1, sizes=[MIB])).statuses() == {Status.DISCONNECTED}


def test_the_owner_closes_and_the_reader_is_told() -> None:
    with pair() as both:
        both.lend()
        link = both.link()
        both.owner.close()
        assert read(link, pieces(1, sizes=[MIB] * 8)).statuses() == {Status.PEER_GONE}
        with pytest.raises(LinkError, match="no link to the owner"):
            both.link(b"a" * 32)


def test_a_reader_that_is_closed_makes_no_more_links() -> None:
    with pair(KIB) as both:
        offer = both.owner.admit(READER, TOKEN, b"")
        both.reader.close()
        with pytest.raises(LinkError, match="this side has been closed"):
            both.reader.connect(offer, TOKEN)


def test_what_is_recalled_after_the_end_comes_back_at_once() -> None:
    with pair(KIB) as both:
        both.lend()
        both.owner.close()
        word = Word()
        both.owner.recall(LEASE, word)
        word.wait()


def test_nobody_listens() -> None:
    with pair(KIB) as both, pair(KIB) as gone:
        offer = gone.owner.admit(READER, TOKEN, b"")
        gone.owner.close()
        with pytest.raises(LinkError, match="refused"):
            both.reader.connect(offer, TOKEN)
        with pytest.raises(LinkError, match="no sense"):
            both.reader.connect(b"", TOKEN)


def test_what_the_caller_must_not_say() -> None:
    with pair(KIB) as both:
        with pytest.raises(ValueError):
            both.owner.admit(READER, b"short", b"")
        with pytest.raises(ValueError):
            both.owner.admit(READER, TOKEN, b"queue pair")
        with pytest.raises(ValueError):
            both.owner.lend(LEASE, READER, [(KIB, 1)])
        with pytest.raises(ValueError):
            both.link().read(LEASE, [Piece(0, KIB, 1)], Ends(), soon())


def test_a_deadline_that_has_passed() -> None:
    with pair() as both:
        both.lend()
        link, ends = both.link(), Ends()
        link.read(LEASE, pieces(1, sizes=[MIB] * 9), ends, 0)
        assert ends.statuses() <= {Status.EXPIRED, Status.OK}


def anonymous() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """TLS without certificates, which are the business of whoever makes the contexts."""
    found = []
    for side in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = ssl.SSLContext(side)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers("aNULL:@SECLEVEL=0")
        found.append(context)
    return found[0], found[1]


def test_within_tls() -> None:
    with pair(tls=anonymous()) as both:
        wanted = pieces(2, sizes=[3 * MIB + 1, 5, 700 * KIB, 9 * MIB])
        both.lend()
        link = both.link()
        assert read(link, wanted).statuses() == {Status.OK}
        assert both.ours == both.expected(wanted)
        back = Word()
        both.owner.recall(LEASE, back)
        back.wait()
        assert read(link, wanted).statuses() == {Status.NO_SUCH_LEASE}


def test_one_side_without_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tcpreader, "CONNECT_S", 0.3)
    with pair(KIB, tls=anonymous()) as secret, pair(KIB) as clear:
        for reader, owner in ((secret.reader, clear.owner), (clear.reader, secret.owner)):
            with pytest.raises(LinkError):
                reader.connect(owner.admit(READER, TOKEN, b""), TOKEN)
