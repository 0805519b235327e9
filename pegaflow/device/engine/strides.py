"""A layout as the fewest strided copies that move one block between GPU memory and its page.

A layer's runs, and layers one after the other, mostly lie at equal distances.  So what is one
piece of a block for a copy of two dimensions (cudaMemcpy2DAsync) is found once per layout: runs
that touch, in the memory and in the page, are one; of runs at equal distances the longer row of
them is one copy, whichever of layers and segments it is, and all of them are where the next layer
begins as far behind the last segment as segments lie apart.

Copies of three dimensions (cudaMemcpy3DAsync) would make no fewer calls for any layout of vLLM's
(tests/device/engine/test_vllm_layouts.py): the distance of their slices has to be a multiple of
that of their rows, on both sides.  Only where heads lie outside of layers are there rows of rows,
and the page has them the other way round.

There are never more pieces than layers, however far apart rows lie and however many they are: what
an engine says of its memory must not take ours.  Rows that lie too far
apart for one copy stay one piece, and whoever copies them makes a call for each (methods.py).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import accumulate

from pegaflow.wire.layout import LayerLayout, Layout


@dataclass(frozen=True, slots=True)
class Rows:
    """A part of every block: `rows` pieces of `width` bytes at equal distances."""

    region: int
    offset: int  # in the region, of the first piece of block 0
    block_stride: int  # from a block's piece to the next block's
    page_at: int  # of the first piece in the page
    width: int
    rows: int = 1
    pitch: int = 0  # from a piece to the next, in the memory
    page_pitch: int = 0  # and in the page

    @property
    def page_end(self) -> int:
        """Where in the page it ends, if it is one piece."""
        return self.page_at + self.width


Placed = tuple[int, Rows]
"""A part of every block, and the address of its first piece in block 0."""


def pieces(layout: Layout) -> tuple[Rows, ...]:
    """What to copy of each block, about in the order of the page."""
    sizes = [layer.segments * layer.segment_bytes for layer in layout.layers]
    starts = accumulate(sizes, initial=0)
    found: list[Rows] = []
    alike: list[LayerLayout] = []  # layers at equal distances, of several segments each
    at = 0  # of the first of them in the page
    for layer, start in zip(layout.layers, starts, strict=False):
        layer = _dense(layer)
        if not _goes_on(alike, layer):
            found += _rows(alike, at)
            alike, at = [], start
        alike.append(layer)
    found += _rows(alike, at)
    return tuple(_threaded(_joined(found)))


def _dense(layer: LayerLayout) -> LayerLayout:
    """Segments that touch are one."""
    if layer.segments > 1 and layer.segment_stride != layer.segment_bytes:
        return layer
    whole = layer.segments * layer.segment_bytes
    return replace(layer, segments=1, segment_bytes=whole, segment_stride=0)


def _goes_on(alike: list[LayerLayout], layer: LayerLayout) -> bool:
    """Whether a layer continues the row of those before it."""
    if not alike:
        return True
    last = alike[-1]
    step = layer.offset - last.offset
    even = len(alike) < 2 or step == last.offset - alike[-2].offset
    return step >= last.segment_bytes and even and layer == replace(last, offset=layer.offset)


def _rows(alike: list[LayerLayout], at: int) -> Iterator[Rows]:
    """The copies of layers at equal distances: a row for each segment, or one for each layer."""
    if not alike:
        return
    one = alike[0]
    width, segments, count = one.segment_bytes, one.segments, len(alike)
    step = alike[1].offset - one.offset if count > 1 else 0
    first = Rows(one.region, one.offset, one.block_stride, page_at=at, width=width)
    if count > 1 and step == segments * one.segment_stride:  # one row goes on in the next layer
        pitch, rows = one.segment_stride, count * segments
        yield replace(first, rows=rows, pitch=pitch, page_pitch=width)
        return
    if count >= segments:
        for s in range(segments):
            yield replace(
                first,
                offset=one.offset + s * one.segment_stride,
                page_at=at + s * width,
                rows=count,
                pitch=step,
                page_pitch=segments * width,
            )
        return
    for number, layer in enumerate(alike):
        yield replace(
            first,
            offset=layer.offset,
            page_at=at + number * segments * width,
            rows=segments,
            pitch=layer.segment_stride,
            page_pitch=width,
        )


def _joined(found: list[Rows]) -> Iterator[Rows]:
    """Rows without a gap on either side are one piece, and so are pieces that touch."""
    last: Rows | None = None
    for rows in found:
        if rows.rows == 1 or rows.pitch == rows.page_pitch == rows.width:
            whole = rows.rows * rows.width
            rows = replace(rows, width=whole, rows=1, pitch=0, page_pitch=0)
        if last is not None and last.rows == rows.rows == 1 and _touch(last, rows):
            last = replace(last, width=last.width + rows.width)
            continue
        if last is not None:
            yield last
        last = rows
    if last is not None:
        yield last


def _touch(one: Rows, other: Rows) -> bool:
    there = (other.region, other.offset, other.block_stride)
    same = there == (one.region, one.offset + one.width, one.block_stride)
    return same and other.page_at == one.page_end


def _threaded(found: Iterable[Rows]) -> list[Rows]:
    """Single pieces of one length at equal distances are rows, whatever lies between them in the
    page: the latent vectors of all layers, and the keys of their indexers."""
    made: list[Rows] = []
    newest: dict[tuple[int, int, int], int] = {}  # of a kind, its place in `made`
    for rows in found:
        if rows.rows > 1:
            made.append(rows)
            continue
        kind = rows.region, rows.block_stride, rows.width
        longer = _longer(made[newest[kind]], rows) if kind in newest else None
        if longer is None:
            newest[kind] = len(made)
            made.append(rows)
        else:
            made[newest[kind]] = longer
    return made


def _longer(row: Rows, piece: Rows) -> Rows | None:
    """A row with one more piece at its end; None: it lies elsewhere."""
    last = row.rows - 1
    step = piece.offset - row.offset - last * row.pitch
    page_step = piece.page_at - row.page_at - last * row.page_pitch
    even = not last or (step, page_step) == (row.pitch, row.page_pitch)
    if not even or step < row.width:
        return None
    return replace(row, rows=row.rows + 1, pitch=step, page_pitch=page_step)
