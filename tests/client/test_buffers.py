"""The strided copies of EngineMemory against the naive ones, piece by piece."""

from types import SimpleNamespace

import numpy as np
import pytest

from pegaflow.client.buffers import Bytes, EngineMemory, copy
from pegaflow.wire.layout import LayerLayout, Layout, page_bytes, page_size, pieces

BLOCKS, LAYERS, RUN = 5, 3, 48

CONTIGUOUS = tuple(LayerLayout(i, 0, RUN, RUN) for i in range(LAYERS))
INTERLEAVED = tuple(LayerLayout(0, i * RUN, RUN * LAYERS, RUN) for i in range(LAYERS))
PLANES = tuple(
    LayerLayout(i, 0, RUN, RUN, segments=2, segment_stride=RUN * BLOCKS) for i in range(LAYERS)
)
SEGMENTS = tuple(
    LayerLayout(0, i * 8, RUN * LAYERS, 8, segments=6, segment_stride=8 * LAYERS)
    for i in range(LAYERS)
)
OFFSET = (LayerLayout(1, 7, 64, RUN), LayerLayout(0, 3, 32, 16, segments=2, segment_stride=16))

each = pytest.mark.parametrize(
    "layers",
    [CONTIGUOUS, INTERLEAVED, PLANES, SEGMENTS, OFFSET],
    ids=["a region per layer", "interleaved", "K and V planes", "segments", "offsets"],
)


def filled(layers: tuple[LayerLayout, ...], seed: int) -> tuple[Layout, list[Bytes], EngineMemory]:
    layout = Layout(BLOCKS, layers, "bfloat16")
    random = np.random.default_rng(seed)
    regions = [random.integers(0, 256, 1024, dtype=np.uint8) for _ in range(LAYERS)]
    return layout, regions, EngineMemory(layout, regions)


def naive_save(layout: Layout, regions: list[Bytes], block: int, page: Bytes) -> None:
    for region, offset, length, at in pieces(layout, block):
        page[at : at + length] = regions[region][offset : offset + length]


def naive_load(layout: Layout, regions: list[Bytes], block: int, page: Bytes) -> None:
    for region, offset, length, at in pieces(layout, block):
        regions[region][offset : offset + length] = page[at : at + length]


NEVER = 1 << 62
"""A deadline that does not come."""


@each
def test_save_is_the_naive_copy(layers: tuple[LayerLayout, ...]) -> None:
    layout, regions, memory = filled(layers, 1)
    for block in range(BLOCKS):
        page, expected = (np.full(page_size(layout), 0xA5, dtype=np.uint8) for _ in range(2))
        memory.save(page, block)
        naive_save(layout, regions, block, expected)
        assert bytes(page) == bytes(expected)


@each
def test_load_is_the_naive_copy_and_touches_nothing_else(layers: tuple[LayerLayout, ...]) -> None:
    layout, regions, memory = filled(layers, 2)
    expected = [region.copy() for region in regions]
    page = np.random.default_rng(3).integers(0, 256, page_size(layout), dtype=np.uint8)
    memory.load(page, 3)
    naive_load(layout, expected, 3, page)
    assert [bytes(r) for r in regions] == [bytes(r) for r in expected]


@each
def test_round_trip_into_another_engine(layers: tuple[LayerLayout, ...]) -> None:
    layout, _, source = filled(layers, 4)
    _, _, target = filled(layers, 5)
    file = np.zeros(BLOCKS * page_size(layout), dtype=np.uint8)
    offsets = [at * page_size(layout) for at in range(BLOCKS)]
    blocks = list(range(BLOCKS))
    assert copy(source.save, source.payload_bytes, file, offsets, blocks=blocks, deadline=NEVER)
    assert copy(
        target.load, target.payload_bytes, file, offsets, blocks=blocks[::-1], deadline=NEVER
    )
    for block in blocks:
        mine, theirs = (np.zeros(page_bytes(layout), dtype=np.uint8) for _ in range(2))
        source.save(mine, block)
        target.save(theirs, BLOCKS - 1 - block)
        assert bytes(mine) == bytes(theirs)


def clock(monkeypatch: pytest.MonkeyPatch, *times: int) -> None:
    """What the copy sees when it looks at the time."""
    hands = iter(times)
    fake = SimpleNamespace(monotonic_ns=lambda: next(hands))
    monkeypatch.setattr("pegaflow.client.buffers.time", fake)


def test_a_copy_stops_at_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, _, memory = filled(CONTIGUOUS, 6)
    file = np.zeros(BLOCKS * page_size(layout), dtype=np.uint8)
    copied: list[int] = []
    clock(monkeypatch, 8, 9, 10)
    size = memory.payload_bytes
    ok = copy(lambda _, b: copied.append(b), size, file, [0, 0, 0], blocks=[4, 2, 1], deadline=10)
    assert (ok, copied) == (False, [4, 2])


def test_a_copy_that_ends_after_its_deadline_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    layout, _, memory = filled(CONTIGUOUS, 7)
    file = np.zeros(page_size(layout), dtype=np.uint8)
    clock(monkeypatch, 9, 10)
    assert not copy(memory.load, memory.payload_bytes, file, [0], blocks=[1], deadline=10)


def test_layouts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="region 2"):
        EngineMemory(Layout(BLOCKS, CONTIGUOUS, "bfloat16"), [bytearray(1024)] * 2)
    with pytest.raises(ValueError):
        EngineMemory(Layout(BLOCKS, CONTIGUOUS, "bfloat16"), [bytearray(RUN)] * LAYERS)


def test_read_only_memory_is_told() -> None:
    layout = Layout(BLOCKS, CONTIGUOUS, "bfloat16")
    assert EngineMemory(layout, [bytearray(1024)] * LAYERS).writable
    assert not EngineMemory(layout, [memoryview(bytes(1024))] * LAYERS).writable


@pytest.mark.parametrize("offset", [4096, (1 << 63) + 1, (1 << 64) - 1])
def test_a_place_outside_of_the_file_is_not_copied(offset: int) -> None:
    layout = Layout(2, (LayerLayout(0, 0, 64, 64),), "uint8")
    memory = EngineMemory(layout, [bytearray(128)])
    file = np.ones(4096, np.uint8)
    size, blocks = memory.payload_bytes, (0, 1)
    assert not copy(memory.load, size, file, (0, offset), blocks=blocks, deadline=1 << 63)
    assert not copy(memory.save, size, file, (0, offset), blocks=blocks, deadline=1 << 63)
    assert copy(memory.load, size, file, (0, 4032), blocks=blocks, deadline=1 << 63)
