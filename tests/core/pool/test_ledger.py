"""The ledger codec: what was sealed is read, and what was torn is void."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.ledger import (
    HEADER_BYTES,
    RECORD_BYTES,
    Header,
    Ledger,
    Record,
    ledger_bytes,
)
from pegaflow.core.pool.scan import occupied, scan
from pegaflow.wire.identities import Incarnation, Key, Namespace, PageId, Stamp
from tests.naming import as_pages

EXTENTS, PER_EXTENT = 3, 4
PAGES = EXTENTS * PER_EXTENT
HEADER = Header(
    bytes(range(16)),
    b"boot" * 9,
    EXTENTS * 65536,
    65536,
    records_per_extent=PER_EXTENT,
    incarnation=Incarnation(7),
)

u64 = st.integers(0, 2**64 - 1)
u32 = st.integers(0, 2**32 - 1)


@st.composite
def records(draw: st.DrawFn) -> Record:
    shards = draw(st.integers(1, 2**16 - 1))
    return Record(
        stamp=Stamp(draw(u64)),
        seal=draw(u64),
        shard=draw(st.integers(0, shards - 1)),
        shards=shards,
        payload_bytes=draw(u32),
        namespace=Namespace(draw(st.binary(min_size=16, max_size=16))),
        key=Key(draw(st.binary(min_size=1, max_size=64))),
        checksum=draw(st.none() | u64),
        depth=draw(u32),
    )


def fresh() -> tuple[bytearray, Ledger]:
    buffer = bytearray(b"\xa5" * ledger_bytes(EXTENTS, PER_EXTENT))
    return buffer, Ledger.format(buffer, HEADER)


def test_a_new_ledger_is_void_and_keeps_its_header() -> None:
    buffer, ledger = fresh()
    assert ledger.header == HEADER
    assert ledger.records == PAGES
    assert all(ledger.are_void(as_pages(*range(PAGES))))
    assert scanned(Ledger(buffer)) == []
    ledger.set_incarnation(Incarnation(8))
    assert Ledger(buffer).header.incarnation == 8
    ledger.check()


def scanned(ledger: Ledger) -> list[int]:
    """The sealed pages as a scan finds them."""
    pages: list[int] = scan(ledger, PageId(0), ledger.records).pages.tolist()
    return pages


@given(st.integers(0, HEADER_BYTES), st.binary(min_size=8, max_size=8))
def test_a_header_cut_short_is_a_fault(cut: int, junk: bytes) -> None:
    whole, _ = fresh()
    assert Ledger.fault(whole) == ""
    assert Ledger.fault(whole[:cut] if cut < HEADER_BYTES else whole[:-1])
    unfinished = bytearray(whole)
    unfinished[:8] = bytes(8)
    assert Ledger.fault(unfinished)
    damaged = bytearray(whole)
    damaged[24:32] = junk
    assert Ledger.fault(damaged) or damaged == whole


@given(records(), records() | st.none(), st.integers(0, PAGES - 1))
def test_a_torn_seal_is_void_or_whole(new: Record, old: Record | None, page: int) -> None:
    buffer, ledger = fresh()
    at = HEADER_BYTES + page * RECORD_BYTES
    if old is not None:
        ledger.seal([PageId(page)], [old])
        ledger.void([PageId(page)])
    before = bytes(buffer[at : at + RECORD_BYTES])
    ledger.seal([PageId(page)], [new])
    after = bytes(buffer[at : at + RECORD_BYTES])
    torn = bytearray(before)
    for place in (*range(8, RECORD_BYTES), *range(8)):
        buffer[at : at + RECORD_BYTES] = torn
        assert ledger.read(PageId(page)) is None
        assert ledger.are_void([PageId(page)]) == [True]
        assert scanned(ledger) == []
        torn[place] = after[place]
        if torn == after:
            break
    buffer[at : at + RECORD_BYTES] = torn
    assert ledger.read(PageId(page)) == new


@given(records(), st.integers(8, RECORD_BYTES - 1), st.integers(1, 255))
def test_a_damaged_body_is_void_and_can_be_sealed_again(
    record: Record, place: int, flip: int
) -> None:
    buffer, ledger = fresh()
    ledger.seal([PageId(5)], [record])
    buffer[HEADER_BYTES + 5 * RECORD_BYTES + place] ^= flip
    assert ledger.are_void([PageId(5)]) == [True]
    ledger.seal([PageId(5)], [record])
    assert ledger.read(PageId(5)) == record


def _occupied(ledger: Ledger, first: int, count: int) -> tuple[list[int], list[int]]:
    pages, lengths = occupied(ledger, PageId(first), count)
    return pages.tolist(), lengths.tolist()


class _Watched:
    """Stands in for a ledger's rows, and notes a record as it is before each store."""

    def __init__(self, rows: U64, page: int) -> None:
        self.rows, self.page = rows, page
        self.before: list[bytes] = []

    def __getitem__(self, at: Any) -> Any:
        return self.rows[at]

    def __setitem__(self, at: Any, value: Any) -> None:
        self.before.append(self.rows[self.page].tobytes())
        self.rows[at] = value


def test_the_state_word_is_written_last(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ledger = fresh()
    watched = _Watched(ledger.rows(), 2)
    old = watched.rows[2].tobytes()
    monkeypatch.setattr(ledger, "rows", lambda: watched)
    ledger.seal(
        [PageId(2)],
        [
            Record(
                Stamp(1),
                2,
                0,
                1,
                payload_bytes=99,
                namespace=Namespace(bytes(16)),
                key=Key(b"key"),
                checksum=None,
                depth=3,
            )
        ],
    )
    new = watched.rows[2].tobytes()
    assert watched.before == [old, bytes(8) + old[8:], bytes(8) + new[8:]]


def test_sealing_a_sealed_page_is_our_bug() -> None:
    _, ledger = fresh()
    record = Record(
        Stamp(1),
        2,
        0,
        1,
        payload_bytes=99,
        namespace=Namespace(bytes(16)),
        key=Key(b"key"),
        checksum=17,
        depth=3,
    )
    ledger.seal([PageId(0)], [record])
    with pytest.raises(AssertionError):
        ledger.seal([PageId(0)], [record])
    for pages in ([1, 0], [1, 1], [1, PAGES]):
        with pytest.raises(AssertionError):
            ledger.seal(as_pages(*pages), [record, record])
    assert ledger.are_void([PageId(1)]) == [True]
    for page in (PAGES, -1):
        with pytest.raises(AssertionError):
            ledger.void([PageId(page)])
        with pytest.raises(AssertionError):
            ledger.are_void([PageId(page)])


@given(records(), st.integers(8, RECORD_BYTES - 1), st.integers(1, 255))
def test_a_record_that_is_leaving_is_whole_or_void(record: Record, place: int, flip: int) -> None:
    buffer, ledger = fresh()
    ledger.seal(as_pages(5), [record])
    sealed = bytes(buffer)
    ledger.leave(as_pages(5))
    assert ledger.read(PageId(5)) is None
    assert ledger.are_void(as_pages(5)) == ledger.are_sealed(as_pages(5)) == [False]
    assert _occupied(ledger, 4, 4) == ([5], [record.payload_bytes])
    again = Ledger(buffer)  # an index that comes up between leaving and void
    assert scan(again, PageId(0), PAGES).leaving == [5]
    again.stay(as_pages(5))
    assert bytes(buffer) == sealed and again.read(PageId(5)) == record
    again.leave(as_pages(5))
    buffer[HEADER_BYTES + 5 * RECORD_BYTES + place] ^= flip
    assert ledger.are_void(as_pages(5)) == [True]
    assert scan(ledger, PageId(0), PAGES).leaving == []
    assert _occupied(ledger, 0, PAGES) == ([], [])


def test_only_what_is_sealed_leaves_and_only_what_leaves_stays() -> None:
    _, ledger = fresh()
    ledger.seal(
        as_pages(0, 1),
        [
            Record(
                Stamp(1),
                2,
                n,
                2,
                payload_bytes=99,
                namespace=Namespace(bytes(16)),
                key=Key(b"key"),
                checksum=17,
                depth=3,
            )
            for n in range(2)
        ],
    )
    ledger.quarantine(PageId(2))
    for pages in ([0, 2], [0, 3]):
        with pytest.raises(AssertionError):
            ledger.leave(as_pages(*pages))
    with pytest.raises(AssertionError):
        ledger.stay(as_pages(0))
    ledger.leave(as_pages(0))
    with pytest.raises(AssertionError):
        ledger.leave(as_pages(0, 1))
    with pytest.raises(AssertionError):
        ledger.seal(
            as_pages(0),
            [
                Record(
                    Stamp(9),
                    9,
                    0,
                    1,
                    payload_bytes=99,
                    namespace=Namespace(bytes(16)),
                    key=Key(b"other"),
                    checksum=17,
                    depth=3,
                )
            ],
        )
    ledger.void(as_pages(0))
    assert ledger.are_void(as_pages(0, 1)) == [True, False]


class LedgerAgainstDict(RuleBasedStateMachine):
    """A ledger, closed and opened at will, beside a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer, self.ledger = fresh()
        self.model: dict[int, Record] = {}
        self.bad: set[int] = set()
        self.leaving: set[int] = set()  # of `model`

    @rule(some=st.dictionaries(st.integers(0, PAGES - 1), records()))
    def seal(self, some: dict[int, Record]) -> None:
        new = {p: r for p, r in some.items() if p not in self.model and p not in self.bad}
        self.ledger.seal(as_pages(*new), list(new.values()))
        self.model |= new

    @rule(pages=st.lists(st.integers(0, PAGES - 1)))
    def void(self, pages: list[int]) -> None:
        self.ledger.void(as_pages(*pages))
        self.bad.difference_update(pages)
        self.leaving.difference_update(pages)
        for page in pages:
            self.model.pop(page, None)

    @rule(pages=st.sets(st.integers(0, PAGES - 1)))
    def leave(self, pages: set[int]) -> None:
        some = [page for page in pages if page in self.model and page not in self.leaving]
        self.ledger.leave(as_pages(*some))
        self.leaving.update(some)

    @rule(pages=st.sets(st.integers(0, PAGES - 1)))
    def stay(self, pages: set[int]) -> None:
        some = list(pages & self.leaving)
        self.ledger.stay(as_pages(*some))
        self.leaving.difference_update(some)

    @rule(page=st.integers(0, PAGES - 1))
    def quarantine(self, page: int) -> None:
        self.ledger.quarantine(PageId(page))
        self.model.pop(page, None)
        self.leaving.discard(page)
        self.bad.add(page)

    @rule()
    def reopen(self) -> None:
        self.ledger = Ledger(self.buffer)

    @invariant()
    def same(self) -> None:
        here = {p: record for p, record in self.model.items() if p not in self.leaving}
        assert scanned(self.ledger) == sorted(here)
        assert scan(self.ledger, PageId(0), PAGES).quarantined == sorted(self.bad)
        assert scan(self.ledger, PageId(0), PAGES).leaving == sorted(self.leaving)
        lengths = {page: record.payload_bytes for page, record in self.model.items()}
        there = sorted((lengths | dict.fromkeys(self.bad, 0)).items())
        assert _occupied(self.ledger, 0, PAGES) == (
            [page for page, _ in there],
            [length for _, length in there],
        )
        every = range(PAGES)
        assert self.ledger.are_sealed(as_pages(*every)) == [page in here for page in every]
        void = [page not in self.model and page not in self.bad for page in every]
        assert self.ledger.are_void(as_pages(*every)) == void
        for page in every:
            assert self.ledger.read(PageId(page)) == here.get(PageId(page))
            assert self.ledger.is_quarantined(PageId(page)) == (page in self.bad)
        self.ledger.check()


TestLedgerAgainstDict = LedgerAgainstDict.TestCase
