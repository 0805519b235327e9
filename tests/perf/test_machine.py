"""What the tables of perf/ have in common: figures, verdicts, and the C loop they compare with."""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt
import pytest

from perf import machine
from perf.shapes import Memcpy, Shape


def test_percentiles_are_values_that_occurred() -> None:
    values = [float(n) for n in range(1000, 0, -1)]
    assert machine.percentile(values, 50) == 500
    assert machine.percentile(values, 99) == 990
    assert machine.percentile(values, 99.9) == 999
    assert machine.percentile(values, 100) == 1000
    assert machine.percentile([7.0], 0.1) == 7


def test_a_verdict_names_the_goal() -> None:
    assert machine.verdict(2.9, 3.0) == "pass (< 3)"
    assert machine.verdict(3.1, 3.0) == "miss (< 3)"
    assert machine.verdict(0.8, 0.8, least=True) == "pass (>= 0.8)"
    assert machine.verdict(0.79, 0.8, least=True) == "miss (>= 0.8)"


def test_medians_take_turns() -> None:
    said: list[str] = []
    found = machine.medians(3, [lambda: said.append("a"), lambda: said.append("b")])
    assert said == ["a", "b"] * 3 and len(found) == 2


@pytest.mark.parametrize("compilers", [machine.COMPILERS, ()])
def test_the_loop_copies_scattered_pieces(
    compilers: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "COMPILERS", compilers)
    source = np.arange(256, dtype=np.uint8)
    target = np.zeros(256, np.uint8)
    at, out = (np.array(offsets, np.uint64) for offsets in ([0, 200], [64, 16]))
    with machine.memcpy_loop() as (copy, name):
        copy(target, source, at, out, 16)
    assert name
    assert target[:16].tolist() == list(range(64, 80))
    assert target[200:216].tolist() == list(range(16, 32))
    assert not target[16:200].any() and not target[216:].any()


def test_a_compiler_that_fails_is_no_compiler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "COMPILERS", ("false",))
    with machine.memcpy_loop() as (_, name):
        assert "no C compiler" in name


def test_a_shape_is_a_layout_of_twice_its_blocks() -> None:
    shape = Shape(4, 2, 16384)
    assert shape.total == 4 * 2 * 16384
    assert shape.layout.blocks == 8
    assert [layer.offset for layer in shape.layout.layers] == [0, 8 * 16384]


def test_the_limit_moves_the_pieces_of_a_shape_between_addresses_that_are_alike() -> None:
    shape = Shape(2, 3, 16384)
    memory = machine.memory(2 * shape.total)
    saved = memory.reshape(shape.layers, 2, -1)
    saved[:, 0] = np.random.default_rng(1).integers(0, 256, saved[:, 0].shape, np.uint8)
    pieces = []
    with machine.memcpy_loop() as (loop, _):

        def copy(
            to: machine.Bytes,
            source: machine.Bytes,
            at: npt.NDArray[np.uint64],
            out: npt.NDArray[np.uint64],
            size: int,
        ) -> None:
            apart = np.uint64(to.ctypes.data) + at - np.uint64(source.ctypes.data) - out
            pieces.append((len(at), size, set((apart % np.uint64(mmap.PAGESIZE)).tolist())))
            loop(to, source, at, out, size)

        bare = Memcpy(copy, shape, memory)
        assert bare.out() > 0 and bare.back() > 0
    assert pieces == [(6, 16384, {0})] * 2
    assert np.array_equal(saved[:, 0], saved[:, 1])
