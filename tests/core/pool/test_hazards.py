"""Hazards: what a reader names, the index reads, in whatever order their steps come."""

from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pegaflow.core.pool.hazards import (
    HazardReader,
    Hazards,
    LentRows,
    Rows,
    cut,
    hazard_bytes,
    section_of,
)
from tests.naming import as_pages, as_stamps

ROWS = 12
pairs = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), max_size=8)


def fresh(rows: int = ROWS) -> tuple[bytearray, Hazards]:
    buffer = bytearray(hazard_bytes(rows))
    return buffer, Hazards(buffer)


def publish(hazards: Hazards, some: list[tuple[int, int]]) -> Rows:
    pages = np.array([page for page, _ in some], np.int64)
    return hazards.publish(pages, np.array([stamp for _, stamp in some], np.uint64))


class HazardsAgainstList(RuleBasedStateMachine):
    """What is published and not cleared is named, and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.buffer, self.hazards = fresh()
        self.reader = HazardReader(self.buffer)
        self.model: list[tuple[Rows, list[tuple[int, int]]]] = []

    @rule(some=pairs)
    def publish(self, some: list[tuple[int, int]]) -> None:
        room = ROWS - len(self.hazards)
        rows = publish(self.hazards, some)
        assert len(rows) == min(len(some), room)
        self.model.append((rows, some[: len(rows)]))

    @rule(data=st.data(), part=st.integers(0, 8))
    def clear(self, data: st.DataObject, part: int) -> None:
        if self.model:
            at = data.draw(st.integers(0, len(self.model) - 1))
            rows, some = self.model.pop(at)
            self.hazards.clear(rows[part:])
            if len(rows[:part]):
                self.model.append((rows[:part], some[:part]))

    @invariant()
    def same(self) -> None:
        here = {pair for _, some in self.model for pair in some}
        assert len(self.hazards) == sum(len(rows) for rows, _ in self.model)
        self.hazards.check()
        for stamp in range(4):
            for pages in (range(6), [5, 0, 3], [], [2]):
                named = self.reader.named(list(as_pages(*pages)), as_stamps(stamp) * len(pages))
                assert named.tolist() == [(page, stamp) in here for page in pages]
        assert sorted(set(self.reader.pages().tolist())) == sorted({page for page, _ in here})


TestHazardsAgainstList = HazardsAgainstList.TestCase
TestHazardsAgainstList.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)


class _Watched:
    """Stands in for a column or the head of a file, and notes the file as it is at each store."""

    def __init__(self, column: Any, name: str, stores: list[tuple[str, bytes]], file: bytearray):
        self._column, self._name, self._stores, self._file = column, name, stores, file

    def __setitem__(self, at: Any, value: Any) -> None:
        self._column[at] = value
        self._stores.append((self._name, bytes(self._file)))


def watched(buffer: bytearray, hazards: Hazards, patch: pytest.MonkeyPatch) -> Any:
    stores: list[tuple[str, bytes]] = []
    for name in ("_words", "_stamps", "_pages"):
        patch.setattr(hazards, name, _Watched(getattr(hazards, name), name, stores, buffer))
    return stores


def test_a_row_names_a_page_once_mark_and_stamp_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer, hazards = fresh()
    stores = watched(buffer, hazards, monkeypatch)
    rows = publish(hazards, [(3, 7), (4, 8)])
    assert [name for name, _ in stores] == ["_words", "_stamps", "_pages"]
    for name, file in stores:
        named = HazardReader(bytearray(file)).named(as_pages(3, 4, 3), as_stamps(7, 8, 1)).tolist()
        assert named == ([True, True, False] if name == "_pages" else [False] * 3)
    stores.clear()
    hazards.clear(rows[:1])
    assert [name for name, _ in stores] == ["_pages"], "the row's stamp stays as it is"
    assert HazardReader(buffer).named(as_pages(3, 4), as_stamps(7, 8)).tolist() == [False, True]


def test_a_row_that_is_used_anew_never_names_its_new_page_under_its_old_stamp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    buffer, hazards = fresh(1)
    hazards.clear(publish(hazards, [(3, 7)]))
    stores = watched(buffer, hazards, monkeypatch)
    publish(hazards, [(4, 8)])
    for _, file in stores:
        reader = HazardReader(bytearray(file))
        assert (
            not reader.named(as_pages(4, 3), as_stamps(7, 8)).any()
            and not reader.named(as_pages(3), as_stamps(7)).any()
        )


def test_the_index_reads_pages_before_their_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is cleared and used anew between the two: what it names now was published since."""
    buffer, hazards = fresh(1)
    rows = publish(hazards, [(3, 7)])
    reader = HazardReader(buffer)
    looked: list[object] = []

    (used,) = reader._used()

    class Slowly:
        def __getitem__(self, at: Any) -> Any:
            if looked:
                hazards.clear(rows)
                publish(hazards, [(3, 9)])
            looked.append(at)
            return used[at]

    monkeypatch.setattr(reader, "_used", lambda: [Slowly()])
    assert reader.named(as_pages(3), as_stamps(7)).tolist() == [False]
    assert looked[0] == (slice(None), 0) and len(looked) == 2


def test_only_rows_below_the_mark_are_read() -> None:
    buffer, hazards = fresh(1000)
    rows = publish(hazards, [(1, 1), (2, 2)])
    hazards.clear(rows)
    publish(hazards, [(3, 3)])
    assert memoryview(buffer).cast("Q")[2] == 2


@pytest.mark.parametrize("length", [0, 63, 64, hazard_bytes(ROWS) - 1])
def test_a_file_that_is_cut_is_refused(length: int) -> None:
    buffer, _ = fresh()
    assert HazardReader.fault(buffer) == ""
    assert HazardReader.fault(buffer[:length])
    assert HazardReader.fault(bytearray(len(buffer)))


# sections


def two(rows: int = 8) -> tuple[bytearray, Hazards, Hazards, LentRows]:
    """A file, the session's own part, and the other as its borrower and as the session see it."""
    buffer = bytearray(hazard_bytes(rows, sections=2))
    own, other = cut(buffer, 2)
    return buffer, Hazards(own), Hazards(section_of(buffer, 1)), LentRows(other)


def test_the_hazards_of_every_section_are_read() -> None:
    buffer, own, borrowed, _ = two()
    assert HazardReader.fault(buffer) == ""
    assert HazardReader.fault(buffer[: len(buffer) - 1]), "a section is missing"
    reader = HazardReader(buffer)
    publish(own, [(3, 7)])
    rows = publish(borrowed, [(4, 8), (3, 9)])
    assert reader.named(as_pages(3, 4, 5), as_stamps(7, 8, 9)).tolist() == [True, True, False]
    assert sorted(reader.pages().tolist()) == [3, 3, 4]
    borrowed.clear(rows)
    assert reader.pages().tolist() == [3]


def test_a_borrower_that_lies_of_its_rows_harms_nobody_else() -> None:
    buffer, own, borrowed, _ = two()
    reader = HazardReader(buffer)
    publish(own, [(3, 7)])
    borrowed._words[1] = borrowed._words[2] = (1 << 64) - 1
    assert reader.named(as_pages(3), as_stamps(7)).all() and reader.pages().tolist() == [3]


def test_a_row_that_is_given_ends_by_the_other_side() -> None:
    buffer, _, borrowed, lent = two(4)
    rows = publish(borrowed, [(3, 7), (4, 8), (5, 9)])
    borrowed.give(rows[:2])
    assert lent.take(rows[:2], np.array([3, 4]), np.array([7, 8], np.uint64))
    assert len(publish(borrowed, [(6, 1), (7, 1)])) == 1, "there is no other row"
    lent.clear(rows[:1])
    assert len(publish(borrowed, [(7, 1)])) == 1, "it came back"
    assert sorted(HazardReader(buffer).pages().tolist()) == [4, 5, 6, 7]
    borrowed.check()


def test_rows_are_taken_once_and_as_they_are() -> None:
    _, _, borrowed, lent = two()
    rows = publish(borrowed, [(3, 7), (4, 8)])
    pages, stamps = np.array([3, 4]), np.array([7, 8], np.uint64)
    for wrong in (
        (rows[:0], pages[:0], stamps[:0]),
        (rows[[0, 0]], pages, stamps),
        (rows + 8, pages, stamps),
        (rows - 8, pages, stamps),
        (rows, pages + 1, stamps),
        (rows, pages, stamps + np.uint64(1)),
    ):
        assert not lent.take(*wrong) and not lent.owned.any()
    assert lent.take(rows, pages, stamps) and not lent.take(rows, pages, stamps)


def test_what_was_not_given_ends_when_nobody_has_the_section() -> None:
    buffer, _, borrowed, lent = two()
    rows = publish(borrowed, [(3, 7), (4, 8)])
    assert lent.take(rows[:1], np.array([3]), np.array([7], np.uint64))
    lent.forget()
    assert HazardReader(buffer).pages().tolist() == [3] and lent.standing == 1
    later = Hazards(section_of(buffer, 1))
    assert len(later) == 1, "the row that stands is not free"
    assert len(publish(later, [(9, 1)] * 8)) == 7
    lent.clear(rows[:1])
    assert len(publish(later, [(9, 1)])) == 1
    later.check()


def test_what_is_allowed_is_the_sessions_word() -> None:
    _, own, borrowed, lent = two()
    assert borrowed.allowed == 0
    lent.allow(123)
    assert borrowed.allowed == 123 and own.allowed == 0
