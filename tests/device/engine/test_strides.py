"""Strided copies of a block: what the layout says, in as few calls as it allows."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pegaflow.device.engine.strides import pieces
from pegaflow.wire.layout import LayerLayout, Layout

from .moves import meant, touched

BLOCKS, RUN, LAYERS = 5, 16, 4


def layout(layers: Sequence[LayerLayout], blocks: int = BLOCKS) -> Layout:
    return Layout(blocks, tuple(layers), "uint8")


PLANE = BLOCKS * RUN
KV_FIRST = [
    LayerLayout(0, n * 2 * PLANE, RUN, RUN, segments=2, segment_stride=PLANE) for n in range(LAYERS)
]
KV_FIRST_EACH = [
    LayerLayout(n, 0, RUN, RUN, segments=2, segment_stride=PLANE) for n in range(LAYERS)
]
LAYERS_FIRST = [LayerLayout(0, n * PLANE, RUN, RUN) for n in range(LAYERS)]
BLOCKS_FIRST = [LayerLayout(0, n * RUN, LAYERS * RUN, RUN) for n in range(LAYERS)]
PADDED = [LayerLayout(0, n * 2 * RUN, 2 * LAYERS * RUN, RUN) for n in range(LAYERS)]
HEADS = [LayerLayout(0, 0, RUN, RUN, segments=6, segment_stride=PLANE)]
MIXED = [*BLOCKS_FIRST, LayerLayout(1, 0, RUN // 2, RUN // 2), LayerLayout(1, 64, 8, 8)]
REVERSED = LAYERS_FIRST[::-1]
TWO_KINDS = [
    LayerLayout(0, at * PLANE + kind * 4 * RUN, 8 * RUN, (kind + 1) * RUN)
    for at in (0, 1, 3, 5)
    for kind in (0, 1)
]
UNEVEN = [LayerLayout(0, at * PLANE, RUN, RUN) for at in (0, 1, 3, 4)]


@pytest.mark.parametrize(
    ("layers", "calls"),
    [
        (KV_FIRST, 1),
        (KV_FIRST_EACH, LAYERS),
        (LAYERS_FIRST, 1),
        (BLOCKS_FIRST, 1),
        (PADDED, 1),
        (HEADS, 1),
        (MIXED, 2),
        (REVERSED, LAYERS),
        (UNEVEN, 2),
        (TWO_KINDS, 4),
    ],
)
def test_layouts_of_engines_take_few_calls(layers: list[LayerLayout], calls: int) -> None:
    cut = layout(layers)
    assert len(pieces(cut)) == calls
    for block in range(BLOCKS):
        assert sorted(touched(cut, block)) == sorted(meant(cut, block))


def test_rows_that_touch_on_both_sides_are_one_piece() -> None:
    (whole,) = pieces(layout(BLOCKS_FIRST))
    assert (whole.width, whole.rows) == (LAYERS * RUN, 1)


def test_rows_are_one_piece_however_far_apart_and_however_many_they_are() -> None:
    far = [LayerLayout(0, n << 40, RUN, RUN) for n in range(3)]
    assert [(p.rows, p.pitch) for p in pieces(layout(far))] == [(3, 1 << 40)]
    many = [LayerLayout(0, 0, 1, 1, segments=1 << 40, segment_stride=1 << 32)] * 3
    assert [p.rows for p in pieces(layout(many))] == [1 << 40] * 3


@st.composite
def some_layers(draw: st.DrawFn) -> list[LayerLayout]:
    """Layers without order, of which some lie at equal distances."""
    found: list[LayerLayout] = []
    while len(found) < 6 and (not found or draw(st.booleans())):
        segments, width = draw(st.integers(1, 3)), draw(st.sampled_from((4, 8)))
        stride = draw(st.sampled_from((width, width + 4, 40))) if segments > 1 else 0
        block = draw(st.sampled_from((200, 8)))
        start, step = draw(st.integers(0, 400)), draw(st.sampled_from((width, 64, 120)))
        region = draw(st.integers(0, 1))
        for n in range(draw(st.integers(1, 4))):
            found.append(
                LayerLayout(
                    region,
                    start + n * step,
                    block,
                    width,
                    segments=segments,
                    segment_stride=stride,
                )
            )
    return found


@given(some_layers(), st.integers(0, BLOCKS - 1))
def test_every_byte_goes_where_the_layout_says(layers: list[LayerLayout], block: int) -> None:
    cut = layout(layers)
    assert sorted(touched(cut, block)) == sorted(meant(cut, block))
    assert all(p.rows == 1 or p.width <= min(p.pitch, p.page_pitch) for p in pieces(cut))
