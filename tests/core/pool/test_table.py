"""The table against a dict: what was added and not removed is found, also while it is rebuilt."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pegaflow.core.pool.buckets import HOPS, SLOTS
from pegaflow.core.pool.fingerprints import U64
from pegaflow.core.pool.ledger import HEADER_BYTES, RECORD_BYTES
from pegaflow.core.pool.table import FULL, Table, TableReader, TierWord, file_bytes, forget
from pegaflow.core.pool.tierfilter import cells_log2
from tests.naming import as_pages

RECORDS = 4096
SPREAD = 0x9E37_79B9_7F4A_7C15  # times small numbers it is far apart in the upper bits


def room(offset: int, length: int) -> str:
    return ""


def fresh(reserve: Callable[[int, int], str] = room) -> tuple[bytearray, Table]:
    buffer = bytearray(file_bytes(RECORDS))
    return buffer, Table(buffer, RECORDS, reserve)


def words(*values: int) -> U64:
    return np.array(values, np.uint64)


def found(table: TableReader, fingerprints: U64) -> list[int]:
    pages = table.find(fingerprints)
    assert pages is not None
    return pages.tolist()  # type: ignore[no-any-return]


def spread(count: int, seed: int = 1) -> U64:
    return np.random.default_rng(seed).integers(2, 1 << 64, count, np.uint64)


class TableAgainstDict(RuleBasedStateMachine):
    """One writer and its readers, beside a dict.  Some fingerprints crowd in three buckets, so that
    these overflow; the others are spread as those of hashes are, whatever numbers are drawn.  A
    table that waits for its rebuild may have no place for one near its own: then it says so."""

    crowded = st.integers(0, 44).map(lambda n: (n % 3) << 61 | (n << 40) | 2)
    spread = st.integers(0, (1 << 64) - 1).map(lambda n: n * SPREAD % (1 << 64) | 2)

    def __init__(self) -> None:
        super().__init__()
        self.buffer, self.table = fresh()
        self.reader = TableReader(self.buffer, RECORDS)
        self.model: dict[int, int] = {}  # fingerprint -> page
        self.pages = iter(range(RECORDS))
        self.waited = False  # a rebuild was wanted at some time

    @initialize(blocks=st.integers(0, 100))
    def begin(self, blocks: int) -> None:
        assert self.table.begin(blocks) == ""
        assert self.reader.find(words(2)) is None
        self.table.publish()

    @rule(some=st.sets(crowded | spread, max_size=20))
    def add(self, some: set[int]) -> None:
        new = dict(zip(sorted(some - self.model.keys()), self.pages, strict=False))
        self.table.add(words(*new), as_pages(*new.values()))
        self.model |= new

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        some = data.draw(st.sets(st.sampled_from(sorted(self.model)))) if self.model else set()
        self.table.remove(words(*some), as_pages(*[self.model.pop(one) for one in some]))

    @rule(wrong=st.integers(2, (1 << 64) - 1), page=st.integers(0, RECORDS - 1))
    def remove_what_is_not_there(self, wrong: int, page: int) -> None:
        if self.model.get(wrong) != page:
            self.table.remove(words(wrong), as_pages(page))

    @rule(slots=st.integers(1, 200))
    def step(self, slots: int) -> None:
        assert self.table.rebuild_step(slots) == self.table.wants_rebuild

    @rule()
    def begin_again(self) -> None:
        """A new index: what it adopts is the table, and until then the last one's is."""
        before = found(self.reader, words(*self.model))
        self.table, self.waited = Table(self.buffer, RECORDS, room), False
        assert self.table.begin(len(self.model)) == ""
        assert found(self.reader, words(*self.model)) == before
        self.table.add(words(*self.model), as_pages(*self.model.values()))
        self.table.publish()

    @invariant()
    def same(self) -> None:
        self.waited |= self.table.wants_rebuild
        assert self.waited or self.table.lacks == 0
        for reader in (self.reader, self.table, TableReader(self.buffer, RECORDS)):
            if reader.find(words()) is not None:
                assert self.sees(reader, self.model) <= self.table.lacks
                strangers = [f ^ 1 for f in self.model if f ^ 1 not in self.model]
                assert found(reader, words(*strangers)) == [-1] * len(strangers)

    def sees(self, reader: TableReader, model: dict[int, int]) -> int:
        """It finds all of these, but for so many that there was no place for."""
        pages = found(reader, words(*model))
        assert all(page in (-1, right) for page, right in zip(pages, model.values(), strict=True))
        return pages.count(-1)


TestTableAgainstDict = TableAgainstDict.TestCase
TestTableAgainstDict.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)


def test_an_overflowing_bucket_goes_on_in_the_next_and_around_the_end() -> None:
    _, table = fresh()
    table.begin(0)
    table.publish()
    last = [(7 << 61) + n for n in range(20)]  # all in the last of 8 buckets
    table.add(words(*last), as_pages(*range(20)))
    assert found(table, words(*last)) == list(range(20))
    table.remove(words(*last[:8]), as_pages(*range(8)))
    assert found(table, words(*last)) == [-1] * 8 + list(range(8, 20))
    table.add(words(*last[:8]), as_pages(*range(100, 108)))
    assert found(table, words(*last)) == [*range(100, 108), *range(8, 20)]


def test_of_two_pages_with_one_fingerprint_the_first_is_found() -> None:
    _, table = fresh()
    table.begin(2)
    table.publish()
    table.add(words(77), as_pages(5))
    table.add(words(77), as_pages(6))
    assert found(table, words(77)) == [5]
    table.remove(words(77), as_pages(5))
    assert found(table, words(77)) == [6]


def test_what_finds_no_place_is_lacking_and_nothing_else() -> None:
    _, table = fresh()
    table.begin(0)
    table.publish()
    same_bucket = words(*[(1 << 60) + n for n in range(SLOTS * HOPS + 10)])
    table.add(same_bucket, as_pages(*range(len(same_bucket))))
    here = found(table, same_bucket)
    assert sum(page < 0 for page in here) == table.lacks == 10
    assert all(page in (-1, n) for n, page in enumerate(here))


def test_it_grows_and_shrinks_with_what_is_there() -> None:
    buffer, table = fresh()
    reader = TableReader(buffer, RECORDS)
    table.begin(0)
    table.publish()
    every = spread(RECORDS)
    table.add(every[:1000], as_pages(*range(1000)))  # more than a first table holds
    for at in range(1000, RECORDS, 100):
        table.add(every[at : at + 100], as_pages(*range(at, min(at + 100, RECORDS))))
        while table.rebuild_step(64):
            assert found(reader, every[:at]) == list(range(at))
    assert table.lacks == 0 and found(reader, every) == list(range(RECORDS))
    table.remove(every[10:], as_pages(*range(10, RECORDS)))
    rounds = 0
    while table.rebuild_step(64):
        rounds += 1
    assert found(reader, every[:20]) == [*range(10), *[-1] * 10]


def test_no_search_gets_long_by_what_was_removed() -> None:
    """Steady state: as much goes as comes."""
    _, table = fresh()
    table.begin(RECORDS // 2)
    table.publish()
    every, size = spread(20 * RECORDS), RECORDS // 2
    table.add(every[:size], as_pages(*range(size)))
    for at in range(0, len(every) - size - 64, 64):
        pages = np.arange(at, at + 64) % size
        table.remove(every[at : at + 64], pages)
        table.add(every[at + size : at + size + 64], pages)
        while table.rebuild_step(512):
            pass
        half = table._own
        assert half is not None
        gone = int((half.words[:, :SLOTS] == 1).sum())
        assert gone <= SLOTS * len(half.words) // 8 and gone == half.removed
    assert table.lacks == 0


class _Changing:
    """Stands in for the words of a reader: the table changes under it so many times."""

    def __init__(self, reader: TableReader, change: Callable[[], object], times: int) -> None:
        self._words, self._change, self._times = reader._words, change, times
        self._looks = 0

    def __getitem__(self, at: int) -> int:
        word = self._words[at]
        if at == 1:
            self._looks += 1
            if self._looks % 2 and self._times:
                self._times -= 1
                self._change()
        return word


@pytest.mark.parametrize("times", [0, 1, 2])
def test_a_reader_looks_once_more_when_the_table_has_changed(times: int) -> None:
    buffer, table = fresh()
    table.begin(10)
    table.publish()
    some = spread(10)
    table.add(some, as_pages(*range(10)))

    def change() -> None:
        """Two tables later the half that the reader looks at holds other blocks."""
        for pages in (range(50, 60), range(60, 70)):
            table.begin(10)
            table.add(some, as_pages(*pages))
            table.publish()

    reader = TableReader(buffer, RECORDS)
    reader._words = _Changing(reader, change, times)  # type: ignore[assignment]
    pages = reader.find(some)
    if times == 2:
        assert pages is None
    else:
        assert pages is not None and pages.tolist() == list(range(60, 70) if times else range(10))


def test_where_there_is_no_room_it_stays_as_it_is_and_goes_on_later() -> None:
    full = False
    asked: list[tuple[int, int]] = []

    def reserve(offset: int, length: int) -> str:
        asked.append((offset, length))
        return "No space left on device" if full else ""

    buffer, table = fresh(reserve)
    table.begin(0)
    table.publish()
    full = True
    every = spread(200)
    for one in range(100):
        table.add(every[one : one + 1], as_pages(one))
        table.rebuild_step(64)
    assert table.fault == "No space left on device" and 0 < table.lacks < 100
    assert len(asked) < 50, "room is looked for after a while only"
    here = found(table, every[:100])
    assert sum(page < 0 for page in here) == table.lacks
    full = False
    lacked = table.lacks
    table.add(every[100:], as_pages(*range(100, 200)))
    while table.rebuild_step(64):
        pass
    table.remove(every[:1], as_pages(0))
    assert table.fault == "" and table.lacks <= lacked + 64
    assert [p for p in found(table, every[:100]) if p >= 0] == [p for p in here if p > 0]
    for offset, length in asked:
        assert HEADER_BYTES + RECORDS * RECORD_BYTES <= offset
        assert offset + length <= len(buffer)


def test_it_writes_nowhere_but_in_its_place_and_what_was_made_real() -> None:
    buffer = bytearray(file_bytes(RECORDS))
    real = bytearray(len(buffer))

    def reserve(offset: int, length: int) -> str:
        real[offset : offset + length] = b"\1" * length
        return ""

    real[:HEADER_BYTES] = b"\1" * HEADER_BYTES
    table = Table(buffer, RECORDS, reserve)
    table.begin(3)
    table.publish()
    table.add(spread(RECORDS // 4), np.arange(RECORDS), shards=4)
    written = np.frombuffer(buffer, np.uint8) != 0
    assert not (written & (np.frombuffer(real, np.uint8) == 0)).any()
    assert not written[HEADER_BYTES : HEADER_BYTES + RECORDS * RECORD_BYTES].any()
    assert not written[:2048].any()


def test_a_file_that_ends_before_it_has_no_table() -> None:
    buffer = bytearray(file_bytes(RECORDS) - (1 << cells_log2(RECORDS)) - 1)
    table = Table(buffer, RECORDS, room)
    assert table.begin(10)
    table.publish()
    table.add(spread(10), as_pages(*range(10)))
    table.add(spread(10), as_pages(*range(20)), shards=2)
    table.remove(spread(10), as_pages(*range(10)))
    assert table.find(spread(10)) is None and not table.wants_rebuild
    assert TableReader(buffer, RECORDS).find(spread(10)) is None


@given(st.binary(min_size=40, max_size=40), st.randoms())
@settings(deadline=None)
def test_damaged_words_are_no_table_or_a_hint(junk: bytes, chance: object) -> None:
    buffer, table = fresh()
    table.begin(100)
    table.publish()
    table.add(spread(100), as_pages(*range(100)))
    buffer[2056:2096] = junk
    pages = TableReader(buffer, RECORDS).find(spread(100))
    assert pages is None or len(pages) == 100


def test_the_pages_of_a_block_are_linked() -> None:
    buffer, table = fresh()
    table.begin(4)
    table.publish()
    table.add(spread(2), as_pages(10, 20, 30, 11, 21, 4095), shards=3)
    reader = TableReader(buffer, RECORDS)
    assert found(reader, spread(2)) == [10, 11]
    assert reader.next_shards(np.array([10, 20, 30, 11, 21, 4095])).tolist() == [
        *(20, 30, -1),
        *(21, 4095, -1),
    ]
    table.remove(spread(2)[:1], as_pages(10))
    table.add(spread(2)[:1], as_pages(30, 10, 20), shards=3)
    assert reader.next_shards(np.array([30, 10, 20])).tolist() == [10, 20, -1]


def test_what_cannot_be_linked_is_not_found() -> None:
    links = range(HEADER_BYTES + RECORDS * RECORD_BYTES, HEADER_BYTES + RECORDS * RECORD_BYTES + 1)
    _, table = fresh(lambda offset, length: "full" if offset in links else "")
    table.begin(4)
    table.publish()
    table.add(spread(2), as_pages(10, 20, 11, 2000), shards=2)
    assert found(table, spread(2)) == [-1, -1] and table.lacks == 2 and table.fault == "full"
    table.add(spread(2), as_pages(1500, 2000, 1501, 2001), shards=2)
    assert found(table, spread(2)) == [1500, 1501]


def test_readers_see_what_they_are_to_keep_to() -> None:
    buffer, table = fresh()
    reader = TableReader(buffer, RECORDS)
    assert (reader.clearing, reader.closed, reader.tiers) == (None, False, TierWord.NONE)
    table.set_clearing(0)
    table.set_closed(True)
    table.set_tiers(TierWord.ASK)
    assert (reader.clearing, reader.closed, reader.tiers) == (0, True, TierWord.ASK)
    table.set_clearing(None)
    assert reader.clearing is None
    table.begin(1)
    table.publish()
    forget(buffer)
    assert (reader.clearing, reader.closed, reader.tiers) == (None, False, TierWord.NONE)
    assert reader.find(spread(1)) is None


def test_it_takes_little_memory() -> None:
    """Per page of the pool, both halves and the links."""
    for records in (1 << 10, 1 << 20, 100_000, 5_000_000):
        area = file_bytes(records) - HEADER_BYTES - records * RECORD_BYTES
        assert area / records <= 4 + 2 * 12 * 2 / FULL + 20
