"""Fingerprints to pages, against a dict."""

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from pegaflow.core.blocks.keymap import KeyMap
from pegaflow.core.pool.buckets import Half

HOME = 1 << 63
"""All of these fingerprints belong into one bucket of the smallest map, and find no place there."""


class MapAgainstDict(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.map = KeyMap()
        self.model: dict[int, int] = {}
        self.made = 2

    @rule(count=st.integers(1, 300), alike=st.booleans(), step=st.integers(1, 1 << 54))
    def put(self, count: int, alike: bool, step: int) -> None:
        first = HOME if alike else 0
        names = {first + self.made * (1 if alike else step) % HOME + n for n in range(2, count + 2)}
        new = sorted(names - self.model.keys())
        self.made += count
        pages = range(len(self.model), len(self.model) + len(new))
        self.map.put(np.array(new, np.uint64), np.array(pages, np.int64))
        self.model.update(zip(new, pages, strict=True))

    @precondition(lambda self: self.model)
    @rule(data=st.data(), wrong=st.booleans())
    def take(self, data: st.DataObject, wrong: bool) -> None:
        at = data.draw(st.integers(0, len(self.model) - 1))
        some = sorted(self.model)[at : at + data.draw(st.integers(1, 200))]
        pages = np.array([self.model[name] + wrong for name in some], np.int64)
        self.map.take(np.array(some, np.uint64), pages)
        for name in some if not wrong else ():
            del self.model[name]

    @invariant()
    def same(self) -> None:
        self.map.check()
        names = [*self.model, 3, HOME + 1]
        found = self.map.find(np.array(names, np.uint64)).tolist()
        assert found == [*self.model.values(), -1, -1][: len(names)]


TestMapAgainstDict = MapAgainstDict.TestCase


def test_it_grows_a_little_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[int] = []
    copy = KeyMap._copy

    def counted(self: KeyMap, target: Half) -> None:
        copied[-1] += 1
        copy(self, target)

    monkeypatch.setattr(KeyMap, "_copy", counted)
    found, rng = KeyMap(), np.random.default_rng(1)
    for first in range(0, 200_000, 64):
        copied.append(0)
        names = rng.integers(2, 1 << 63, 64, dtype=np.uint64) * np.uint64(2)
        found.put(names, np.arange(first, first + 64))
    assert max(copied) <= 1 and sum(copied) > 50


def test_what_found_no_place_gets_one_in_the_next_buckets() -> None:
    found, rng = KeyMap(), np.random.default_rng(1)
    names = rng.integers(2, 1 << 63, 49_000, dtype=np.uint64) * np.uint64(2)
    found.reserve(32_000)  # 65,536 slots
    for first in range(0, len(names), 1000):
        found.put(names[first : first + 1000], np.arange(first, first + 1000))
    assert found._spilt, "it would not tell"
    assert found.find(names).tolist() == list(range(49_000))
    more = rng.integers(2, 1 << 63, 8_000, dtype=np.uint64) * np.uint64(2)
    found.put(more, np.arange(49_000, 57_000))
    assert not found._spilt
    assert found.find(np.concatenate([names, more])).tolist() == list(range(57_000))
    found.check()
