"""Where an engine's KV blocks lie in its memory, and how a block becomes one page.

An engine registers regions of memory and, for each layer, a small arithmetic rule that says where
the bytes of block b are: `segments` runs of `segment_bytes`, the s-th at region offset
`offset + b * block_stride + s * segment_stride`. A page is the concatenation of these runs, over
layers first, then over segments. Nothing but this rule ever travels; both ends do the same
arithmetic.

A layout comes from another process, so `fault` judges it before anybody copies a byte by it: every
run inside its region, and no byte in two runs. The second is what keeps a load from overwriting a
neighbour's block. It is decided by arithmetic for everything that nests (layers one after the
other, layers interleaved inside a block, keys and values in separate planes) and by sorting all
runs for the rest.

Two engines may exchange pages when `fingerprint` agrees. It covers what gives the page its meaning:
the dtype, the name (which holds the order of the axes inside each layer's part of a page) and how
many bytes each layer has in it. It leaves out how many blocks there are, where they lie (region,
offset, strides) and into how many runs a layer is cut: an engine started again with more memory, or
with its layers, blocks and heads in another order in memory, still makes the same pages.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from itertools import pairwise
from struct import pack

from .message import record
from .units import Bytes, Constant, Count

PAGE_ALIGN: Bytes = 4096
"""Pages begin and end on this many bytes: what O_DIRECT asks of a buffer on every disk in use."""

MAP_NORESERVE: Constant = 0x4000
"""Of mmap(2), of every file that both sides map: nothing is counted for the mapping, for a pool of
huge pages may have given some back behind its end.  Python has no name for it; on x86-64, 64-bit
ARM and RISC-V it is this number."""

MAX_SORTED_RUNS: Count = 1 << 18
"""Runs that the sort-based check looks at; a layout with more is refused.  It takes half a second
on a busy host, and the session that checks is silent meanwhile.  Real layouts nest: none is sorted.
"""

MAX_FIELD: Count = 1 << 62
"""No field may exceed it, so that every sum fits the 64-bit integers of a message."""


@record
class LayerLayout:
    """The rule for one layer; all numbers are bytes except the two counts."""

    region: int  # index of the registered region that holds the layer
    offset: int  # of the first run of block 0, from the region's start
    block_stride: int  # from a run of one block to the same run of the next
    segment_bytes: int  # length of one run
    segments: int = 1  # runs per block
    segment_stride: int = 0  # from one run to the next within a block; unused when there is one


@record
class Layout:
    """All layers of one shard of an engine, in page order."""

    blocks: int  # blocks the engine has; valid ids are 0..blocks-1
    layers: tuple[LayerLayout, ...]  # in the order their bytes stand in a page
    dtype: str  # of the elements, as the engine names it
    name: str = ""  # what a layer's bytes in a page mean: order of axes and the like


def page_bytes(layout: Layout) -> int:
    """Bytes of one block, all layers together."""
    return sum(layer.segments * layer.segment_bytes for layer in layout.layers)


def page_size(layout: Layout) -> int:
    """Bytes of the page that holds one block: `page_bytes` rounded up to PAGE_ALIGN."""
    return -(-page_bytes(layout) // PAGE_ALIGN) * PAGE_ALIGN


def pieces(layout: Layout, block: int) -> tuple[tuple[int, int, int, int], ...]:
    """Where the block's bytes are: its runs, those that touch merged.

    Args:
        block: the engine's number of it.

    Returns:
        (region, offset in the region, length, offset in the page) of each run, in bytes and in the
        order of the page.
    """
    assert 0 <= block < layout.blocks
    merged: list[tuple[int, int, int, int]] = []
    region, start, length, at = -1, 0, 0, 0  # the run being grown; `at` is its page offset
    for layer in layout.layers:
        first = layer.offset + block * layer.block_stride
        for segment in range(layer.segments):
            offset = first + segment * layer.segment_stride
            if layer.region == region and offset == start + length:
                length += layer.segment_bytes
                continue
            if length:
                merged.append((region, start, length, at))
            region, start, at = layer.region, offset, at + length
            length = layer.segment_bytes
    if length:
        merged.append((region, start, length, at))
    return tuple(merged)


def fingerprint(layout: Layout) -> bytes:
    """16 bytes that are equal when two layouts cut pages of the same meaning (see above)."""
    digest = blake2b(digest_size=16, person=b"pegaflow.layout")
    for text in (layout.dtype, layout.name):
        raw = text.encode()
        digest.update(pack("<Q", len(raw)) + raw)
    for layer in layout.layers:
        digest.update(pack("<QQ", layer.segment_bytes * layer.segments, 1))
    return digest.digest()


def alike(one: Layout, other: Layout) -> bool:
    """Whether both cut pages of the same dtype and the same runs, whatever these are called."""
    cuts = [[(lay.segment_bytes, lay.segments) for lay in each.layers] for each in (one, other)]
    return one.dtype == other.dtype and cuts[0] == cuts[1]


def fault(layout: Layout, region_bytes: Sequence[int]) -> str:
    """What is wrong with the layout over these regions.

    Args:
        region_bytes: size of each registered region.

    Returns:
        One line; '' if the layout is sound: nothing overruns its region, and no two pieces overlap.
    """
    if not 1 <= layout.blocks <= MAX_FIELD:
        return f"the layout has {layout.blocks} blocks"
    if not layout.layers:
        return "the layout has no layers"
    for index, layer in enumerate(layout.layers):
        wrong = _layer_fault(layer, layout.blocks, region_bytes)
        if wrong:
            return f"layer {index} {wrong}"
    return _overlap_fault(layout)


def _layer_fault(layer: LayerLayout, blocks: int, region_bytes: Sequence[int]) -> str:
    if not 0 <= layer.region < len(region_bytes):
        return f"lies in region {layer.region}, and there are {len(region_bytes)} regions"
    fields = (
        ("offset", layer.offset, 0),
        ("block_stride", layer.block_stride, 1),
        ("segment_bytes", layer.segment_bytes, 1),
        ("segments", layer.segments, 1),
        ("segment_stride", layer.segment_stride, 1 if layer.segments > 1 else 0),
    )
    for name, value, least in fields:
        if not least <= value <= MAX_FIELD:
            return f"has {name} {value}, outside {least}..{MAX_FIELD}"
    last = layer.offset + (blocks - 1) * layer.block_stride
    end = last + (layer.segments - 1) * layer.segment_stride + layer.segment_bytes
    size = region_bytes[layer.region]
    return f"overruns its region: it ends at byte {end} of {size}" if end > size else ""


@dataclass(frozen=True, slots=True)
class _Lattice:
    """Runs of one layer: `length` bytes from `start`, repeated by each of `steps`."""

    layer: int  # index in the layout, for the message
    start: int  # region offset of the first run
    steps: tuple[tuple[int, int], ...]  # (stride, count > 1), the longest stride first
    length: int  # bytes of one run

    @property
    def end(self) -> int:
        return self.start + sum(s * (n - 1) for s, n in self.steps) + self.length

    def inner(self) -> "_Lattice":
        """The first of the outermost repeats."""
        return _Lattice(self.layer, self.start, self.steps[1:], self.length)


def _overlap_fault(layout: Layout) -> str:
    regions: dict[int, list[_Lattice]] = {}
    for index, layer in enumerate(layout.layers):
        steps = [(layer.block_stride, layout.blocks), (layer.segment_stride, layer.segments)]
        real = tuple(sorted((step for step in steps if step[1] > 1), reverse=True))
        lattice = _Lattice(index, layer.offset, real, layer.segment_bytes)
        regions.setdefault(layer.region, []).append(lattice)
    for lattices in regions.values():
        wrong = _overlap(lattices)
        if wrong:
            return wrong
    return ""


def _overlap(lattices: list[_Lattice]) -> str:
    """Falls apart into groups whose spans touch nothing else; a group that repeats as a whole, with
    a stride no shorter than itself, is as sound as its first repeat."""
    for group in _groups(lattices):
        if len(group) == 1 and not group[0].steps:
            continue
        if not any(lattice.steps for lattice in group):
            return _overlap_line(group[0].layer, group[1].layer)
        outer = {lattice.steps[:1] for lattice in group}
        if len(outer) == 1:
            first = [lattice.inner() for lattice in group]
            span = max(lattice.end for lattice in first) - group[0].start
            (step,) = outer.pop()
            if span <= step[0]:
                wrong = _overlap(first)
                if wrong:
                    return wrong
                continue
        wrong = _sorted_overlap(group)
        if wrong:
            return wrong
    return ""


def _groups(lattices: list[_Lattice]) -> Iterator[list[_Lattice]]:
    """Lattices by start, split wherever the next begins at or after the end of all before it."""
    group: list[_Lattice] = []
    end = 0
    for lattice in sorted(lattices, key=lambda one: one.start):
        if group and lattice.start >= end:
            yield group
            group = []
        group.append(lattice)
        end = max(end, lattice.end)
    if group:
        yield group


def _sorted_overlap(group: list[_Lattice]) -> str:
    """Exact: all runs of the group in order, each beside the next."""
    total = 0
    for lattice in group:
        runs = 1
        for _, count in lattice.steps:
            runs *= count
        total += runs
    if total > MAX_SORTED_RUNS:
        return f"the layout is too irregular to check: {total} runs that do not nest"
    ordered = sorted(run for lattice in group for run in _runs(lattice))
    for (_, end, one), (start, _, other) in pairwise(ordered):
        if start < end:
            return _overlap_line(one, other)
    return ""


def _runs(lattice: _Lattice) -> Iterator[tuple[int, int, int]]:
    """Each run as (start, end, layer)."""
    starts = [lattice.start]
    for stride, count in lattice.steps:
        starts = [start + stride * i for start in starts for i in range(count)]
    return ((start, start + lattice.length, lattice.layer) for start in starts)


def _overlap_line(one: int, other: int) -> str:
    if one == other:
        return f"pieces of layer {one} overlap each other"
    return f"layers {min(one, other)} and {max(one, other)} overlap"
