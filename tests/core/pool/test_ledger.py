"""The ledger codec: what was sealed is read, and what was torn is void."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

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
HEADER = Header(bytes(range(16)), b"boot" * 9, EXTENTS * 65536, 65536, PER_EXTENT, Incarnation(7))

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
        length=draw(u32),
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


class _Watched:
    """Stands in for the ledger's words, and notes the body as it is when a word is written."""

    def __init__(self, ledger: Ledger, buffer: bytearray) -> None:
        self._words = ledger._words
        self._buffer = buffer
        self.writes: list[tuple[int, bytes]] = []

    def __getitem__(self, at: int) -> int:
        return self._words[at]

    def __setitem__(self, at: int, word: int) -> None:
        self.writes.append((word, bytes(self._buffer[at * 8 + 8 : at * 8 + RECORD_BYTES])))
        self._words[at] = word


def test_the_state_word_is_written_last(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, ledger = fresh()
    watched = _Watched(ledger, buffer)
    monkeypatch.setattr(ledger, "_words", watched)
    at = HEADER_BYTES + 2 * RECORD_BYTES
    before = bytes(buffer[at + 8 : at + RECORD_BYTES])
    ledger.seal(
        [PageId(2)], [Record(Stamp(1), 2, 0, 1, 99, Namespace(bytes(16)), Key(b"key"), None, 3)]
    )
    assert watched.writes[0] == (0, before)
    word, body = watched.writes[-1]
    assert word != 0
    assert body == bytes(buffer[at + 8 : at + RECORD_BYTES])


def test_sealing_a_sealed_page_is_our_bug() -> None:
    _, ledger = fresh()
    record = Record(Stamp(1), 2, 0, 1, 99, Namespace(bytes(16)), Key(b"key"), 17, 3)
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


class LedgerAgainstDict(RuleBasedStateMachine):
    """A ledger, closed and opened at will, beside a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer, self.ledger = fresh()
        self.model: dict[int, Record] = {}
        self.bad: set[int] = set()

    @rule(some=st.dictionaries(st.integers(0, PAGES - 1), records()))
    def seal(self, some: dict[int, Record]) -> None:
        new = {p: r for p, r in some.items() if p not in self.model and p not in self.bad}
        self.ledger.seal(as_pages(*new), list(new.values()))
        self.model |= new

    @rule(pages=st.lists(st.integers(0, PAGES - 1)))
    def void(self, pages: list[int]) -> None:
        self.ledger.void(as_pages(*pages))
        self.bad.difference_update(pages)
        for page in pages:
            self.model.pop(page, None)

    @rule(page=st.integers(0, PAGES - 1))
    def quarantine(self, page: int) -> None:
        self.ledger.quarantine(PageId(page))
        self.model.pop(page, None)
        self.bad.add(page)

    @rule()
    def reopen(self) -> None:
        self.ledger = Ledger(self.buffer)

    @invariant()
    def same(self) -> None:
        assert scanned(self.ledger) == sorted(self.model)
        assert scan(self.ledger, PageId(0), PAGES).quarantined == sorted(self.bad)
        lengths = {page: record.length for page, record in self.model.items()}
        there = sorted((lengths | dict.fromkeys(self.bad, 0)).items())
        assert occupied(self.ledger, PageId(0), PAGES) == (
            tuple(page for page, _ in there),
            tuple(length for _, length in there),
        )
        every = range(PAGES)
        assert self.ledger.are_sealed(as_pages(*every)) == [page in self.model for page in every]
        void = [page not in self.model and page not in self.bad for page in every]
        assert self.ledger.are_void(as_pages(*every)) == void
        for page in every:
            assert self.ledger.read(PageId(page)) == self.model.get(page)
            assert self.ledger.is_quarantined(PageId(page)) == (page in self.bad)
        self.ledger.check()


TestLedgerAgainstDict = LedgerAgainstDict.TestCase
