"""The layout arithmetic against a byte-by-byte model."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.wire import layout as layout_module
from pegaflow.wire.layout import (
    PAGE_ALIGN,
    LayerLayout,
    Layout,
    fault,
    fingerprint,
    page_bytes,
    page_size,
    pieces,
)

small_layers = st.builds(
    LayerLayout,
    region=st.integers(0, 1),
    offset=st.integers(0, 40),
    block_stride=st.integers(1, 24),
    segment_bytes=st.integers(1, 6),
    segments=st.integers(1, 3),
    segment_stride=st.integers(1, 24),
)
small_layouts = st.builds(
    Layout,
    blocks=st.integers(1, 4),
    layers=st.lists(small_layers, min_size=1, max_size=3).map(tuple),
    dtype=st.just("bfloat16"),
)


def bytes_of_block(layout: Layout, block: int) -> list[tuple[int, int]]:
    """(region, offset) of each byte of a block, in page order."""
    return [
        (layer.region, layer.offset + block * layer.block_stride + s * layer.segment_stride + i)
        for layer in layout.layers
        for s in range(layer.segments)
        for i in range(layer.segment_bytes)
    ]


def naive_sound(layout: Layout, region_bytes: list[int]) -> bool:
    every = [at for block in range(layout.blocks) for at in bytes_of_block(layout, block)]
    inside = all(offset < region_bytes[region] for region, offset in every)
    return inside and len(set(every)) == len(every)


@given(small_layouts, st.lists(st.integers(60, 160), min_size=2, max_size=2))
def test_fault_agrees_with_the_bytes(layout: Layout, region_bytes: list[int]) -> None:
    line = fault(layout, region_bytes)
    assert (line == "") == naive_sound(layout, region_bytes)
    assert "\n" not in line


@given(small_layouts, st.data())
def test_pieces_are_the_bytes_in_page_order(layout: Layout, data: st.DataObject) -> None:
    block = data.draw(st.integers(0, layout.blocks - 1))
    got = pieces(layout, block)
    spelled = [(region, start + i) for region, start, size, _ in got for i in range(size)]
    assert spelled == bytes_of_block(layout, block)
    at = 0
    for before, piece in zip((None, *got), got, strict=False):
        assert piece[3] == at
        at += piece[2]
        if before is not None:
            assert (before[0], before[1] + before[2]) != piece[:2], "these two should be merged"
    assert at == page_bytes(layout)
    assert page_size(layout) % PAGE_ALIGN == 0
    assert 0 <= page_size(layout) - at < PAGE_ALIGN


LAYERS, BLOCKS, RUN = 64, 8192, 65536


def shapes() -> dict[str, tuple[Layout, list[int]]]:
    """The shapes engines really have: all sound, all 64 x 8192."""
    plane = BLOCKS * RUN
    span = range(LAYERS)
    made = {
        "a tensor per layer": [LayerLayout(i, 0, RUN, RUN) for i in span],
        "layers in one storage": [LayerLayout(0, i * plane, RUN, RUN) for i in span],
        "layers inside a block": [LayerLayout(0, i * RUN, RUN * LAYERS, RUN) for i in span],
        "keys plane, values plane": [
            LayerLayout(i, 0, RUN, RUN, segments=2, segment_stride=plane) for i in span
        ],
        "planes outside layers": [
            LayerLayout(0, i * plane, RUN, RUN, segments=2, segment_stride=plane * LAYERS)
            for i in span
        ],
        "segments inside a block": [
            LayerLayout(0, i * RUN, RUN * LAYERS, RUN // 16, segments=8, segment_stride=RUN // 8)
            for i in span
        ],
        "segments of layers in turn": [
            LayerLayout(0, i * 512, RUN * LAYERS, 512, segments=128, segment_stride=512 * LAYERS)
            for i in span
        ],
    }
    return {
        name: (Layout(BLOCKS, tuple(layers), "bfloat16"), [plane * LAYERS * 2] * LAYERS)
        for name, layers in made.items()
    }


def test_common_shapes_need_no_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout_module, "MAX_SORTED_RUNS", 0)
    for name, (layout, region_bytes) in shapes().items():
        assert fault(layout, region_bytes) == "", name


def test_aliasing_layers_are_named() -> None:
    layer = LayerLayout(0, 0, RUN, RUN)
    layout = Layout(BLOCKS, (layer, replace(layer, region=1), layer), "bfloat16")
    assert fault(layout, [RUN * BLOCKS] * 2) == "layers 0 and 2 overlap"


def test_bad_fields_each_get_a_line() -> None:
    good = LayerLayout(0, 0, 64, 64, segments=2, segment_stride=1024)
    layout = Layout(4, (good,), "bfloat16")
    assert fault(layout, [4096]) == ""
    for change in (
        {"region": -1},
        {"region": 1},
        {"offset": -64},
        {"offset": 4096},
        {"block_stride": 0},
        {"block_stride": -64},
        {"segment_bytes": 0},
        {"segments": 0},
        {"segment_stride": -1},
        {"segment_stride": 1 << 63},
    ):
        assert fault(replace(layout, layers=(replace(good, **change),)), [4096]), change
    assert fault(replace(layout, blocks=0), [4096])
    assert fault(replace(layout, layers=()), [4096])


def test_an_irregular_giant_is_refused_not_sorted() -> None:
    layers = (LayerLayout(0, 0, 3, 1, segments=1 << 40, segment_stride=2), LayerLayout(0, 1, 5, 1))
    assert "too irregular" in fault(Layout(1 << 20, layers, "uint8"), [1 << 60])


def test_fingerprint_covers_meaning_and_not_place() -> None:
    layer = LayerLayout(0, 0, 64, 64, segments=2, segment_stride=1024)
    layout = Layout(4, (layer, layer), "bfloat16", "NHD")
    moved = Layout(
        9, (layer, LayerLayout(3, 128, 256, 64, segments=2, segment_stride=64)), "bfloat16", "NHD"
    )
    same = fingerprint(layout)
    assert len(same) == 16
    assert fingerprint(moved) == same
    for other in (
        replace(layout, dtype="float16"),
        replace(layout, name="HND"),
        replace(layout, dtype="bfloat16N", name="HD"),
        replace(layout, layers=(layer,)),
        replace(layout, layers=(layer, replace(layer, segments=1))),
        replace(layout, layers=(layer, replace(layer, segment_bytes=32))),
    ):
        assert fingerprint(other) != same


def test_fingerprint_is_frozen() -> None:
    layout = Layout(4, (LayerLayout(0, 0, 64, 64),), "bfloat16", "NHD")
    assert fingerprint(layout).hex() == "ae31ba5b984aa340ea3f1330b617765e"
